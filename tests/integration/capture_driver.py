"""Run captures in forked processes and kill them at random moments.

Usage: python -m tests.integration.capture_driver CONFIG KILLS SEED. Torch is loaded once, here; each child
is a whole capture job. Writes one JSON document: for each kill, the files of the samples committed by then.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from i2am.flows.capture.job import prepare, run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig


def start(config: CaptureConfig) -> int:
    """Fork a capture job; the child leaves with the status 0 if it finished."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run_capture(config)
            status = 0
        finally:
            os._exit(status)
    return pid


def committed(run: Path) -> dict[str, list[Any]]:
    """Files of the committed samples, and the records: inode and time of change."""
    found = {}
    for record in run.glob("commits/*.json"):
        names = [*json.loads(record.read_text())["files"], str(record.relative_to(run))]
        found[record.name] = [
            [name, (run / name).stat().st_ino, (run / name).stat().st_mtime_ns] for name in names
        ]
    return found


def main(path: str, kills: int, seed: int) -> dict[str, Any]:
    """Capture once undisturbed, then once with ``kills`` kills."""
    config = load_capture(path)
    prepare(config)  # imports everything and warms it up, before the forks
    run = Path(config.out)
    whole = config.model_copy(update={"out": str(run.with_name("whole.zarr"))})
    samples = config.samples.scenes.count if config.samples.scenes else 1
    clock = time.perf_counter()
    _, status = os.waitpid(start(whole), 0)
    assert status == 0
    share = (time.perf_counter() - clock) / samples
    dice = random.Random(seed)
    history = []
    for number in range(kills):
        # Counted from a commit, so that a busy machine neither finishes nor stands still.
        more = dice.choice((0, 0, 1)) if number < kills - 1 else 1  # the last follows a commit
        enough = len(list(run.glob("commits/*.json"))) + more
        pid = start(config)
        while len(list(run.glob("commits/*.json"))) < enough:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 1.5) * share)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        history.append({"killed": os.WIFSIGNALED(status), "committed": committed(run)})
    _, status = os.waitpid(start(config), 0)
    return {"finished": status == 0, "history": history, "final": committed(run)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
