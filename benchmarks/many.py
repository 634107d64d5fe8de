"""A run of very many small samples: opening, listing, inspecting, planning, and what an analysis asks first.

Usage: python -m benchmarks.many [--samples 10000] [--folder DIR] [--run RUN] [--out FILE]

The run has three small layers, three steps and four images; ``--run`` takes one that was written before. Each
question is asked once, in a process of its own, of a run that nobody in it has opened; commands are timed
whole, beside the same command on a run (or a configuration) of ten samples: what remains is what the samples
cost. Files of a sample of 16 layers and 50 steps are counted too, as planned and as written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.writing.create import create_run
from i2am.storage.writing.plan import plan

LAYERS = [
    LayerSpec("down", 2, 8, (8, 8), (4, 4)),
    LayerSpec("mid", 2, 8, (4, 4), (4, 4)),
    LayerSpec("up", 2, 8, (8, 8), (4, 4)),
]
IMAGES = dict.fromkeys(("source", "reference", "generated"), (16, 16, 3)) | {"mask": (16, 16, 1)}
DEEP = [LayerSpec(f"layer{number:02}", 2, 8, (8, 8), (4, 4)) for number in range(16)]
DEEP_STEPS = 50
FEW = 10

QUESTIONS = {
    "open": "run = open_run(path)",
    "list samples": "run = open_run(path); names = run.samples, run.declared",
    "missing": "writer = resume_run(path); missing = writer.missing; writer.close()",
    "select": "run = open_run(path); select(run, 'r2g', None, None, None, run.samples)",
    "fingerprints": "run = open_run(path); found = [run.fingerprint(sample) for sample in run.samples]",
    "check": "run = open_run(path); found = [run.check(sample) for sample in run.samples]",
}
"""What is asked; the last two are the first things that a study does."""

ASK = """
import sys, time
from i2am.analysis.grids.selection import select
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import resume_run
path = sys.argv[1]
start, worked = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - start, time.process_time() - worked)
"""

SCENES = """
out: {folder}/planned.zarr
pipeline: embedded
samples: {{scenes: {{count: {count}}}}}
call: {{num_inference_steps: 2}}
"""


def write(path: Path, samples: int, layers: list[LayerSpec], steps: int) -> None:
    """Write a run of random factors."""
    rng = np.random.default_rng(0)
    names = [f"s{number:05}" for number in range(samples)]
    with create_run(path, layers, list(range(steps, 0, -1)), names, image_shapes=IMAGES) as run:
        for name in names:
            with run.sample(name) as sink:
                for image, shape in IMAGES.items():
                    sink.put_image(image, rng.integers(0, 255, shape, np.uint8))
                for spec in layers:
                    key = rng.standard_normal((spec.heads, spec.ref, spec.head_dim)).astype(np.float16)
                    for step in range(steps):
                        query = rng.standard_normal((spec.heads, spec.gen, spec.head_dim)).astype(np.float16)
                        sink.put(spec.name, step, query=query, key=key)


def ask(question: str, path: Path) -> dict[str, float]:
    """Seconds of a question, without what its process needs to start; and its CPU seconds."""
    command = [sys.executable, "-c", ASK.format(QUESTIONS[question]), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return dict(zip(("seconds", "cpu_seconds"), map(float, done.stdout.split()), strict=True))


def command(*words: str) -> dict[str, float]:
    """Seconds of a whole command, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "i2am", *words], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu_seconds": worked}


def beside_ten(what: str, many: Sequence[str], ten: Sequence[str]) -> dict[str, Any]:
    """A row: a command on many samples, and on ten."""
    base = {f"{key}_of_ten": value for key, value in command(*ten).items()}
    return {"what": what, **command(*many), **base}


def deep_files(folder: Path) -> dict[str, int]:
    """Files of one sample of many layers and steps: planned, and written."""
    write(folder / "deep.zarr", 1, DEEP, DEEP_STEPS)
    predicted = plan(DEEP, list(range(DEEP_STEPS)), ["s00000"], IMAGES).sample_files
    written = len(json.loads((folder / "deep.zarr/commits/s00000.json").read_text())["files"]) + 1
    return {"planned": predicted, "written": written}


def measure(path: Path, folder: Path) -> list[dict[str, Any]]:
    """All questions and commands."""
    few = folder / "few.zarr"
    write(few, FEW, LAYERS, 3)
    rows: list[dict[str, Any]] = []
    rows.extend({"what": question, **ask(question, path)} for question in QUESTIONS)
    rows.append(beside_ten("i2am inspect", ("inspect", str(path)), ("inspect", str(few))))
    declared = json.loads((path / "zarr.json").read_bytes())["attributes"]["i2am"]["samples"]
    files = [folder / f"scenes-{count}.yaml" for count in (len(declared), FEW)]
    for file, count in zip(files, (len(declared), FEW), strict=True):
        file.write_text(SCENES.format(folder=folder, count=count))
    rows.append(beside_ten("i2am plan", *(("plan", str(file)) for file in files)))
    return [{key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--run", type=Path, help="a run of that many samples, written before")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "many.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = args.run or folder / "many.zarr"
        if args.run is None:
            write(path, args.samples, LAYERS, 3)
        rows, deep = measure(path, folder), deep_files(folder)
    table = Table(title=f"{args.samples} samples; load of the machine {os.getloadavg()[0]:.1f}")
    for column in ("what", "seconds", "CPU s", "of ten samples", "CPU s"):
        table.add_column(column, justify="right")
    keys = ("what", "seconds", "cpu_seconds", "seconds_of_ten", "cpu_seconds_of_ten")
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in keys))
    console = Console(width=110)
    console.print(table)
    console.print(f"files of a sample of {len(DEEP)} layers and {DEEP_STEPS} steps: {deep}")
    args.out.parent.mkdir(exist_ok=True)
    result = {"samples": args.samples, "load": round(os.getloadavg()[0], 1), "rows": rows, "deep_files": deep}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
