"""What the experiment on quality reads from runs: generated images with their scores, and attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.events import counter
from i2am.analysis.experiments.quality import MODEL, attention_maps_of, attention_scores, pair_scores
from i2am.analysis.scores.tables import SCHEMA, sample_mask
from i2am.flows.analyze.job import emit_event
from i2am.flows.experiments.pictures import Picture, of_run, truth_of
from i2am.storage.errors import DamagedSample, UnknownName
from i2am.storage.tools.feature_store import pair_key

if TYPE_CHECKING:
    from i2am.analysis.maps.question import Protocol
    from i2am.storage.reading.run import Run


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


def read_entries(
    run: Run,
    label: str,
    named: dict[str, Picture],
    group: str | None,
    refusals: list[dict[str, str]],
) -> Iterator[Entry]:
    """A run's generated images with the scores of pairs; damaged samples go to `refusals`."""
    step = counter(emit_event, f"images of {label}", len(run.samples))
    for sample in run.samples:
        step()
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


def read_attention(
    entries: Sequence[Entry], penalty: float, protocol: Protocol, refusals: list[dict[str, str]]
) -> pl.DataFrame:
    """Rows of IMACS and densities of every entry, with the run and the group."""
    rows: list[dict[str, Any]] = []
    maps: dict[int, Any] = {}
    step = counter(emit_event, "attention", len(entries))
    for entry in entries:
        step()
        if id(entry.run) not in maps:
            maps[id(entry.run)] = attention_maps_of(entry.run, protocol)
        try:
            own = attention_scores(entry.run, maps[id(entry.run)], entry.sample, penalty)
        except DamagedSample as error:
            refusals.append({"run": str(entry.model["run"]), "sample": entry.sample, "reason": str(error)})
            continue
        rows += [{**entry.model, **row} for row in own]
    return pl.DataFrame(rows, schema={**dict.fromkeys(MODEL, pl.String), **SCHEMA})
