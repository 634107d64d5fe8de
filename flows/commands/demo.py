"""``i2am demo``: embedded model, capture, analysis, report, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.console.output import counted, human_bytes, log, print_line
from i2am.flows.subprocesses import run, termination_interrupts
from i2am.storage.errors import AlreadyExists

_HEADER = "# Written by i2am demo; i2am capture reads it too."
_MADE = (
    "capture.yaml", "run.zarr", "run.marginals.zarr",
    "maps.zarr", "tables", "figures", "report", "study.json",
)  # fmt: skip


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run, the tables and the report.")] = Path(
        "out/demo"
    ),
    samples: Annotated[int, typer.Option(min=1, help="Scenes to paint.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Denoiser steps.")] = 20,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds already.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier demo first.")] = False,
    direct: Annotated[bool, typer.Option("--direct", help="Run without Prefect.")] = False,
) -> None:
    """Embedded model, capture, analysis, report.

    Paints objects from reference images, captures the attention, draws maps, scores them, and ends with the
    path of the report. Nothing that exists is touched without --resume or --overwrite.
    """
    started = time.monotonic()
    config = _prepare(out, samples, steps, resume, overwrite)
    way = ["--direct"] if direct else []
    with termination_interrupts():
        captured = _step("capture", str(config), *way)
        clock = time.monotonic()
        analysed = _step("analyze", str(out / "run.zarr"), "--out", str(out), *way)
    print_line(
        f"captured {counted(captured['captured'], 'sample')} in {captured['seconds']:.0f} s "
        f"({human_bytes(captured['bytes'])}, {counted(captured['files'], 'file')}), "
        f"analysed {len(analysed['samples'])} in {time.monotonic() - clock:.0f} s; "
        f"{time.monotonic() - started:.0f} s in all"
    )
    print_line(f"report: {out / 'report' / 'index.html'}")


def _prepare(out: Path, samples: int, steps: int, resume: bool, overwrite: bool) -> Path:
    """Make the folder and write the capture's configuration into it."""
    config = out / "capture.yaml"
    existing = [name for name in _MADE if (out / name).exists()]
    ours = _is_ours(config)
    if existing and overwrite and ours:
        for name in existing:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif existing and not (resume and ours):
        raise AlreadyExists(
            f"{out} holds {', '.join(existing)} already",
            remedy="go on with --resume, start again with --overwrite, or choose another --out"
            if ours
            else "no demo wrote these; choose another --out",
        )
    out.mkdir(parents=True, exist_ok=True)
    # JSON is YAML. Training drew its scenes from seeds of a million on: these are held out.
    settings = {
        "out": "run.zarr",
        "pipeline": "embedded",
        "samples": {"scenes": {"count": samples, "first_seed": 10_000}},
        "call": {"num_inference_steps": steps},
        "batch_size": min(samples, 4),
    }
    lines = [_HEADER, *(f"{key}: {json.dumps(value)}" for key, value in settings.items()), ""]
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def _is_ours(config: Path) -> bool:
    return config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(_HEADER)


def _step(command: str, *arguments: str) -> dict[str, Any]:
    """Run one command in a process of its own and read its JSON; its errors are already on standard error."""
    # Threads that wait by spinning would starve each other on a busy machine.
    env = {"OMP_WAIT_POLICY": "passive", **os.environ}
    status, output = run([sys.executable, "-m", "i2am", command, *arguments, "--json"], env=env)
    if status < 0:
        log(f"i2am: {command} was ended by signal {-status}; i2am demo --resume goes on from there")
        raise typer.Exit(128 - status)
    if status:
        raise typer.Exit(status)
    document: dict[str, Any] = json.loads(output)
    return document
