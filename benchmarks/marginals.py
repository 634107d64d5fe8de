"""The marginals pass over a store, against a plain loop of torch operations over factors in memory.

Usage: python -m benchmarks.marginals [--rounds 5] [--steps 2] [--out FILE]

The loop is what one would write: for each step and head the logits, a softmax over each axis, a mean over the
other. It reads nothing; the pass reads its factors from a store on disk, checks their checksums, and also
gives the marginals of the masked regions. One thread each, taking turns (A B A B ...); the ratio of medians.
Both results are compared before any time is taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.systems import SYSTEMS, factors, specs, write_run
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run


def torch_loop(query: torch.Tensor, key: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """R2G (step, head, gen) and G2R (step, head, ref) densities, two softmaxes for each plane."""
    steps, heads, gen, _ = query.shape
    ref = key.shape[2]
    r2g, g2r = torch.empty(steps, heads, gen), torch.empty(steps, heads, ref)
    for step in range(steps):
        for head in range(heads):
            logits = query[step, head].float() @ key[0, head].float().T * scale
            r2g[step, head] = torch.softmax(logits, dim=0).mean(dim=1) * gen
            g2r[step, head] = torch.softmax(logits, dim=1).mean(dim=0) * ref
    return r2g, g2r


def check(run: Run, layers: list[LayerSpec], data: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Stop if the two contestants disagree."""
    for spec in layers:
        ours = compute_marginals(run, spec, run.samples[0])
        r2g, g2r = torch_loop(*data[spec.name], spec.head_dim**-0.5)
        np.testing.assert_allclose(ours.get("g2r", 1), g2r[..., spec.ref_prefix :], rtol=2e-3)
        if spec.ref_prefix == 0:
            np.testing.assert_allclose(ours["r2g"], r2g, rtol=2e-3)


def contest(system: str, steps: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Median seconds of both, and their ratio, for one system."""
    layers = specs(system)
    run = write_run(folder / "run.zarr", layers, steps, 1)
    tensors = {
        spec.name: tuple(torch.from_numpy(array) for array in factors(spec, steps, number))
        for number, spec in enumerate(layers)
    }
    check(run, layers, tensors)

    def ours() -> None:
        for spec in layers:
            compute_marginals(run, spec, run.samples[0])

    def loop() -> None:
        for spec in layers:
            torch_loop(*tensors[spec.name], spec.head_dim**-0.5)

    times: dict[str, list[float]] = {"ours": [], "torch": []}
    contestants: dict[str, Callable[[], None]] = {"ours": ours, "torch": loop}
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    paired = [slow / fast for slow, fast in zip(times["torch"], times["ours"], strict=True)]
    return {
        "system": system,
        **{f"{name}_seconds": round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["torch"] / medians["ours"], 3),
        "paired_low": round(min(paired), 3),
        "paired_high": round(max(paired), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "marginals.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="marginals pass over a store / torch loop in memory, one thread each")
    for column in ("system", "torch, s", "ours, s", "ratio", "lowest", "highest"):
        table.add_column(column, justify="left" if column == "system" else "right")
    results = []
    for system in SYSTEMS:
        with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
            row = contest(system, args.steps, args.rounds, Path(folder))
        results.append(row)
        numbers = (row["torch_seconds"], row["ours_seconds"], row["ratio"], row["paired_low"])
        table.add_row(system, *(f"{number:.2f}" for number in (*numbers, row["paired_high"])))
    Console(width=110).print(table)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
