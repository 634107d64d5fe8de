"""The template engine of the report: everything that comes from data is escaped, and shows what it is."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from i2am.analysis.drawing.text import printable

_TEMPLATES = Path(__file__).parent / "templates"


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Templates of this package, with escaping on, and an error for a name that is not given.

    The content security policy of a page names `script` by its digest: a browser runs no other script.
    """
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    found.globals["script"] = Markup(script)
    found.globals["script_digest"] = "sha256-" + base64.b64encode(digest).decode("ascii")
    return found


def _shown(value: Any) -> Any:
    """A text from data without characters that change how the rest of the page reads."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def write_page(folder: Path, file: str, template: str, values: dict[str, Any]) -> None:
    """Render a template into a file; `values` hold `title` and `pages` (file to title) for the frame."""
    page = environment().get_template(template).render(here=file, **values)
    (folder / file).write_text(page, encoding="utf-8")
