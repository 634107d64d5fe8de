"""Analysis of stored runs: marginals, attribution maps, IMACS, tables, figures, report. Loads no model.

The score itself is ``analysis.imacs.imacs``: a package cannot re-export a function under the name of the
module it lives in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazy import attach

if TYPE_CHECKING:
    from analysis.aggregated import aggregate as aggregate
    from analysis.aggregation import Aggregation as Aggregation
    from analysis.compare_runs import Comparison as Comparison
    from analysis.compare_runs import compare as compare
    from analysis.daam import daam_maps as daam_maps
    from analysis.export import save_maps as save_maps
    from analysis.maps import attribution_maps as attribution_maps
    from analysis.marginals import compute_marginals as compute_marginals
    from analysis.report import write_report as write_report
    from analysis.study import StudyOptions as StudyOptions
    from analysis.study import StudyResult as StudyResult
    from analysis.study import analyse as analyse

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "StudyOptions": "analysis.study",
        "StudyResult": "analysis.study",
        "analyse": "analysis.study",
        "Aggregation": "analysis.aggregation",
        "aggregate": "analysis.aggregated",
        "attribution_maps": "analysis.maps",
        "Comparison": "analysis.compare_runs",
        "compare": "analysis.compare_runs",
        "compute_marginals": "analysis.marginals",
        "daam_maps": "analysis.daam",
        "save_maps": "analysis.export",
        "write_report": "analysis.report",
    },
)
