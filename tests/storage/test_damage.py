"""Damage of any file is found by `verify`, and never comes out of a reader as a number."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest

import i2am
from i2am.storage.errors import DamagedRun, DamagedSample, DamageError
from tests.storage.synthetic import IMAGES, LAYERS, write_run

SAMPLES = ("a", "b")


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "undamaged.zarr"
    write_run(path, SAMPLES)
    return path


def files(path):
    return sorted(os.path.relpath(os.path.join(d, f), path) for d, _, names in os.walk(path) for f in names)


def everything(run, sample):
    """Every number that can be read of a sample."""
    arrays = {spec.name: run.read(spec.name, sample).logits() for spec in LAYERS}
    arrays["lse"] = run.read_kind(run.spec("mid.attn2"), "lse", sample, range(5), range(2))
    arrays |= {f"images/{name}": run.image(name, sample) for name in IMAGES}
    return arrays


def look(path, truth):
    """Read all samples; return those that are refused, and check the numbers of the others."""
    refused = set()
    try:
        run = i2am.open_run(path)
    except DamagedRun:
        return set(SAMPLES)
    for sample in SAMPLES:
        if sample not in run.samples:
            refused.add(sample)
            continue
        try:
            got = everything(run, sample)
        except DamagedSample as error:
            refused.add(error.sample)
            continue
        for name, values in truth[sample].items():
            assert np.array_equal(got[name], values), f"{name} of {sample} changed silently"
    return refused


@pytest.fixture(scope="module")
def truth(undamaged):
    run = i2am.open_run(undamaged)
    return {sample: everything(run, sample) for sample in SAMPLES}


def flip(path, chance):
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path, chance):
    os.truncate(path, chance.randrange(path.stat().st_size))


def extend(path, chance):
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randint(1, 9)))


def delete(path, chance):
    path.unlink()


def belongs(path):
    """The sample and layer that a data file belongs to."""
    parts = path.split("/")
    if not parts[-1].startswith("c."):
        return None
    layer = parts[1] if parts[0] == "attention" else f"images/{parts[1]}"
    return SAMPLES[int(parts[-1].split(".")[1])], layer


@pytest.mark.parametrize("damage", [flip, truncate, extend, delete])
def test_damage_of_every_single_file(tmp_path, undamaged, truth, damage):
    chance = random.Random(damage.__name__)
    for name in files(undamaged):
        copy = tmp_path / "copy.zarr"
        shutil.copytree(undamaged, copy)
        damage(copy / name, chance)
        report = i2am.verify(copy)
        assert not report.ok, f"{damage.__name__} of {name} was not found"
        if place := belongs(name):
            assert {(p.sample, p.layer) for p in report.problems} == {place}
            assert place[0] in str(report.problems[0])
        refused = look(copy, truth)
        if place and damage in (truncate, extend, delete):
            assert refused == {place[0]}
            with pytest.raises(DamagedSample, match=f"sample '{place[0]}', layer '{place[1]}' is damaged"):
                i2am.open_run(copy).check(place[0])
        shutil.rmtree(copy)


def test_many_random_flips_in_data(tmp_path, undamaged, truth):
    chance = random.Random(3)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    names = [name for name in files(undamaged) if belongs(name)]
    for _ in range(80):
        name = chance.choice(names)
        before = (copy / name).read_bytes()
        flip(copy / name, chance)
        assert look(copy, truth) <= {belongs(name)[0]}
        report = i2am.verify(copy)
        assert {(p.sample, p.layer) for p in report.problems} == {belongs(name)}
        (copy / name).write_bytes(before)
    assert i2am.verify(copy).ok


def test_swapped_files_are_found_by_verify_and_by_the_reader(tmp_path, undamaged, truth):
    names = files(undamaged)
    data = [name for name in names if belongs(name)]
    by_size = {}
    for name in data:
        by_size.setdefault((undamaged / name).stat().st_size, []).append(name)
    pairs = [tuple(group[:2]) for group in by_size.values() if len(group) > 1]
    assert len(pairs) >= 4
    pairs += [
        ("commits/a.json", "commits/b.json"),
        ("attention/zarr.json", "attention/up.0.attn2/zarr.json"),
        (data[0], data[-1]),
    ]
    for left, right in pairs:
        copy = tmp_path / "copy.zarr"
        shutil.copytree(undamaged, copy)
        os.rename(copy / left, copy / "tmp")
        os.rename(copy / right, copy / left)
        os.rename(copy / "tmp", copy / right)
        assert not i2am.verify(copy).ok
        refused = look(copy, truth)
        if belongs(left):
            assert refused == {belongs(left)[0], belongs(right)[0]}
        shutil.rmtree(copy)


def test_a_file_of_another_run_is_found(tmp_path, undamaged, truth):
    other = tmp_path / "other.zarr"
    write_run(other, SAMPLES)
    name = "attention/down.0.attn2/query/c.0.0.0.0.0"
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    shutil.copy(other / name, copy / name)
    assert look(copy, truth) == {"a"}
    with pytest.raises(DamagedSample, match="it is the shard of another sample, array or run"):
        i2am.open_run(copy).read("down.0.attn2", "a")
    shutil.copy(other / "commits/b.json", copy / "commits/b.json")
    with pytest.raises(DamagedSample, match=r"commit record commits/b.json: it belongs to another run"):
        i2am.open_run(copy).record("b")


def test_metadata_damage_is_noticed_by_the_cheap_check(tmp_path, undamaged):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    path = copy / "attention/mid.attn2/query/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"NaN"', b'"Nan"'))
    with pytest.raises(DamagedRun, match=r"attention/mid.attn2/query/zarr.json is damaged"):
        i2am.open_run(copy).check("a")
    problem = i2am.verify(copy).problems[0]
    assert (problem.sample, problem.layer) == (None, "mid.attn2")


def test_files_that_are_not_the_store_s_are_notes(tmp_path, undamaged):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    (copy / "README.txt").write_text("mine")
    (copy / ".staging").mkdir()
    (copy / ".staging/leftover.tmp").write_text("x")
    report = i2am.verify(copy)
    assert report.ok
    assert any("README.txt: not part of the store" in note for note in report.notes)
    assert any(".staging/leftover.tmp" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("attention/down.0.attn2/query/c.1.1.0.0.0", "b"),
        ("attention/down.0.attn2/query/c.9.0.0.0.0", None),
        ("commits/z.json", None),
    ],
)
def test_files_that_a_plain_reader_would_take_for_data_are_problems(tmp_path, undamaged, name, sample):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    (copy / name).write_bytes(b"x")
    assert [(p.sample, p.path) for p in i2am.verify(copy).problems] == [(sample, name)]


def test_report_counts_what_was_read(undamaged):
    seen = []
    report = i2am.verify(undamaged, on_progress=seen.append)
    assert report.ok
    assert (report.samples, report.files) == (2, len(files(undamaged)))
    assert report.bytes == sum((undamaged / name).stat().st_size for name in files(undamaged))
    assert [p.files_done for p in seen] == list(range(1, len(files(undamaged)) + 1))
    assert seen[-1].bytes_done == seen[-1].bytes == report.bytes
    assert report.to_json()["ok"] is True


def test_damage_errors_ask_for_exit_status_1(tmp_path, undamaged):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(undamaged, copy)
    (copy / "commits/a.json").write_text("{}")
    with pytest.raises(DamageError) as caught:
        i2am.open_run(copy).fingerprint("a")
    assert caught.value.exit_status == 1


def test_fingerprints_differ_between_contents(tmp_path, undamaged):
    run = i2am.open_run(undamaged)
    assert run.fingerprint("a") == i2am.open_run(undamaged).fingerprint("a")
    assert (
        len(
            {
                run.fingerprint("a"),
                run.fingerprint("b"),
                write_run(tmp_path / "o.zarr", SAMPLES).fingerprint("a"),
            }
        )
        == 3
    )
