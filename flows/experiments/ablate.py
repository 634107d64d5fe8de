"""The experiment on faithfulness: reference tokens removed in the order of each rank, and what changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.experiments.faithfulness import (
    FRACTIONS,
    SAMPLES,
    Removal,
    check_fractions,
    removals,
    summarise,
)
from i2am.analysis.experiments.faithfulness_charts import faithfulness_charts
from i2am.analysis.experiments.patch_effects import (
    BLOCKS,
    PATCHES,
    Block,
    block_masks,
    correlate,
    predicted_by_whole,
    predicted_maps,
    summarise_patches,
)
from i2am.analysis.experiments.token_ranks import (
    DRAWS,
    RANKS,
    TokenRanks,
    check_ranks,
    has_places,
    token_ranks,
)
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.selection import has_reference_map, select, select_samples
from i2am.analysis.grids.tiled_layers import largest_grid
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import OutputKind, output_directory
from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.flows.capture.job import comparable, prepare
from i2am.flows.console.progress import Progress, emit
from i2am.flows.datasets.open import open_samples
from i2am.flows.experiments.distances import DistanceModels, load_distances
from i2am.flows.experiments.removals import Effect, Generator, Mask, key, painted_mask, parts_folder
from i2am.storage.errors import InputError, UnknownName
from i2am.storage.format.layer_spec import TEXT
from i2am.storage.reading.one_reference import one_reference, references_of
from i2am.storage.reading.open import open_run
from i2am.storage.reading.run import Run

if TYPE_CHECKING:
    from i2am.flows.config.models import CaptureConfig
    from i2am.pipeline.interventions.removal import Mode

FAITHFULNESS = OutputKind(
    "an experiment on faithfulness", ("tables", "pictures", "faithfulness.json"), "faithfulness.json"
)


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What the experiment found."""

    summary: pl.DataFrame  # curves, areas, ratios and correlations, with intervals
    samples: pl.DataFrame  # every removal
    patches: pl.DataFrame  # of the mirror: every block of every reference
    notes: list[str]  # ranks that this run has not
    generated: int  # images that were generated now
    seconds: float


def choose_reference(run: Run, name: str | None) -> tuple[int, Run]:
    """The number of a reference, and the run as if it had no other."""
    placed = {layer.reference for layer in run.layers.values() if has_reference_map(layer)}
    known = [each for each in references_of(run) if each in placed or not placed]
    known = [each for each in known if each != TEXT] or known
    if name is None and len(known) > 1:
        expected = f"one of {', '.join(known)}"
        raise InputError("reference", expected=expected, got="none", remedy="choose it: --reference NAME")
    if name is not None and name not in known:
        raise UnknownName("reference", name, known)
    name = name or known[0]
    return int(name.partition("-")[2] or 0), one_reference(run, name)  # "reference", "reference-1", ...


def ablate_run(
    config: CaptureConfig,
    run: str,
    out: Path,
    *,
    ranks: Sequence[str] = RANKS,
    fractions: Sequence[float] = FRACTIONS,
    samples: Sequence[str] | None = None,
    limit: int | None = None,
    mode: Mode | None = None,
    reference: str | None = None,
    draws: int = DRAWS,
    blocks: int = BLOCKS,
    features: str | None = None,
    weights: Path | None = None,
    lpips: bool = False,
    confidence: float = CONFIDENCE,
    overwrite: bool = False,
) -> Faithfulness:
    """Generate a run's samples again without parts of their references, and measure what changes.

    ``config`` is the configuration that made the run. ``limit`` takes the first of ``samples``; ``mode`` is
    how a token is removed (None: by the family); ``reference`` is the one of several that loses tokens;
    ``draws`` of the rank "random"; ``blocks`` on a side of the reference for the mirror, 0: none.
    ``features`` (as for `quality_runs`, from ``weights``) and ``lpips`` are further distances between images.
    What was generated is kept in ``out``/removals: an interrupted experiment goes on from there, and further
    ranks cost only what is new.
    """
    started, fractions = time.perf_counter(), check_fractions(fractions)
    check_confidence(confidence)
    check_ranks(ranks, draws)
    chosen, opened = choose_reference(open_run(run, config.storage_options or None), reference)
    names, known = select_samples(opened, samples)[:limit], open_samples(config)
    if strangers := [name for name in names if name not in known.seeds]:
        raise UnknownName("sample of the configuration", strangers[0], known.ids)
    direction: Direction = "g2r" if has_places(opened) else "r2g"
    models = load_distances(features, weights, lpips, config.device)
    pipe, call = prepare(config)
    from i2am.pipeline.adapters.registry import find_adapter
    from i2am.pipeline.interventions.ablation import default_mode

    mode = mode or default_mode(pipe, find_adapter(pipe, config.adapter, config.reference_region))
    asked = token_ranks(opened, ranks, draws)
    masks = block_masks(asked.grid, blocks if asked.placed else 1) if blocks else {}
    cells = largest_grid(select(opened, direction).layers, "gen")
    with output_directory(out, FAITHFULNESS, overwrite) as directory:
        folder = parts_folder(out, opened, comparable(config), mode, [*asked.grid, *cells], chosen)
        generator = Generator(
            config, opened, known, pipe, call, mode, cells, folder, models, chosen, asked.placed
        )
        tables = _Tables()
        for number, name in enumerate(names):
            emit(Progress("ablate", number, len(names)))
            tables.add(generator, name, list(removals(asked.orders(name), fractions, asked.grid)), masks)
            emit(Progress("ablate", number + 1, len(names), name))
        result = tables.result(asked, confidence, time.perf_counter() - started)
        _write(directory.staging / "made", result, run, mode, chosen)
        directory.publish(directory.staging / "made")
    return result


@dataclass(slots=True)
class _Tables:
    """Rows of the tables, sample by sample."""

    generated: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, generator: Generator, sample: str, planned: Sequence[Removal], masks: Mapping[Block, Mask]
    ) -> None:
        wanted = [each.removed for each in planned]
        found, generated = generator.effects(sample, wanted, list(masks.values()))
        self.generated += generated
        self.rows += _rows(sample, planned, found, generator.models)
        changes = {block: found[key(mask)].cells for block, mask in masks.items()}
        known = {block: cells for block, cells in changes.items() if cells is not None}
        if known:
            run = generator.run
            if generator.placed:
                predicted = predicted_maps(run, sample, masks)
            else:
                predicted = predicted_by_whole(run, sample, generator.cells)
            self.patches += correlate(sample, predicted, known, painted_mask(run, sample))

    def result(self, asked: TokenRanks, confidence: float, seconds: float) -> Faithfulness:
        samples = pl.DataFrame(self.rows, schema=SAMPLES)
        patches = pl.DataFrame(self.patches, schema=PATCHES)
        summary = pl.concat([summarise(samples, confidence), summarise_patches(patches, confidence)])
        by_reason: dict[str, list[str]] = {}
        for name, why in asked.notes.items():
            by_reason.setdefault(why, []).append(repr(name))
        notes = [f"no rank {', '.join(names)}: {why}" for why, names in by_reason.items()]
        return Faithfulness(summary, samples, patches, notes, self.generated, seconds)


def _rows(
    sample: str, planned: Sequence[Removal], found: dict[bytes, Effect], models: DistanceModels
) -> Iterator[dict[str, Any]]:
    features, lpips = models.features, models.lpips
    for each in planned:
        effect = found[key(each.removed)]
        yield {
            "sample": sample,
            "rank": each.order.rank,
            "layer": each.order.layer,
            "head": each.order.head,
            "draw": each.order.draw,
            "kind": each.kind,
            "fraction": each.fraction,
            "inside": effect.inside,
            "outside": effect.outside,
            "features": None if features is None else features.name,
            "feature_distance": None if features is None else effect.distances[features.id],
            "lpips": None if lpips is None else effect.distances[lpips.id],
        }


def _write(made: Path, result: Faithfulness, run: str, mode: str, reference: int) -> None:
    for folder in ("tables", "pictures"):
        (made / folder).mkdir(parents=True)
    result.summary.write_parquet(made / "tables" / "faithfulness.parquet")
    result.samples.write_parquet(made / "tables" / "faithfulness_samples.parquet")
    result.patches.write_parquet(made / "tables" / "faithfulness_patches.parquet")
    for name, chart in faithfulness_charts(result.summary):
        chart.save(made / "pictures" / f"{name}.png")
    facts = {
        "run": run,
        "mode": mode,
        "reference": f"reference-{reference}" if reference else "reference",
        "notes": result.notes,
        "samples": sorted(set(result.samples["sample"].to_list())),
        "generated": result.generated,
        "seconds": round(result.seconds, 1),
    }
    write_mark(made, FAITHFULNESS.outputs, FAITHFULNESS.mark, facts)
