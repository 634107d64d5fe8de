"""Run a sweep while its processes are killed at random moments.

Usage: python -m tests.integration.sweep_driver CONFIG KILLS SEED. Kills capture processes and the temporary
Prefect server; starts the sweep again where it ends without having finished, and sweeps into another run
where it has finished before all kills were done. Writes one JSON document: what was killed, the runs, the
exit statuses of each one's sweeps, and the commit records that ever changed.
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

ROLES = {"worker": b"i2am.flows.sweep.worker_main", "server": b"prefect.server.api.server"}
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
    command = [sys.executable, "-m", "i2am", "sweep", config, "--quiet", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)


class Round:
    """One sweep of a run of its own, started again until it has finished."""

    def __init__(self, config: Path, number: int, log: Any) -> None:
        settings = json.loads(config.read_text()) | {"out": f"swept-{number}.zarr"}
        self.file = config.with_name(f"round-{number}.yaml")
        self.file.write_text(json.dumps(settings))
        self.run = config.with_name(settings["out"])
        self.log = log
        self.seen: dict[str, list[int]] = {}
        self.changed: list[str] = []
        self.statuses: list[int] = []
        self.sweep = start(str(self.file), log)

    def look(self) -> None:
        """Whatever was committed stays as it is."""
        for name, state in records(self.run).items():
            if self.seen.setdefault(name, state) != state:
                self.changed.append(name)

    def victim(self, role: str) -> list[int]:
        """Processes to kill; none if the sweep has ended."""
        end = time.monotonic() + PATIENCE
        while not (found := victims(self.sweep.pid, role)) and self.sweep.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"no {role} to kill")
            time.sleep(0.02)
        return found if self.sweep.poll() is None else []

    def ended(self) -> bool:
        """Whether it has finished; it is started again where it ended otherwise."""
        self.statuses.append(self.sweep.wait(600))
        self.look()
        if self.statuses[-1] != 0:
            if len(self.statuses) > 30:
                raise TimeoutError(f"it ends again and again: {self.statuses}")
            self.sweep = start(str(self.file), self.log)
        return self.statuses[-1] == 0


def main(config: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` processes, in as many rounds as it takes, and let the last one finish."""
    dice = random.Random(seed)
    killed: dict[str, int] = dict.fromkeys(ROLES, 0)
    rounds: list[Round] = []
    with config.with_name("sweep.log").open("wb") as log:
        while sum(killed.values()) < kills:
            rounds.append(Round(config, len(rounds), log))
            while True:
                left = sum(killed.values()) < kills
                role = dice.choice(("worker", "worker", "server"))
                found = rounds[-1].victim(role) if left else []
                if not found:
                    if rounds[-1].ended():
                        break
                    continue
                time.sleep(dice.expovariate(1 / 1.5))
                rounds[-1].look()
                try:
                    os.kill(dice.choice(found), signal.SIGKILL)
                    killed[role] += 1
                except ProcessLookupError:
                    continue
    return {
        "killed": killed,
        "runs": [str(each.run) for each in rounds],
        "statuses": [each.statuses for each in rounds],
        "changed": [name for each in rounds for name in each.changed],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
