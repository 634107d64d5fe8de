"""The marginals pass over a store, by one worker process against two.

Usage: python -m benchmarks.workers [--rounds 3] [--samples 8] [--steps 5] [--folder DIR] [--out FILE]

Eight layers of 1024 to 4096 generated and 256 to 1024 reference tokens, random factors, taken through
`compute_missing_marginals` by a `LocalCluster` of one process, then of two, one thread each, in turns.
Each pass has a new cluster and an empty derived store; the clock runs over the pass alone, once the workers
have loaded what they need. Every pass must leave the same bytes. The ratio says something about the project
only where two cores are free: the load of the machine before each pass is written beside it. The CPU seconds
of all workers tell, on any machine, whether two of them do more work than one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.systems import write_run
from i2am.analysis.marginals.compute_missing import compute_missing_marginals
from i2am.flows.analyze.dask_cluster import computing
from i2am.flows.config.models import Computing, Processes
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

KINDS = [((64, 64), (32, 32), 0, 40), ((64, 64), (16, 16), 1, 40), ((32, 32), (32, 32), 0, 80)]
"""Generated grid, reference grid, reference tokens without a place, head dimension."""

NUMBERS = (2, 2, 4)
"""Layers of each kind."""

WORKERS = (1, 2)


def layers() -> list[LayerSpec]:
    """The eight layers, of eight heads each."""
    return [
        LayerSpec(f"layer{kind}.{copy}", 8, dim, gen, ref, ref_prefix=prefix, representation="factors")
        for kind, (gen, ref, prefix, dim) in enumerate(KINDS)
        for copy in range(NUMBERS[kind])
    ]


def load_kernel() -> None:
    """Import in a worker what its first task would import."""
    import i2am.analysis.marginals.compute_missing  # noqa: F401


def contents(folder: Path) -> str:
    """Digest of every file below a folder, and of its name."""
    digest = hashlib.blake2b()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fill(run: Run, workers: int, store: Path) -> tuple[float, float, str]:
    """Seconds of one pass, CPU seconds of its workers, and what it left."""
    from distributed import default_client

    with computing(Computing(cluster=Processes(), workers=workers)):
        client = default_client()
        client.wait_for_workers(workers)
        client.run(load_kernel)
        worked = sum(client.run(time.process_time).values())
        start = time.perf_counter()
        damaged = compute_missing_marginals(run, run.samples, store=str(store))
        seconds = time.perf_counter() - start
        worked = sum(client.run(time.process_time).values()) - worked
    if damaged:
        raise SystemExit(f"the run is damaged: {damaged}")
    digest = contents(store)
    shutil.rmtree(store)
    return seconds, worked, digest


def summary(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the ratio of one worker to two."""
    times = {n: [each["seconds"] for each in passes if each["workers"] == n] for n in WORKERS}
    medians = {n: statistics.median(seconds) for n, seconds in times.items()}
    paired = [one / two for one, two in zip(times[1], times[2], strict=True)]
    return {
        **{f"seconds_{n}": round(value, 2) for n, value in medians.items()},
        "ratio": round(medians[1] / medians[2], 3),
        "paired_low": round(min(paired), 3),
        "paired_high": round(max(paired), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "workers.json")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    table = Table(title=f"marginals pass, {args.samples} samples, {args.steps} steps, {cores} cores")
    for column in ("workers", "seconds", "CPU seconds", "load before"):
        table.add_column(column, justify="right")
    passes: list[dict[str, Any]] = []
    left = set()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = write_run(Path(folder) / "run.zarr", layers(), args.steps, args.samples)
        for workers in WORKERS * args.rounds:
            load = os.getloadavg()[0]
            seconds, worked, digest = fill(run, workers, Path(folder) / "marginals.zarr")
            numbers = {"seconds": seconds, "cpu_seconds": worked, "load_before": load}
            passes.append({"workers": workers, **{name: round(value, 2) for name, value in numbers.items()}})
            left.add(digest)
            table.add_row(str(workers), *(f"{value:.1f}" for value in numbers.values()))
    if len(left) != 1:
        raise SystemExit("the passes left different bytes")
    found = summary(passes)
    console = Console(width=110)
    console.print(table)
    console.print(f"one worker / two: {found['ratio']} ({found['paired_low']} to {found['paired_high']})")
    args.out.parent.mkdir(exist_ok=True)
    settings = {"samples": args.samples, "steps": args.steps, "cores": cores}
    args.out.write_text(json.dumps(settings | found | {"passes": passes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
