"""Peak memory of ``i2am analyze``, at 1, 4 and 16 times the samples, or at numbers of samples that are given.

Usage: python -m benchmarks.memory [--samples 1] [--steps 10] [--threads 2] [--folder DIR] [--out FILE]
       python -m benchmarks.memory --system "small, of many samples" --counts 250 500 1000 2000 --steps 4 \\
           --copies 1 --out benchmarks/results/memory-many.json

Each study runs in a process of its own, whole: marginals, maps, tables, aggregations, figures, report. The
figure is the process's largest resident set, VmHWM of /proc (Linux); the same for a process that only
imports what a study needs is beside it. 16 samples of ``--system "IP-Adapter SD1.5, 257 tokens" --copies 6
--steps 50`` are 23 GB. A process keeps the marginals that it read lately, 128 MiB at most: ``recalled`` says
how many megabytes of the peak are these, which fill up with the first samples and grow no more.
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

from benchmarks.systems import SMALL, SYSTEMS, specs, write_run

STUDY = """
import re, sys
from pathlib import Path
import i2am.analysis.study.study, i2am.analysis.report.write, i2am.analysis.study.figures
import i2am.analysis.report.aggregation_page, i2am.analysis.marginals.memory_cache
from i2am.flows.cli import main
if len(sys.argv) > 1 and main(["analyze", *sys.argv[1:], "--direct", "--json", "--quiet"]):
    sys.exit("the study failed")
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print()
print(peak, i2am.analysis.marginals.memory_cache.shared_cache.bytes)
"""


def peak(*arguments: str) -> dict[str, Any]:
    """Megabytes at the peak, those recalled, and seconds, of a process that studies a run or only imports."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", STUDY, *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    most, recalled = map(int, done.stdout.splitlines()[-1].split())
    found = {"peak_megabytes": round(most / 1024), "recalled_megabytes": round(recalled / 2**20)}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--system", choices=list(SYSTEMS | SMALL), default=next(iter(SYSTEMS)))
    parser.add_argument("--samples", type=int, default=1, help="of the smallest run")
    parser.add_argument("--counts", type=int, nargs="*", help="numbers of samples, instead")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--copies", type=int, default=3, help="layers of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--aggregations", nargs="*", default=["time_variance"])
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    args = parser.parse_args()
    table = Table(title=f"peak memory of a study, {args.system}, {args.steps} steps, {args.threads} threads")
    for column in ("samples", "run, GB", "peak, MB", "of it recalled", "seconds"):
        table.add_column(column, justify="right")
    rows: list[dict[str, Any]] = [{"samples": 0, "gigabytes": 0.0, **peak()}]
    for samples in args.counts or (args.samples, 4 * args.samples, 16 * args.samples):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "run.zarr"
            write_run(path, specs(args.system, args.copies), args.steps, samples)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            words = [word for name in args.aggregations for word in ("--aggregation", name)]
            out = str(Path(folder) / "study")
            found = peak(str(path), "--out", out, "--workers", str(args.threads), *words)
        rows.append({"samples": samples, "gigabytes": round(size / 1e9, 3), **found})
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=110).print(table)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(
        json.dumps({"system": args.system, "steps": args.steps, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
