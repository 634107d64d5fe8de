"""``i2am prune``: a smaller copy of a run."""

from __future__ import annotations

from itertools import count, product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, human_bytes, log, print_json, print_line

if TYPE_CHECKING:
    from i2am.analysis.grids.direction import Direction
    from i2am.analysis.maps.question import Level
    from i2am.storage.index_selection import Indices
    from i2am.storage.reading.run import Run


def prune(
    run: options.OneRun,
    out: Annotated[str, typer.Option(help="The new run; one that was interrupted is gone on with.")],
    sample: options.SampleNames = None,
    layer: options.LayerNames = None,
    steps: options.Steps = None,
    heads: options.Heads = None,
    bits: Annotated[
        int | None, typer.Option(min=1, help="Bits of the fraction to keep: float16 has 10, float32 23.")
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="Compression: none, blosc-lz4-shuffle or blosc-zstd-bitshuffle.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Samples on which the error of rounding is measured.")
    ] = 4,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Copy a part of a run, exactly or with rounded numbers, and measure what rounding does to the maps."""
    from i2am.flows.console.describe_run import describe
    from i2am.flows.console.progress import Progress, emit, show_progress
    from i2am.storage.reading.open import open_run
    from i2am.storage.tools.prune import prune as copy_part

    source = open_run(run)
    total, done = len(sample or source.samples), count(1)
    part: dict[str, Any] = {"samples": sample, "layers": layer, "steps": steps, "heads": heads}
    with show_progress(quiet):
        made = copy_part(
            source,
            out,
            **part,
            bits=bits,
            codec=codec,
            on_sample=lambda name: emit(Progress("prune", next(done), total, name)),
        )
    errors = _errors(source, made, steps, heads, check) if bits is not None and check else []
    before, after = describe(source)["bytes"], describe(made)["bytes"]
    if as_json:
        sizes = {"before": before, "after": after}
        print_json({"run": out, "samples": list(made.samples), "bytes": sizes, "errors": errors})
        return
    print_line(
        f"{out}: {counted(len(made.samples), 'sample')}, {human_bytes(after)} of {human_bytes(before)}"
    )
    for each in errors:
        print_line(
            f"{each['direction']} {each['level']} maps differ by {each['worst']:.2g} at most and "
            f"{each['mean']:.2g} on average (1 is uniform attention), on {counted(each['samples'], 'sample')}"
        )


def _errors(source: Run, made: Run, steps: Indices | None, heads: Indices | None, checked: int) -> list[Any]:
    """Differences between the maps of the new run and those of the same part of the source."""
    import numpy as np

    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.storage.errors import NoAnswer

    kept = made.attrs["pruned"]["layers"]
    if heads is not None:
        heads = next(iter(kept.values()))
        if any(rows != heads for rows in kept.values()):  # the analysis takes the same heads of every layer
            log("i2am: the error of the maps is not measured: layers keep different heads")
            return []
    part: dict[str, Any] = {"layers": list(made.layers), "samples": list(made.samples[:checked])}
    part["method"] = "i2am"
    directions: tuple[Direction, ...] = ("r2g", "g2r")
    levels: tuple[Level, ...] = ("unified", "layer")
    found = []
    for direction, level in product(directions, levels):
        try:
            old = attribution_maps(source, direction, level, steps=steps, heads=heads, **part, store=False)
            new = attribution_maps(made, direction, level, **part, store=False)
            difference = np.abs(old.to_numpy() - new.to_numpy())
        except NoAnswer:
            continue
        size = {"worst": float(difference.max()), "mean": float(difference.mean())}
        found.append({"direction": direction, "level": level, **size, "samples": len(part["samples"])})
    return found
