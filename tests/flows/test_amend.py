"""`i2am amend`: what was forgotten at a capture is added to the sample, and its attention stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import i2am.storage.writing.amend as amending
from i2am.storage.errors import InputError, NotFound, ShapeMismatch, UnknownName
from i2am.storage.locations.local import LocalLocation
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.create import resume_run
from i2am.storage.writing.staging import LocalStaging
from tests.flows.conftest import Outcome
from tests.storage.synthetic import LAYERS, TIMESTEPS, check_values, fill, write_run

SHAPE = np.zeros((12, 8), np.uint8)
SHAPE[3:6] = 1


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write_run(tmp_path / "r.zarr", samples=("a", "b"), images={})
    return tmp_path / "r.zarr"


def test_images_and_notes(stored: Path, i2am: Callable[..., Outcome], tmp_path: Path) -> None:
    before = open_run(stored)
    scores = {s: before.scores(next(iter(before.layers)))[n].compute() for n, s in enumerate(before.samples)}
    Image.fromarray(SHAPE).save(tmp_path / "m.png")
    Image.new("RGB", (8, 12), (5, 6, 7)).save(tmp_path / "s.jpg", quality=100)
    done = i2am(
        "amend",
        stored,
        "--sample",
        "a",
        "--image",
        f"mask={tmp_path}/m.png",
        "--note",
        "prompt=a=b",
        "--json",
    )
    assert done.status == 0, done.err
    assert done.json["annotations"]["prompt"] == "a=b"
    for inside in (1, 0):  # added, then replaced
        Image.fromarray(SHAPE ^ (1 - inside)).save(tmp_path / "m.png")
        again = i2am("amend", stored, "--sample", "a", "--image", f"mask={tmp_path}/m.png")
        assert again.status == 0, again.err
        run = open_run(stored)
        np.testing.assert_array_equal(run.image("mask", "a")[..., 0], (SHAPE ^ (1 - inside)) * 255)
        assert run.record("a")["annotations"]["prompt"] == "a=b"
        assert "mask" not in run.record("b")["images"]
        assert verify(stored).ok
    assert i2am("amend", stored, "--sample", "b", "--image", f"source={tmp_path}/s.jpg").status == 0
    after = open_run(stored)
    for n, s in enumerate(after.samples):
        np.testing.assert_array_equal(after.scores(next(iter(after.layers)))[n].compute(), scores[s])
    small = tmp_path / "small.png"
    Image.fromarray(SHAPE[:10]).save(small)
    i2am("amend", stored, "--sample", "b", "--image", f"mask={small}").refused(
        "mask; expected the source's size"
    )
    i2am("amend", stored, "--sample", "a", "--image", f"mask={small}").refused(
        "use another name for images of another"
    )
    i2am("amend", stored, "--sample", "a", "--image", "mask").refused("expected NAME=VALUE; got 'mask'")
    i2am("amend", stored, "--sample", "a").refused("expected --image NAME=FILE or --note")
    i2am("amend", stored, "--sample", "c", "--note", "x=y").refused("unknown sample 'c'")
    i2am("amend", stored, "--sample", "a", "--image", "mask=none.png").refused(
        "image none.png does not exist"
    )
    assert verify(stored).ok


def test_a_kill_between_image_and_record_is_mended_by_amending_again(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = (SHAPE * 255)[..., None]
    amending.amend(stored, "a", {"mask": mask})

    def killed(self: LocalLocation, path: str, data: bytes, write: object = LocalLocation.write) -> None:
        if path.startswith("commits/"):
            raise KeyboardInterrupt
        write(self, path, data)  # type: ignore[operator]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalLocation, "write", killed)
        amending.amend(stored, "a", {"mask": 255 - mask})
    assert not verify(stored).ok
    amending.amend(stored, "a", {"mask": 255 - mask})
    assert verify(stored).ok
    np.testing.assert_array_equal(open_run(stored).image("mask", "a"), 255 - mask)


def test_what_cannot_be_amended(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        amending.amend(stored, "c", annotations={"x": 1})
    with pytest.raises(ShapeMismatch, match="expected uint8"):
        amending.amend(stored, "a", {"mask": SHAPE.astype(float)[..., None]})
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InputError, match="finite depth"):
        amending.amend(stored, "a", annotations={"x": endless})
    (stored / "commits" / "b.json").unlink()
    with pytest.raises(NotFound, match="'b' .* is not committed"):
        amending.amend(stored, "b", annotations={"x": 1})


def test_a_deleted_sample_is_missing_and_can_be_written_again(
    stored: Path, i2am: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    i2am("amend", stored, "--sample", "a", "--delete", "--note", "x=y").refused("or --delete; got both")
    before = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    assert i2am("amend", stored, "--sample", "a", "--delete", "--json").json["samples"] == ["b"]
    run = open_run(stored)
    assert run.samples == ("b",)
    gone = before.keys() - {path for path in stored.rglob("*") if path.is_file()}
    assert all(path.name in ("a.json",) or path.name.startswith("c.0.") for path in gone)
    assert len(gone) == 1 + len([path for path in before if path.name.startswith("c.0.")])
    found = verify(stored)
    assert found.ok
    assert found.notes == ("1 of 2 declared samples are not committed",)
    i2am("amend", stored, "--sample", "a", "--delete").refused("sample 'a' .* is not committed")
    i2am("amend", stored, "--sample", "c", "--delete").refused("unknown sample 'c'")
    with resume_run(stored) as writer, writer.sample("a") as sink:
        fill(sink, LAYERS, range(len(TIMESTEPS)))
    check_values(open_run(stored))

    def killed(self: LocalLocation, path: str, remove: object = LocalLocation.remove) -> None:
        if not path.startswith("commits/"):
            raise KeyboardInterrupt
        remove(self, path)  # type: ignore[operator]

    with monkeypatch.context() as patch, resume_run(stored) as writer:
        patch.setattr(LocalLocation, "remove", killed)
        patch.setattr(
            LocalStaging, "discard", lambda staging: staging._lock.release()
        )  # as at a process's end
        with pytest.raises(KeyboardInterrupt):
            writer.remove("a")
    assert open_run(stored).samples == ("b",)
    assert verify(stored).ok
    assert not list(stored.rglob("c.0.*"))
