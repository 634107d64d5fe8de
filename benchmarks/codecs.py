"""Which codec, which writer, which chunk and shard: measured side by side in one run.

Usage: python -m benchmarks.codecs [--run RUN] [--megabytes 16] [--rounds 5] [--out FILE]

Every figure is the median over rounds in which all contestants take turns (A B C A B C ...), so that other
work on the machine falls on all of them alike; CPU time is given beside wall-clock time. Files are written
without fsync, which would measure the disk. `--run` adds the attention that a run holds. `zarrs` takes part
where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

import i2am
from i2am.storage.format.codecs import CODECS, shuffled
from i2am.storage.format.layout import DIMS, ArrayLayout
from i2am.storage.format.shard import FileRecord
from i2am.storage.format.zarr_metadata import hierarchy_documents
from i2am.storage.locations.local import LocalLocation
from i2am.storage.reading.array_reader import ArrayReader
from i2am.storage.writing.array_writer import ArrayWriter

MIB = 1 << 20
ENGINES = ("ours", "zarr-python", "zarrs")


def random_factors(megabytes: int) -> Iterator[tuple[str, np.ndarray]]:
    """Queries as random normal numbers: (step, head, gen, dim)."""
    rng = np.random.default_rng(0)
    step = 8 * 1024 * 64
    wide = rng.standard_normal((megabytes * MIB // (4 * step), 8, 1024, 64)).astype(np.float32)
    yield "random float16", rng.standard_normal((wide.shape[0] * 2, 8, 1024, 64)).astype(np.float16)
    yield "random float32", wide
    yield "random bfloat16", (wide.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def captured(path: str, megabytes: int) -> Iterator[tuple[str, np.ndarray]]:
    """Queries and scores of a run, each also rounded to the 16-bit formats."""
    run = i2am.open_run(path)
    for spec in sorted(run.layers.values(), key=lambda s: -s.gen * s.ref)[:1]:
        block = run.read(spec.name, run.samples[0])
        for kind, values in (("query", block.query), ("scores", block.logits())):
            if values is None:
                continue
            wide = np.ascontiguousarray(values[: max(1, megabytes * MIB // values[0].nbytes)], np.float32)
            yield f"captured {kind} float16", wide.astype(np.float16)
            yield f"captured {kind} float32", wide
            yield f"captured {kind} bfloat16", (wide.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def layout_of(
    values: np.ndarray, codec: str, chunk_bytes: int = MIB, shard_bytes: int = 1 << 40
) -> ArrayLayout:
    """One sample, cut as the store would cut it."""
    steps = max(
        n for n in range(1, len(values) + 1) if n * values[0].nbytes <= max(chunk_bytes, values[0].nbytes)
    )
    while len(values) % steps:
        steps -= 1
    group = steps * values[0].nbytes
    groups = len(values) // steps
    per_shard = max(
        n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * group <= shard_bytes)
    )
    shape, rest = (1, *values.shape), values.shape[1:]
    shard = (1, steps * per_shard, *rest)
    return ArrayLayout(
        "attention/l/query", DIMS["query"], shape, (1, steps, *rest), shard, str(values.dtype), codec
    )


class Contest:
    """Write and read one array with one engine."""

    def __init__(self, folder: Path, engine: str, layout: ArrayLayout, values: np.ndarray) -> None:
        self.path, self.engine, self.layout, self.values = folder, engine, layout, values
        self.files: dict[str, FileRecord] = {}
        self.times: dict[str, list[float]] = {what: [] for what in ("write", "read", "write cpu", "read cpu")}
        self.ratio = 0.0

    def write(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        spec = i2am.LayerSpec("l", 1, 1, (1, 1), (1, 1))
        for name, data in hierarchy_documents([(spec, {"query": self.layout})], []).items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)
        start = time.perf_counter(), time.process_time()
        if self.engine == "ours":
            writer = ArrayWriter(self.layout, 0, "run", "a", self.path / "part")
            for step in range(len(self.values)):
                writer.put(step, lambda heads, step=step: self.values[step, heads])
            done = writer.finish()
            for key, (local, _) in done.items():
                os.replace(local, self.path / key)
            self.files = {key: record for key, (_, record) in done.items()}
        else:
            self._array()[0] = self.values
        self._took("write", start)
        stored = sum(
            f.stat().st_size for f in (self.path / self.layout.path).iterdir() if f.name != "zarr.json"
        )
        self.ratio = stored / self.values.nbytes

    def _took(self, what: str, start: tuple[float, float]) -> None:
        self.times[what].append(time.perf_counter() - start[0])
        self.times[f"{what} cpu"].append(time.process_time() - start[1])

    def read(self) -> None:
        start = time.perf_counter(), time.process_time()
        if self.engine == "ours":
            reader = ArrayReader(LocalLocation(self.path), self.layout, "run", 0, self.files)
            got = reader.read(range(len(self.values)), range(self.values.shape[1]))
        else:
            got = self._array()[0]
        self._took("read", start)
        if not np.array_equal(got, self.values):
            raise SystemExit(f"{self.engine} {self.layout.codec} returned other numbers")

    def _array(self) -> Any:
        pipeline = (
            "zarrs.ZarrsCodecPipeline"
            if self.engine == "zarrs"
            else "zarr.core.codec_pipeline.BatchedCodecPipeline"
        )
        zarr.config.set({"codec_pipeline.path": pipeline})
        return zarr.open_array(self.path / self.layout.path, mode="r+")

    def rate(self, what: str) -> float:
        return self.values.nbytes / 1e6 / statistics.median(self.times[what])


def take_turns(contests: list[Contest], rounds: int) -> None:
    for _ in range(rounds):
        for contest in contests:
            contest.write()
            contest.read()
    for contest in contests:
        shutil.rmtree(contest.path, ignore_errors=True)


def compare(
    console: Console, title: str, contests: list[tuple[str, Contest]], rounds: int, first: str
) -> list[dict[str, Any]]:
    """Run the contests and print the table."""
    take_turns([c for _, c in contests], rounds)
    table = Table(title=title, caption="MB/s of wall clock; MB per second of CPU, all threads together")
    measures = ("write", "read", "write cpu", "read cpu")
    for column in (first, *measures, "stored/plain"):
        table.add_column(column, justify="left" if column == first else "right")
    rows = []
    for name, c in contests:
        rates = {what: round(c.rate(what), 1) for what in measures}
        table.add_row(name, *(f"{rate:.0f}" for rate in rates.values()), f"{c.ratio:.3f}")
        rows.append({"name": name, **rates, "ratio": round(c.ratio, 4)})
    console.print(table)
    return rows


def engines() -> list[str]:
    try:
        import zarrs  # noqa: F401
    except ImportError:
        return [e for e in ENGINES if e != "zarrs"]
    return list(ENGINES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="a run whose captured attention is measured too")
    parser.add_argument("--megabytes", type=int, default=16, help="size of each array")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "codecs.json")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    console, results = Console(width=110), {}
    folder = Path(tempfile.mkdtemp(prefix="codecs-", dir=args.folder))
    real, os.fsync = os.fsync, lambda fd: None
    sources: list[Callable[[], Iterator[tuple[str, np.ndarray]]]] = [lambda: random_factors(args.megabytes)]
    if args.run:
        sources.append(lambda: captured(args.run, args.megabytes))
    try:
        for source in sources:
            for name, values in source():
                codecs = dict.fromkeys(map(shuffled, CODECS) if "bfloat16" in name else CODECS)
                layouts = {c: layout_of(values, c) for c in codecs}
                contests = [
                    (f"{codec} / {engine}", Contest(folder / f"{codec}-{engine}", engine, layout, values))
                    for codec, layout in layouts.items()
                    for engine in engines()
                ]
                title = f"{name}, {values.nbytes / 1e6:.0f} MB, chunk {contests[0][1].layout.chunk}"
                results[name] = compare(console, title, contests, args.rounds, "codec / engine")
        values = next(random_factors(args.megabytes * 4))[1]
        for title, option, sizes in (
            ("chunk", "chunk_bytes", (1, 2, 4, 8, 16)),
            ("shard", "shard_bytes", (8, 16, 64, 1024)),
        ):
            contests = [
                (
                    f"{size} MiB",
                    Contest(
                        folder / f"{title}-{size}",
                        "ours",
                        layout_of(values, "none", **{option: size * MIB}),
                        values,
                    ),
                )
                for size in sizes
            ]
            results[f"{title} size"] = compare(
                console, f"{title} size, random float16, no compression", contests, args.rounds, title
            )
    finally:
        os.fsync = real
        shutil.rmtree(folder, ignore_errors=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"zarr": zarr.__version__, "rounds": args.rounds, "results": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
