"""Debugging and refinement: custom and refined models of several seeds, compared from their runs.

``python -m i2am.flows.experiments.refinement FOLDER`` makes the shipped results from what
``python -m i2am.pipeline.embedded.refine --out FOLDER`` left there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from i2am.analysis.experiments.refinement import compare_models
from i2am.flows.experiments.quality import quality_runs
from i2am.storage.errors import NotFound

SHIPPED = Path(__file__).parents[2] / "pipeline" / "embedded" / "refinement"
"""Results of the shipped trainings: ``SHIPPED_TABLES``, each a Parquet file."""

SHIPPED_TABLES = ("refinement", "refinement_curves", "checkpoints", "checkpoint_correlations")

FEATURES = "i2am.pipeline.features.embedded:features"
"""The only features whose weights come with the project."""

_RUN = re.compile(r"(?P<model>custom|refined)-(?P<seed>\d+)-(?P<step>\d+)\.zarr")


def refinement_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Tables of the trainings in ``folder``, by the names in ``SHIPPED_TABLES``."""
    runs = sorted(folder.glob("*.zarr"))
    known = [(run, found) for run in runs if (found := _RUN.fullmatch(run.name))]
    if not known:
        raise NotFound(
            f"no runs of custom and refined models in {folder}",
            remedy="make them: python -m i2am.pipeline.embedded.refine --out FOLDER",
        )
    measured = quality_runs([str(run) for run, _ in known], real=_targets(), features=FEATURES, lpips=False)
    names = pl.DataFrame([{"run": run.stem, **found.groupdict()} for run, found in known]).with_columns(
        pl.col("seed", "step").cast(pl.Int64)
    )
    models = measured.tables["quality"].join(names, on="run", how="left")
    last = models.filter(pl.col("step") == pl.col("step").max())
    return {
        "refinement": compare_models(last),
        "refinement_curves": _curves(folder),
        "checkpoints": models,
        "checkpoint_correlations": measured.tables["quality_correlations"],
    }


def _targets() -> Mapping[str, object]:
    """The true picture of every held-out scene, by sample id."""
    from i2am.pipeline.embedded.evaluate import SceneTask

    tasks = map(SceneTask, range(200))
    return {task.id: task.scene.target for task in tasks}


def _curves(folder: Path) -> pl.DataFrame:
    """Smoothed losses of every training: model, seed, step, loss."""
    rows = []
    for log in sorted(folder.glob("*/log.jsonl")):
        model, seed = log.parent.name.split("-")
        losses = map(json.loads, log.read_text(encoding="utf-8").splitlines())
        rows += [{"model": model, "seed": int(seed), **loss} for loss in losses]
    return pl.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what pipeline.embedded.refine made")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in refinement_tables(options.folder).items():
        table.write_parquet(options.out / f"{name}.parquet")


if __name__ == "__main__":
    main()
