"""Layer names made short enough for a figure, and still told apart."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(names: Sequence[str], most: int = 28) -> list[str]:
    """Names without the dotted parts that all of them begin and end with, cut in the middle if still long.

    Parameters
    ----------
    names
        Module paths, such as ``unet.mid_block.attentions.0.transformer_blocks.0.attn2``.
    most
        Characters, at most.
    """
    parts = [name.split(".") for name in names]
    shortest = min((len(part) for part in parts), default=0)
    if len(names) < 2:
        return [_cut(name, most) for name in names]
    front = next((n for n in range(shortest) if len({part[n] for part in parts}) > 1), shortest - 1)
    back = next((n for n in range(shortest) if len({part[-1 - n] for part in parts}) > 1), 0)
    back = min(back, shortest - front - 1)
    found = [_cut(".".join(part[front : len(part) - back]), most) for part in parts]
    return found if len(set(found)) == len(found) else [f"{n} {name}" for n, name in enumerate(found)]


def _cut(name: str, most: int) -> str:
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-(most - 1 - half) :]}"
