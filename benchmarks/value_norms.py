"""What norms of values and contributions cost: a capture with them over the same capture without, A B A B.

The models of `benchmarks.overhead`, on one thread. CPU seconds are compared, since the clock measures also
what else the machine does; the CPU seconds inside the measuring functions are counted besides, as a share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.overhead import FluxKontextBlocks, Unet
from i2am.pipeline.capture import capture
from i2am.pipeline.taps.value_flow import FlowTap, ValueFlow

RESULTS = Path(__file__).parent / "results" / "value_norms.json"
MEASURING = ((ValueFlow, "value_norm"), (ValueFlow, "contribution"), (FlowTap, "_on_stream"))


class Inside:
    """CPU seconds inside the measuring functions; none calls another."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - started

        return call


def measure(pipe: Any, adapter: str, steps: int, rounds: int) -> dict[str, Any]:
    """CPU seconds and bytes with and without norms, in turn, and the share of the measuring functions."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    size, shares = {True: 0, False: 0}, []
    with tempfile.TemporaryDirectory() as folder:
        pipe(1)
        for number in range(rounds):
            for norms in (True, False):
                path, inside = Path(folder, f"{norms}-{number}.zarr"), Inside()
                with ExitStack() as patches:
                    for owner, name in MEASURING:
                        timed = inside.timed(getattr(owner, name))
                        patches.enter_context(mock.patch.object(owner, name, timed))
                    started = time.process_time()
                    with (
                        capture(pipe, path, ["a"], adapter=adapter, value_norms=norms) as cap,
                        cap.sample("a"),
                    ):
                        pipe(steps)
                    seconds[norms].append(time.process_time() - started)
                size[norms] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                if norms:
                    shares.append(inside.seconds / seconds[norms][-1])
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    return {
        "ratio": statistics.median(ratios), "share": statistics.median(shares), "ratios": ratios,
        "bytes_ratio": size[True] / size[False], "with": seconds[True], "without": seconds[False],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "sd15-unet, 32x32 latents, 257 tokens": measure(Unet(), "diffusers-text", args.steps, args.rounds),
        "flux blocks, 512 + 256 + 256 tokens": measure(
            FluxKontextBlocks(), "flux-kontext", args.steps, args.rounds
        ),
    }
    for name, each in found.items():
        print(
            f"{name}: {each['ratio']:.4f} ({min(each['ratios']):.4f} to {max(each['ratios']):.4f}) times "
            f"the CPU seconds, {each['share']:.4f} of them in measuring; {each['bytes_ratio']:.4f} times "
            "the bytes"
        )
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
