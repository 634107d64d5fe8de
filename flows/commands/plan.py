"""``i2am plan``: what a capture will cost, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson
from i2am.flows.console.output import counted, human_bytes, print_json, print_line, print_table

if TYPE_CHECKING:
    from i2am.storage.writing.plan import Plan


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML); i2am demo writes one.")],
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
    facts = {
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
    if as_json:
        print_json(facts)
    else:
        _print(facts, predicted)
    if "://" not in settings.out:
        predicted.check_disk(settings.out)


def _print(facts: dict[str, Any], predicted: Plan) -> None:
    print_table(
        ["layer", "stored as", "dtype", "per sample", "as full scores", "files"],
        [
            [
                *(layer[key] for key in ("layer", "representation", "dtype")),
                *(human_bytes(layer[f"{key}_per_sample"]) for key in ("bytes", "score_bytes")),
                layer["files_per_sample"],
            ]
            for layer in facts["layers"]
        ],
        right=range(3, 6),
    )
    print_line(
        f"each of {counted(predicted.samples, 'sample')}: {human_bytes(predicted.sample_bytes)} in "
        f"{counted(predicted.sample_files, 'file')}; "
        f"full scores would take {human_bytes(predicted.score_bytes)}"
    )
    print_line(
        f"the run: {human_bytes(facts['bytes'])} in {counted(facts['files'], 'file')}; "
        f"{human_bytes(facts['peak_memory'])} of memory for writing"
    )
