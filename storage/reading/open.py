"""Opening several runs as one, by their paths or by a pattern."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from i2am.storage.errors import InputError, NotFound
from i2am.storage.format.commit_record import committed_names
from i2am.storage.format.header import MAX_ROOT, ROOT, load_header
from i2am.storage.locations.base import Location
from i2am.storage.locations.open import locate
from i2am.storage.reading.labels import LabelledRun, run_labels
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import AnyRun, Runs

Place = Run | Runs | str | os.PathLike[str]
"""An open run, several as one, a path, a URL, or a pattern."""

_MAGIC = re.compile(r"[*?[]")


def open_runs(
    paths: Place | Sequence[Place],
    storage_options: Mapping[str, Any] | None = None,
    *,
    label: bool = False,
) -> Runs:
    """Open several runs of one model and read them as one.

    Parameters
    ----------
    paths : path, pattern, run, or sequence of those
        Directories or URLs, also with ``*``, ``?`` and ``[...]`` in any part of the path, none of which
        matches a slash. What a pattern fits is sorted; derived stores are passed over.
    storage_options : mapping, optional
        Options of the file system, for URLs.
    label : bool
        Name every sample RUN/SAMPLE, where RUN is the name of its run: for runs that share ids.

    Returns
    -------
    Runs
        With the samples that are committed now, run by run.

    Raises
    ------
    NotFound
        If there is no such run, or a pattern fits nothing.
    NotARun, NewerFormat, DamagedRun, NoPermission, MissingDependency
        As `open_run`.
    InputError
        If two runs hold one sample, or they differ in layers or steps.
    """
    members = open_each(paths, storage_options)
    if label:
        named = run_labels([member.path for member in members])
        members = [LabelledRun(member, name) for member, name in zip(members, named, strict=True)]
    return Runs(members)


def open_each(paths: Place | Sequence[Place], storage_options: Mapping[str, Any] | None = None) -> list[Run]:
    """Open several runs, each for itself: they may be of different models, and share ids."""
    return [member for place in _several(paths) for member in _opened(place, storage_options)]


def open_any(
    paths: Place | Sequence[Place],
    storage_options: Mapping[str, Any] | None = None,
    *,
    label: bool = False,
) -> AnyRun:
    """Open what a user names: one run as itself, several or a pattern as one."""
    given = _several(paths)
    if len(given) == 1 and not label:
        place = given[0]
        if isinstance(place, (Run, Runs)):
            return place
        if not _is_pattern(os.fspath(place)):
            return open_run(place, storage_options)
    return open_runs(given, storage_options, label=label)


def _several(paths: Any) -> list[Place]:
    if isinstance(paths, (Run, Runs, str, os.PathLike)):
        return [paths]
    given = list(paths) if isinstance(paths, Iterable) else [paths]
    for place in given:
        if not isinstance(place, (Run, Runs, str, os.PathLike)):
            expected = "an open run, its path or URL, or several"
            raise InputError("a run", expected=expected, got=repr(place))
    return given


def _opened(place: Place, storage_options: Mapping[str, Any] | None) -> Iterator[Run]:
    if isinstance(place, Run):
        yield place
    elif isinstance(place, Runs):
        yield from place.members
    else:
        for path in _matching(os.fspath(place), storage_options):
            yield open_run(path, storage_options)


def _is_pattern(text: str) -> bool:
    """Whether a path has wildcards; one that exists as it is written has none."""
    return bool(_MAGIC.search(text)) and ("://" in text or not os.path.exists(text))


def _matching(text: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    if not _is_pattern(text):
        return [text]
    scheme, mark, path = text.rpartition("://")
    parts = path.split("/")
    first = next(number for number, part in enumerate(parts) if _MAGIC.search(part))
    base = scheme + mark + "/".join(parts[:first])
    front = base + "/" if first else ""

    def below(folder: str, patterns: Sequence[str]) -> Iterator[str]:
        # Each folder is a place of its own: a run may be reached by a link, though nothing inside it may.
        for name in locate(front + folder or ".", storage_options).names(""):
            # As in a shell, a wildcard fits no name that begins with a dot.
            if fnmatchcase(name, patterns[0]) and (name[0] != "." or patterns[0][0] == "."):
                own = f"{folder}/{name}" if folder else name
                yield from below(own, patterns[1:]) if len(patterns) > 1 else [own]

    every = sorted(below("", [part for part in parts[first:] if part]))
    found = [own for own in every if not _derived(locate(front + own, storage_options))]
    if not found:
        raise NotFound(
            f"no run fits {text!r}", remedy="check the pattern; * matches any part of one name, but no slash"
        )
    return [front + own for own in found]


def _derived(place: Location) -> bool:
    """Whether a derived store lies there, such as a run's marginals: its mark begins with ``i2am_``."""
    try:
        attributes = json.loads(place.read(ROOT, MAX_ROOT))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # whatever it is, opening it will tell
    return bool(attributes) and all(str(key).startswith("i2am_") for key in attributes)


def open_run(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Run:
    """Open a run for reading.

    Parameters
    ----------
    path : str or path-like
        A directory or a URL.
    storage_options : mapping, optional
        Options of the file system, for URLs.

    Returns
    -------
    Run
        With the samples that are committed now.

    Raises
    ------
    NotFound, NotARun, NewerFormat, DamagedRun, NoPermission
        Nothing there; something else there; a later format; damaged metadata; unreadable.
    MissingDependency
        If the package that speaks a URL's protocol is absent.
    """
    location = locate(path, storage_options)
    header = load_header(location)
    there = committed_names(location)
    return Run(location, header, tuple(sample for sample in header.samples if sample in there))
