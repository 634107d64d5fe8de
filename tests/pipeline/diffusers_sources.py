"""The pipelines of an installed diffusers as its sources declare them; nothing of it is imported."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Declared:
    """A class: what it derives from, the arguments of its call, and the annotation of its ``unet``."""

    bases: tuple[str, ...]
    call: tuple[str, ...] | None = None
    unet: str = ""


_LINES = re.compile(
    r"^class (\w+)(?:\(([^)]*)\))?:|^    def (__call__|__init__)\((.*?)\)(?: -> [^\n]*)?:\s",
    re.MULTILINE | re.DOTALL,
)
"""A class and its parents, or one of two methods and its arguments; parsing whole files takes ten seconds."""


def classes(folder: Path) -> dict[str, Declared]:
    """Every class of the modules in ``folder``, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for name, parents, method, text in _LINES.findall(path.read_text(encoding="utf-8")):
            if name:
                current = found[name] = Declared(tuple(re.findall(r"(\w+)(?=,|\s*$)", parents)))
                continue
            given = ast.parse(f"def f({text}): ...").body[0].args
            if method == "__call__":
                current.call = tuple(each.arg for each in (*given.args[1:], *given.kwonlyargs))
            else:
                current.unet = next(
                    (ast.unparse(a.annotation) for a in given.args if a.arg == "unet" and a.annotation), ""
                )
    return found


def inherited(known: dict[str, Declared], name: str) -> Declared | None:
    """The class itself or its nearest parent that declares a call."""
    declared = known.get(name)
    if declared is None or declared.call is not None:
        return declared
    return next(
        (up for base in declared.bases if (up := inherited(known, base)) and up.call is not None), None
    )


def parents(known: dict[str, Declared], name: str) -> set[str]:
    """The names of all that a class derives from."""
    direct = known[name].bases if name in known else ()
    return {*direct, *(up for base in direct for up in parents(known, base))}


def pipelines(known: dict[str, Declared], exported: set[str]) -> dict[str, Declared]:
    """The exported pipelines that can be called."""
    return {
        name: declared
        for name in known.keys() & exported
        if "Pipeline" in name and (declared := inherited(known, name)) is not None
    }


def stub(known: dict[str, Declared], name: str) -> type:
    """A class of that name and those parents, without anything in it."""
    parents = tuple(stub(known, base) for base in known[name].bases if base in known)
    return type(name, parents, {})
