"""Runs exported with their marginals alone: the same maps to the bit, fewer bytes, all damage found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import i2am as front
from i2am.analysis.maps.question import LEVELS
from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.analysis.marginals.store import marginals_path
from i2am.analysis.marginals.verify import check_marginals
from i2am.analysis.study.export_run import export
from i2am.storage.errors import AlreadyExists, DamagedSample, DamageError, InputError, NoAnswer, UnknownName
from i2am.storage.locations.open import locate
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.create import resume_run
from tests.analysis.builders import build, layer
from tests.flows.conftest import Outcome, config, i2am  # noqa: F401 - fixtures

SAMPLES = ("one", "two", "three/3")
LAYERS = [
    layer("down", heads=2, gen=(4, 3), ref=(3, 2), ref_prefix=1),
    layer("mid", heads=2, gen=(8, 6), ref=(4, 4), static_key=False, dtype="bfloat16"),
    layer("joint", heads=2, gen=(4, 3), ref=(4, 3), lse=True),
    layer("pooled", heads=2, gen=(4, 3), ref=(0, 0), ref_prefix=1),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("source") / "run.zarr"
    build(path, LAYERS, steps=6, samples=SAMPLES, images=True, attrs={"model": "m"})
    return open_run(path)


@pytest.fixture(scope="module")
def exported(source: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(source, tmp_path_factory.mktemp("new") / "new.zarr", marginals=True).path)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """An exported run to be damaged at will, with its marginals."""
    for name in ("new.zarr", "new.marginals.zarr"):
        shutil.copytree(exported.with_name(name), tmp_path / name)
    shared_cache.clear()
    return tmp_path / "new.zarr"


def questions(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    """Every map that is a mean of marginals."""
    found = {}
    for direction in ("r2g", "g2r"):
        for level in LEVELS:
            at = {"r2g": "reference_mask", "g2r": "mask"}[direction] if level == "specific" else None
            for size in (None, (16, 12)):
                maps = front.attribution_maps(run, direction, level, at=at, size=size)
                found[f"{direction} {level} {size}"] = maps.to_numpy()
    for method in ("joint", "daam"):
        found[method] = front.attribution_maps(run, "r2g", layers="joint", method=method).to_numpy()
    found["part"] = front.attribution_maps(run, "r2g", layers="m*", steps=[1, 4], heads=[0]).to_numpy()
    official = front.attribution_maps(run, "g2r", layers="mid", protocol="official")
    return found | {"official g2r": official.to_numpy()}


def test_every_map_is_the_source_s_to_the_bit(source: Run, exported: Path) -> None:
    wanted = questions(source)
    shared_cache.clear()
    made = open_run(exported)
    assert not list(exported.glob("attention/*/*/c.*"))
    assert not list(exported.parent.glob(".*"))
    found = questions(made)
    assert found.keys() == wanted.keys()
    assert len(wanted) == 24
    for name, values in wanted.items():
        assert np.isfinite(values).all(), name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    for sample in made.samples:
        assert made.fingerprint(sample) == source.fingerprint(sample)
        assert made.record(sample) == source.record(sample)
        np.testing.assert_array_equal(made.image("mask", sample), source.image("mask", sample))
        made.check(sample)
    assert {**made.attrs, "digest": 0, "kept": 0} == {**source.attrs, "digest": 0, "kept": 0}


def test_marginals_that_exist_are_copied_and_the_run_s_own_folder_is_left_alone(
    source: Run, exported: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(source.path, tmp_path / "run.zarr"))
    export(run, tmp_path / "a.zarr", marginals=True, samples=["one"])
    assert not (tmp_path / "run.marginals.zarr").exists()
    assert front.open_run(tmp_path / "a.zarr").samples == ("one",)
    shutil.rmtree(run / "attention/mid/query")  # without its attention only what is stored can be exported
    with pytest.raises(DamageError):
        export(run, tmp_path / "b.zarr", marginals=True)
    again = export(exported, tmp_path / "b.zarr", marginals=True, samples=["two"])
    want = front.attribution_maps(source, "r2g", samples="two").to_numpy()
    np.testing.assert_array_equal(front.attribution_maps(again, "r2g").to_numpy(), want)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.marginals.zarr", "a.zarr", "b.marginals.zarr", "b.zarr", "run.zarr")
    ]


def test_it_is_a_fraction_of_the_source(tmp_path: Path) -> None:
    """In bytes: of each row of queries and of keys, by step and head, one number is left."""
    wide = layer("wide", heads=2, head_dim=64, gen=(16, 16), ref=(8, 8), representation="factors")
    build(tmp_path / "run.zarr", [wide], steps=8)
    planned = front.plan([wide], list(range(8)), ["one"]).sample_bytes
    export(tmp_path / "run.zarr", tmp_path / "new.zarr", marginals=True)
    size = {
        name: sum(
            file.stat().st_size
            for file in (tmp_path / name).rglob("*")
            if file.is_file() and file.name != "zarr.json"
        )
        for name in ("new.zarr", "new.marginals.zarr")
    }
    numbers = 8 * 2 * (16 * 16 + 8 * 8)  # r2g and g2r, by step and head
    assert size["new.marginals.zarr"] == 4 * numbers + 2 * 32  # and their seals
    assert sum(size.values()) < 0.1 * planned


@pytest.mark.parametrize("part", ["image", "record", "metadata", "root", "values", "seal", "layer document"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_damage_is_found(copy: Path, i2am: Callable[..., Outcome], part: str, harm: str) -> None:  # noqa: F811
    beside = copy.with_name("new.marginals.zarr")
    victim = {
        "image": copy / "images/mask/c.1.0.0.0",
        "record": copy / "commits/two.json",
        "metadata": copy / "attention/mid/query/zarr.json",
        "root": copy / "zarr.json",
        "values": beside / "mid/g2r/c/1/0/0/0",
        "seal": beside / "mid/seal/c/1/0/0",
        "layer document": beside / "mid/zarr.json",
    }[part]
    content = victim.read_bytes()
    if harm == "delete":
        victim.unlink()
    elif harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = i2am("verify", copy, "--json", "--quiet")
    assert found.status == 1, found
    problems = found.json["problems"] if found.out else []
    if part in ("image", "record", "values", "seal"):
        assert {problem["sample"] for problem in problems} == {"two"}
    if part in ("values", "seal"):
        assert {problem["layer"] for problem in problems} == {"mid"}
        assert len(check_marginals(open_run(copy))) == 1
        if part == "values":
            with pytest.raises(DamagedSample, match="sample 'two', layer 'mid' .*export it again"):
                front.attribution_maps(open_run(copy), "g2r", layers="mid").compute()


def test_analyze_goes_on_without_a_sample_whose_marginals_are_damaged(
    copy: Path,
    tmp_path: Path,
    i2am: Callable[..., Outcome],  # noqa: F811
) -> None:
    (copy.with_name("new.marginals.zarr") / "down/r2g/c/0/0/0/0").write_bytes(b"")
    done = i2am("analyze", copy, "--out", tmp_path / "out", "--json", "--quiet", "--aggregation", "entropy")
    assert done.status == 1
    assert done.json["samples"] == ["two", "three/3"]
    assert "exported without the attention" in done.json["refusals"][0]["reason"]
    assert [line for line in done.json["absent"] if "expected a run with its attention" in line]


def test_whatever_needs_attention_is_refused_in_one_line(
    exported: Path,
    tmp_path: Path,
    i2am: Callable[..., Outcome],  # noqa: F811
    config: Callable[..., Path],  # noqa: F811
) -> None:
    run = open_run(exported)
    for ask in (
        lambda: run.read("mid", "one"),
        lambda: run.scores("mid"),
        lambda: run.lse("joint"),
        lambda: front.attribution_maps(run, "g2r", "specific", at=(1, 1)),
        lambda: front.attribution_maps(run, "r2g", protocol="official"),
        lambda: front.aggregate(run, "entropy"),
        lambda: front.prune(run, tmp_path / "p.zarr"),
        lambda: resume_run(exported),
        lambda: export(run, tmp_path / "p.zarr", samples=["one"]),
    ):
        with pytest.raises(NoAnswer, match="its marginals alone; ask the run that it was exported from"):
            ask()
    out = tmp_path / "F.npz"
    i2am("maps", exported, "--level", "specific", "--at", "1,1", "--out", out).refused("with its attention")
    i2am("prune", exported, "--out", tmp_path / "p.zarr").refused("with its attention")
    i2am("capture", config(), "--out", exported, "--direct").refused("capturing into it")
    assert list(tmp_path.glob("*.zarr")) == []


def test_targets_that_hold_something_are_refused_and_untouched(source: Run, tmp_path: Path) -> None:
    for name in ("new.zarr", "new.marginals.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
        with pytest.raises(AlreadyExists):
            export(source, tmp_path / "new.zarr", marginals=True)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name / "mine").read_text() == "mine"
        shutil.rmtree(tmp_path / name)
    with pytest.raises(AlreadyExists):
        export(source, Path(source.path) / "inside.zarr", marginals=True)
    with pytest.raises(UnknownName):
        export(source, tmp_path / "new.zarr", marginals=True, samples=["four"])
    with pytest.raises(InputError, match="neither"):
        export(source, tmp_path / "new.zarr")


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_nothing_remains_of_an_export_that_fails(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import fsspec

    out = str(tmp_path / "new.zarr") if place == "disk" else f"memory://{tmp_path.name}/new.zarr"

    def interrupt(event: object) -> None:
        if getattr(event, "stage", "") == "export" and getattr(event, "done", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, out, marginals=True, on_event=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert not fsspec.filesystem("memory").find(f"/{tmp_path.name}")
    made = export(source, out, marginals=True)
    assert verify(out).ok
    want = front.attribution_maps(source, "g2r").to_numpy()
    np.testing.assert_array_equal(front.attribution_maps(made, "g2r").to_numpy(), want)


def test_the_command(source: Run, tmp_path: Path, i2am: Callable[..., Outcome]) -> None:  # noqa: F811
    done = i2am("export", source.path, "--out", tmp_path / "new.zarr", "--marginals", "--json")
    assert done.status == 0, done.err
    assert done.json["samples"] == list(SAMPLES)
    assert done.json["marginals"] == str(tmp_path / "new.marginals.zarr")
    assert done.json["bytes"]["after"] > 0
    assert "export 3/3" in done.err
    facts = i2am("inspect", tmp_path / "new.zarr", "--json").json
    assert facts["provenance"]["kept"] == "marginals"
    assert facts["bytes"] == sum(
        file.stat().st_size for file in (tmp_path / "new.zarr/images").rglob("c.*") if file.is_file()
    )
    assert i2am("verify", tmp_path / "new.zarr", "--quiet").status == 0
    assert i2am("imacs", tmp_path / "new.zarr", "--json").status == 0
    whole = i2am("export", source.path, "--out", tmp_path / "one.zarr", "--sample", "two", "--quiet")
    assert whole.out.startswith(f"{tmp_path}/one.zarr: 1 sample with attention")
    np.testing.assert_array_equal(
        open_run(tmp_path / "one.zarr").read("mid", "two").logits(), source.read("mid", "two").logits()
    )
    i2am("export", source.path, "--out", tmp_path / "x.zarr").refused("neither")
    i2am("export", source.path, "--out", tmp_path / "new.zarr", "--marginals").refused("already exists")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_export_that_was_killed_between_its_two_places_is_done_again(
    source: Run, tmp_path: Path, place: str
) -> None:
    """The marginals were in place, the run was not; the next one holds another sample."""
    out = str(tmp_path / "new.zarr") if place == "local" else f"memory://{tmp_path.name}/new.zarr"
    beside = locate(marginals_path(out))
    export(source, out, marginals=True)
    remove(out)
    assert beside.size("zarr.json") is not None
    again = export(source, out, marginals=True, samples=["two"])
    assert again.samples == ("two",)
    index = source.position("two")
    values = [path for path, _ in beside.files() if "/c/" in path]
    assert values
    assert all(f"/c/{index}/" in path for path in values), "the others are not shared"
    want = front.attribution_maps(source, "r2g", samples="two").to_numpy()
    np.testing.assert_array_equal(front.attribution_maps(again, "r2g").to_numpy(), want)
    if place == "local":
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new.marginals.zarr", "new.zarr"]


def test_what_is_not_left_by_an_export_of_this_run_is_left_alone(source: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.zarr"
    build(other, [layer("mid")], steps=2)
    export(other, tmp_path / "new.zarr", marginals=True)
    remove(tmp_path / "new.zarr")
    with pytest.raises(AlreadyExists, match=r"new\.marginals\.zarr already exists"):
        export(source, tmp_path / "new.zarr", marginals=True)
    assert (tmp_path / "new.marginals.zarr/zarr.json").exists()


def remove(path: str | Path) -> None:
    place = locate(path)
    for name, _ in list(place.files()):
        place.remove(name)
    if place.root is not None:
        shutil.rmtree(place.root)
