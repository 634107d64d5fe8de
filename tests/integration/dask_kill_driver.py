"""Analyse a run again and again while workers and schedulers of Dask are killed at random moments.

Usage: python -m tests.integration.dask_kill_driver RUN FOLDER KILLS SEED [processes|foreign ...]

A round begins with nothing but the run and ends when a command succeeds; it has one to three kills at random
moments. On ``processes`` the victims are worker processes, or the command itself, in which the scheduler is;
on ``foreign`` they are workers without nannies and a scheduler that somebody else runs (and starts again).
Whatever goes wrong is a line in ``wrong``; writes one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import polars as pl
import psutil

from tests.flows.conftest import ROOT
from tests.flows.remote import Cluster, add_worker, foreign_cluster

CONFIG = "figures: 0\ndetails: 0\n"
LATE = 30.0
"""Seconds in which what was started must have ended, and a kill must have had its effect."""

LOST = re.compile(
    r"i2am: (the Dask scheduler was lost|no Dask scheduler answers|LocalCluster does not start"
    r"|the workers of the Dask cluster were lost|the Dask cluster at .* has no worker)"
)
"""What a command may say if its cluster is lost."""


@dataclass
class Kill:
    """One kill: who, where, seconds after the command began, after which line; how the command ended."""

    arena: str
    victim: str
    after: float
    stage: str
    status: int | None = None


@dataclass
class Record:
    """What came of it."""

    seed: int
    kills: list[Kill] = field(default_factory=list)
    rounds: int = 0
    wrong: list[str] = field(default_factory=list)


class Command:
    """``i2am analyze`` in a process of its own; its lines are read as they come."""

    def __init__(self, run: Path, out: Path, cluster: str, scratch: Path) -> None:
        (out.parent / "analysis.yaml").write_text(CONFIG)
        words = ["analyze", str(run), "--out", str(out), "--config", str(out.parent / "analysis.yaml")]
        words += ["--cluster", cluster] + (["--workers", "2"] if cluster == "processes" else [])
        timeouts = {
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s",
            "DASK_TEMPORARY_DIRECTORY": str(scratch),
        }
        self.lines: list[str] = []
        self.started = time.monotonic()
        self.family: dict[int, psutil.Process] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "i2am", *words],
            cwd=ROOT,
            env={**os.environ, **timeouts},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        self.lines.extend(line.rstrip("\n") for line in lines)

    @property
    def stage(self) -> str:
        """The last thing it told."""
        return self.lines[-1] if self.lines else "start"

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.family |= {each.pid: each for each in found}
        return [each for each in found if "spawn_main" in " ".join(_words(each))]

    def end(self) -> int:
        """Wait for its end; return its status."""
        while self.process.poll() is None:
            self.workers()
            time.sleep(0.05)
        self._reader.join(LATE)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()
        return self.process.returncode

    def complaint(self) -> str | None:
        """What is wrong with the way it ended, if anything is."""
        status = self.process.returncode
        known = (
            "resource_tracker",
            "distributed.nanny - WARNING - Restarting worker",
            "TLS handshake failed with remote",  # a worker's listener: what broke off is begun again, or dead
        )
        told = [line for line in self.lines if not _progress(line) and not any(w in line for w in known)]
        if status == -signal.SIGKILL:  # it may have been on its way out already
            told = [line for line in told if not LOST.match(line)]
        if status in (0, -signal.SIGKILL):
            return None if not told else f"status {status}, but it says {told}"
        if status == 2 and len(told) == 1 and LOST.match(told[0]):
            return None
        return f"status {status}, and it says {told}"


def _progress(line: str) -> bool:
    return re.match(r"\w+ \d+/\d+: ", line) is not None


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_at_random(run: Path, folder: Path, kills: int, seed: int, arenas: tuple[str, ...]) -> Record:
    """Study ``run`` undisturbed, then with kills until there are enough.

    Parameters
    ----------
    run, folder
        The run, which is only read; an empty folder to work in.
    kills, seed, arenas
        How many, and what they and their moments depend on; "processes", "foreign".
    """
    dice, record = random.Random(seed), Record(seed)
    whole = Round(run, folder / "whole", record, dice)
    whole.command("threads")
    lasts = whole.seconds
    while len(record.kills) < kills and not record.wrong:
        arena = arenas[record.rounds % len(arenas)]
        record.rounds += 1
        place = folder / f"round-{record.rounds}"
        disturbed = Round(run, place, record, dice, min(dice.randint(1, 3), kills - len(record.kills)), lasts)
        disturbed.disturb(arena)
        record.wrong += differences(whole.folder, disturbed.folder) + left(disturbed.folder)
        if record.wrong:
            record.wrong.append(f"round {record.rounds}, {arena}")
        else:
            shutil.rmtree(place)
    return record


class Round:
    """One study from its beginning to its success."""

    def __init__(
        self, run: Path, folder: Path, record: Record, dice: random.Random, kills: int = 0, lasts: float = 0.0
    ) -> None:
        self.folder, self._record, self._dice, self._kills, self._lasts = folder, record, dice, kills, lasts
        folder.mkdir(parents=True)
        (folder / "run.zarr").symlink_to(run)
        self.seconds = 0.0

    def start(self, cluster: str) -> Command:
        """Begin a command."""
        return Command(self.folder / "run.zarr", self.folder / "out", cluster, self.folder / "scratch")

    def command(self, cluster: str) -> None:
        """One command without kills."""
        command = self.start(cluster)
        self._ended(command, [])
        self.seconds = time.monotonic() - command.started

    def disturb(self, arena: str) -> None:
        """Kill, and start again what was killed, until a command succeeds."""
        status: int | None = None
        for attempt in range(self._kills + 2):
            with ExitStack() as stack:
                cluster: Cluster | None = None
                if arena == "foreign":
                    cluster = stack.enter_context(
                        foreign_cluster(self.folder / f"there-{attempt}", workers=2)
                    )
                command = self.start("processes" if cluster is None else str(cluster.file))
                done: list[Kill] = []
                while self._kills and command.process.poll() is None:
                    self._kill_one(arena, command, cluster, done)
                status = self._ended(command, done)
            if cluster is not None:
                shutil.rmtree(cluster.file.parent)
            if status == 0 or self._record.wrong:
                break
        if status != 0:
            self._record.wrong.append(f"no command succeeded; the last one's status is {status}")

    def _kill_one(self, arena: str, command: Command, cluster: Cluster | None, done: list[Kill]) -> None:
        time.sleep(self._dice.uniform(0.0, self._lasts * (0.6 if done else 1.3)))
        victims = command.workers() if cluster is None else [psutil.Process(w.pid) for w in cluster.alive()]
        if command.process.poll() is not None:
            return
        worker = bool(victims) and self._dice.random() < 0.6
        kill = Kill(arena, "worker" if worker else "scheduler", 0.0, command.stage)
        if worker:
            victim = self._dice.choice(victims)
        else:
            victim = psutil.Process(command.process.pid if cluster is None else cluster.scheduler.pid)
        kill.after = round(time.monotonic() - command.started, 2)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return
        self._kills -= 1
        self._record.kills.append(kill)
        done.append(kill)
        if worker and cluster is not None:
            add_worker(cluster)
        elif not worker:
            end = time.monotonic() + self._lasts + LATE
            while command.process.poll() is None and time.monotonic() < end:
                command.workers()
                time.sleep(0.05)

    def _ended(self, command: Command, done: list[Kill]) -> int:
        status = command.end()
        for kill in done:
            kill.status = status
        wrong = [command.complaint()]
        if done and status not in (0, -signal.SIGKILL) and all(kill.victim == "worker" for kill in done):
            # One that dies before there is a cluster may be the end of its start, but of nothing later.
            at_work = [kill.stage for kill in done if _progress(kill.stage)]
            wrong.append(f"status {status} after the loss of workers at {at_work}" if at_work else None)
        end = time.monotonic() + LATE
        while alive := [each for each in command.family.values() if each.is_running() and _words(each)]:
            if time.monotonic() > end:
                wrong.append(f"still running: {[_words(each) for each in alive]}")
                break
            time.sleep(0.05)
        self._record.wrong += [line for line in wrong if line is not None]
        return status


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two studies: marginals, maps and tables."""
    found = []
    for part in ("run.marginals.zarr", "out/maps.zarr", "out/tables"):
        mine, theirs = (
            {p.relative_to(f) for p in (f / part).rglob("*") if p.is_file()} for f in (one, other)
        )
        if not mine or mine != theirs:
            found.append(f"{part}: names differ: {sorted(map(str, mine ^ theirs))[:5]}")
        for name in mine & theirs:
            if name.suffix == ".parquet":
                same = pl.read_parquet(one / name).equals(pl.read_parquet(other / name))
            else:
                same = (one / name).read_bytes() == (other / name).read_bytes()
            if not same:
                found.append(f"{name} differs")
    return found


def left(folder: Path) -> list[str]:
    """What should not be there any more: temporary files, folders of workers."""
    names = {"out", "run.zarr", "run.marginals.zarr", "analysis.yaml", "scratch"}
    outputs = {"maps.zarr", "tables", "figures", "report", "study.json"}
    found = [path for path in folder.iterdir() if path.name not in names]
    found += [path for path in (folder / "out").glob("*") if path.name not in outputs]
    for part in ("out", "run.marginals.zarr"):
        found += [
            path for path in (folder / part).rglob("*") if re.search(r"\.(tmp|partial)$|^\.", path.name)
        ]
    if (folder / "scratch").exists():
        locks = {"dask-scratch-space", "global.lock", "purge.lock"}
        found += [path for path in (folder / "scratch").rglob("*") if path.name not in locks]
    return [f"left: {path.relative_to(folder)}" for path in found]


if __name__ == "__main__":
    where, folder, count, number, *which = sys.argv[1:]
    told = kill_at_random(
        Path(where).absolute(),
        Path(folder),
        int(count),
        int(number),
        tuple(which) or ("processes", "foreign"),
    )
    sys.stdout.write(json.dumps(asdict(told), indent=1) + "\n")
    sys.exit(bool(told.wrong))
