"""Peak memory of an analysis, at 1, 4 and 16 times the samples.

Usage: python -m benchmarks.memory [--samples 1] [--steps 10] [--threads 2] [--folder DIR] [--out FILE]

Each study runs in a process of its own, whole: marginals, maps, tables, aggregations, figures, report. The
figure is the process's largest resident set, VmHWM of /proc (Linux); the same for a process that only
imports what a study needs is beside it. 16 samples of ``--system "IP-Adapter SD1.5, 257 tokens" --copies 6
--steps 50`` are 23 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.systems import SYSTEMS, specs, write_run

STUDY = """
import re, sys, dask
from pathlib import Path
import analysis.study, analysis.report, analysis.study_figures, analysis.aggregation_page
if len(sys.argv) > 1:
    options = analysis.study.StudyOptions(store=False if sys.argv[4] == "none" else sys.argv[4],
                                          aggregations=tuple(sys.argv[5:]))
    with dask.config.set(scheduler="threads", num_workers=int(sys.argv[3])):
        analysis.study.analyse(sys.argv[1], sys.argv[2], options)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak(*arguments: str) -> tuple[float, float]:
    """Megabytes at the peak, and seconds, of a process that studies a run (or only imports)."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", STUDY, *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--system", choices=list(SYSTEMS), default=next(iter(SYSTEMS)))
    parser.add_argument("--samples", type=int, default=1, help="of the smallest run")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--copies", type=int, default=3, help="layers of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--aggregations", nargs="*", default=["time_variance"])
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    args = parser.parse_args()
    table = Table(title=f"peak memory of a study, {args.system}, {args.steps} steps, {args.threads} threads")
    for column in ("samples", "run, GB", "peak, MB", "seconds"):
        table.add_column(column, justify="right")
    rows: list[dict[str, Any]] = []
    plain, seconds = peak()
    rows.append(
        {"samples": 0, "gigabytes": 0.0, "peak_megabytes": round(plain), "seconds": round(seconds, 1)}
    )
    for samples in (args.samples, 4 * args.samples, 16 * args.samples):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "run.zarr"
            write_run(path, specs(args.system, args.copies), args.steps, samples)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            store = str(Path(folder) / "marginals.zarr")
            most, seconds = peak(
                str(path), str(Path(folder) / "study"), str(args.threads), store, *args.aggregations
            )
        rows.append(
            {
                "samples": samples,
                "gigabytes": round(size / 1e9, 3),
                "peak_megabytes": round(most),
                "seconds": round(seconds, 1),
            }
        )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=110).print(table)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(
        json.dumps({"system": args.system, "steps": args.steps, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
