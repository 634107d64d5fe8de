"""The command line ``i2am``.

Exit status: 0 done; 1 the data is damaged or a check failed; 2 the input is wrong; 130 interrupted. Errors
are one line on standard error: what, expected, got, remedy. Only a defect of the program itself shows a
traceback (status 70).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

from i2am.flows.console.output import log, log_traceback, print_line
from i2am.storage.errors import I2AMError, InputError

COMMANDS = (
    *("demo", "adapters", "probe", "plan", "capture", "sweep", "deploy", "inspect", "verify"),
    *("amend", "prune", "export", "analyze", "compare", "maps", "imacs"),
    *("paper", "detect", "detector", "quality", "ablate"),
)
"""In the order of ``i2am --help``; each is the function of its name, in the module of its name."""

DEFECT = 70
INTERRUPTED = 130
PIPE_CLOSED = 141

app = typer.Typer(
    name="i2am",
    help="Capture the reference attention of a diffusion pipeline once; ask the store forever.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print_line(f"i2am {version('i2am')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Server of s3:// runs; the same as AWS_ENDPOINT_URL in the environment."
        ),
    ] = None,
) -> None:
    """Capture the reference attention of a diffusion pipeline once; ask the store forever."""
    if endpoint_url is not None:
        if not re.fullmatch(r"https?://[^/\s]+\S*", endpoint_url):
            raise InputError(
                "--endpoint-url",
                expected="http://HOST:PORT or https://HOST",
                got=repr(endpoint_url.rpartition("@")[2]),
            )
        os.environ["AWS_ENDPOINT_URL"] = endpoint_url  # child processes have it too


for _name in COMMANDS:
    app.command()(getattr(import_module(f"i2am.flows.commands.{_name}"), _name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default the arguments of the process, and return the exit status."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' deprecations are for developers: python -W shows them
    try:
        status = app(args=None if argv is None else list(argv), prog_name="i2am", standalone_mode=False)
        sys.stdout.flush()
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            log("i2am: interrupted")
        return int(status or 0)
    except I2AMError as error:
        log(f"i2am: {error}")
        return error.exit_status
    except TyperException as error:
        if message := error.format_message():  # empty after the help of a bare `i2am`
            log(f"i2am: {message.rstrip('.')}; see i2am --help")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        log("i2am: interrupted")
        return INTERRUPTED
    except OSError as error:
        return _operating_system(error)
    except MemoryError as error:
        log(f"i2am: not enough memory: {error}; select fewer samples, layers, steps or heads")
        return 2
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        _drop_unwritable_output()
        return PIPE_CLOSED  # the reader left, as in `i2am inspect RUN | head`
    except Exception as error:  # noqa: BLE001 - the boundary of the program: a defect is shown whole, with a status of its own
        if _from_interrupt(error):
            log("i2am: interrupted")
            return INTERRUPTED
        log_traceback()
        return DEFECT


def _from_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause of an error: while modules are imported, Python wraps it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _drop_unwritable_output() -> None:
    """Close a standard output that failed, so that the interpreter does not fail on it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or choose another --out",
    errno.EDQUOT: "the disk quota is used up; free some or choose another --out",
    errno.EACCES: "permission denied; change the permissions or choose another path",
    errno.EPERM: "operation not permitted; change the permissions or choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its symbolic links lead nowhere; correct the path",
    errno.ENOENT: "no such file or directory; correct the path",
    errno.ENOTDIR: "not a directory; correct the path",
    errno.EISDIR: "is a directory; correct the path",
}


def _operating_system(error: OSError) -> int:
    """Log an error of the operating system in one line; return the exit status."""
    _drop_unwritable_output()
    if error.errno == errno.EPIPE:
        return PIPE_CLOSED
    number = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else 0)
    if number not in _REASONS:
        log_traceback()
        return DEFECT
    where = f"{str(error.filename)[:200]}: " if error.filename else ""
    log(f"i2am: {where}{_REASONS[number]}")
    return 2
