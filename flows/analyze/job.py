"""The analysis job: from a run on disk to maps, tables, figures and the report. Never loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from i2am.flows.config.models import AnalysisConfig
from i2am.flows.config.selections import selected
from i2am.flows.console.progress import Progress, report

if TYPE_CHECKING:
    from i2am.analysis.events import Event
    from i2am.analysis.options import StudyOptions


def run_analysis(
    run: str | list[str], out: str, config: AnalysisConfig, overwrite: bool = False, again: bool = False
) -> dict[str, Any]:
    """Analyse a run into a directory.

    Parameters
    ----------
    run
        Path or URL; or several, or a pattern: they are read as one run.
    out
        Local directory of the results.
    config
        What to draw, how, and on which Dask cluster.
    overwrite
        Replace results in ``out`` that no analysis wrote.
    again
        Make it anew even if nothing changed since the one in ``out``.

    Returns
    -------
    dict
        JSON-ready: ``run``, ``out``, ``report``, ``maps``, ``tables`` (name to path), ``samples`` (ids),
        ``refusals`` (sample, reason), ``absent`` (what has no answer), ``seconds`` (by stage), ``new`` (ids
        that the analysis before lacked), ``up_to_date`` (it was left as it is), ``scores`` (rows of the
        unified table).

    Raises
    ------
    InputError, DamageError
        See :func:`i2am.analysis.study.study.analyze` and :func:`i2am.flows.analyze.dask_cluster.computing`.
    """
    from i2am.analysis.study.study import analyze
    from i2am.flows.analyze.dask_cluster import computing
    from i2am.storage.reading.open import open_any

    with computing(config, overwrite):
        opened = open_any(run, label=config.label)
        result = analyze(opened, out, _options(config), on_event=listen, overwrite=overwrite, again=again)
    columns = ["sample", "direction", "region", "imacs", "inside", "outside", "share", "kind", "note"]
    return (
        {"run": run if isinstance(run, str) else ", ".join(run)}
        | result.to_json()
        | {"scores": result.tables["unified"].select(columns).to_dicts()}
    )


def _options(config: AnalysisConfig) -> StudyOptions:
    from i2am.analysis.options import StudyOptions

    return StudyOptions(
        layers=tuple(config.layers) if config.layers else None,
        steps=selected(config.steps),
        heads=selected(config.heads),
        samples=tuple(config.samples) if config.samples else None,
        time_groups=config.time_groups,
        penalty=config.penalty,
        protocol=config.protocol,
        confidence=config.confidence,
        size=config.size,
        aggregations=tuple(config.aggregations),
        details=config.details,
        figures=config.figures,
    )


def listen(event: Event) -> None:
    """Tell of a stage's progress, a hundredth of it at least.

    Parameters
    ----------
    event
        Of an analysis.
    """
    from i2am.analysis.events import StageAdvanced, StageStarted

    if isinstance(event, StageStarted):
        report(Progress(event.stage, 0, event.total))
    elif isinstance(event, StageAdvanced) and _worth_telling(event.done, event.total):
        report(Progress(event.stage, event.done, event.total, event.stage))


def _worth_telling(done: int, total: int) -> bool:
    """Whether another hundredth of a stage is done: a log has a line for each, at most."""
    return done * 100 // total > (done - 1) * 100 // total
