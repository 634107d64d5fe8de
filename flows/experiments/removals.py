"""What removals did to the images of one sample: generated in batches, kept in a part file of the sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.faithfulness import inside_and_outside, pixel_change
from i2am.analysis.experiments.token_ranks import Grid
from i2am.analysis.grids.regions import image_mask, sample_image
from i2am.analysis.grids.resize import area
from i2am.flows.experiments.distances import DistanceModels, Distances, Image
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.format.file_names import sample_file
from i2am.storage.format.signed_json import canonical
from i2am.storage.locations.whole_file import whole_file

if TYPE_CHECKING:
    from i2am.flows.config.models import CaptureConfig
    from i2am.flows.datasets.open import SampleSet
    from i2am.pipeline.interventions.removal import Mode
    from i2am.pipeline.jobs import Call
    from i2am.storage.reading.run import Run

Mask = NDArray[np.bool_]

MOST_DIFFERENT = 1.0
"""Mean difference, in levels, up to which an image is the run's own: arithmetic differs between machines."""

_PART: Mapping[str, Any] = {
    "removed": pl.Binary,  # the set of tokens, packed bits
    "inside": pl.Float64,
    "outside": pl.Float64,
    "cells": pl.List(pl.Float32),  # change on the generated grid, where it was asked for
    "distances": pl.List(pl.Struct({"model": pl.String, "distance": pl.Float64})),  # by models asked for
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What the removal of a set of tokens changed."""

    inside: float
    outside: float | None
    cells: NDArray[np.float64] | None = None
    distances: Distances = field(default_factory=dict)

    def beside(self, older: Effect | None) -> Effect:
        """With what only an older measurement of the same removal has."""
        if older is None:
            return self
        cells = older.cells if self.cells is None else self.cells
        return Effect(self.inside, self.outside, cells, older.distances | self.distances)


@dataclass(frozen=True, slots=True)
class Generator:
    """Generates samples of a run again, without some tokens of their references."""

    config: CaptureConfig
    run: Run
    samples: SampleSet
    pipe: Any
    call: Call
    mode: Mode
    cells: Grid  # (rows, columns) of the changes that are kept cell by cell
    folder: Path  # of the part files
    models: DistanceModels
    reference: int  # which of several loses tokens
    placed: bool  # whether the tokens that are removed have places in the reference

    def effects(
        self, sample: str, wanted: Sequence[Mask], by_cell: Sequence[Mask]
    ) -> tuple[dict[bytes, Effect], int]:
        """Effects by `key`, and how many images were generated now; the part file gets what it lacks."""
        path = self.folder / f"{sample_file(sample)}-{self.run.fingerprint(sample)[:16]}.parquet"
        known = _read(path, self.cells)
        cellwise = {key(mask): mask for mask in by_cell}
        missing = {
            key(mask): mask
            for mask in wanted
            if key(mask) not in known or not self.models.ids <= known[key(mask)].distances.keys()
        }
        missing |= {k: m for k, m in cellwise.items() if k not in known or known[k].cells is None}
        if missing:
            for batch in self._measure(sample, missing, set(cellwise)):
                known |= {name: effect.beside(known.get(name)) for name, effect in batch.items()}
                _write(path, known)
        return known, len(missing)

    def _measure(
        self, sample: str, masks: Mapping[bytes, Mask], cellwise: set[bytes]
    ) -> Iterator[dict[bytes, Effect]]:
        nothing = np.zeros(next(iter(masks.values())).shape, dtype=bool)
        todo = {key(nothing): nothing, **masks}
        names, size, mask = list(todo), self.config.batch_size, painted_mask(self.run, sample)
        original: Image | None = None
        for start in range(0, len(names), size):
            batch = names[start : start + size]
            # Every batch is full, as one of another size could change the last bits of an image.
            full = batch + batch[-1:] * (size - len(batch))
            images = self._generate(sample, [todo[name] for name in full])
            if original is None:
                original = images[0]
                self._check_same(sample, original, mask)
                measure = self.models.measure_from(original)
            images = images[: len(batch)]
            found = {}
            for name, image, distances in zip(batch, images, measure(images), strict=True):
                change = pixel_change(image, original)
                cells = area(change, self.cells) if name in cellwise else None
                found[name] = Effect(*inside_and_outside(change, mask), cells, distances)
            yield found

    def _generate(self, sample: str, removed: Sequence[Mask]) -> list[Image]:
        """Images [y, x, channel] of one sample, without the tokens of each set."""
        from i2am.pipeline.adapters.registry import find_adapter
        from i2am.pipeline.interventions.ablation import ablation
        from i2am.pipeline.recording.images import sides_of_canvas, to_uint8

        config, tasks = self.config, [self.samples.load(sample)] * len(removed)
        gone, family = np.stack(removed), find_adapter(self.pipe, config.adapter, config.reference_region)
        with ablation(
            self.pipe, gone if self.placed else gone.reshape(len(gone), -1), self.mode,
            adapter=family, guidance=config.guidance, timesteps=config.timesteps, reference=self.reference,
        ):  # fmt: skip
            images = [to_uint8("generated", image) for image in self.call(self.pipe, tasks)]
        if family.region is None:
            return images
        spec = next(iter(self.run.layers.values()))
        return [sides_of_canvas({"generated": each}, family.region, spec)["generated"] for each in images]

    def _check_same(self, sample: str, image: Image, mask: Mask | None) -> None:
        stored = sample_image(self.run, "generated", sample)
        if stored is None:
            raise NoAnswer(
                f"sample {sample!r} has no generated image to compare with", remedy="capture it again"
            )
        if stored.shape != image.shape:
            got = f"{image.shape} instead of {stored.shape}"
        else:
            difference, _ = inside_and_outside(pixel_change(image, stored), mask)
            if difference <= MOST_DIFFERENT:
                return
            got = f"one that differs by {difference:.1f} of 255 on average"
        raise InputError(
            f"sample {sample!r}, generated again without ablation",
            expected="the image in the run",
            got=got,
            remedy="give the configuration and the weights that made the run",
        )


def painted_mask(run: Run, sample: str) -> Mask | None:
    """The mask [y, x] of what a sample had to paint; None where it has none."""
    pixels = sample_image(run, "mask", sample) if "mask" in run.images else None
    return None if pixels is None else image_mask(pixels)


def key(removed: Mask) -> bytes:
    """A set of tokens as bytes."""
    return np.packbits(removed).tobytes()


def parts_folder(
    out: Path, run: Run, configuration: Mapping[str, Any], mode: str, grids: Any, reference: int
) -> Path:
    """Where the part files of one run, configuration, mode and reference are: others have other images."""
    facts = {"run": run.run_id, "configuration": configuration, "mode": mode, "grids": grids, "version": 1}
    facts |= {"reference": reference} if reference else {}
    digest = hashlib.sha256(canonical(facts)).hexdigest()[:16]
    return out / "removals" / digest


def _read(path: Path, cells: Grid) -> dict[bytes, Effect]:
    if not path.is_file():
        return {}
    rows = pl.read_parquet(path).iter_rows(named=True)
    return {
        row["removed"]: Effect(
            row["inside"],
            row["outside"],
            None if row["cells"] is None else np.asarray(row["cells"], dtype=np.float64).reshape(cells),
            {each["model"]: each["distance"] for each in row.get("distances") or ()},
        )
        for row in rows
    }


def _write(path: Path, effects: Mapping[bytes, Effect]) -> None:
    rows = [
        {
            "removed": name,
            "inside": effect.inside,
            "outside": effect.outside,
            "cells": None if effect.cells is None else effect.cells.reshape(-1).tolist(),
            "distances": [{"model": model, "distance": far} for model, far in effect.distances.items()],
        }
        for name, effect in effects.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as made:
        pl.DataFrame(rows, schema=_PART).write_parquet(made)
