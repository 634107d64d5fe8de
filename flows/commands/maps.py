"""``i2am maps``: draw or export the maps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import print_line

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def maps(
    run: options.OneOrMoreRuns,
    out: Annotated[Path, typer.Option(help="Where to write: F.npz, F.zarr or F.png.")],
    direction: Annotated[str, typer.Option(help="r2g or g2r.")] = "r2g",
    level: options.Level = None,
    at: options.At = None,
    at_pixel: options.AtPixel = None,
    layer: options.LayerNames = None,
    sample: options.SampleNames = None,
    reference: options.ReferenceOrAll = None,
    steps: options.Steps = None,
    heads: options.Heads = None,
    size: options.Size = None,
    resize: options.Resize = "linear",
    time_groups: options.TimeGroups = 5,
    protocol: options.Protocol = "corrected",
    method: Annotated[
        str | None,
        typer.Option(
            help="i2am; norm: weights times value norms; contribution: what the reference adds (R2G), the "
            "default where there is one pooled token; daam, the baseline; joint: shares of a joint softmax."
        ),
    ] = None,
    label: options.Label = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Maps as .npz, .zarr or .png."""
    from i2am.analysis.drawing.save_maps import save_maps
    from i2am.analysis.maps.attribution import attribution_maps
    from i2am.analysis.marginals.store import store_for
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.storage.reading.one_reference import one_reference
    from i2am.storage.reading.open import open_any

    question: dict[str, Any] = {"direction": direction, "level": level, "at": at, "layers": layer}
    question |= {"samples": sample, "steps": steps, "heads": heads, "size": size}
    question |= {"at_pixels": at_pixel, "resize": resize}
    question |= {"time_groups": time_groups, "protocol": protocol, "method": method}
    where = options.computing(workers, cluster)
    opened = open_any(run, label=label)
    question["store"] = store_for(opened, cache)
    if reference == "all":
        with computing(where):
            _every_reference(opened, out, question, overwrite)
        return
    opened = one_reference(opened, reference)
    result = attribution_maps(opened, **question)
    with computing(where):
        save_maps(result, out, opened, overwrite=overwrite)
    shape = ", ".join(f"{dim} {count}" for dim, count in result.sizes.items())
    print_line(f"{out}: {direction} {result.attrs['level']} maps ({shape}) in {result.attrs['units']}")


def _every_reference(run: AnyRun, out: Path, question: dict[str, Any], overwrite: bool) -> None:
    """One figure of all of them; it has a map of each direction, which cannot be chosen."""
    from i2am.analysis.drawing.save_maps import save_references
    from i2am.storage.errors import InputError
    from i2am.storage.reading.one_reference import references_of

    for name in ("level", "at", "at_pixels", "size", "method"):
        if question[name] is not None:
            raise InputError(
                "--reference all", expected="no other choice than samples, layers, steps and heads",
                got=f"--{name.replace('_', '-')}", remedy="ask for one reference",
            )  # fmt: skip
    asked = {name: question[name] for name in ("samples", "layers", "steps", "heads", "store")}
    save_references(run, out, overwrite=overwrite, **asked)
    print_line(f"{out}: {', '.join(references_of(run))}")
