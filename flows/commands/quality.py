"""``i2am quality``: the quality of generated images, and what IMACS says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import number, print_json, print_line, print_table

if TYPE_CHECKING:
    import polars as pl


RunEach = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="A folder NAME.zarr, a URL, or a pattern in quotes; each run is a model of its own.",
        show_default=False,
    ),
]
RealFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of real pictures; those with a sample's name are its truth. Absent: the runs' "
        "images 'target' or 'source'."
    ),
]
Lpips = Annotated[
    bool | None, typer.Option("--lpips/--no-lpips", help="Measure LPIPS; absent: where its weights are.")
]


def quality(
    run: RunEach,
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier experiment is replaced.")],
    real: RealFolder = None,
    features: Annotated[str, typer.Option(help="inception, clip, dino, or module:function.")] = "inception",
    weights: Annotated[Path | None, typer.Option(help="Their file or folder; absent: the caches.")] = None,
    lpips: Lpips = None,
    group: Annotated[str | None, typer.Option(help="Annotation that makes sets of a run's samples.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder of features; absent: beside each run.")] = None,
    device: Annotated[str, typer.Option(help="Where features are taken: cpu, cuda, ...")] = "cpu",
    penalty: options.Penalty = 3.0,
    protocol: options.Protocol = "corrected",
    confidence: options.Confidence = 0.95,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """FID, KID, LPIPS, SSIM and PSNR of runs, and their correlation with IMACS and densities.

    Exit status 1: samples were refused as damaged; the others are measured.
    """
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.console.progress import show_progress
    from i2am.flows.experiments.quality import quality_runs
    from i2am.flows.subprocesses import termination_interrupts

    asked: dict[str, Any] = {"real": real, "features": features, "weights": weights, "lpips": lpips}
    asked |= {"group": group, "store": store, "device": device}
    asked |= {"penalty": penalty, "protocol": protocol, "confidence": confidence}
    where = options.computing(workers, cluster)
    with show_progress(quiet), termination_interrupts(), computing(where):
        found = quality_runs(run, out, overwrite=overwrite, **asked)
    table = found.tables["quality"]
    if as_json:
        facts = {"out": str(out), "features": found.features, "claims": found.claims, "notes": found.notes}
        correlations = found.tables["quality_correlations"].to_dicts()
        print_json(
            facts | {"scores": table.to_dicts(), "correlations": correlations, "refusals": found.refusals}
        )
    else:
        _print(table, found.features)
        for line in (*(f"note: {note}" for note in found.notes), *found.claims):
            print_line(line)
        print_line(f"tables and pictures: {out}")
    options.exit_if_refused(found.refusals)


def _print(table: pl.DataFrame, features: str) -> None:
    """A row for each run and group."""
    from i2am.analysis.experiments.quality import MODEL, PAIR_SCORES, SET_SCORES
    from i2am.analysis.experiments.quality_claim import features_words, score_words

    scores = (*SET_SCORES, *PAIR_SCORES)
    cells = []
    for model in table.select(MODEL).unique(maintain_order=True).iter_rows():
        own = {
            row["score"]: row["value"]
            for row in table.iter_rows(named=True)
            if (row["run"], row["group"], row["level"]) == (*model, None)
        }
        cells.append([*(name or "" for name in model), *(number(own.get(score)) for score in scores)])
    print_table([*MODEL, *map(score_words, scores)], cells, right=range(2, 10))
    print_line(features_words(features))
