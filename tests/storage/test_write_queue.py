"""The background writer: bounded, fair to its batches, and never stuck."""

from __future__ import annotations

import threading
import time

import pytest

from i2am.storage.errors import NoPermission, StorageFull
from i2am.storage.writing.write_queue import Batch, WriteQueue


@pytest.fixture
def queue():
    made = WriteQueue(threads=2, queue_bytes=100)
    yield made
    made.close()


def test_a_full_queue_makes_the_producer_wait(queue):
    gate, batch, taken = threading.Event(), Batch(), []

    def produce():
        for i in range(5):
            queue.submit(0, gate.wait, 40, batch)
            taken.append(i)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.1)
    assert taken == [0, 1]
    gate.set()
    producer.join(5)
    queue.wait(batch)
    assert taken == [0, 1, 2, 3, 4]


def test_a_job_larger_than_the_queue_is_let_in_alone(queue):
    batch, done = Batch(), []
    queue.submit(0, lambda: done.append(1), 1000, batch)
    queue.submit(1, lambda: done.append(2), 1000, batch)
    queue.wait(batch)
    assert sorted(done) == [1, 2]


def test_jobs_of_a_lane_keep_their_order(queue):
    batch, done = Batch(), {0: [], 1: []}
    for i in range(200):
        queue.submit(i % 2, lambda i=i: done[i % 2].append(i), 10, batch)
    queue.wait(batch)
    assert done == {0: list(range(0, 200, 2)), 1: list(range(1, 200, 2))}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device", "f"), StorageFull),
        (OSError(122, "Disk quota exceeded", "f"), StorageFull),
        (OSError(30, "Read-only file system", "f"), NoPermission),
        (PermissionError(13, "Permission denied", "f"), NoPermission),
        (OSError(5, "Input/output error", "f"), OSError),
        (RuntimeError("bug"), RuntimeError),
    ],
)
def test_an_error_comes_out_with_its_class_and_stops_its_batch_alone(queue, raised, expected):
    bad, good, done = Batch(), Batch(), []

    def fail():
        raise raised

    queue.submit(0, fail, 40, bad)
    with pytest.raises(expected):
        queue.wait(bad)
    with pytest.raises(expected):
        queue.submit(0, lambda: done.append("bad"), 40, bad)
    queue.submit(0, lambda: done.append("good"), 40, good)
    queue.wait(good)
    assert done == ["good"]


def test_a_waiting_producer_is_released_by_an_error(queue):
    gate, batch, caught = threading.Event(), Batch(), []

    def fail():
        gate.wait()
        raise OSError(28, "No space left on device")

    def produce():
        try:
            for _ in range(10):
                queue.submit(0, fail, 60, batch)
        except StorageFull as error:
            caught.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.05)
    gate.set()
    producer.join(5)
    assert not producer.is_alive()
    assert len(caught) == 1


def test_cancelling_skips_what_has_not_begun(queue):
    gate, batch, done = threading.Event(), Batch(), []
    queue.submit(0, gate.wait, 1, batch)
    for i in range(10):
        queue.submit(0, lambda i=i: done.append(i), 1, batch)
    threading.Timer(0.05, gate.set).start()
    queue.cancel(batch)
    assert done == []
    assert batch.pending == 0
