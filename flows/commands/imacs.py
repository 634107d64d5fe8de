"""``i2am imacs``: the inpainting mask attention consistency score of every sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal import emit, note, table

if TYPE_CHECKING:
    from storage import Run


def imacs(
    run: Annotated[str, typer.Argument(help="Run: a folder NAME.zarr or a URL.")],
    direction: Annotated[str | None, typer.Option(help="r2g or g2r; both where it is absent.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Sample to score; repeat for more.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Layer to keep; repeat for more.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps to keep: 3 or 0,4 or 0:10.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to keep: 3 or 0,4 or 0:4.")] = None,
    penalty: Annotated[float, typer.Option(help="Weight of attention outside the mask.")] = 3.0,
    protocol: Annotated[
        str, typer.Option(help="corrected, or official: the paper's own code.")
    ] = "corrected",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """IMACS of every sample's unified maps.

    Exit status 1: samples were refused as damaged; the others are scored.
    """
    from analysis.imacs import check_penalty
    from flows.selection import from_option
    from storage import open_run

    check_penalty(penalty)
    selection = {
        "layers": layer,
        "steps": from_option("--steps", steps),
        "heads": from_option("--heads", heads),
        "protocol": protocol,
    }
    refused: list[dict[str, str]] = []
    rows = list(_rows(open_run(run), direction, sample, selection, penalty, refused))
    if as_json:
        emit({"run": run, "penalty": penalty, "protocol": protocol, "scores": rows, "refusals": refused})
    else:
        unit = " × uniform" if protocol == "corrected" else ""
        table(
            ["sample", "direction", "IMACS", f"inside{unit}", f"outside{unit}", "share inside", "note"],
            [
                [
                    row["sample"],
                    row["direction"],
                    *(_number(row[key]) for key in ("imacs", "inside", "outside", "share")),
                    row["note"] or ("similarity" if row["kind"] == "similarity" else ""),
                ]
                for row in rows
            ],
            right=(2, 3, 4, 5),
        )
    for entry in refused:
        note(f"i2am: refused: {entry['reason']}")
    if refused:
        raise typer.Exit(1)


def _rows(
    run: Run,
    direction: str | None,
    samples: list[str] | None,
    selection: dict[str, Any],
    penalty: float,
    refused: list[dict[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of the unified tables, sample by sample; damaged ones go to ``refused``."""
    from analysis.collect import sample_mask
    from analysis.maps import attribution_maps
    from analysis.tables import score_rows
    from storage.errors import DamagedSample, NoAnswer

    maps = {}
    for way in (direction,) if direction is not None else ("r2g", "g2r"):
        try:
            maps[way] = attribution_maps(run, way, samples=samples, **selection)  # type: ignore[arg-type]
        except NoAnswer:
            if direction is not None:
                raise
    bad: set[str] = set()
    for way, values in maps.items():
        for sample in values["sample"].values:
            if sample in bad:
                continue
            try:
                yield from score_rows(
                    values.sel(sample=sample).compute(), sample_mask(run, way, sample), penalty
                )
            except DamagedSample as error:
                bad.add(sample)
                refused.append({"sample": str(sample), "reason": str(error)})


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
