"""``i2am amend``: images and annotations of a sample that is committed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, print_json, print_line


def amend(
    run: options.OneRun,
    sample: Annotated[str, typer.Option(help="The sample.")],
    image: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, such as mask=m.png; repeat for more.")
    ] = None,
    note: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, an annotation; repeat for more.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the sample.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Add or replace images and annotations of a committed sample; or delete it.

    Its attention stays as it is. A deleted sample is missing, and the next capture takes it again.
    """
    from pathlib import Path

    from i2am.pipeline.recording.images import check_sizes, to_uint8
    from i2am.storage.errors import ConfigError
    from i2am.storage.reading.open import open_run
    from i2am.storage.writing.amend import amend as amend_sample
    from i2am.storage.writing.create import resume_run

    images = {name: to_uint8(name, Path(file)) for name, file in _pairs("--image", image)}
    notes: dict[str, Any] = dict(_pairs("--note", note))
    if delete == bool(images or notes):
        got = "both" if delete else "neither"
        raise ConfigError("amend", expected="--image NAME=FILE or --note NAME=TEXT, or --delete", got=got)
    if delete:
        with resume_run(run) as writer:
            writer.remove(sample)
            left = list(writer.committed)
        if as_json:
            print_json({"run": run, "deleted": sample, "samples": left})
        else:
            print_line(f"{run}: sample {sample} is deleted, {counted(len(left), 'sample')} left")
        return
    shapes = {name: each["shape"] for name, each in open_run(run).record(sample)["images"].items()}
    shapes |= {name: pixels.shape for name, pixels in images.items()}
    check_sizes(f"sample {sample!r}", {name: (shape[1], shape[0]) for name, shape in shapes.items()})
    record = amend_sample(run, sample, images, notes)
    if as_json:
        print_json(
            {"run": run, "sample": sample, "images": sorted(record.images), "annotations": record.annotations}
        )
        return
    print_line(f"{run}: sample {sample} has the images {', '.join(sorted(record.images)) or 'none'}")


def _pairs(option: str, texts: list[str] | None) -> list[tuple[str, str]]:
    from i2am.storage.errors import ConfigError

    pairs = []
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(option, expected="NAME=VALUE", got=repr(text)[:60])
        pairs.append((name, value))
    return pairs
