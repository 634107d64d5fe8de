"""``i2am ablate``: whether the maps say what happens if parts of the reference are taken away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import counted, log, number, print_json, print_line, print_table

if TYPE_CHECKING:
    import polars as pl

    from i2am.flows.experiments.ablate import Faithfulness


Ranks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Orders of tokens: g2r, g2r-painted, norm, norm-painted, daam, official, layers (each layer "
        "and head), random, lowest; absent: all.",
        show_default=False,
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="A removed token becomes empty, the mean, a zero latent, or is masked; absent: empty, or "
        "latent for joint attention.",
        show_default=False,
    ),
]


def ablate(
    config: Annotated[Path, typer.Argument(help="The configuration (YAML) that made the run.")],
    run: Annotated[str, typer.Option(help="Run: a folder NAME.zarr or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier experiment is replaced.")],
    rank: Ranks = None,
    fractions: Annotated[
        str, typer.Option(metavar="F,F", help="Shares of the tokens to remove, or to leave; 0 and 1 too.")
    ] = "0.05,0.1,0.2,0.4",
    mode: Mode = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The one of several that loses tokens: reference, reference-1, ..."
        ),
    ] = None,
    sample: options.SampleNames = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first samples alone.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random orders of each sample.")] = 3,
    blocks: Annotated[
        int, typer.Option(min=0, help="Blocks on a side of the reference, removed one by one; 0: none.")
    ] = 4,
    features: Annotated[
        str | None,
        typer.Option(help="Measure the change of features too: inception, clip, dino, or module:function."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Their file or folder; absent: the caches.")] = None,
    lpips: Annotated[bool, typer.Option("--lpips/--no-lpips", help="Measure LPIPS too.")] = False,
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
    asked |= {"features": features, "weights": weights, "lpips": lpips}
    asked |= {"mode": mode, "reference": reference, "confidence": confidence, "overwrite": overwrite}
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
    """For each distance one row for each rank; and the mirror."""
    import polars as pl

    from i2am.analysis.experiments.faithfulness import place_words
    from i2am.analysis.experiments.faithfulness_charts import change_words
    from i2am.analysis.experiments.token_ranks import WHOLE

    where = place_words(summary)
    wholes = summary.filter(pl.col("rank") != "layers", pl.col("region") != "outside")
    for distance in dict.fromkeys(wholes["distance"].to_list()):
        own = wholes.filter(pl.col("rank") != WHOLE, distance=distance)
        _print_ranks(own, change_words(distance, where))
    for row in summary.filter(measure="change", rank=WHOLE).iter_rows(named=True):
        place = "outside the mask" if row["region"] == "outside" else where
        print_line(f"{change_words(row['distance'], place)}, without the reference: {_in_words(row)}")
    mirror = wholes.filter(measure="correlation")
    if mirror.height:
        print_line("rank correlation of where the image changes without a block, with what is predicted")
        cells = [[name, _cell(mirror.filter(rank=name))] for name in mirror["rank"].to_list()]
        print_table(["predictor", "correlation"], cells, right=[1])


def _print_ranks(curves: pl.DataFrame, change: str) -> None:
    """One row for each rank: areas, and the ratio to random tokens at the first fractions."""
    times = curves.filter(measure="times random")
    shares = sorted(set(times["fraction"].to_list()))
    rows = []
    for name in dict.fromkeys(curves.filter(measure="area")["rank"].to_list()):
        areas = [_cell(curves.filter(measure="area", rank=name, kind=kind)) for kind in _KINDS]
        rows.append([name, *areas, *(_cell(times.filter(rank=name, fraction=share)) for share in shares)])
    if rows:
        print_line(f"{change}, over all shares of tokens; times a random rank")
        heads = ["rank", "deletion", "insertion", *(f"{share:.0%} × random" for share in shares)]
        print_table(heads, rows, right=range(1, len(heads)))


_KINDS = ("deletion", "insertion")


def _cell(rows: pl.DataFrame) -> str:
    """A value with its interval; empty where there is none."""
    return _in_words(rows.row(0, named=True)) if rows.height else ""


def _in_words(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" ({number(row['low'])} to {number(row['high'])})"
    return f"{number(row['value'])}{ends}"
