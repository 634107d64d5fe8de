"""The experiment on image quality: features by torch where they are missing, then numbers, charts, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from i2am.analysis.experiments.correlation import FEWEST
from i2am.analysis.experiments.quality import (
    MODEL,
    PAIR_SCORES,
    attention_maps_of,
    attention_scores,
    by_model,
    correlate,
    pair_scores,
)
from i2am.analysis.experiments.quality_charts import quality_charts
from i2am.analysis.experiments.quality_claim import claims
from i2am.analysis.experiments.set_distances import fid, kid
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import OutputKind, output_directory
from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.analysis.scores.imacs import check_penalty
from i2am.analysis.scores.tables import SCHEMA, sample_mask
from i2am.flows.console.output import counted
from i2am.flows.console.progress import Progress, emit
from i2am.flows.experiments.features import Wanted, can_take, kept, taken
from i2am.flows.experiments.pictures import TRUTHS, Picture, Real, given, of_run, truth_of
from i2am.storage.errors import DamagedSample, InputError, NoAnswer, UnknownName
from i2am.storage.reading.labels import run_labels
from i2am.storage.reading.open import open_each
from i2am.storage.tools.feature_store import Features, features_beside, pair_key, rows

if TYPE_CHECKING:
    from i2am.analysis.maps.question import Protocol
    from i2am.pipeline.features.contract import FeatureModel
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


@dataclass(frozen=True, slots=True)
class Options:
    """How quality is measured."""

    real: Real = None
    features: str = "inception"
    weights: Path | None = None
    lpips: bool | None = None  # None: where its weights are here
    group: str | None = None  # an annotation of the samples
    penalty: float = 3.0
    protocol: Protocol = "corrected"
    confidence: float = CONFIDENCE
    store: str | None = None  # a folder of features; None: beside each run
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Entry:
    """A generated image, what it should look like, and the run and group it belongs to."""

    run: Run
    model: dict[str, str | None]
    sample: str
    generated: Picture
    truth: Picture | None
    scores: dict[str, Any]

    @property
    def pair(self) -> tuple[str, tuple[Picture, Picture]] | None:
        """The pair with its key, where the two are of one size."""
        if self.truth is None or "note" in self.scores:
            return None
        return pair_key(self.generated.key, self.truth.key), (self.generated, self.truth)


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
        for name, chart in quality_charts(*(found.tables[name] for name in TABLES[1:]), found.features):
            chart.save(made / "pictures" / f"quality-{name}.png")
        facts = {"runs": [run.path for run in opened], "features": found.features, "claims": found.claims}
        facts |= {"notes": found.notes, "samples": found.tables["quality_samples"]["sample"].to_list()}
        write_mark(made, QUALITY.outputs, QUALITY.mark, facts)
        directory.publish(made)
    return found


def _measure(opened: Sequence[Run], asked: Options) -> Quality:
    refusals: list[dict[str, str]] = []
    models = _Models(asked)
    named = given(asked.real)
    labels = run_labels([run.path for run in opened])
    entries = [
        entry
        for run, label in zip(opened, labels, strict=True)
        for entry in _entries(run, label, named, asked.group, refusals)
    ]
    if not entries:
        raise NoAnswer("no generated images in these runs", remedy="capture them with s.generated = ...")
    attention = _attention(entries, asked, refusals)
    damaged = {(each["run"], each["sample"]) for each in refusals}
    entries = [entry for entry in entries if (entry.model["run"], entry.sample) not in damaged]
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


def _entries(
    run: Run,
    label: str,
    named: dict[str, Picture],
    group: str | None,
    refusals: list[dict[str, str]],
) -> Iterator[Entry]:
    """A run's generated images with the scores of pairs; damaged samples go to `refusals`."""
    for number, sample in enumerate(run.samples, 1):
        try:
            record = run.record(sample)
            if "generated" not in record["images"]:
                continue
            if group is not None and group not in record["annotations"]:
                remedy = f"annotate the samples: i2am amend RUN --sample {sample} --note {group}=TEXT"
                raise UnknownName(
                    f"annotation of sample {sample!r}", group, record["annotations"], remedy=remedy
                )
            generated = of_run(run, "generated", sample)
            truth = truth_of(run, sample, named)
            scores = _pair_scores(run, sample, generated, truth)
        except DamagedSample as error:
            refusals.append({"run": label, "sample": sample, "reason": str(error)})
            continue
        model = {"run": label, "group": None if group is None else str(record["annotations"][group])}
        yield Entry(run, model, sample, generated, truth and truth[1], scores)
        emit(Progress("images", number, len(run.samples), label))


def _pair_scores(
    run: Run, sample: str, generated: Picture, truth: tuple[str, Picture] | None
) -> dict[str, Any]:
    if truth is None:
        return {"truth": None, "note": "no true image of this sample"}
    one, other = generated.load(), truth[1].load()
    if one.shape != other.shape:
        sizes = " and ".join(f"{image.shape[1]}×{image.shape[0]}" for image in (one, other))
        return {"truth": truth[0], "note": f"the generated and the true image differ in size: {sizes}"}
    return {"truth": truth[0], **pair_scores(one, other, sample_mask(run, "r2g", sample))}


def _attention(entries: Sequence[Entry], asked: Options, refusals: list[dict[str, str]]) -> pl.DataFrame:
    """Rows of IMACS and densities of every entry, with the run and the group."""
    rows: list[dict[str, Any]] = []
    maps: dict[int, Any] = {}
    for number, entry in enumerate(entries, 1):
        if id(entry.run) not in maps:
            maps[id(entry.run)] = attention_maps_of(entry.run, asked.protocol)
        try:
            own = attention_scores(entry.run, maps[id(entry.run)], entry.sample, asked.penalty)
        except DamagedSample as error:
            refusals.append({"run": str(entry.model["run"]), "sample": entry.sample, "reason": str(error)})
            continue
        rows += [{**entry.model, **row} for row in own]
        emit(Progress("attention", number, len(entries), str(entry.model["run"])))
    return pl.DataFrame(rows, schema={**dict.fromkeys(MODEL, pl.String), **SCHEMA})


class _Models:
    """The models of features and of LPIPS, found before any image is read."""

    def __init__(self, asked: Options) -> None:
        self.asked = asked
        self.notes: list[str] = []
        self.features: FeatureModel | None = None
        self.lpips: FeatureModel | None = None
        if not can_take():
            return
        from i2am.pipeline.features.load import load_features
        from i2am.pipeline.features.lpips import load_lpips

        self.features = load_features(asked.features, asked.weights, asked.device)
        if asked.lpips is not False:
            try:
                self.lpips = load_lpips(asked.device)
            except InputError as error:
                if asked.lpips:
                    raise
                self.notes.append(f"LPIPS is not measured: {error}")

    def apply(self, entries: Sequence[Entry], real: Sequence[Picture]) -> tuple[str, Features, Features]:
        """Name of the features, the features of all images, and the distances of all pairs."""
        store = self.asked.store
        first = store or features_beside(entries[0].run)
        images: dict[str, Any] = {picture.key: (picture, first) for picture in real}
        pairs: dict[str, Any] = {}
        for entry in entries:
            place = store or features_beside(entry.run)
            for picture in (entry.generated, entry.truth):
                if picture is not None:
                    images.setdefault(picture.key, (picture, place))
            if entry.pair is not None:
                pairs[entry.pair[0]] = (entry.pair[1], place)
        wanted, distances = Wanted("features", images), Features()
        if self.lpips is not None:
            distances = taken(self.lpips, Wanted("LPIPS", pairs))
        if self.features is not None:
            return self.features.name, taken(self.features, wanted), distances
        with suppress(InputError):
            distances = kept("lpips", Wanted("LPIPS", pairs))[1]
        return self.asked.features, kept(self.asked.features, wanted)[1], distances


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
            length = np.linalg.norm(one) * np.linalg.norm(other)
            row["similarity"] = float(one @ other / length) if length > 0 else None
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
