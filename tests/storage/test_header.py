"""Opening: what is not a run, what is newer, what may not be read."""

from __future__ import annotations

import json

import pytest
import zarr

import i2am
from i2am.storage.errors import DamagedRun, NewerFormat, NoPermission, NotARun, NotFound, UnknownName
from i2am.storage.format.signed_json import canonical, signed
from tests.storage.synthetic import LAYERS, write_run


@pytest.fixture(params=[i2am.open_run, i2am.verify, i2am.resume_run], ids=["open", "verify", "resume"])
def opener(request):
    return request.param


def test_nothing_there(tmp_path, opener):
    with pytest.raises(NotFound, match=r"no run at .*none.zarr; check the path"):
        opener(tmp_path / "none.zarr")


def test_an_empty_folder_is_nothing(tmp_path, opener):
    with pytest.raises(NotFound):
        opener(tmp_path)


def test_something_else(tmp_path, opener):
    (tmp_path / "f").write_text("hello")
    zarr.create_group(tmp_path / "other.zarr", attributes={"x": 1})
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "zarr.json").write_text("hello")
    with pytest.raises(NotARun, match=r"is not a run; expected a directory with zarr.json; got none"):
        opener(tmp_path)
    for name in ("other.zarr", "text"):
        with pytest.raises(NotARun, match=r'is not a run; expected attributes\["i2am"\] in zarr.json'):
            opener(tmp_path / name)
    with pytest.raises(NotFound):
        opener(tmp_path / "f")


def test_a_newer_format(tmp_path, opener):
    write_run(tmp_path / "r.zarr", ["a"])
    document = json.loads((tmp_path / "r.zarr/zarr.json").read_text())
    own = {**document["attributes"]["i2am"], "format": 2, "something": "new"}
    (tmp_path / "r.zarr/zarr.json").write_text(json.dumps({**document, "attributes": {"i2am": signed(own)}}))
    with pytest.raises(NewerFormat, match="format; expected at most 1; got 2; install a newer i2am"):
        opener(tmp_path / "r.zarr")


def test_no_permission(tmp_path, opener, monkeypatch):
    write_run(tmp_path / "r.zarr", ["a"])

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("i2am.storage.locations.local.open_file", refuse)
    with pytest.raises(NoPermission, match=r"no permission for .*Permission denied; check owner"):
        opener(tmp_path / "r.zarr")


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own["layers"][0].update(heads=10**9),
        lambda own: own["layers"][0].update(name="../../etc"),
        lambda own: own["arrays"]["down.0.attn2"]["query"].update(chunk=[1, 10**12, 4, 24, 8]),
        lambda own: own["arrays"]["down.0.attn2"]["query"].update(codec="pickle"),
        lambda own: own["arrays"].pop("down.0.attn2"),
        lambda own: own.update(samples=["a\n"]),
        lambda own: own.update(timesteps=None),
        lambda own: own.update(layers=[own["layers"][0]] * 2),
        lambda own: own["images"].update({"../x": [1, 1, 1]}),
        lambda own: own.pop("codec"),
    ],
)
def test_a_root_that_contradicts_itself_is_refused_even_if_signed(tmp_path, change):
    write_run(tmp_path / "r.zarr", ["a"])
    document = json.loads((tmp_path / "r.zarr/zarr.json").read_text())
    change(document["attributes"]["i2am"])
    document["attributes"]["i2am"] = signed(document["attributes"]["i2am"])
    (tmp_path / "r.zarr/zarr.json").write_bytes(canonical(document))
    with pytest.raises(DamagedRun, match=r"its root document zarr.json is damaged: it contradicts itself"):
        i2am.open_run(tmp_path / "r.zarr")


def test_a_missing_root_of_a_run_with_samples_is_damage(tmp_path):
    write_run(tmp_path / "r.zarr", ["a"])
    (tmp_path / "r.zarr/zarr.json").unlink()
    with pytest.raises(DamagedRun, match="it is missing"):
        i2am.open_run(tmp_path / "r.zarr")
    report = i2am.verify(tmp_path / "r.zarr")
    assert [p.path for p in report.problems] == ["zarr.json"]


def test_names_that_do_not_exist(tmp_path):
    run = write_run(tmp_path / "r.zarr", ["sample-1"])
    for use in (run.scores, lambda name: run.read(name, "sample-1")):
        with pytest.raises(UnknownName, match=r"unknown layer 'mid.attn'; .*did you mean 'mid.attn2'"):
            use("mid.attn")
    for use in (
        run.record,
        run.fingerprint,
        run.check,
        lambda name: run.read("mid.attn2", name),
        lambda name: run.image("mask", name),
    ):
        with pytest.raises(UnknownName, match=r"unknown sample 'sample-2'; .*did you mean 'sample-1'"):
            use("sample-2")
    with pytest.raises(i2am.NoAnswer, match=r"layer 'down.0.attn2' has no lse"):
        run.lse("down.0.attn2")


def test_a_sample_that_is_not_committed_is_unknown_with_a_hint(tmp_path):
    i2am.create_run(tmp_path / "r.zarr", LAYERS, [0], ["a"]).close()
    with pytest.raises(UnknownName, match=r"unknown sample 'a'; .*it is declared, but not committed yet"):
        i2am.open_run(tmp_path / "r.zarr").record("a")
