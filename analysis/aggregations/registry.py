"""Find aggregations by the name of an entry point, or by import path ``module:name``.

Those of the project and of installed packages are entry points of the group ``i2am.aggregations``. A module
is looked for in the working directory too. A user's module is pickled by value for Dask workers, with the
modules of its folder that it imports, because workers may not have these files.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from i2am.analysis.reduction.aggregation import Aggregation
from i2am.storage.errors import AlreadyExists, InputError, UnknownName

GROUP = "i2am.aggregations"
OURS = ("i2am",)  # packages that every worker has: `i2am.flows.analyze.dask_cluster` checks that


def known() -> dict[str, EntryPoint]:
    """Entry points of the installed aggregations by name, which must be unique."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in found and found[point.name].value != point.value:
            raise AlreadyExists(
                f"aggregation {point.name!r} is offered twice",
                got=f"{found[point.name].value} and {point.value}",
                remedy="name the one you want as module:name",
            )
        found[point.name] = point
    return found


def find(name: str) -> Aggregation:
    """Return the aggregation of an entry point, or of "module:name"."""
    module, colon, attribute = name.partition(":")
    if colon:
        members = vars(_imported(module, name))
        found = members.get(attribute)
        if found is None:
            options = [key for key, value in members.items() if isinstance(value, Aggregation)]
            raise UnknownName(f"aggregation in {module}", attribute, options)
    else:
        points = known()
        if name not in points:
            raise UnknownName("aggregation", name, sorted(points), remedy="or give module:name")
        found = points[name].load()
    if not isinstance(found, Aggregation):
        raise InputError(
            f"aggregation {name!r}",
            expected="an i2am.Aggregation",
            got=type(found).__name__,
            remedy="name the declaration, not its function",
        )
    return found


def _imported(module: str, name: str) -> ModuleType:
    """Import a module, with the working directory first; its own errors become one line."""
    here = os.getcwd()
    before = set(sys.modules)
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise UnknownName("module", module, (), remedy=f"it is looked for in {here} too") from error
        raise InputError(
            f"aggregation {name!r}: importing {module}",
            expected="a module that imports",
            got=f"{type(error).__name__}: {error}",
            remedy="correct the module",
        ) from error
    finally:
        sys.path.remove(here)
    _pickle_by_value(found, [sys.modules[each] for each in set(sys.modules) - before])
    return found


def _pickle_by_value(module: ModuleType, loaded: Sequence[ModuleType]) -> None:
    """Pickle functions of a user's module, and of its neighbours among `loaded`, with their code."""
    import cloudpickle

    if not _is_users(module):
        return
    depth = module.__name__.count(".") + hasattr(module, "__path__")  # a package's file lies one deeper
    folder = Path(str(module.__file__)).resolve().parents[depth]
    for each in (module, *filter(_is_users, loaded)):
        if Path(str(each.__file__)).resolve().is_relative_to(folder):
            cloudpickle.register_pickle_by_value(each)


def _is_users(module: ModuleType) -> bool:
    """Whether a module is a file that is neither installed nor part of this project."""
    file = getattr(module, "__file__", None)
    return file is not None and "site-packages" not in file and module.__name__.split(".")[0] not in OURS
