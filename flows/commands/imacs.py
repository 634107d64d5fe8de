"""``i2am imacs``: the inpainting mask attention consistency score, at any level, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Cluster, Label, OneOrMoreRuns, Workers
from i2am.flows.console.output import emit, note, say, table

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def imacs(
    run: OneOrMoreRuns,
    direction: Annotated[str | None, typer.Option(help="r2g or g2r; both where it is absent.")] = None,
    level: Annotated[str, typer.Option(help="unified, time, head, layer or specific.")] = "unified",
    at: Annotated[
        str | None,
        typer.Option(help="Specific level: patch 12,8; box 2,3,9,12; patches '1,2;1,3'; or a mask's name."),
    ] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Sample to score; repeat for more.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer or pattern such as '*up*'; repeat for more.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Steps to keep: 3 or 0,4 or 0:10.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to keep: 3 or 0,4 or 0:4.")] = None,
    time_groups: Annotated[int, typer.Option(min=1, help="Groups of the time level.")] = 5,
    penalty: Annotated[float, typer.Option(help="Weight of attention outside the mask.")] = 3.0,
    confidence: Annotated[float, typer.Option(help="Of the intervals over samples.")] = 0.95,
    protocol: Annotated[
        str, typer.Option(help="corrected, or official: the paper's own code.")
    ] = "corrected",
    label: Label = False,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """IMACS of every sample, and its mean with a bootstrap interval over samples.

    Exit status 1: samples were refused as damaged; the others are scored.
    """
    from i2am.analysis.scores.bootstrap import check_confidence
    from i2am.analysis.scores.imacs import check_penalty
    from i2am.analysis.scores.summary import summarise
    from i2am.analysis.scores.tables import frame
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.config import selections
    from i2am.flows.config.load_yaml import amended
    from i2am.flows.config.models import Computing
    from i2am.storage.reading.open import open_any

    check_penalty(penalty)
    check_confidence(confidence)
    question = {
        "level": level,
        "at": selections.region("--at", at) if at is not None else None,
        "layers": layer,
        "steps": selections.from_option("--steps", steps),
        "heads": selections.from_option("--heads", heads),
        "time_groups": time_groups,
        "protocol": protocol,
    }
    refused: list[dict[str, str]] = []
    where = amended(Computing(), workers=workers, cluster=cluster)
    opened = open_any(run, label=label)
    with computing(where):
        rows = list(_rows(opened, direction, sample, question, penalty, refused))
    summary = summarise({level: frame(rows)}, confidence).to_dicts()
    if as_json:
        facts = {"run": ", ".join(run), "penalty": penalty, "protocol": protocol}
        emit(facts | {"scores": rows, "summary": summary, "refusals": refused})
    else:
        _show(rows, summary, confidence)
    _end(refused)


def _end(refused: list[dict[str, str]]) -> None:
    """Name the damaged samples; exit with 1 if there are any."""
    for entry in refused:
        note(f"i2am: refused: {entry['reason']}")
    if refused:
        raise typer.Exit(1)


def _show(rows: list[dict[str, Any]], summary: list[dict[str, Any]], confidence: float) -> None:
    """Two tables: every score, and the means over samples."""
    labelled = any(row["label"] is not None for row in rows)
    unit = " × uniform" if all(row["protocol"] == "corrected" for row in rows) else ""
    label = [rows[0]["level"]] if labelled else []
    table(
        ["sample", "direction", *label, "IMACS", f"inside{unit}", f"outside{unit}", "share inside", "note"],
        [
            [
                row["sample"],
                row["direction"],
                *([row["label"] or ""] if labelled else []),
                *(_number(row[key]) for key in ("imacs", "inside", "outside", "share")),
                row["note"] or (row["kind"] if row["kind"] != "attention" else ""),
            ]
            for row in rows
        ],
        right=tuple(range(2 + labelled, 6 + labelled)),
    )
    say(f"mean over samples, with its {confidence:.4g} bootstrap interval")
    table(
        ["direction", *label, "samples", "IMACS", "from", "to", f"inside{unit}", "from", "to"],
        [
            [
                row["direction"],
                *([row["label"] or ""] if labelled else []),
                f"{row['scored']}",
                *(_number(row[f"imacs_mean{end}"]) for end in ("", "_low", "_high")),
                *(_number(row[f"inside_mean{end}"]) for end in ("", "_low", "_high")),
            ]
            for row in summary
        ],
        right=tuple(range(1 + labelled, 8 + labelled)),
    )


def _rows(
    run: AnyRun,
    direction: str | None,
    samples: list[str] | None,
    question: dict[str, Any],
    penalty: float,
    refused: list[dict[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of the level's table, sample by sample; damaged ones go to ``refused``."""
    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.analysis.scores.tables import sample_mask, score_rows
    from i2am.storage.errors import DamagedSample, NoAnswer

    maps = {}
    silent: NoAnswer | None = None
    for way in (direction,) if direction is not None else ("r2g", "g2r"):
        try:
            maps[way] = attribution_maps(run, way, samples=samples, **question)  # type: ignore[arg-type]
        except NoAnswer as error:
            silent = error
    if silent is not None and not maps:
        raise silent
    bad: set[str] = set()
    for way, values in maps.items():
        for sample in values["sample"].values:
            if sample in bad:
                continue
            try:
                yield from score_rows(
                    values.sel(sample=sample).compute(), sample_mask(run, way, sample), penalty
                )
            except DamagedSample as error:
                bad.add(sample)
                refused.append({"sample": str(sample), "reason": str(error)})


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
