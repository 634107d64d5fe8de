"""Every error that this project raises on purpose, in one tree.

Grouped by what a handler would do: correct the input, or distrust the data.

::

    I2AMError
    ├── InputError          (ValueError; exit status 2: the user can correct it)
    │   ├── NotFound            (FileNotFoundError) the path holds nothing
    │   ├── NotARun             the path holds something else
    │   ├── NewerFormat         written by a later version
    │   ├── UnknownName         (KeyError) a layer, sample, image, ... that does not exist
    │   ├── ShapeMismatch       an array whose shape or dtype does not fit
    │   ├── AlreadyExists       (FileExistsError) would overwrite something
    │   ├── EmptyRun            no committed sample
    │   ├── NoAnswer            a question that the geometry cannot answer
    │   ├── ConfigError         a configuration that says something impossible
    │   ├── StorageFull         (OSError) no space left, or a plan that would not fit
    │   ├── NoPermission        (PermissionError) the system refused access
    │   ├── StoreUnavailable    (OSError) an object store does not answer, or answers with errors
    │   ├── MissingDependency   (ImportError) an optional package is absent
    │   ├── SampleBusy          another process is writing this sample
    │   ├── CaptureError        the model does not do what the capture expects
    │   ├── AggregationError    an aggregation does not do what it declares
    │   └── ClusterError        the Dask cluster does not start, answer or keep its workers
    └── DamageError         (exit status 1: the stored bytes are not what was written)
        ├── DamagedRun          metadata of the run
        └── DamagedSample       data of one sample

Each message is one line: what is wrong; what was expected; what came; what to do about it.
"""

from __future__ import annotations

import difflib
import errno as _errno
from collections.abc import Iterable
from typing import Any, ClassVar, cast

from i2am.storage.redaction import redacted
from i2am.storage.terminal_safe import visible

MAX_MESSAGE = 2000
"""Characters of an error."""


def _restore(cls: type[I2AMError], message: str, state: dict[str, Any]) -> I2AMError:
    """Rebuild a pickled error without running its constructor (the signatures differ between classes)."""
    solid: type = cls
    while solid.__module__ != "builtins":  # the built-in class whose memory layout it has, such as OSError
        solid = solid.__base__ or BaseException
    error = cast(I2AMError, cast(Any, solid).__new__(cls))
    error.args = (message,)
    error.__dict__.update(state)
    return error


class I2AMError(Exception):
    """Base of every error raised on purpose.

    Parameters
    ----------
    what : str
        What is wrong, naming the argument or the file.
    expected, got : str, optional
        What would have been right, and what came instead.
    remedy : str, optional
        What the reader can do now.

    Attributes
    ----------
    code : str
        Stable identifier for programs.
    exit_status : int
        Exit status of the command line: 1 damaged data, 2 wrong input.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 2

    def __init__(
        self, what: str, *, expected: str | None = None, got: str | None = None, remedy: str | None = None
    ) -> None:
        pairs = (("expected ", expected), ("got ", got), ("", remedy))
        parts = [what, *(f"{word}{text}" for word, text in pairs if text is not None)]
        line = visible(redacted(" ".join("; ".join(parts).split())))
        super().__init__(line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…")

    def __str__(self) -> str:
        """Return the one line (``KeyError`` would quote it, ``OSError`` would look for an errno)."""
        return str(self.args[0]) if self.args else type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes, so that errors survive the way back from worker processes."""
        return _restore, (type(self), str(self), dict(self.__dict__))


class InputError(I2AMError, ValueError):
    """The user gave something that is wrong and can be corrected."""

    code = "input"


class NotFound(InputError, FileNotFoundError):
    """A path that should hold something holds nothing."""

    code = "not-found"
    errno = _errno.ENOENT


class NotARun(InputError):
    """A path holds something that is not a run."""

    code = "not-a-run"


class NewerFormat(InputError):
    """A run written in a format that this version does not know."""

    code = "newer-format"


class UnknownName(InputError, KeyError):
    """A name that does not exist, with the nearest one that does.

    Parameters
    ----------
    kind : str
        What the name should be: ``"layer"``, ``"sample"``, ``"image"``, ...
    got : object
        The name that came.
    known : iterable of str
        The names that exist.
    remedy : str, optional
        Overrides the suggestion.
    """

    code = "unknown-name"

    def __init__(self, kind: str, got: object, known: Iterable[str], *, remedy: str | None = None) -> None:
        names = list(known)
        more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
        shown = ", ".join(repr(name) for name in names[:8]) + more
        near = difflib.get_close_matches(str(got)[:200], names, n=1, cutoff=0.5)
        if remedy is None and near:
            remedy = f"did you mean {near[0]!r}?"
        self.kind = kind
        self.name = str(got)
        super().__init__(
            f"unknown {kind} {got!r}",
            expected=f"one of {shown}" if names else f"no {kind} at all: there is none",
            remedy=remedy,
        )


class ShapeMismatch(InputError):
    """An array whose shape or dtype does not fit its place."""

    code = "shape-mismatch"


class AlreadyExists(InputError, FileExistsError):
    """Something that would be overwritten."""

    code = "already-exists"
    errno = _errno.EEXIST


class EmptyRun(InputError):
    """A run without a committed sample."""

    code = "empty-run"


class NoAnswer(InputError):
    """A question that the geometry of the attention cannot answer."""

    code = "no-answer"


class ConfigError(InputError):
    """A configuration that is not valid."""

    code = "config"


class StorageFull(InputError, OSError):
    """No space left on the storage, or a plan that would not fit it."""

    code = "storage-full"
    errno = _errno.ENOSPC


class NoPermission(InputError, PermissionError):
    """The system refused to read or write."""

    code = "no-permission"
    errno = _errno.EACCES


class StoreUnavailable(InputError, OSError):
    """An object store does not answer, or went on answering with errors while it was asked again."""

    code = "store-unavailable"


class MissingDependency(InputError, ImportError):
    """An optional package is needed and absent."""

    code = "missing-dependency"


class SampleBusy(InputError):
    """Another process is writing the same sample."""

    code = "sample-busy"


class CaptureError(InputError):
    """The model does not do what the capture expects of it."""

    code = "capture"


class AggregationError(InputError):
    """An aggregation fails, or does not do what it declares."""

    code = "aggregation"


class ClusterError(InputError):
    """A Dask cluster does not start, does not answer, or loses its workers."""

    code = "cluster"


class DamageError(I2AMError):
    """Stored bytes are not the bytes that were written."""

    code = "damage"
    exit_status = 1


class DamagedRun(DamageError):
    """The metadata of a run is damaged."""

    code = "damaged-run"


class DamagedSample(DamageError):
    """The data of one sample is damaged.

    Parameters
    ----------
    sample : str
        The sample's id.
    layer : str or None
        The layer (or ``images/<name>``); None where the commit record itself is damaged.
    what : str
        What is wrong with which file.
    remedy : str, optional
        Overrides the usual one.
    """

    code = "damaged-sample"

    def __init__(
        self,
        sample: str,
        layer: str | None,
        what: str = "its data is not what was written",
        *,
        remedy: str = "leave this sample out, or delete its commit record and capture it again",
    ) -> None:
        self.sample = sample
        self.layer = layer
        self.what = what
        place = f", layer {layer!r}" if layer is not None else ""
        super().__init__(f"sample {sample!r}{place} is damaged: {what}", remedy=remedy)
