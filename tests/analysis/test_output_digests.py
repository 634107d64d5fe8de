"""What lies in a directory of results is what was written, or it is made anew and `verify` names it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.analysis import output_directory
from i2am.analysis.drawing.save_maps import save_maps
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.options import StudyOptions
from i2am.analysis.output_digests import changed_files, read_mark, write_mark
from i2am.analysis.output_directory import OutputKind, alone_in
from i2am.analysis.output_directory import output_directory as opened_directory
from i2am.analysis.study.study import analyze
from i2am.storage.errors import AlreadyExists, InputError
from tests.analysis.builders import build, layer

LAYERS = [layer("a", gen=(6, 4), ref=(4, 3))]
OPTIONS = StudyOptions(figures=1, details=0, aggregations=("entropy",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("digests") / "run.zarr"
    return build(path, LAYERS, samples=("one", "two"), images=True)[0]


@pytest.fixture(scope="module")
def study(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("digests") / "out"
    analyze(run, out, OPTIONS)
    return out


@pytest.fixture
def out(study, tmp_path):
    """A copy of the study, to do with as one likes."""
    return shutil.copytree(study, tmp_path / "out")


def flip(path, at=0.5, bit=3):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def test_one_flipped_bit_anywhere_is_found_and_named(study):
    report = i2am.verify(study)
    assert report.ok
    assert report.samples == 2
    files = [path for path in study.rglob("*") if path.is_file()]
    assert report.files == len(files)
    assert report.bytes == sum(path.stat().st_size for path in files)
    for number, path in enumerate(files):
        before = path.read_bytes()
        flip(path, (number % 7) / 6, number % 8)
        problems = i2am.verify(study).problems
        assert [problem.path for problem in problems] == [path.relative_to(study).as_posix()]
        path.write_bytes(before)
    assert i2am.verify(study).ok


@pytest.mark.parametrize(
    "name",
    [
        "maps.zarr/r2g/unified/c/0/0/0",
        "maps.zarr/zarr.json",
        "aggregations.zarr/entropy/value/c/0/0/0/0",
        "tables/summary.parquet",
        "study.json",
    ],
)
def test_a_study_with_a_flipped_bit_is_made_anew(run, out, name):
    assert analyze(run, out, OPTIONS).up_to_date
    kept = (out / name).read_bytes()
    flip(out / name)
    assert not analyze(run, out, OPTIONS).up_to_date
    assert (out / name).read_bytes() == kept or name == "study.json"
    assert i2am.verify(out).ok


def test_missing_and_strange_files_are_named_and_hidden_ones_are_nobodys_business(run, out):
    (out / "maps.zarr" / ".DS_Store").write_bytes(b"x")
    (out / "notes.txt").write_text("mine")
    assert analyze(run, out, OPTIONS).up_to_date
    (out / "maps.zarr/r2g/unified/c/9").mkdir()
    (out / "maps.zarr/r2g/unified/c/9/0").write_bytes(b"x")
    (out / "tables/head.parquet").unlink()
    assert [str(problem) for problem in i2am.verify(out).problems] == [
        "output maps.zarr/r2g/unified/c/9/0: is no part of what was written",
        "output tables/head.parquet: is missing",
    ]
    assert not analyze(run, out, OPTIONS).up_to_date
    assert i2am.verify(out).ok


def test_a_note_of_an_earlier_version_has_no_digests(run, out):
    facts = json.loads((out / "study.json").read_bytes())
    del facts["outputs"], facts["digest"]
    (out / "study.json").write_text(json.dumps(facts))
    assert [problem.path for problem in i2am.verify(out).problems] == ["study.json"]
    assert not analyze(run, out, OPTIONS).up_to_date


def test_a_comparison_is_verified_too(run, tmp_path):
    i2am.compare(run, run, tmp_path / "out", store=False, details=1)
    assert i2am.verify(tmp_path / "out").ok
    flip(tmp_path / "out" / "tables" / "scores.parquet")
    assert [problem.path for problem in i2am.verify(tmp_path / "out").problems] == ["tables/scores.parquet"]


KIND = OutputKind("a thing", ("one", "two", "thing.json"), "thing.json")
OTHER = OutputKind("another", ("two", "three", "other.json"), "other.json")


def fill(made: Path, kind: OutputKind, text: str) -> Path:
    made.mkdir()
    for name in kind.outputs[:-1]:
        (made / name).mkdir()
        (made / name / "value").write_text(text)
    write_mark(made, kind.outputs, kind.mark, {"samples": [text]})
    return made


def test_results_that_are_published_at_once_are_never_mixed(tmp_path, monkeypatch):
    """Eight threads, each with its own content, again and again: whatever is there belongs to one of them."""
    monkeypatch.setattr(output_directory, "WAIT_SECONDS", 250.0)  # a busy machine may let one wait for long
    out, failures = tmp_path / "out", []
    start = threading.Barrier(8)

    def publish(number):
        try:
            start.wait()
            for turn in range(10):
                with opened_directory(out, KIND, overwrite=False) as place:
                    place.publish(fill(place.staging / "made", KIND, f"{number}-{turn}"))
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    facts = read_mark(out / "thing.json")
    assert list(changed_files(out, facts)) == []
    assert {(out / name / "value").read_text() for name in ("one", "two")} == set(facts["samples"])
    assert {path.name for path in out.iterdir()} == set(KIND.outputs)


def test_what_is_published_meanwhile_waits_or_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(output_directory, "WAIT_SECONDS", 0.0)
    move, refusals = os.replace, []

    def replace(source, target):
        """Try to publish another result, and to read this one, between any two renames."""
        monkeypatch.setattr(os, "replace", move)
        for attempt in (
            lambda: second.publish(fill(second.staging / f"made-{len(refusals)}", KIND, "second")),
            lambda: alone_in(tmp_path).__enter__(),
        ):
            with pytest.raises(InputError, match="is being written by another process") as caught:
                attempt()
            refusals.append(str(caught.value))
        monkeypatch.setattr(os, "replace", replace)
        move(source, target)

    with opened_directory(tmp_path, KIND, False) as first, opened_directory(tmp_path, KIND, False) as second:
        made = fill(first.staging / "made", KIND, "first")
        monkeypatch.setattr(os, "replace", replace)
        first.publish(made)
        monkeypatch.setattr(os, "replace", move)
        assert (tmp_path / "two" / "value").read_text() == "first"
        second.publish(fill(second.staging / "made", KIND, "second"))
    assert len(refusals) == 6
    assert "\n" not in refusals[0]
    assert list(changed_files(tmp_path, read_mark(tmp_path / "thing.json"))) == []


def test_two_kinds_of_results_that_begin_at_once_do_not_mix(tmp_path):
    with opened_directory(tmp_path, KIND, False) as first, opened_directory(tmp_path, OTHER, False) as second:
        first.publish(fill(first.staging / "made", KIND, "first"))
        with pytest.raises(AlreadyExists, match="two exists and was not written by another; .*--overwrite"):
            second.publish(fill(second.staging / "made", OTHER, "second"))
    assert {path.name for path in tmp_path.iterdir()} == set(KIND.outputs)


@pytest.mark.parametrize("ending", [".zarr", ".npz"])
def test_maps_that_are_saved_at_once_are_whole(run, tmp_path, ending):
    target, failures = tmp_path / f"maps{ending}", []
    maps = attribution_maps(run, "r2g", store=False).compute()
    start = threading.Barrier(4)

    def save(number):
        try:
            start.wait()
            for _ in range(5):
                save_maps(maps + number, target, overwrite=True)
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    if ending == ".npz":
        assert np.load(target)["maps"].shape == maps.shape


def test_the_reading_lock_is_left_out_where_nobody_may_write(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(output_directory, "try_lock", refuse)
    with alone_in(tmp_path, only_read=True):
        pass
    with pytest.raises(OSError, match="Read-only"), alone_in(tmp_path):
        pass
