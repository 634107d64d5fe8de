"""``i2am prune``: a smaller copy of a run."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands.options import AsJson, Quiet
from i2am.flows.console.output import emit, human_bytes, note, say

if TYPE_CHECKING:
    from i2am.analysis.grids.direction import Direction
    from i2am.analysis.maps.question import Level
    from i2am.storage.index_selection import Indices
    from i2am.storage.reading.run import Run


def prune(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    out: Annotated[str, typer.Option(help="The new run; one that was interrupted is gone on with.")],
    sample: Annotated[list[str] | None, typer.Option(help="Sample to keep; repeat for more.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer or pattern such as '*up*' to keep; repeat for more.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Steps to keep: 3 or 0,4 or ::2.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to keep: 3 or 0,4 or 0:4.")] = None,
    bits: Annotated[
        int | None, typer.Option(min=1, help="Bits of the fraction to keep: float16 has 10, float32 23.")
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="Compression: none, blosc-lz4-shuffle or blosc-zstd-bitshuffle.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Samples on which the error of rounding is measured.")
    ] = 4,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Copy a part of a run, exactly or with rounded numbers, and measure what rounding does to the maps."""
    from i2am.flows.config import selections
    from i2am.flows.console.describe_run import describe
    from i2am.flows.console.progress import Progress, report, shown
    from i2am.storage.reading.open import open_run
    from i2am.storage.tools.prune import prune as copy_part

    source = open_run(run)
    index = selections.from_option("--steps", steps), selections.from_option("--heads", heads)
    total, done = len(sample or source.samples), 0

    def listen(name: str) -> None:
        """Count a sample."""
        nonlocal done
        done += 1
        report(Progress("prune", done, total, name))

    with shown(quiet):
        made = copy_part(
            source,
            out,
            samples=sample,
            layers=layer,
            steps=index[0],
            heads=index[1],
            bits=bits,
            codec=codec,
            on_sample=listen,
        )
    errors = _errors(source, made, *index, check) if bits is not None and check else []
    sizes = {"before": describe(source)["bytes"], "after": describe(made)["bytes"]}
    if as_json:
        emit({"run": out, "samples": list(made.samples), "bytes": sizes, "errors": errors})
        return
    say(
        f"{out}: {len(made.samples)} samples, {human_bytes(sizes['after'])} of {human_bytes(sizes['before'])}"
    )
    for each in errors:
        say(
            f"{each['direction']} {each['level']} maps differ by {each['worst']:.2g} at most and "
            f"{each['mean']:.2g} on average (1 is uniform attention), on {each['samples']} samples"
        )


def _errors(source: Run, made: Run, steps: Indices | None, heads: Indices | None, count: int) -> list[Any]:
    """Differences of the maps to those of the same layers, steps and heads of the source."""
    import numpy as np

    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.storage.errors import NoAnswer

    kept = made.attrs["pruned"]["layers"]
    if heads is not None:
        heads = next(iter(kept.values()))
        if any(rows != heads for rows in kept.values()):  # the analysis takes the same heads of every layer
            note("i2am: the error of the maps is not measured: layers keep different heads")
            return []
    layers, samples = list(made.layers), list(made.samples[:count])
    choices = ((source, steps, heads), (made, None, None))
    directions: tuple[Direction, ...] = ("r2g", "g2r")
    levels: tuple[Level, ...] = ("unified", "layer")
    found = []
    for direction, level in product(directions, levels):
        try:
            old, new = (
                attribution_maps(
                    run,
                    direction,
                    level,
                    layers,
                    at,
                    rows,
                    samples,
                    store=False,
                ).to_numpy()
                for run, at, rows in choices
            )
        except NoAnswer:
            continue
        difference = np.abs(old - new)
        found.append(
            {
                "direction": direction,
                "level": level,
                "worst": float(difference.max()),
                "mean": float(difference.mean()),
                "samples": len(samples),
            }
        )
    return found
