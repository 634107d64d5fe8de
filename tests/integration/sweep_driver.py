"""Run a sweep while its processes, the sweep itself and its Prefect server are killed at random moments.

Usage: python -m tests.integration.sweep_driver CONFIG KILLS SEED. The sweep is started again where it was
killed, and sweeps into another run where it has finished before all kills were done; the server is started
again at once. Writes one JSON document: what was killed, the runs, the exit statuses of their sweeps, and the
commit records that ever changed.
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

from tests.flows.prefect_api import UserServer, descendants
from tests.flows.sweeps import WORKER

ROLES = ("worker", "worker", "sweep", "server")
SECONDS = 120.0
"""Without a process to kill, after which something is wrong."""


def records(run: Path) -> dict[str, list[int]]:
    """Inode and time of change of each commit record."""
    found = {}
    for record in run.glob("commits/*.json"):
        state = record.stat()
        found[record.name] = [state.st_ino, state.st_mtime_ns]
    return found


class Round:
    """One run, swept until it is complete."""

    def __init__(self, config: Path, number: int, env: dict[str, str], log: Any) -> None:
        settings = json.loads(config.read_text()) | {"out": f"swept-{number}.zarr"}
        self.file = config.with_name(f"round-{number}.yaml")
        self.file.write_text(json.dumps(settings))
        self.run = config.with_name(settings["out"])
        self.env, self.log = env, log
        self.seen: dict[str, list[int]] = {}
        self.changed: list[str] = []
        self.statuses: list[int] = []
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "i2am", "sweep", str(self.file), "--quiet", "--json"]
        env = {**os.environ, **self.env}
        self.sweep = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=self.log)

    def look(self) -> None:
        """Whatever was committed stays as it is."""
        for name, state in records(self.run).items():
            if self.seen.setdefault(name, state) != state:
                self.changed.append(name)

    def victims(self, role: str) -> list[int]:
        """Processes to kill; none if the sweep has ended."""
        end = time.monotonic() + SECONDS
        while self.sweep.poll() is None:
            workers = [pid for pid, command in descendants(self.sweep.pid).items() if WORKER in command]
            if workers:  # the sweep is at work
                return workers if role == "worker" else [self.sweep.pid]
            if time.monotonic() > end:
                raise TimeoutError("no capture process was started")
            time.sleep(0.02)
        return []

    def ended(self) -> bool:
        """Whether the run is complete; the sweep is started again where it ended otherwise."""
        self.statuses.append(self.sweep.wait(600))
        self.look()
        if self.statuses[-1] != 0:
            if len(self.statuses) > 60:
                raise TimeoutError(f"it ends again and again: {self.statuses}")
            self.start()
        return self.statuses[-1] == 0


def main(config: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` processes, in as many rounds as it takes, and let the last one finish."""
    dice = random.Random(seed)
    roles = list(dict.fromkeys(dice.sample(ROLES, len(ROLES))))  # each once, then as it comes
    roles += dice.choices(ROLES, k=kills)
    killed: dict[str, int] = dict.fromkeys(ROLES, 0)
    rounds: list[Round] = []
    with config.with_name("sweep.log").open("wb") as log, UserServer(config.with_name("home")) as server:
        while sum(killed.values()) < kills:
            rounds.append(Round(config, len(rounds), server.env, log))
            while True:
                role = roles[sum(killed.values())]
                found = rounds[-1].victims(role) if sum(killed.values()) < kills else []
                if not found:
                    if rounds[-1].ended():
                        break
                    continue
                time.sleep(dice.expovariate(1 / 1.5))
                rounds[-1].look()
                if role == "server":
                    server.kill()
                    server.start(wait=False)
                else:
                    try:
                        os.kill(dice.choice(found), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                killed[role] += 1
    return {
        "killed": killed,
        "runs": [str(each.run) for each in rounds],
        "statuses": [each.statuses for each in rounds],
        "changed": [name for each in rounds for name in each.changed],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
