"""Everything that a reader does with a run, in a process with little memory; prints what came of it.

``python -m tests.storage.hostile_child BYTES STORE...``: one JSON line for each store and action. The first
store is a undamaged one, which loads all libraries; BYTES is what may be taken beyond that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

import i2am
from i2am.analysis.maps.attribution import attribution_maps
from i2am.flows.cli import main


def _scores(path: str) -> None:
    run = i2am.open_run(path)
    for layer in run.layers:
        lazy = run.scores(layer)
        float(np.asarray(lazy[0, 0, 0, :1].compute()).ravel()[0])


def _read(path: str) -> None:
    run = i2am.open_run(path)
    for layer in run.layers:
        run.read(layer, run.samples[0], [0], [0])


def _read_all(path: str) -> None:
    run = i2am.open_run(path)
    for layer in run.layers:
        run.read(layer, run.samples[0])


def _image(path: str) -> None:
    run = i2am.open_run(path)
    for name in run.record(run.samples[0])["images"]:
        run.image(name, run.samples[0])


def _maps(path: str) -> None:
    attribution_maps(i2am.open_run(path), "r2g", store=False).compute()


def _command(*words: str) -> Callable[[str], str]:
    def run(path: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            more = [word.replace("DIR", folder) for word in words[1:]]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([words[0], path, *more])
        lines = [line for line in err.getvalue().splitlines() if line.startswith("i2am: ")]
        if status == 70 or any(len(line) > 2100 for line in lines):
            raise RuntimeError(err.getvalue())
        return f"exit {status}"

    return run


ACTIONS: dict[str, Callable[[str], object]] = {
    "open": i2am.open_run,
    "check": lambda path: i2am.open_run(path).check("a"),
    "read": _read,
    "read all": _read_all,
    "scores": _scores,
    "image": _image,
    "verify": lambda path: "undamaged" if i2am.verify(path).ok else "problems",
    "maps": _maps,
    "i2am inspect": _command("inspect"),
    "i2am verify": _command("verify", "--quiet"),
    "i2am maps": _command("maps", "--out", "DIR/F.npz"),
    "i2am analyze": _command("analyze", "--out", "DIR/out", "--direct", "--quiet"),
}


def outcome(action: Callable[[str], object], path: str) -> str:
    """Name what an action came to; a traceback if that is a defect."""
    try:
        found = action(path)
    except i2am.I2AMError as error:
        return type(error).__name__ if "\n" not in str(error) else f"DEFECT: two lines: {error}"
    except BaseException:  # noqa: BLE001 - MemoryError above all
        return "DEFECT: " + traceback.format_exc()
    return found if isinstance(found, str) else "fine"


if __name__ == "__main__":
    most, *stores = sys.argv[1:]
    for number, store in enumerate(stores):
        if number == 1:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + int(most), mapped + int(most)))
        for name, action in ACTIONS.items():
            if name not in os.environ.get("HOSTILE_ACTIONS", name).split(","):
                continue
            line = json.dumps([Path(store).name, name, outcome(action, store)])
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
