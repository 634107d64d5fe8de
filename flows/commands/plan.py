"""``i2am plan``: what a capture will cost, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import emit, human_bytes, say, table


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML); see examples/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Predicted bytes, files, memory of a capture.

    The pipeline is loaded and makes one denoiser call, from which the geometry of every layer is read. Exit status 2 where
    the disk cannot hold the run.
    """
    from flows.forecast import forecast as predict
    from flows.loading import load_capture

    settings = load_capture(config)
    forecast = predict(settings)
    if as_json:
        emit(forecast)
        return
    table(
        ["layer", "stored as", "bytes per sample", "full scores", "files"],
        [
            [
                row["layer"],
                row["representation"],
                human_bytes(row["bytes_per_sample"]),
                human_bytes(row["score_bytes_per_sample"]),
                row["files"],
            ]
            for row in forecast["layers"]
        ],
        right=(2, 3, 4),
    )
    say(
        f"{forecast['samples']} samples × {forecast['steps']} steps: {human_bytes(forecast['bytes'])} in "
        f"{forecast['files']} files; {human_bytes(forecast['peak_memory'])} of memory for writing"
    )
