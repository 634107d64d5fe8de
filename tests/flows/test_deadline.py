"""A capture that hangs, or waits for one that does, ends with one line, and its run can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import i2am
from i2am.flows import deadline as deadlines
from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.deadline import Deadline, OwnDeadline
from i2am.pipeline import jobs
from i2am.storage.errors import SampleBusy
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows import tiny
from tests.flows.conftest import Outcome

Command = Callable[..., Outcome]
SCENES = {"scenes": {"count": 3}}
HELD = "scene-0000001"


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupts reach this process, however it was started, and however busy the machine is."""
    monkeypatch.setattr(deadlines, "GRACE_SECONDS", 100.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the deadlines take for the time (s)."""
    now = [0.0]
    monkeypatch.setattr(deadlines, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("interrupts")
def test_a_model_that_hangs_ends_the_capture_and_the_next_one_goes_on(
    config: Callable[..., Path],
    i2am: Command,
    tmp_path: Path,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It hangs in the second step of the first sample; each step before takes most of the deadline."""

    def work(note: Path) -> None:
        clock[0] += 400
        if clock[0] == 800 and not note.exists():
            note.touch()
            clock[0] += 200
            threading.Event().wait(60)

    monkeypatch.setattr(tiny, "_hang", work)
    arguments = {"hangs_without": str(tmp_path / "hung")}
    pipeline = {"kind": "factory", "function": "tests.flows.tiny:build", "arguments": arguments}
    file = config(pipeline=pipeline, samples=SCENES, deadline=500)
    i2am("capture", file, "--direct", "--deadline", 0).refused("'deadline'; expected greater than 0")
    i2am("capture", file, "--direct", "--keep-going").refused(
        "the capture hangs; expected a step of the model, or a sample, within 500 s; .*run it again"
    )
    assert (tmp_path / "hung").exists()
    done = i2am("capture", file, "--direct", "--deadline", 401, "--json")
    assert (done.status, done.json["committed"], done.json["failed"]) == (0, 3, [])
    assert verify(tmp_path / "tiny.zarr").ok


def test_code_that_no_interrupt_reaches_ends_with_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    left = threading.Event()

    def leave(status: int) -> None:
        ended.append(status)
        left.set()

    monkeypatch.setattr(deadlines, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(deadlines.os, "_exit", leave)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with OwnDeadline(1e-9):
            assert left.wait(60)
        signal.sigtimedwait({signal.SIGINT}, 0)  # the interrupt that did not reach it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert ended == [2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("i2am: the capture hangs; expected a step")


def test_signs_of_life_count(clock: list[float]) -> None:
    class Counted(Deadline):
        ended = 0

        def end(self) -> bool:
            self.ended += 1
            return True

    watched = Counted(100)
    watched.over.set()  # each look below is one look
    for time, sign_of_life, ended in (
        (90, True, 0),
        (180, False, 0),
        (189, True, 0),
        (288, False, 0),
        (289, False, 1),
    ):
        clock[0] = time
        watched._watch()
        assert watched.ended == ended
        if sign_of_life:
            watched.pat()


def test_another_thread_is_not_watched() -> None:
    """An interrupt would reach the main thread, which does something else."""
    done: list[OwnDeadline] = []

    def work() -> None:
        with OwnDeadline(1e-9) as own:
            done.append(own)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not done[0].ended


@pytest.fixture
def held(config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A configuration whose second sample another writer holds for good."""
    monkeypatch.setattr(jobs, "FIRST_PAUSE", 0.0)
    settings = load_capture(config(samples=SCENES))
    run_capture(settings, only=("scene-0000000",))
    with i2am.resume_run(settings.out) as writer, pytest.raises(KeyboardInterrupt), writer.sample(HELD):
        yield settings
        raise KeyboardInterrupt


@pytest.mark.parametrize("keep_going", [False, True])
def test_samples_that_others_hold_are_waited_for_until_the_deadline(
    held: Any, monkeypatch: pytest.MonkeyPatch, keep_going: bool
) -> None:
    waits = iter(range(10**6))
    monkeypatch.setattr(jobs, "monotonic", lambda: 1000.0 * next(waits))  # a second look is 1000 s later
    with pytest.raises(
        SampleBusy, match=f"hold the batch of sample '{HELD}'; expected one of them .* 3600 s; .*run again"
    ):
        run_capture(held, keep_going=keep_going)
    assert open_run(held.out).samples == ("scene-0000000", "scene-0000002")
    assert not (Path(held.out) / "failures").exists()
    assert verify(held.out).ok
