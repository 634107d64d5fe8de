"""Run a sweep while its processes are killed at random moments.

Usage: python -m tests.integration.sweep_driver CONFIG KILLS SEED. Kills capture processes and the temporary
Prefect server; starts the sweep again where it ends without having finished. Writes one JSON document: what
was killed, how often the command was started, and whether a commit record ever changed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROLES = {"worker": b"flows.sweep_worker", "server": b"prefect.server.api.server"}
"""What a victim's command line has in it."""

PATIENCE = 120.0
"""Seconds without a process to kill, or without an end, after which something is wrong."""


def descendants(parent: int) -> dict[int, bytes]:
    """Process id to command line, of all that a process has started."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            lines[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)] = int(fields[1])
    found, todo = {}, [parent]
    while todo:
        above = todo.pop()
        below = [pid for pid, its in parents.items() if its == above]
        found |= {pid: lines[pid] for pid in below}
        todo += below
    return found


def victims(parent: int, role: str) -> list[int]:
    """Processes of a role, oldest first."""
    return sorted(pid for pid, line in descendants(parent).items() if ROLES[role] in line)


def records(run: Path) -> dict[str, list[int]]:
    """Inode and time of change of each commit record."""
    found = {}
    for record in run.glob("commits/*.json"):
        state = record.stat()
        found[record.name] = [state.st_ino, state.st_mtime_ns]
    return found


def start(config: str, log: Any) -> subprocess.Popen[bytes]:
    """Start the sweep."""
    command = [sys.executable, "-m", "flows", "sweep", config, "--quiet", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)


def main(config: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` processes, then let the sweep end."""
    dice = random.Random(seed)
    run = Path(json.loads(Path(config).read_text())["out"])
    run = Path(config).parent / run
    seen: dict[str, list[int]] = {}
    killed: dict[str, int] = dict.fromkeys(ROLES, 0)
    statuses: list[int] = []
    changed: list[str] = []

    def look() -> None:
        """Whatever was committed stays as it is."""
        for name, state in records(run).items():
            if seen.setdefault(name, state) != state:
                changed.append(name)

    with (run.parent / "sweep.log").open("wb") as log:
        sweep = start(config, log)
        while sum(killed.values()) < kills:
            role = dice.choice(("worker", "worker", "server"))
            end = time.monotonic() + PATIENCE
            while not (found := victims(sweep.pid, role)) and sweep.poll() is None:
                if time.monotonic() > end:
                    raise TimeoutError(f"no {role} to kill; seed {seed}")
                time.sleep(0.02)
            if sweep.poll() is not None:
                statuses.append(sweep.returncode)
                if sweep.returncode == 0:
                    break  # everything is there before all kills were done
                sweep = start(config, log)
                continue
            time.sleep(dice.expovariate(1 / 2.0))
            look()
            try:
                os.kill(dice.choice(found), signal.SIGKILL)
                killed[role] += 1
            except ProcessLookupError:
                continue
        while True:
            status = sweep.wait(600)
            statuses.append(status)
            look()
            if status == 0 or len(statuses) > kills + 3:
                break
            sweep = start(config, log)
    return {"killed": killed, "statuses": statuses, "changed": changed, "records": sorted(seen)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
