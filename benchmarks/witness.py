"""The witness's cost: a capture as it is over the same capture that sees no kernel and compares nothing.

The UNet of `benchmarks.overhead`, A B A B. CPU seconds are compared, since the clock measures also what
else the machine does; the witness's own functions are counted besides, as their share of the CPU seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.overhead import Unet
from i2am.pipeline.capture import capture
from i2am.pipeline.recording.witness import Expected, Witness
from i2am.pipeline.taps.kernels import KernelTap

RESULTS = Path(__file__).parent / "results" / "witness.json"


@contextlib.contextmanager
def without_witness() -> Iterator[None]:
    """Captures in which no kernel is seen and nothing is compared."""
    with (
        mock.patch.object(KernelTap, "attached", return_value=contextlib.nullcontext()),
        mock.patch.object(Witness, "stored"),
        mock.patch.object(Witness, "expect"),
    ):
        yield


@contextlib.contextmanager
def counted(seconds: list[float]) -> Iterator[None]:
    """Captures in which the time inside the witness is added up."""

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[-1] += time.thread_time() - started

        return call

    with (
        mock.patch.object(Witness, "stored", timed(Witness.stored)),
        mock.patch.object(Witness, "called", timed(Witness.called)),
        mock.patch.object(Witness, "module_ended", timed(Witness.module_ended)),
        mock.patch.object(Expected, "add", timed(Expected.add)),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pipe, inside = Unet(), list[float]()
    found: dict[str, list[float]] = {"with": [], "without": [], "share": []}
    with tempfile.TemporaryDirectory() as folder:

        def captured(name: str) -> float:
            started = time.process_time()
            run = Path(folder, f"{name}.zarr")
            with capture(pipe, run, ["a"], adapter="diffusers-text") as cap, cap.sample("a"):
                pipe(args.steps)
            return time.process_time() - started

        pipe(1)
        for number in range(args.rounds):
            inside.append(0.0)
            with counted(inside):
                found["with"].append(captured(f"with-{number}"))
            found["share"].append(inside[-1] / found["with"][-1])
            with without_witness():
                found["without"].append(captured(f"without-{number}"))
    ratios = [a / b for a, b in zip(found["with"], found["without"], strict=True)]
    summary = {"ratio": statistics.median(ratios), "share": statistics.median(found["share"])}
    print(f"CPU seconds with over without: {summary['ratio']:.4f} ({min(ratios):.4f} to {max(ratios):.4f})")
    print(f"share of the CPU seconds inside the witness's functions: {summary['share']:.5f}")
    RESULTS.write_text(json.dumps({**summary, "ratios": ratios, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
