"""Writing into one run: by one process, and by four at the same time.

Usage: python -m benchmarks.writers [--rounds 3] [--samples 16] [--megabytes 40] [--folder DIR] [--out FILE]

Random factors, made once and held in memory, are put from one thread, as a capture process does; nothing else
is computed. Every pass writes the same samples into a new run: one process all of them, or four a quarter
each, with the writer threads as they are by default, then with one thread each; taking turns (A B A B ...).
The processes are ready before the clock starts; it stops when the last sample is committed. CPU seconds are
those of the writing processes: divided by the wall clock they say how many cores one process keeps busy
already. The contents must be equal, array by array. A plain write of as many bytes, with fsync, is beside it:
more than the disk gives is not to be had.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.writing.create import create_run, resume_run

STEPS = 10
PROCESSES = (1, 4)


def specs(megabytes: int) -> list[LayerSpec]:
    """Layers of (64 x 64) and (32 x 32) with that many megabytes of factors a sample."""
    large = 8 * 40 * (64 * 64 * STEPS + 256) * 2
    count = max(1, round(megabytes * 1e6 / large))
    return [LayerSpec(f"layer{n}", 8, 40, (64, 64), (16, 16), representation="factors") for n in range(count)]


def put(path: Path, layers: list[LayerSpec], samples: list[str], threads: int | None, data: Any) -> None:
    """Write some samples from one thread."""
    with resume_run(path, threads=threads) as run:
        for sample in samples:
            with run.sample(sample) as sink:
                for step in range(STEPS):
                    for spec in layers:
                        query, key = data[spec.name]
                        sink.put(spec.name, step, query=query[step], key=key)


def factors(layers: list[LayerSpec]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random factors, the same for every sample and process."""
    found = {}
    for number, spec in enumerate(layers):
        rng = np.random.default_rng(number)
        query = rng.standard_normal((STEPS, spec.heads, spec.gen, spec.head_dim), np.float32)
        key = rng.standard_normal((spec.heads, spec.ref, spec.head_dim), np.float32)
        found[spec.name] = query.astype(np.float16), key.astype(np.float16)
    return found


def work(
    path: Path, megabytes: int, shares: list[list[str]], threads: int | None, gate: Barrier, cpu: Any
) -> None:
    """One process: get ready, wait for the others, write, and tell its CPU seconds."""
    layers = specs(megabytes)
    data = factors(layers)
    gate.wait()
    before = time.process_time()
    put(path, layers, shares[0], threads, data)
    cpu.put(time.process_time() - before)


def one_pass(
    folder: Path, samples: int, megabytes: int, processes: int, threads: int | None
) -> dict[str, float]:
    """Write a run; wall clock, CPU seconds, bytes."""
    path, names = folder / f"run-{processes}.zarr", [f"s{number:03}" for number in range(samples)]
    shutil.rmtree(path, ignore_errors=True)
    empty = folder / "empty.zarr"
    if not empty.exists():  # one for all passes: files carry the run's id
        create_run(empty, specs(megabytes), list(range(STEPS, 0, -1)), names).close()
    shutil.copytree(empty, path)
    context = multiprocessing.get_context("spawn")
    gate, cpu = context.Barrier(processes + 1), context.Queue()
    shares = [[names[number::processes]] for number in range(processes)]
    workers = [
        context.Process(target=work, args=(path, megabytes, share, threads, gate, cpu)) for share in shares
    ]
    for worker in workers:
        worker.start()
    gate.wait()
    start = time.perf_counter()
    spent = sum(cpu.get() for _ in workers)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a writer ended with {worker.exitcode}")
    size = sum(file.stat().st_size for file in path.rglob("c.*"))
    return {"seconds": seconds, "cpu_seconds": spent, "bytes": size}


def plain_write(folder: Path, size: int) -> float:
    """Bytes a second of one file written and synced."""
    block = np.random.default_rng(0).bytes(1 << 24)
    start = time.perf_counter()
    with (folder / "plain").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "plain").unlink()
    return size // len(block) * len(block) / seconds


def equal(folder: Path) -> bool:
    """Whether the runs of the last passes have the same files with the same bytes, records apart."""
    one, four = (folder / f"run-{processes}.zarr" for processes in PROCESSES)
    names = [{p.relative_to(run) for p in run.rglob("c.*")} for run in (one, four)]
    return names[0] == names[1] and all((one / n).read_bytes() == (four / n).read_bytes() for n in names[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "writers.json")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    passes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for threads in (None, 1):
            for processes in PROCESSES * args.rounds:
                load = os.getloadavg()[0]
                found = one_pass(folder, args.samples, args.megabytes, processes, threads)
                plain = plain_write(folder, int(found["bytes"]))
                row = {"processes": processes, "threads": threads or "default", "load_before": round(load, 1)}
                row |= {key: round(value, 2) for key, value in found.items()}
                row["megabytes_per_second"] = round(found["bytes"] / found["seconds"] / 1e6, 1)
                row["cores_used"] = round(found["cpu_seconds"] / found["seconds"], 2)
                row["plain_megabytes_per_second"] = round(plain / 1e6)
                passes.append(row)
            if not equal(folder):
                raise SystemExit("one process and four wrote different bytes")
    report(passes, args, cores)


def report(passes: list[dict[str, Any]], args: argparse.Namespace, cores: int) -> None:
    """Print and write medians and ratios."""
    table = Table(title=f"{args.samples} samples of {args.megabytes} MB, {cores} cores")
    columns = ("threads", "processes", "MB/s", "cores used", "CPU s", "plain write MB/s", "load before")
    for column in columns:
        table.add_column(column, justify="right")
    keys = ("threads", "processes", "megabytes_per_second", "cores_used", "cpu_seconds")
    for row in passes:
        table.add_row(*(str(row[key]) for key in (*keys, "plain_megabytes_per_second", "load_before")))
    found: dict[str, Any] = {}
    for threads in ("default", 1):
        rates = {
            n: statistics.median(
                row["megabytes_per_second"]
                for row in passes
                if (row["threads"], row["processes"]) == (threads, n)
            )
            for n in PROCESSES
        }
        found[f"threads_{threads}"] = {
            "one": rates[1],
            "four": rates[4],
            "ratio": round(rates[4] / rates[1], 2),
        }
    console = Console(width=110)
    console.print(table)
    console.print(f"medians, MB/s: {found}")
    args.out.parent.mkdir(exist_ok=True)
    settings = {"samples": args.samples, "megabytes": args.megabytes, "cores": cores}
    args.out.write_text(json.dumps(settings | found | {"passes": passes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
