"""`i2am amend` where there is neither rename nor lock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import i2am
import i2am.storage.writing.amend as amending
from i2am.flows.cli import main
from i2am.storage.locations.open import locate
from i2am.storage.writing import lease
from i2am.storage.writing.amend import amend
from i2am.storage.writing.array_writer import ArrayWriter
from i2am.storage.writing.create import resume_run
from i2am.storage.writing.lease import lease_path
from tests.object_server import BUCKET, Schedule, object_server, objects, proxy
from tests.storage.synthetic import check_values, write_run

MASK = np.full((6, 8, 1), 255, np.uint8)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        yield url


@pytest.fixture
def run(server: str) -> str:
    path = f"s3://{BUCKET}/{uuid.uuid4().hex}.zarr"
    write_run(path, samples=("a", "b"), images={})
    return path


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy sample is not waited for."""
    monkeypatch.setattr(amending, "monotonic", iter(range(0, 10**6, 1000)).__next__)


def is_whole(path: str, mask: np.ndarray[Any, Any], notes: dict[str, Any]) -> None:
    found = i2am.open_run(path)
    np.testing.assert_array_equal(found.image("mask", "a"), mask)
    assert notes.items() <= found.record("a")["annotations"].items()
    assert "mask" not in found.record("b")["images"]
    check_values(found)
    assert i2am.verify(path).ok
    assert locate(path).names("leases") == []


def test_images_and_notes_are_added_and_replaced(run: str) -> None:
    amend(run, "a", {"mask": MASK}, {"prompt": "x"})
    is_whole(run, MASK, {"prompt": "x"})
    amend(run, "a", {"mask": MASK // 2, "extra": MASK})
    is_whole(run, MASK // 2, {"prompt": "x"})
    assert main(["amend", run, "--sample", "a", "--note", "prompt=y"]) == 0
    is_whole(run, MASK // 2, {"prompt": "y"})
    with pytest.raises(i2am.ShapeMismatch, match="use another name"):
        amend(run, "a", {"mask": MASK[:3]})
    is_whole(run, MASK // 2, {"prompt": "y"})


@pytest.mark.parametrize("fault", ["503", "stored 500", "stored reset"])
def test_a_server_that_fails_once_for_each_object_is_asked_again(
    run: str, server: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = {
        "init_backoff": timedelta(milliseconds=10),
        "max_backoff": timedelta(milliseconds=20),
        "base": 2,
    }
    retry = {"max_retries": 8, "retry_timeout": timedelta(seconds=20), "backoff": pauses}
    monkeypatch.setattr("i2am.storage.locations.object_store.RETRY", retry)
    amend(run, "a", {"mask": MASK // 2})
    with proxy(
        server, Schedule(lambda method, path, nth: fault if method == "PUT" and not nth else None)
    ) as faulty:
        amend(run, "a", {"mask": MASK}, {"prompt": "x"}, storage_options={"endpoint_url": faulty.endpoint})
        assert faulty.schedule.done[fault] >= 3
    is_whole(run, MASK, {"prompt": "x"})


def test_one_amends_at_a_time_whoever_else_opens_the_run(
    run: str, monkeypatch: pytest.MonkeyPatch, no_patience: None
) -> None:
    finish = ArrayWriter.finish

    def meanwhile(self: ArrayWriter) -> Any:
        with resume_run(run) as other:  # which clears up what others left
            assert other.missing == ()
        monkeypatch.setattr(ArrayWriter, "finish", finish)
        with pytest.raises(i2am.SampleBusy, match="is being written by another process"):
            amend(run, "a", {"mask": MASK // 3})
        amend(run, "b", annotations={"prompt": "b"})
        return finish(self)

    monkeypatch.setattr(ArrayWriter, "finish", meanwhile)
    amend(run, "a", {"mask": MASK})
    is_whole(run, MASK, {})


@pytest.mark.parametrize("images", [{"mask": MASK // 2}, {}])
def test_a_former_owner_replaces_nothing(
    run: str, server: str, monkeypatch: pytest.MonkeyPatch, images: dict[str, Any]
) -> None:
    """It read the sample, was suspended past its lease, and goes on when another has amended the sample."""
    amend(run, "a", {"mask": MASK // 4})
    seen: list[dict[str, bytes]] = []
    read = amending.read_record

    def suspended(*given: Any) -> Any:
        record = read(*given)
        monkeypatch.setattr(amending, "read_record", read)
        locate(run).remove(lease_path("a"))
        amend(run, "a", {"mask": MASK}, {"prompt": "new"})
        seen.append(objects(server, run.partition(f"{BUCKET}/")[2]))
        return record

    monkeypatch.setattr(amending, "read_record", suspended)
    with pytest.raises(i2am.SampleBusy, match="is being written by another process"):
        amend(run, "a", images, {"prompt": "late"})
    assert objects(server, run.partition(f"{BUCKET}/")[2]) == seen[0]
    is_whole(run, MASK, {"prompt": "new"})


def test_the_lease_of_one_that_was_killed_runs_out(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'{"amends": true, "id": "x", "name": "process 1 of node7", "renewals": 3}'
    locate(run).write(lease_path("a"), content)
    amending_would_wait = iter(range(10**6))
    monkeypatch.setattr(amending, "sleep", lambda seconds: next(amending_would_wait))
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    amend(run, "a", {"mask": MASK})
    is_whole(run, MASK, {})


def test_a_sample_is_deleted(run: str, server: str) -> None:
    with resume_run(run) as writer:
        writer.remove("a")
        assert writer.missing == ("a",)
        with pytest.raises(i2am.NotFound, match="is not committed"):
            writer.remove("a")
    assert i2am.open_run(run).samples == ("b",)
    assert i2am.verify(run).ok
    assert not [
        key for key in objects(server, run.partition(f"{BUCKET}/")[2]) if "/c.0." in key or "leases" in key
    ]
