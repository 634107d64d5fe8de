"""A matplotlib figure as SVG inside a page: theme colours, the page's fonts, words shown on hover."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from i2am.analysis.drawing.matplotlib_style import CSS_VARIABLES, PAPER
from i2am.analysis.drawing.text import printable

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = ("d", "x", "y", "transform", "style", "viewBox")


class Dots(Line2D):
    """Round markers, each with words that a page shows while the pointer is over it."""

    def __init__(
        self, x: ArrayLike, y: ArrayLike, colour: str, words: Sequence[str], size: float = 5
    ) -> None:
        super().__init__(
            x,
            y,
            linestyle="none",
            marker="o",
            markersize=size,
            markerfacecolor=colour,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            alpha=0.85,
            clip_on=False,
            zorder=3,
        )
        self.words = words


def inline_svg(figure: Figure, label: str) -> Markup:
    """Draw a figure as an ``<svg>`` element without identifiers, styles or links; `label` describes it."""
    dots = {f"dots-{number}": own for number, own in enumerate(figure.findobj(Dots))}
    for name, own in dots.items():
        own.set_gid(name)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(printable(buffer.getvalue()))
    shapes = {path.get("id"): path.get("d", "") for path in root.iter(f"{_NAMESPACE}path")}
    for group in root.iter(f"{_NAMESPACE}g"):
        if group.get("id") in dots:
            _circles(group, dots[group.get("id", "")])
    for use in root.iter(f"{_NAMESPACE}use"):
        place = f"translate({_rounded(use.get('x', '0'))} {_rounded(use.get('y', '0'))})"
        shape = {"d": shapes[use.get(_LINK, "").removeprefix("#")], "style": use.get("style", "")}
        use.tag, use.attrib = "path", shape | {"transform": place}
    _simplify(root)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(printable(ElementTree.tostring(root, encoding="unicode")))


def _circles(group: ElementTree.Element, dots: Dots) -> None:
    """Replace references to one marker by circles with their words."""
    uses = list(group.iter(f"{_NAMESPACE}use"))
    for child in list(group):
        group.remove(child)
    colour = CSS_VARIABLES.get(str(dots.get_markerfacecolor()), str(dots.get_markerfacecolor()))
    for use, words in zip(uses, dots.words, strict=True):
        place = {"cx": _rounded(use.get("x", "")), "cy": _rounded(use.get("y", ""))}
        size = {"r": f"{float(dots.get_markersize()) / 2:g}"}
        circle = ElementTree.SubElement(
            group, "circle", {"class": "dot", "style": f"fill: {colour}"} | place | size
        )
        ElementTree.SubElement(circle, "title").text = words


def _simplify(element: ElementTree.Element) -> None:
    """Drop namespaces, definitions (styles, clip paths), identifiers and fonts, below an element too."""
    element.tag = element.tag.removeprefix(_NAMESPACE)
    if element.tag != "circle":
        element.attrib = {
            name: _rounded(value)
            for name, value in element.attrib.items()
            if name in _KEPT and not value.startswith("rotate(-0")
        }
    if style := element.get("style"):
        style = re.sub("font-family: [^;]*;? ?", "", style)
        element.set(
            "style", re.sub("#[0-9a-f]{6}", lambda found: CSS_VARIABLES.get(found[0], found[0]), style)
        )
    for child in list(element):
        child.tail = None
        _simplify(child)
        unseen = child.get("style") == "fill: none" or (child.tag == "g" and not len(child))
        if unseen or child.tag in ("defs", "metadata"):
            element.remove(child)
    if element.tag == "g":
        element.text = None


def _rounded(value: str) -> str:
    """Coordinates with two decimals, on one line."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", " ".join(value.split()))
