"""Many samples, many writers, many layers: few files, few reads, and the same bytes whoever writes them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import pytest

import i2am
from i2am.flows.console.describe_run import describe
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.locations.local import LocalLocation
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, fill

WRITERS = (1, 2, 4)
SAMPLES = [f"sample/{number}" for number in range(9)]

KINDS = {
    "keys once": {},
    "keys at each step": {"static_key": False},
    "joint softmax": {"static_key": False, "lse": True},
    "scores": {"representation": "scores"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(4, 4), (64, 48)])
def test_files_of_a_sample_of_sixteen_layers_and_fifty_steps_stay_below_64(tmp_path, kind, grid):
    """As planned, for small and large layers; and as written, for small ones."""
    ref = (3, 3) if grid == (4, 4) else grid
    layers = [LayerSpec(f"layer{n}", 2, 4, grid, ref, 1, **KINDS[kind]) for n in range(16)]
    predicted = i2am.plan(layers, range(50), SAMPLES, IMAGES).sample_files
    assert predicted < 64
    if grid != (4, 4):
        return
    with i2am.create_run(tmp_path / "run.zarr", layers, range(50), ["a"], image_shapes=IMAGES) as run:
        empty = set(run_files(tmp_path / "run.zarr"))
        with run.sample("a") as sink:
            fill(sink, layers, range(50), IMAGES)
    written = set(run_files(tmp_path / "run.zarr")) - empty
    assert len(written) == predicted


def run_files(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()]


def write_share(path: Path, samples: list[str]) -> None:
    with i2am.resume_run(path) as run:
        for sample in samples:
            with run.sample(sample) as sink:
                fill(sink, LAYERS, range(len(TIMESTEPS)), IMAGES)


def test_a_run_is_equal_whatever_the_number_of_writers(tmp_path):
    """Every file but the records, byte for byte; and the records, but for the time of the commit."""
    empty = tmp_path / "empty.zarr"
    i2am.create_run(empty, LAYERS, TIMESTEPS, SAMPLES, image_shapes=IMAGES).close()
    context = multiprocessing.get_context("spawn")
    for count in WRITERS:
        path = Path(shutil.copytree(empty, tmp_path / f"{count}.zarr"))
        shares = [SAMPLES[number::count] for number in range(count)]
        processes = [context.Process(target=write_share, args=(path, share)) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        report = i2am.verify(path)
        assert report.ok, report.problems
        assert not report.notes
    contents = {count: content(tmp_path / f"{count}.zarr") for count in WRITERS}
    assert len([name for name in contents[1] if name.startswith("commits/")]) == len(SAMPLES)
    assert contents[1] == contents[2] == contents[4]


def content(path: Path) -> dict[str, object]:
    """File name to bytes; a record without its time and the digest over it."""
    found: dict[str, object] = {}
    for file in run_files(path):
        name, data = file.relative_to(path).as_posix(), file.read_bytes()
        if name.startswith("commits/"):
            record = json.loads(data)
            assert record.pop("committed")
            assert record.pop("digest")
            found[name] = record
        else:
            found[name] = data
    return found


def test_a_large_run_is_looked_through_with_few_reads(tmp_path, monkeypatch):
    """Opening and listing read one file, whatever there is; all else reads each record once."""
    names = [f"s{number:04}" for number in range(300)]
    layer = LayerSpec("a", 1, 2, (1, 1), (1, 1))
    with i2am.create_run(tmp_path / "run.zarr", [layer], [1], names, image_shapes=IMAGES) as writer:
        for name in names[:-1]:
            with writer.sample(name) as sink:
                fill(sink, [layer], range(1), IMAGES)
    reads: Counter[str] = Counter()
    read = LocalLocation.read

    def counted(self, path, *rest):
        reads[path] += 1
        return read(self, path, *rest)

    monkeypatch.setattr(LocalLocation, "read", counted)
    run = i2am.open_run(tmp_path / "run.zarr")
    assert (len(run.samples), len(run.declared)) == (299, 300)
    with i2am.resume_run(tmp_path / "run.zarr") as writer:
        assert writer.missing == (names[-1],)
    assert reads == {"zarr.json": 2}
    facts = describe(run)
    assert (facts["samples"]["committed"], facts["files"]) == (299, 299 * (1 + len(IMAGES)))
    for sample in run.samples:
        run.check(sample)
    assert max(reads.values()) == 2
    assert reads.total() < 299 + 20
