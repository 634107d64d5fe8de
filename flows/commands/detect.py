"""``i2am detect``: boxes from a run's maps, scored beside baselines and supervised detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, number, print_json, print_line, print_table


def detect(
    run: options.OneOrMoreRuns,
    out: Annotated[Path, typer.Option(help="Folder of the tables and pictures; an earlier one is replaced.")],
    truth: Annotated[
        str | None,
        typer.Option(
            help="mask, reference_mask, COCO annotations F.json, or boxes F.parquet; absent: the run's masks."
        ),
    ] = None,
    detections: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="COCO results of a detector; repeat for more."),
    ] = None,
    sample: options.SampleNames = None,
    layer: options.LayerNames = None,
    confidence: options.Confidence = 0.95,
    pictures: Annotated[int, typer.Option(min=0, help="Samples that get a picture.")] = 12,
    label: options.Label = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Boxes from maps, beside DAAM, the whole image, random boxes and supervised detectors.

    Exit status 1: samples were refused as damaged; the others are scored.
    """
    from i2am.flows.analyze.job import emit_event
    from i2am.flows.console.progress import show_progress
    from i2am.flows.experiments.detection import detect_run
    from i2am.flows.subprocesses import termination_interrupts
    from i2am.storage.reading.open import open_any

    files = _named_files(detections or [])
    with show_progress(quiet), termination_interrupts():
        result = detect_run(
            open_any(run, label=label),
            out,
            truth,
            files,
            sample,
            layer,
            confidence,
            pictures,
            overwrite,
            emit_event,
        )
    if as_json:
        print_json(result.to_json())
    else:
        for line in result.absent:
            print_line(f"note: {line}")
        _print(result.table.to_dicts())
        print_line(f"{counted(len(result.samples), 'sample')}; tables and pictures: {result.out}")
    options.exit_if_refused(result.refusals)


def _named_files(given: list[str]) -> dict[str, Path]:
    from i2am.storage.errors import InputError

    files: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path or name in files:
            raise InputError(
                f"--detections {text}",
                expected="NAME=FILE, each name once",
                remedy="for example yolos=yolos.json",
            )
        files[name] = Path(path)
    return files


def _print(rows: list[dict[str, Any]]) -> None:
    keys = ("method", "region", "rule", "direction", "truth")
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in keys), {})[row["score"]] = row
    print_table(
        [*keys, "samples", "mIoU, misses 0", "from", "to", "mIoU, found", "found", "AP50", "pointing"],
        [
            [
                *key,
                own["miou"]["count"],
                *(number(own["miou"][name]) for name in ("value", "low", "high")),
                *(number(own[name]["value"]) for name in ("miou_found", "found", "ap50", "pointing")),
            ]
            for key, own in lines.items()
        ],
        right=range(5, 13),
    )
