"""``i2am maps``: draw or export the maps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from i2am.flows.commands.options import Cluster, Label, OneOrMoreRuns, Workers
from i2am.flows.console.output import say


def maps(
    run: OneOrMoreRuns,
    out: Annotated[Path, typer.Option(help="Where to write: F.npz, F.zarr or F.png.")],
    direction: Annotated[str, typer.Option(help="r2g or g2r.")] = "r2g",
    level: Annotated[str, typer.Option(help="unified, time, head, layer or specific.")] = "unified",
    at: Annotated[
        str | None,
        typer.Option(help="Specific level: patch 12,8; box 2,3,9,12; patches '1,2;1,3'; or a mask's name."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer or pattern such as '*up*'; repeat for more.")
    ] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Sample to keep; repeat for more.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps to keep: 3 or 0,4 or 0:10.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to keep: 3 or 0,4 or 0:4.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the maps: ROWSxCOLUMNS.")] = None,
    time_groups: Annotated[int, typer.Option(min=1, help="Groups of the time level.")] = 5,
    protocol: Annotated[
        str, typer.Option(help="corrected, or official: the paper's own code.")
    ] = "corrected",
    method: Annotated[
        str, typer.Option(help="i2am; daam, the baseline; joint: shares of a joint softmax.")
    ] = "i2am",
    label: Label = False,
    workers: Workers = None,
    cluster: Cluster = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Maps as .npz, .zarr or .png."""
    from i2am.analysis.drawing.save_maps import save_maps
    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.flows.config import selections
    from i2am.flows.config.load_yaml import amended
    from i2am.flows.config.models import Computing
    from i2am.storage.reading.open import open_any

    index = selections.from_option("--steps", steps), selections.from_option("--heads", heads)
    grid = selections.size("--size", size)
    region = selections.region("--at", at) if at is not None else None
    where = amended(Computing(), workers=workers, cluster=cluster)
    opened = open_any(run, label=label)
    result = attribution_maps(
        opened,
        direction=direction,  # type: ignore[arg-type]  # checked there, with the words for it
        level=level,  # type: ignore[arg-type]
        layers=layer,
        steps=index[0],
        heads=index[1],
        samples=sample,
        size=grid,
        time_groups=time_groups,
        at=region,  # type: ignore[arg-type]
        protocol=protocol,  # type: ignore[arg-type]
        method=method,  # type: ignore[arg-type]
    )
    with computing(where):
        save_maps(result, out, opened, overwrite=overwrite)
    shape = ", ".join(f"{dim} {count}" for dim, count in result.sizes.items())
    say(f"{out}: {direction} {level} maps ({shape}) in {result.attrs['units']}")
