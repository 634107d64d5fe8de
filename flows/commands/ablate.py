"""``i2am ablate``: whether the maps say what happens if parts of the reference are taken away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, log, number, print_json, print_line, print_table

if TYPE_CHECKING:
    import polars as pl

    from i2am.flows.experiments.ablate import Faithfulness


def ablate(
    config: Annotated[Path, typer.Argument(help="The configuration (YAML) that made the run.")],
    run: Annotated[str, typer.Option(help="Run: a folder NAME.zarr or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier experiment is replaced.")],
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Orders of tokens: g2r, g2r-painted, norm, norm-painted, daam, official, layers (each layer "
            "and head), random, lowest; absent: all.",
            show_default=False,
        ),
    ] = None,
    fractions: Annotated[
        str, typer.Option(metavar="F,F", help="Shares of the tokens to remove, or to leave; 0 and 1 too.")
    ] = "0.05,0.1,0.2,0.4",
    mode: Annotated[
        str | None,
        typer.Option(
            help="A removed token becomes empty, the mean, a zero latent, or is masked; absent: empty, or "
            "latent for joint attention.",
            show_default=False,
        ),
    ] = None,
    sample: options.SampleNames = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first samples alone.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random orders of each sample.")] = 3,
    blocks: Annotated[
        int, typer.Option(min=0, help="Blocks on a side of the reference, removed one by one; 0: none.")
    ] = 4,
    confidence: options.Confidence = 0.95,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate again without parts of the reference, in the order of each map; curves and areas.

    The images must come out as in the run where nothing is removed. What was generated is kept in
    OUT/removals, so that an interrupted experiment goes on where it stopped.
    """
    from i2am.analysis.experiments.token_ranks import RANKS
    from i2am.flows.config.load_yaml import load_capture
    from i2am.flows.console.progress import show_progress
    from i2am.flows.experiments.ablate import ablate_run

    settings = load_capture(config, run)
    names = RANKS if rank is None else tuple(name.strip() for name in rank.split(","))
    asked: dict[str, Any] = {"samples": sample, "limit": limit, "draws": draws, "blocks": blocks}
    asked |= {"mode": mode, "confidence": confidence, "overwrite": overwrite}
    with show_progress(quiet):
        found = ablate_run(settings, run, out, ranks=names, fractions=_numbers(fractions), **asked)
    _show(found, out, as_json)


def _show(found: Faithfulness, out: Path, as_json: bool) -> None:
    count = found.samples["sample"].n_unique()
    for note in found.notes:
        log(f"i2am: {note}")
    if as_json:
        facts = {"out": out, "samples": count, "generated": found.generated, "seconds": found.seconds}
        print_json(facts | {"notes": found.notes, "summary": found.summary.to_dicts()})
        return
    _print(found.summary)
    print_line(
        f"{out}: {counted(count, 'sample')}, {counted(found.generated, 'image')} generated "
        f"in {found.seconds:.0f} s"
    )


def _numbers(text: str) -> tuple[float, ...]:
    from i2am.storage.errors import InputError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            "--fractions",
            expected="numbers such as 0.05,0.1",
            got=repr(text),
            remedy="for example --fractions 0.05,0.1",
        ) from None


def _print(summary: pl.DataFrame) -> None:
    """One row for each rank: areas, and the ratio to random tokens at the first fractions."""
    import polars as pl

    inside = summary.filter(region="inside")
    curves = inside.filter(pl.col("rank") != "layers")
    times = curves.filter(measure="times random")
    shares = sorted(set(times["fraction"].to_list()))
    rows = []
    for name in dict.fromkeys(curves.filter(measure="area")["rank"].to_list()):
        areas = [_cell(curves.filter(measure="area", rank=name, kind=kind)) for kind in _KINDS]
        rows.append([name, *areas, *(_cell(times.filter(rank=name, fraction=share)) for share in shares)])
    if rows:
        print_line("mean change inside the mask, 0 to 255, over all shares of tokens; times a random rank")
        heads = ["rank", "deletion", "insertion", *(f"{share:.0%} × random" for share in shares)]
        print_table(heads, rows, right=range(1, len(heads)))
    mirror = inside.filter(measure="correlation")
    if mirror.height:
        print_line("rank correlation of where the image changes without a block, with what is predicted")
        cells = [[name, _cell(mirror.filter(rank=name))] for name in mirror["rank"].to_list()]
        print_table(["predictor", "correlation"], cells, right=[1])


_KINDS = ("deletion", "insertion")


def _cell(rows: pl.DataFrame) -> str:
    """A value with its interval; empty where there is none."""
    if not rows.height:
        return ""
    row = rows.row(0, named=True)
    ends = "" if row["low"] is None else f" ({number(row['low'])} to {number(row['high'])})"
    return f"{number(row['value'])}{ends}"
