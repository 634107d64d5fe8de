"""Read a file of unknown origin: regular files only, and never more than a given number of bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from i2am.storage.errors import ConfigError, NoPermission, NotFound


def read_bounded(path: Path, what: str, most: int, remedy: str | None = None) -> bytes:
    """The bytes of a regular file of at most `most` bytes; `what` names it in errors.

    Symbolic links are followed. `remedy` is for a file that does not exist.
    """
    try:
        # without O_NONBLOCK, opening a pipe that nobody writes to never returns
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist", remedy=remedy) from None
    except PermissionError:
        raise NoPermission(f"{what} {path} may not be read", remedy="change its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{what} {str(path)[:200]}", expected="a file", got=reason) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{what} {path}", expected="a file", got=_kind(mode), remedy="name the file")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(raw) > most:
        raise ConfigError(f"{what} {path}", expected=f"at most {most} bytes", got="more")
    return raw


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
