"""The template engine of the report: everything that comes from data is escaped, and shows what it is."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, marks that turn the direction of what follows, and halves of surrogate pairs."""


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Templates of this package, with escaping on, and an error for a name that is not given.

    `script` is the report's own script and `script_digest` what a content security policy calls it: a browser
    runs this one and no other.
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
        return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value)
    return value
