"""The analysis job: from a run on disk to maps, tables, figures and the report. Never loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from i2am.flows.config.models import AnalysisConfig
from i2am.flows.config.selections import selected
from i2am.flows.console.progress import Progress, emit

if TYPE_CHECKING:
    from i2am.analysis.events import Event
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun


def run_analysis(
    run: str | list[str], out: str, config: AnalysisConfig, overwrite: bool = False, again: bool = False
) -> dict[str, Any]:
    """Analyse a run, or several as one, into a local directory: what `i2am analyze --json` writes.

    `overwrite` replaces results that no analysis wrote; `again` computes them even if nothing has changed.
    """
    from i2am.analysis.study.study import analyze
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.storage.reading.open import open_any

    with computing(config, overwrite):
        opened = open_any(run, label=config.label)
        options = _options(config, opened)
        result = analyze(opened, out, options, on_event=emit_event, overwrite=overwrite, again=again)
    columns = ["sample", "direction", "region", "imacs", "inside", "outside", "share", "kind", "note"]
    return (
        {"run": run if isinstance(run, str) else ", ".join(run)}
        | result.to_json()
        | {"scores": result.tables["unified"].select(columns).to_dicts()}
    )


def _options(config: AnalysisConfig, run: AnyRun) -> StudyOptions:
    from i2am.analysis.marginals.store import store_for
    from i2am.analysis.options import StudyOptions

    same = (
        "reference",
        "time_groups",
        "penalty",
        "protocol",
        "confidence",
        "size",
        "resize",
        "details",
        "figures",
    )
    return StudyOptions(
        layers=tuple(config.layers) if config.layers else None,
        steps=selected(config.steps),
        heads=selected(config.heads),
        samples=tuple(config.samples) if config.samples else None,
        aggregations=tuple(config.aggregations),
        store=store_for(run, config.cache),
        **{name: getattr(config, name) for name in same},
    )


def emit_event(event: Event) -> None:
    """Pass on the progress of a stage of an analysis, one line for each hundredth at most."""
    from i2am.analysis.events import StageAdvanced, StageStarted

    if isinstance(event, StageStarted):
        emit(Progress(event.stage, 0, event.total))
    elif isinstance(event, StageAdvanced):
        done, total = event.done, event.total
        if done * 100 // total > (done - 1) * 100 // total:
            emit(Progress(event.stage, done, total, event.stage))
