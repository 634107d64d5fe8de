"""Image quality beside attention: what IMACS and densities say of FID, KID, LPIPS and SSIM.

Source: I²AM, the experiments on IMACS, which find that higher IMACS goes with lower FID, KID and LPIPS and
with higher SSIM. Scores of pairs (SSIM, PSNR, LPIPS, cosine similarity of features) are correlated sample by
sample, scores of sets (FID, KID) over runs, or over groups of their samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from i2am.analysis.experiments.correlation import correlations
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.scores.bootstrap import mean_intervals
from i2am.analysis.scores.tables import sample_mask, score_rows
from i2am.storage.errors import NoAnswer

if TYPE_CHECKING:
    import xarray as xr

    from i2am.analysis.maps.question import Protocol
    from i2am.storage.reading.run import Run

PAIR_SCORES = ("ssim", "ssim_inside", "psnr", "psnr_inside", "lpips", "similarity")
"""Of a generated image and the true one; "inside": of the painted pixels alone."""

SET_SCORES = ("fid", "kid")

EXPECTED: Mapping[str, int] = {"fid": -1, "kid": -1, "lpips": -1, "ssim": 1}
"""The paper's claim: the sign of each score's correlation with IMACS."""

MEASURES = ("imacs", "inside")
"""Of a map: IMACS, and the density inside the mask."""

MODEL = ("run", "group")
"""Columns that name what a set of images was made by."""

KIND = ("direction", "level")
"""Columns that name a kind of map."""

SMALLEST = 11
"""Edge in pixels of the window of SSIM."""

Image = NDArray[np.uint8]


def pair_scores(
    generated: Image, truth: Image, inside: NDArray[np.bool_] | None = None
) -> dict[str, float | None]:
    """SSIM (Gaussian window, sigma 1.5, as published) and PSNR (dB) of images [y, x, 3] of one size.

    Also of the pixels `inside` [y, x] alone. None where there is no number: equal images have no PSNR.
    """
    found: dict[str, float | None] = dict.fromkeys(("ssim", "ssim_inside", "psnr", "psnr_inside"))
    squares = ((generated.astype(np.float64) - truth) ** 2).mean(axis=2)
    found["psnr"] = _psnr(squares)
    similar = None
    if min(truth.shape[:2]) >= SMALLEST:
        found["ssim"], similar = structural_similarity(
            truth, generated, data_range=255, channel_axis=2, full=True,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # type: ignore[no-untyped-call]  # fmt: skip
        found["ssim"] = float(found["ssim"])  # type: ignore[arg-type]
    if inside is not None and inside.shape == truth.shape[:2] and inside.any():
        found["psnr_inside"] = _psnr(squares[inside])
        found["ssim_inside"] = None if similar is None else float(similar[inside].mean())
    return found


def _psnr(squares: NDArray[np.float64]) -> float | None:
    mean = float(squares.mean())
    return 10 * float(np.log10(255**2 / mean)) if mean > 0 else None


def attention_maps_of(run: Run, protocol: Protocol) -> list[xr.DataArray]:
    """Lazy maps that are scored: unified ones, and those of painted patches or of the reference's object."""
    found = []
    for direction in DIRECTIONS:
        for region in (None, REGION_IMAGE[direction]):
            if region is None or region in run.images:
                with suppress(NoAnswer):  # such as G2R of a single token
                    found.append(attribution_maps(run, direction, at=region, protocol=protocol))
    return found


def attention_scores(
    run: Run, maps: Sequence[xr.DataArray], sample: str, penalty: float
) -> list[dict[str, Any]]:
    """IMACS and densities of a sample, a row for each of a run's maps."""
    rows: list[dict[str, Any]] = []
    for each in maps:
        mask = sample_mask(run, each.attrs["direction"], sample)
        rows += score_rows(each.sel(sample=sample).compute(), mask, penalty)
    return rows


def by_model(
    samples: pl.DataFrame, attention: pl.DataFrame, sets: pl.DataFrame, confidence: float
) -> pl.DataFrame:
    """The table of the experiment: every score of each run and group, means with bootstrap intervals.

    `samples` has the columns of MODEL, "sample", "features" and PAIR_SCORES; `attention` those of MODEL,
    KIND, "sample" and MEASURES; `sets` those of MODEL, "features", SET_SCORES, "count", "real" and "note".
    """
    rows: list[dict[str, Any]] = []
    for model in sets.iter_rows(named=True):
        named = {name: model[name] for name in (*MODEL, "features")}
        for score in SET_SCORES:
            more = {"count": model["count"], "note": model["note"]}
            rows.append({**named, "score": score, "value": model[score], **more})
        own = _of(samples, model)
        for score, mean in zip(PAIR_SCORES, _means(own, PAIR_SCORES, confidence), strict=True):
            features = named["features"] if score == "similarity" else None
            rows.append({**named, "features": features, "score": score, **mean})
        for kind, scored in _of(attention, model).group_by(KIND, maintain_order=True):
            of_kind = {**named, "features": None, **dict(zip(KIND, kind, strict=True))}
            for measure, mean in zip(MEASURES, _means(scored, MEASURES, confidence), strict=True):
                rows.append({**of_kind, "score": measure, **mean})
    return pl.DataFrame(rows, schema=TABLE)


TABLE: Mapping[str, Any] = {
    "run": pl.String,
    "group": pl.String,  # null where samples are not grouped
    "features": pl.String,  # of which a score is made; null for others
    "direction": pl.String,  # of the map, of IMACS and densities
    "level": pl.String,
    "score": pl.String,
    "value": pl.Float64,  # of a set, or the mean over samples
    "low": pl.Float64,  # bootstrap interval of the mean over samples
    "high": pl.Float64,
    "count": pl.Int64,  # samples
    "note": pl.String,
}


def correlate(
    samples: pl.DataFrame, attention: pl.DataFrame, sets: pl.DataFrame, confidence: float
) -> pl.DataFrame:
    """Correlations of every measure of attention with every score; `by_model` says what comes in.

    "over" is "samples": those of all runs, where one scene of several runs is one unit of the interval;
    "samples within runs": likewise, less each run's mean; or "runs": means over samples against FID and KID.
    """
    rows: list[dict[str, Any]] = []
    pairs = attention.join(samples, on=[*MODEL, "sample"], nulls_equal=True)
    means = attention.group_by([*MODEL, *KIND], maintain_order=True).agg(
        pl.col(name).mean() for name in MEASURES
    )
    models = means.join(sets, on=list(MODEL), nulls_equal=True)
    centred = pairs.with_columns(
        pl.col(name) - pl.col(name).mean().over([*MODEL, *KIND]) for name in (*MEASURES, *PAIR_SCORES)
    )
    asked = [("samples", pairs, PAIR_SCORES), ("runs", models, SET_SCORES)]
    if sets.height > 1:
        asked.insert(1, ("samples within runs", centred, PAIR_SCORES))
    for over, table, scores in asked:
        for kind, own in table.group_by(KIND, maintain_order=True):
            units = own["sample"].to_list() if "sample" in own.columns else None
            for measure in MEASURES:
                for score in scores:
                    fixed = {"over": over, **dict(zip(KIND, kind, strict=True))}
                    fixed |= {"measure": measure, "score": score, "expected": EXPECTED.get(score)}
                    fixed |= {"confidence": confidence}
                    x, y = _numbers(own, measure), _numbers(own, score)
                    for found in correlations(x, y, units, confidence):
                        rows.append(fixed | {name: getattr(found, name) for name in found.__slots__})
    return pl.DataFrame(rows, schema=CORRELATIONS)


CORRELATIONS: Mapping[str, Any] = {
    "over": pl.String,
    "direction": pl.String,
    "level": pl.String,
    "measure": pl.String,  # of MEASURES
    "score": pl.String,
    "expected": pl.Int64,  # sign that the paper's claim expects; null where it says nothing
    "statistic": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,  # of no association; null where pairs of one unit are not independent
    "count": pl.Int64,  # pairs
    "units": pl.Int64,  # that the bootstrap draws
    "confidence": pl.Float64,
}


def _of(table: pl.DataFrame, model: Mapping[str, Any]) -> pl.DataFrame:
    return table.filter(pl.all_horizontal(pl.col(name).eq_missing(model[name]) for name in MODEL))


def _means(table: pl.DataFrame, columns: tuple[str, ...], confidence: float) -> list[dict[str, Any]]:
    ordered = table.sort("sample")  # so that the order of samples changes nothing
    ends = mean_intervals(np.stack([_numbers(ordered, name) for name in columns], axis=1), confidence)
    return [
        {
            name: None if np.isnan(number) else float(number)
            for name, number in zip(("value", "low", "high"), own, strict=True)
        }
        | {"count": int(count)}
        for *own, count in zip(ends.mean, ends.low, ends.high, ends.count, strict=True)
    ]


def _numbers(table: pl.DataFrame, column: str) -> NDArray[np.float64]:
    return table[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
