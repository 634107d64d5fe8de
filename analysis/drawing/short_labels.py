"""Labels of levels made short enough for figures: layers by what tells them apart, groups of steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def shortened(names: Sequence[str], most: int = 28) -> list[str]:
    """Names by what tells them apart, cut in the middle if still long.

    A part that all names share, with its number, is left out; of a word that all share with other numbers,
    the numbers are kept: ``unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2`` becomes
    ``up_blocks.1.2``. Where that leaves a name empty or two alike, only a common beginning and end go.
    """
    told = _told_apart(names)
    if len(names) > 1 and all(told) and len({_cut(name, most) for name in told}) == len(names):
        return [_cut(name, most) for name in told]
    parts = [name.split(".") for name in names]
    shortest = min((len(part) for part in parts), default=0)
    if len(names) < 2:
        return [_cut(name, most) for name in names]
    front = next((n for n in range(shortest) if len({part[n] for part in parts}) > 1), shortest - 1)
    back = next((n for n in range(shortest) if len({part[-1 - n] for part in parts}) > 1), 0)
    back = min(back, shortest - front - 1)
    found = [_cut(".".join(part[front : len(part) - back]), most) for part in parts]
    return found if len(set(found)) == len(found) else [f"{n} {name}" for n, name in enumerate(found)]


def axis_labels(level: str, labels: Sequence[str], most: int = 26) -> list[str]:
    """Labels along an axis: groups of steps ("2–5"), numbers, or module paths cut to `most` characters."""
    if level == "layer":
        return shortened(labels, most)
    return [_steps(label) for label in labels] if level == "time" else list(labels)


def _steps(group: str) -> str:
    first, _, last = group.partition("-")
    return first if first == last else f"{first}–{last}"


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names without the segments (a word and its numbers) that all share; may leave nothing of a name."""
    split = [_segments(name) for name in names]
    shared = set.intersection(*(set(segments) for segments in split)) if split else set()
    words = set.intersection(*({word for word, _ in segments} for segments in split)) if split else set()
    kept = [[segment for segment in segments if segment not in shared] for segments in split]
    # The first word stays where it opens every name: numbers alone say too little.
    opening = {segments[0][0] for segments in kept if segments}
    words -= opening if len(opening) == 1 else set()
    return [
        ".".join(
            part
            for word, numbers in segments
            for part in ((*numbers,) if word in words else (word, *numbers))
        )
        for segments in kept
    ]


def _segments(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Dotted parts, each word with the numbers behind it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for number, group in groupby(name.split("."), str.isdigit):
        if number and found:
            found[-1] = (found[-1][0], tuple(group))
        else:
            found.extend((part, ()) for part in group)
    return found


def _cut(name: str, most: int) -> str:
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-(most - 1 - half) :]}"
