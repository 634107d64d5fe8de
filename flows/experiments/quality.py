"""The experiment on image quality: features by torch where they are missing, then numbers, charts, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from i2am.analysis.experiments.correlation import FEWEST
from i2am.analysis.experiments.quality import MODEL, PAIR_SCORES, by_model, correlate
from i2am.analysis.experiments.quality_claim import claims
from i2am.analysis.experiments.set_distances import fid, kid
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import OutputKind, output_directory
from i2am.analysis.scores.bootstrap import check_confidence
from i2am.analysis.scores.imacs import check_penalty
from i2am.flows.console.output import counted
from i2am.flows.console.progress import Progress, emit
from i2am.flows.experiments.features import similarity
from i2am.flows.experiments.pictures import TRUTHS, Picture, given
from i2am.flows.experiments.quality_charts import quality_charts
from i2am.flows.experiments.quality_entries import Entry, read_attention, read_entries
from i2am.flows.experiments.quality_models import Models, Options
from i2am.storage.errors import DamagedSample, NoAnswer
from i2am.storage.reading.labels import run_labels
from i2am.storage.reading.open import open_each
from i2am.storage.tools.feature_store import Features, rows

if TYPE_CHECKING:
    from i2am.storage.reading.open import Place
    from i2am.storage.reading.run import Run

QUALITY = OutputKind("an experiment on quality", ("tables", "pictures", "quality.json"), "quality.json")

TABLES = ("quality", "quality_samples", "quality_attention", "quality_sets", "quality_correlations")


@dataclass(frozen=True, slots=True)
class Quality:
    """What the experiment found: tables by their names in TABLES, and what they say."""

    tables: dict[str, pl.DataFrame]
    features: str  # name of the features; never call an FID by another name
    claims: list[str]  # whether the paper's claim holds, a sentence for each kind of map
    notes: list[str]
    refusals: list[dict[str, str]]  # damaged samples, left out


def quality_runs(
    runs: Place | Sequence[Place], out: Path | None = None, *, overwrite: bool = False, **options: Any
) -> Quality:
    """Measure the quality of what runs generated and its correlation with attention; `Options` are keywords.

    With `out`: tables/*.parquet, pictures/*.png and quality.json, replaced together once all is done. What
    features were taken is kept beside the runs, so an interrupted experiment goes on where it stopped.
    """
    asked = Options(**options)
    check_penalty(asked.penalty)
    check_confidence(asked.confidence)
    opened = open_each(runs)
    if out is None:
        return _measure(opened, asked)
    with output_directory(out, QUALITY, overwrite) as directory:
        found = _measure(opened, asked)
        made = directory.staging / "made"
        for folder in ("tables", "pictures"):
            (made / folder).mkdir(parents=True)
        for name, table in found.tables.items():
            table.write_parquet(made / "tables" / f"{name}.parquet")
        for name, chart in quality_charts(found.tables, found.features):
            chart.save(made / "pictures" / f"quality-{name}.png")
        facts = {"runs": [run.path for run in opened], "features": found.features, "claims": found.claims}
        facts |= {"notes": found.notes, "samples": found.tables["quality_samples"]["sample"].to_list()}
        write_mark(made, QUALITY.outputs, QUALITY.mark, facts)
        directory.publish(made)
    return found


def _measure(opened: Sequence[Run], asked: Options) -> Quality:
    refusals: list[dict[str, str]] = []
    models = Models(asked)
    named = given(asked.real)
    labels = run_labels([run.path for run in opened])
    entries = [
        entry
        for run, label in zip(opened, labels, strict=True)
        for entry in read_entries(run, label, named, asked.group, refusals)
    ]
    if not (entries or refusals):
        raise NoAnswer("no generated images in these runs", remedy="capture them with s.generated = ...")
    attention = read_attention(entries, asked.penalty, asked.protocol, refusals)
    damaged = {(each["run"], each["sample"]) for each in refusals}
    entries = [entry for entry in entries if (entry.model["run"], entry.sample) not in damaged]
    if not entries:
        reason = f"and so are all others ({len(refusals)}): {refusals[0]['reason']}"
        raise DamagedSample(refusals[0]["sample"], None, reason)
    real = list(named.values())
    if not (real or any(entry.truth for entry in entries)):
        raise NoAnswer(
            "no real images to compare with",
            expected=f"--real FOLDER, or runs with an image {' or '.join(map(repr, TRUTHS))}",
            remedy="name a folder of real pictures: --real FOLDER",
        )
    features, of_images, distances = models.apply(entries, real)
    samples = _samples(entries, of_images, distances, features)
    sets = _sets(entries, real, of_images, features)
    found = correlate(samples, attention, sets, asked.confidence)
    tables = (by_model(samples, attention, sets, asked.confidence), samples, attention, sets, found)
    return Quality(
        dict(zip(TABLES, tables, strict=True)),
        features,
        claims(found, features),
        [*models.notes, *_notes(samples, sets)],
        refusals,
    )


def _samples(
    entries: Sequence[Entry], of_images: Features, distances: Features, features: str
) -> pl.DataFrame:
    found = []
    for entry in entries:
        row = {**entry.model, "sample": entry.sample, "features": features, **entry.scores}
        if entry.truth is not None:
            one, other = (
                of_images[picture.key].astype(np.float64) for picture in (entry.generated, entry.truth)
            )
            row["similarity"] = similarity(one, other)
        if entry.pair is not None and entry.pair[0] in distances:
            row["lpips"] = float(distances[entry.pair[0]][0])
        found.append(row)
    texts = (*MODEL, "sample", "features", "truth", "note")
    return pl.DataFrame(
        found, schema=dict.fromkeys(texts, pl.String) | dict.fromkeys(PAIR_SCORES, pl.Float64)
    )


def _sets(
    entries: Sequence[Entry], real: Sequence[Picture], of_images: Features, features: str
) -> pl.DataFrame:
    """FID and KID of each run and group, against all real images, or against its own samples' true ones."""
    by_name: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(tuple(entry.model.values()), []).append(entry)
    found = []
    for number, own in enumerate(by_name.values(), 1):
        truths = real or [entry.truth for entry in own if entry.truth is not None]
        row: dict[str, Any] = {**own[0].model, "features": features, "count": len(own)}
        row["real"] = len(keys := list(dict.fromkeys(picture.key for picture in truths)))
        if min(len(own), len(keys)) < 2:
            row["note"] = f"{len(own)} generated and {len(keys)} real images: distances need 2 of each"
        else:
            made = rows(of_images, [entry.generated.key for entry in own])
            true = rows(of_images, keys)
            row |= {"fid": fid(made, true), "kid": kid(made, true)}
            if min(len(made), len(true)) <= made.shape[1]:
                row["note"] = (
                    f"{min(len(made), len(true))} images for {made.shape[1]} features: "
                    "FID is biased upwards and compares only with sets of as many; KID is unbiased"
                )
        found.append(row)
        emit(Progress("distances", number, len(by_name), str(own[0].model["run"])))
    schema: dict[str, Any] = dict.fromkeys((*MODEL, "features", "note"), pl.String)
    schema |= {"count": pl.Int64, "real": pl.Int64, "fid": pl.Float64, "kid": pl.Float64}
    return pl.DataFrame(found, schema=schema)


def _notes(samples: pl.DataFrame, sets: pl.DataFrame) -> list[str]:
    """What is missing or to be read with care, each once, with the number of samples or sets."""
    found = []
    for table, noun in ((samples, "sample"), (sets, "set")):
        counts = table.drop_nulls("note").group_by("note", maintain_order=True).len()
        found += [f"{counted(count, noun)}: {note}" for note, count in counts.iter_rows()]
    if sets.height < FEWEST:
        few = f"{counted(sets.height, 'run or group')}: FID and KID are correlated from {FEWEST} on"
        found.append(few)
    return found
