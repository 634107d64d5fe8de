"""The paper's experiments on the embedded model: capture, detection, quality, faithfulness, one page.

Each experiment writes into a folder of its own below ``out``, and is left alone where it is done already;
``out/tables`` and ``out/index.html`` bring them together.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from i2am.analysis.experiments.box_rules import opencv
from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig
from i2am.flows.console.progress import Progress, emit
from i2am.flows.experiments.ablate import ablate_run
from i2am.flows.experiments.detection import detect_run
from i2am.flows.experiments.paper.page import write_paper_page
from i2am.flows.experiments.paper.published import SUPERVISED
from i2am.flows.experiments.paper.sections import make_page
from i2am.flows.experiments.quality import quality_runs
from i2am.flows.experiments.refinement import FEATURES, SHIPPED, SHIPPED_TABLES
from i2am.flows.experiments.supervised import detect_images
from i2am.storage.errors import AlreadyExists
from i2am.storage.locations.whole_file import whole_file
from i2am.storage.reading.open import open_run

ABLATED = 10
"""Scenes of the faithfulness experiment, at most: each is generated about 110 times."""

STATE = "paper.json"
"""Settings, and the fingerprint of the run of each experiment that is done."""

VERSION = 3
"""Of what the experiments write: with another one they are done again."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Where everything lies, and how many scenes there are."""

    out: Path
    samples: int
    steps: int

    @property
    def run(self) -> Path:
        return self.out / "run.zarr"

    @property
    def config(self) -> Path:
        return self.out / "capture.yaml"

    @property
    def settings(self) -> dict[str, int]:
        return {"samples": self.samples, "steps": self.steps, "version": VERSION}


def make_paper(out: Path, samples: int, steps: int) -> dict[str, Any]:
    """Run what is not done yet, and write the page; returns its path, the tables and the seconds taken."""
    paper, started = Paper(out, samples, steps), time.perf_counter()
    state = prepare(paper)
    capture_scenes(paper)
    for name in EXPERIMENTS:
        run_experiment(paper, name, state)
    return finish(paper, started)


def finish(paper: Paper, started: float) -> dict[str, Any]:
    """Write the page of experiments that are done."""
    tables = gather(paper)
    page = write_paper_page(paper.out, make_page(paper.out, tables))
    return {"page": str(page), "tables": tables, "seconds": time.perf_counter() - started}


def prepare(paper: Paper) -> dict[str, Any]:
    """Write the configuration of the capture, or check that an earlier one is the same; return the state."""
    opencv()
    path = paper.out / STATE
    if path.is_file():
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["settings"] == paper.settings:
            return state
        raise AlreadyExists(
            f"{paper.out} holds the experiments with {_words(state['settings'])}",
            expected=_words(paper.settings),
            remedy="choose another --out, or the same settings",
        )
    found = [each.name for each in paper.out.iterdir()] if paper.out.exists() else []
    begun = {paper.config.name, *fnmatch.filter(found, ".*.part")}
    if not begun.issuperset(found):
        raise AlreadyExists(f"{paper.out} holds other files", remedy="choose another --out")
    paper.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "out": "run.zarr",
        "pipeline": "embedded",
        "samples": {"scenes": {"count": paper.samples, "first_seed": 0}},
        "call": {"num_inference_steps": paper.steps},
        "batch_size": min(paper.samples, 8),
    }
    _write(paper.config, yaml.safe_dump(settings, sort_keys=False))
    state = {"settings": paper.settings, "done": {}}
    _write(path, json.dumps(state))
    return state


def _words(settings: Mapping[str, int]) -> str:
    return f"{settings['samples']} samples and {settings['steps']} steps"


def capture_scenes(paper: Paper) -> None:
    """Capture the scenes that are missing."""
    run_capture(_config(paper))


def _config(paper: Paper) -> CaptureConfig:
    return load_capture(paper.config)


def run_experiment(paper: Paper, name: str, state: dict[str, Any]) -> None:
    """Run one experiment, unless it is done for this run as it is."""
    run = open_run(paper.run)
    prints = "".join(run.fingerprint(sample) for sample in run.samples)
    fingerprint = hashlib.sha256(prints.encode()).hexdigest()
    if state["done"].get(name) == fingerprint and (paper.out / name).is_dir():
        return
    emit(Progress("paper", len(state["done"]), len(EXPERIMENTS), name))
    EXPERIMENTS[name](paper)
    state["done"][name] = fingerprint
    _write(paper.out / STATE, json.dumps(state))


def _detection(paper: Paper) -> None:
    """Boxes; the detector that was trained on such scenes stands for the paper's supervised ones."""
    run, entries = open_run(paper.run), []
    for image in ("generated", "reference"):
        path = paper.out / f"detector-{image}.json"
        detect_images(run, "scenes", path, image=image, overwrite=True)
        entries += json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
    results = paper.out / "detector.json"
    _write(results, json.dumps(entries))
    detect_run(run, paper.out / "detection", detections={SUPERVISED: results}, overwrite=True)


def _quality(paper: Paper) -> None:
    """Quality against the scenes' true pictures."""
    from i2am.pipeline.embedded.scenes import make_scene

    run = open_run(paper.run)
    seeds = {name: int(name.rpartition("-")[2]) for name in run.samples}
    real = {name: make_scene(seed).target for name, seed in seeds.items()}
    quality_runs(
        [str(paper.run)], paper.out / "quality", real=real, features=FEATURES, lpips=False, overwrite=True
    )


def _faithfulness(paper: Paper) -> None:
    """Tokens hidden from attention at generation, in the order of each map."""
    ablate_run(
        _config(paper), str(paper.run), paper.out / "faithfulness",
        mode="mask", limit=ABLATED, features=FEATURES, overwrite=True,
    )  # fmt: skip


def _replacement(paper: Paper) -> None:
    """A tenth of the tokens replaced by the empty one, which draws attention of its own."""
    ablate_run(
        _config(paper), str(paper.run), paper.out / "replacement",
        mode="empty", ranks=("g2r-painted", "lowest", "random"), fractions=(0.1,), blocks=0, limit=ABLATED,
        overwrite=True,
    )  # fmt: skip


EXPERIMENTS: Mapping[str, Callable[[Paper], None]] = {
    "detection": _detection,
    "quality": _quality,
    "faithfulness": _faithfulness,
    "replacement": _replacement,
}
"""By the folder that holds what each made."""

TABLES = {
    "detection": "detection",
    "text_to_image": "detection",
    "quality": "quality",
    "faithfulness": "faithfulness",
    "replacement": "replacement",
}
"""Tables of the paper, and the experiments that made them."""


def gather(paper: Paper) -> dict[str, str]:
    """Copy each table of the paper into ``out/tables``; return the paths."""
    folder = paper.out / "tables"
    folder.mkdir(exist_ok=True)
    places = {table: paper.out / experiment / "tables" for table, experiment in TABLES.items()}
    written = {"replacement": "faithfulness"}  # names of the files that are the paper's tables
    places |= dict.fromkeys(SHIPPED_TABLES, SHIPPED)  # trainings take hours: results come with the project
    found = {}
    for table, place in places.items():
        with whole_file(folder / f"{table}.parquet") as made:
            shutil.copyfile(place / f"{written.get(table, table)}.parquet", made)
        found[table] = str(folder / f"{table}.parquet")
    return found


def _write(path: Path, text: str) -> None:
    with whole_file(path) as made:
        made.write_text(text, encoding="utf-8")
