"""Entries of a description's layers: modules by pattern, and what the tokens of their calls are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from torch import nn

from i2am.pipeline.adapters.generic.module_patterns import matching_modules
from i2am.pipeline.drafting.dependence import Layer, Part
from i2am.pipeline.drafting.layouts import Layout, places
from i2am.pipeline.drafting.token_text import Known, TokenText
from i2am.pipeline.drafting.watch import pattern_of


def entries(
    taken: Mapping[Layer, Layout],
    known: Known,
    below: Mapping[str, nn.Module],
    beside: Mapping[Layer, list[str]],
) -> list[str]:
    """The lines of an entry for all layers that are alike; ``beside``: those of each about its norms."""
    groups = defaultdict[tuple[str, ...], list[Layer]](list)
    numbers = Counter(path for path, _ in taken)
    first, total = dict[Part, int](), 0  # part to the number of its first image, among all references
    for layer, layout in taken.items():
        text = TokenText(layout, known)
        body = _body(layout, text)
        for part in layout.references:
            if part not in first:
                first[part] = total
                total += len(text.pieces(part, len(places(layout.keys, part))))
        if number := first[layout.references[0]]:
            body.append(f"    first_reference: {number}")
        body += beside.get(layer, [])
        if numbers[layer[0]] > 1:
            body.insert(0, f"    name: call{layer[1]}")
        groups[tuple(body)].append(layer)
    lines = []
    for own, layers in groups.items():
        patterns = _patterns([path for path, _ in layers], below)
        about = f"{len(layers)} of {taken[layers[0]].tried.call.module_class}"
        if mixed := sum(taken[layer].inherited for layer in layers):
            about += f"; CHECK: {mixed} where tokens have mixed, as in the first"
        lines += [f"  - modules: {_listed(patterns)}  # {about}", *own]
    return lines


def _body(layout: Layout, text: TokenText) -> list[str]:
    """The lines of an entry below its modules."""
    call = layout.tried.call
    lines = [f"    call: {call.number}"] if layout.tried.several else []
    rows, heads = int(call.shape[0] or 0), call.shape[1]
    if heads == 1 and rows > text.known.rows and not rows % text.known.rows:
        lines.append(
            f"    heads: {rows // text.known.rows}  # CHECK: among the rows, those of one side by side"
        )
    (piece, ranges), *_ = text.ranges(layout.queries, None)
    whole = piece.count == call.shape[2]
    if not whole or piece.grid != "latents":
        grid = f", grid: {piece.grid}" if piece.grid != "latents" else ""
        lines.append(f"    generated: {{at: {_listed(ranges)}{grid}}}  # {piece.comment or 'of the queries'}")
    lines.append("    references:")
    for part in layout.references:
        for piece, ranges in text.ranges(layout.keys, part):
            told = [] if piece.count == call.shape[3] else [f"at: {_listed(ranges)}"]
            told += [f"grid: {piece.grid}"] if piece.grid else []
            told += [f"prefix: {piece.prefix}"] if piece.prefix else []
            about = "; ".join(filter(None, (part.name, piece.comment)))
            lines.append(f"      - {{{', '.join(told)}}}  # {about}")
    words = [run for run in layout.keys if run.known and run.part not in (None, *layout.references)]
    if len({run.part for run in words}) == 1:
        (_, ranges), *_ = text.ranges(layout.keys, words[0].part)
        lines.append(f"    text: {_listed(ranges)}  # {'' if words[0].part is None else words[0].part.name}")
    if layout.still:
        lines.append("    static_keys: true  # the same at two steps")
    return lines


def _listed(ranges: Sequence[str]) -> str:
    told = [f'"{each}"' for each in ranges]
    return told[0] if len(told) == 1 else f"[{', '.join(told)}]"


def _patterns(paths: Sequence[str], below: Mapping[str, nn.Module]) -> list[str]:
    """As few patterns as name these modules and no others."""
    found, named, every = list[str](), set[str](), list(below)
    for path in paths:
        if path not in named:
            pattern = pattern_of(path)
            fits = matching_modules([pattern], every)
            found.append(pattern if set(fits) <= set(paths) else path)
            named.update(fits if set(fits) <= set(paths) else [path])
    return found
