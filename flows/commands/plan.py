"""``i2am plan``: what a capture will cost, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson
from i2am.flows.console.output import emit, human_bytes, say, table

if TYPE_CHECKING:
    from i2am.flows.config.models import CaptureConfig
    from i2am.storage.writing.plan import Plan


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML); see examples/.")],
    as_json: AsJson = False,
) -> None:
    """Predicted bytes, files, memory of a capture.

    The pipeline is loaded and makes one denoiser call, from which the geometry of every layer is read. Exit
    status 2 where the disk cannot hold the run.
    """
    from i2am.flows.capture.forecast import forecast
    from i2am.flows.config.load_yaml import load_capture

    settings = load_capture(config)
    predicted = forecast(settings)
    if as_json:
        emit(to_json(predicted, settings))
    else:
        _show(predicted, settings)
    if "://" not in settings.out:
        predicted.check_disk(settings.out)


def to_json(predicted: Plan, settings: CaptureConfig) -> dict[str, Any]:
    """Return a forecast as JSON types.

    Parameters
    ----------
    predicted
        Plan of the whole run.
    settings
        The capture, for its path and batch size.

    Returns
    -------
    dict
        ``run``, ``samples``, ``steps``, ``codec``, ``bytes``, ``files``, ``peak_memory`` (bytes), and
        ``layers``, each with ``layer``, ``representation``, ``dtype``, ``bytes_per_sample``,
        ``score_bytes_per_sample`` and ``files_per_sample``.
    """
    return {
        "run": settings.out,
        "samples": predicted.samples,
        "steps": predicted.steps,
        "codec": predicted.codec,
        "bytes": predicted.total_bytes,
        "files": predicted.total_files,
        "peak_memory": predicted.memory(settings.batch_size),
        "layers": [
            {
                "layer": layer.name,
                "representation": layer.representation,
                "dtype": layer.dtype,
                "bytes_per_sample": layer.sample_bytes,
                "score_bytes_per_sample": layer.score_bytes,
                "files_per_sample": layer.sample_files,
            }
            for layer in predicted.layers
        ],
    }


def _show(predicted: Plan, settings: CaptureConfig) -> None:
    table(
        ["layer", "stored as", "dtype", "per sample", "as full scores", "files"],
        [
            [
                layer.name,
                layer.representation,
                layer.dtype,
                human_bytes(layer.sample_bytes),
                human_bytes(layer.score_bytes),
                layer.sample_files,
            ]
            for layer in predicted.layers
        ],
        right=(3, 4, 5),
    )
    say(
        f"each of {predicted.samples} samples: {human_bytes(predicted.sample_bytes)} in "
        f"{predicted.sample_files} files; "
        f"full scores would take {human_bytes(predicted.score_bytes)}"
    )
    say(
        f"the run: {human_bytes(predicted.total_bytes)} in {predicted.total_files} files; "
        f"{human_bytes(predicted.memory(settings.batch_size))} of memory for writing"
    )
