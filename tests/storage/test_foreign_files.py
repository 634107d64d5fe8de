"""What other programs leave in a run: sound data stays readable, and `verify` tells foreign from damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zarr

import i2am
from i2am.storage.errors import DamagedRun
from i2am.storage.locations.open import locate
from i2am.storage.tools.export_without_attention import copy_without_attention
from i2am.storage.tools.verify import verify
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, check_values, fill, write_run

LAYER = f"attention/{LAYERS[0].name}"
JUNK = (".DS_Store", "._a.json", "._zarr.json", "Thumbs.db", "desktop.ini", ".nfs0000000000000001", "c.txt")

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "run.zarr"
    write_run(path, ["a"])
    return path


@pytest.fixture
def run(tmp_path, undamaged):
    return Path(shutil.copytree(undamaged, tmp_path / "run.zarr"))


def add_junk(run):
    for folder in [run, *(path for path in run.rglob("*") if path.is_dir())]:
        for name in JUNK:
            (folder / name).write_bytes(b"\xff of a file manager")


def add_attribute(run, below=""):
    zarr.open(run / below, mode="r+").attrs["note"] = {"by": "a reader", "rate": 0.5}


FOREIGN = {
    "junk": add_junk,
    "consolidated root": lambda run: zarr.consolidate_metadata(run),
    "consolidated images": lambda run: zarr.consolidate_metadata(run / "images"),
    "root attribute": add_attribute,
    "layer attribute": lambda run: add_attribute(run, LAYER),
    "array attribute": lambda run: add_attribute(run, f"{LAYER}/query"),
    "image attribute": lambda run: add_attribute(run, "images/generated"),
    "late image attribute": lambda run: add_attribute(run, "images/extra"),
    "array of their own": lambda run: zarr.open_group(run, mode="r+").create_array(
        "m", shape=(2,), dtype="f4"
    ),
    "root written anew": lambda run: (run / "zarr.json").write_text(
        json.dumps(json.loads((run / "zarr.json").read_text()))
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_sound_data_stays_readable_writable_and_verifiable(run, kind, tmp_path):
    with i2am.create_run(tmp_path / "two.zarr", LAYERS, TIMESTEPS, ["a", "b"], image_shapes=IMAGES) as writer:
        writer.add_image("extra", (2, 3, 4))
        with writer.sample("a") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)), {**IMAGES, "extra": (2, 3, 4)})
    run = tmp_path / "two.zarr"
    FOREIGN[kind](run)
    opened = i2am.open_run(run)
    check_values(opened)
    opened.check("a")
    report = i2am.verify(run)
    assert (report.ok, report.samples) == (True, 1), report.problems
    assert any("not part of the store" in note or "another program" in note for note in report.notes)
    with i2am.resume_run(run) as again:
        again.add_image("extra", (2, 3, 4))
        with again.sample("b") as sink:
            fill(sink, LAYERS, range(len(TIMESTEPS)), IMAGES)
    check_values(i2am.open_run(run))
    assert i2am.verify(run).ok
    copy_without_attention(i2am.open_run(run), locate(tmp_path / "shared.zarr"), ["a"])
    assert verify(tmp_path / "shared.zarr").ok  # of the store alone: no marginals were put beside it


def change(run: Path, path: str, to) -> None:
    document = json.loads((run / path).read_text())
    to(document)
    (run / path).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (f"{LAYER}/query/zarr.json", lambda d: d.update(data_type="float64")),
        (f"{LAYER}/query/zarr.json", lambda d: d.update(shape=[1, 1, 1, 1, 1], attributes={"note": 1})),
        (f"{LAYER}/zarr.json", lambda d: d["attributes"].update(heads=77)),
        (f"{LAYER}/zarr.json", lambda d: d["attributes"].pop("scale")),
        ("images/generated/zarr.json", lambda d: d.update(dimension_names=["a", "b", "c", "d"])),
        ("images/zarr.json", lambda d: d.update(node_type="array")),
    ],
)
def test_what_was_changed_is_damage(run, path, to):
    change(run, path, to)
    assert [problem.path for problem in i2am.verify(run).problems] == [path]
    with pytest.raises(DamagedRun, match="zarr.json is damaged"):
        i2am.open_run(run).check("a")


@pytest.mark.parametrize(
    "to",
    [
        lambda d: d["attributes"]["i2am"].update(model="another"),
        lambda d: d["attributes"]["i2am"].update(more=1),
        lambda d: d["attributes"]["i2am"].update(rate=float("nan")),
        lambda d: d.update(zarr_format=2),
        lambda d: d.update(node_type="array"),
    ],
)
def test_a_changed_root_is_damage(run, to):
    change(run, "zarr.json", to)
    with pytest.raises(DamagedRun, match=r"zarr\.json is damaged"):
        i2am.open_run(run)
    assert not i2am.verify(run).ok
