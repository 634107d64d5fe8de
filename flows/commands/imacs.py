"""``i2am imacs``: the inpainting mask attention consistency score, at any level, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def imacs(
    run: options.OneOrMoreRuns,
    direction: Annotated[str | None, typer.Option(help="r2g or g2r; both where it is absent.")] = None,
    level: options.Level = None,
    at: options.At = None,
    at_pixel: options.AtPixel = None,
    sample: options.SampleNames = None,
    layer: options.LayerNames = None,
    reference: options.Reference = None,
    steps: options.Steps = None,
    heads: options.Heads = None,
    resize: options.Resize = "linear",
    time_groups: options.TimeGroups = 5,
    penalty: options.Penalty = 3.0,
    confidence: options.Confidence = 0.95,
    protocol: options.Protocol = "corrected",
    label: options.Label = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    cache: options.Cache = None,
    as_json: options.AsJson = False,
) -> None:
    """IMACS of every sample, and its mean with a bootstrap interval over samples.

    Exit status 1: samples were refused as damaged; the others are scored.
    """
    from i2am.analysis.marginals.store import store_for
    from i2am.analysis.scores.bootstrap import check_confidence
    from i2am.analysis.scores.imacs import check_penalty
    from i2am.analysis.scores.summary import summarise
    from i2am.analysis.scores.tables import frame
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.storage.reading.one_reference import one_reference
    from i2am.storage.reading.open import open_any

    check_penalty(penalty)
    check_confidence(confidence)
    question: dict[str, Any] = {"level": level, "at": at, "samples": sample, "layers": layer, "steps": steps}
    question |= {"heads": heads, "time_groups": time_groups, "protocol": protocol}
    question |= {"at_pixels": at_pixel, "resize": resize}
    refused: list[dict[str, str]] = []
    where = options.computing(workers, cluster)
    opened = one_reference(open_any(run, label=label), reference)
    question["store"] = store_for(opened, cache)
    with computing(where):
        rows = list(_rows(opened, direction, question, penalty, refused))
    summary = summarise({rows[0]["level"] if rows else "unified": frame(rows)}, confidence).to_dicts()
    if as_json:
        facts = {"run": ", ".join(run), "penalty": penalty, "protocol": protocol}
        print_json(facts | {"scores": rows, "summary": summary, "refusals": refused})
    else:
        _print(rows, summary, confidence)
    options.exit_if_refused(refused)


def _rows(
    run: AnyRun,
    direction: str | None,
    question: dict[str, Any],
    penalty: float,
    refused: list[dict[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of the level's table, sample by sample; damaged samples go to `refused`."""
    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.analysis.scores.tables import sample_mask, score_rows
    from i2am.storage.errors import DamagedSample, NoAnswer

    maps = {}
    without: NoAnswer | None = None
    for way in (direction,) if direction is not None else ("r2g", "g2r"):
        try:
            maps[way] = attribution_maps(run, way, **question)  # type: ignore[arg-type]
        except NoAnswer as error:
            without = error
    if without is not None and not maps:
        raise without
    damaged: set[str] = set()
    for way, values in maps.items():
        for sample in values["sample"].values:
            if sample in damaged:
                continue
            try:
                scored = values.sel(sample=sample).compute()
                yield from score_rows(scored, sample_mask(run, way, sample), penalty)
            except DamagedSample as error:
                damaged.add(sample)
                refused.append({"sample": str(sample), "reason": str(error)})


def _print(rows: list[dict[str, Any]], summary: list[dict[str, Any]], confidence: float) -> None:
    """Two tables: every score, and the means over samples."""
    labelled = any(row["label"] is not None for row in rows)
    label = [rows[0]["level"]] if labelled else []
    unit = " × uniform" if all(row["protocol"] == "corrected" for row in rows) else ""

    def cells(row: dict[str, Any], *values: str) -> list[str]:
        return [row["direction"], *([row["label"] or ""] if labelled else []), *values]

    print_table(
        ["sample", "direction", *label, "IMACS", f"inside{unit}", f"outside{unit}", "share inside", "note"],
        [
            [
                row["sample"],
                *cells(row, *(number(row[key]) for key in ("imacs", "inside", "outside", "share"))),
                row["note"] or (row["kind"] if row["kind"] != "attention" else ""),
            ]
            for row in rows
        ],
        right=range(2 + labelled, 6 + labelled),
    )
    print_line(f"mean over samples, with its {confidence:.4g} bootstrap interval")
    means = [f"{score}_mean{end}" for score in ("imacs", "inside") for end in ("", "_low", "_high")]
    print_table(
        ["direction", *label, "samples", "IMACS", "from", "to", f"inside{unit}", "from", "to"],
        [cells(row, str(row["scored"]), *(number(row[key]) for key in means)) for row in summary],
        right=range(1 + labelled, 8 + labelled),
    )
