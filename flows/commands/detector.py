"""``i2am detector``: a supervised detector on a run's images, into a COCO results file for `i2am detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, print_json, print_line


def detector(
    run: options.OneOrMoreRuns,
    kind: Annotated[
        str,
        typer.Option(help="faster-rcnn, mask-rcnn, maskformer, rt-detr, yolos, or scenes (embedded model)."),
    ],
    out: Annotated[Path, typer.Option(help="COCO results file to write.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="Local file (torchvision) or folder (transformers); scenes has its own."),
    ] = None,
    image: Annotated[
        str, typer.Option(help="Image of the run to look at: generated, source or reference.")
    ] = ("generated"),
    sample: options.SampleNames = None,
    label: options.Label = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a supervised detector on a run's images; `i2am detect --detections NAME=FILE` scores its boxes."""
    from i2am.flows.console.progress import show_progress
    from i2am.flows.experiments.supervised import detect_images
    from i2am.storage.reading.open import open_any

    with show_progress(quiet):
        counts = detect_images(open_any(run, label=label), kind, out, weights, image, sample, overwrite)
    if as_json:
        print_json({"out": str(out), "kind": kind, "image": image, **counts})
    else:
        boxes = "1 box" if counts["boxes"] == 1 else f"{counts['boxes']} boxes"
        print_line(f"{out}: {boxes} in {counted(counts['samples'], f'{image} image')}")
