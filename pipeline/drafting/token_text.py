"""Ranges, sizes and grids of a layout's tokens, written as a description has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from i2am.pipeline.drafting.dependence import Part
from i2am.pipeline.drafting.layouts import Layout, Run, places

_OWN = ("image_tokens", "image_rows", "image_columns")  # sizes that come from position ids
PREFIXES = (0, 1, 5)
"""Leading tokens without a place: none, a class token, one with four registers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens that are one image: how many, as text, and where they lie."""

    count: int
    size: str
    grid: str | None = None  # as in the file
    prefix: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What another module was given, and how many tokens it made of it."""

    module: str
    rows: int
    columns: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Known:
    """What else is known of the denoiser's call."""

    sizes: Mapping[str, Any]  # as `sizes_of`
    images: Sequence[Image]  # in order
    rows: int  # of the latents
    packed: str | None = None  # the argument that holds all images that position ids know


@dataclass(slots=True)
class TokenText:
    """The text of one layout."""

    layout: Layout
    known: Known
    used: list[Any] = field(default_factory=list)
    _pieces: dict[Part | None, list[Piece]] = field(default_factory=dict)

    def generated(self) -> Piece:
        """The generated tokens of the queries."""
        count, sizes = len(places(self.layout.queries, None)), self.known.sizes
        if self.known.packed and sizes["image_tokens"][0] == count:
            return Piece(count, "image_tokens[0]", "latents")
        if (k := self._part_of(count, "latent_rows", "latent_columns")) is not None:
            size = "latent_rows * latent_columns" + (f" // {k * k}" if k > 1 else "")
            return Piece(count, size, "latents", comment=f"the latents' grid{f' / {k}' if k > 1 else ''}")
        if (told := self._of_shapes(count)) and len(told) == 1:
            return told[0]
        return Piece(count, str(count), "[1, 1]", comment="CHECK: their rows and columns are not known")

    def _part_of(self, count: int, rows: str, columns: str) -> int | None:
        found = self.known.sizes.get(rows), self.known.sizes.get(columns)
        return None if None in found else _divisor(count, int(found[0]), int(found[1]))  # type: ignore[arg-type]

    def pieces(self, part: Part | None, count: int) -> list[Piece]:
        """The images that the tokens of one part are."""
        if part not in self._pieces:
            self._pieces[part] = [self.generated()] if part is None else self._of_part(part, count)
        return self._pieces[part]

    def _of_part(self, part: Part, count: int) -> list[Piece]:
        sizes = self.known.sizes
        if part.name == self.known.packed:  # the images after the generated one
            return [
                Piece(
                    int(tokens), f"image_tokens[{i}]", _grid(f"image_rows[{i}]", f"image_columns[{i}]"),
                    comment="from position ids",
                )
                for i, tokens in enumerate(sizes["image_tokens"]) if i
            ]  # fmt: skip
        own = f"{part.name}[1]" if part.tokens == part.shape[1] == count else str(count)
        if len(part.shape) > 3 and (k := _divisor(count, *part.shape[-2:])) is not None:
            last = len(part.shape) - 2, len(part.shape) - 1
            rows, columns = (f"{part.name}[{axis}]" + (f" // {k}" if k > 1 else "") for axis in last)
            size = f"({rows}) * ({columns})" if k > 1 else f"{rows} * {columns}"
            return [Piece(count, size, _grid(rows, columns))]
        return (
            self._of_shapes(count)
            or self._of_images(count, own)
            or [
                Piece(
                    count,
                    own,
                    comment="CHECK: no grid is known; add grid: [rows, columns] if they have places",
                )
            ]
        )

    def _of_shapes(self, count: int) -> list[Piece]:
        """One or several shapes that are told as numbers, which make so many tokens; each is used once."""
        shapes = [shape for shape in _shapes(self.known.sizes) if shape[0] not in self.used]
        for first in range(len(shapes)):
            for last in range(first + 1, len(shapes) + 1):
                chosen = shapes[first:last]
                if sum(prod(numbers) for _, numbers in chosen) == count:
                    self.used += [path for path, _ in chosen]
                    ends = [[f"{path}[{len(n) + end}]" for end in (-2, -1)] for path, n in chosen]
                    return [
                        Piece(prod(n), f"{rows} * {columns}", _grid(rows, columns))
                        for (_, n), (rows, columns) in zip(chosen, ends, strict=True)
                    ]
        return []

    def _of_images(self, count: int, own: str) -> list[Piece]:
        """One or several images that a module was given, cut into patches that make so many tokens."""
        images = self.known.images
        spans = [images[a:b] for a in range(len(images)) for b in range(a + 1, len(images) + 1)]
        alone = [chosen for chosen in spans if len({image.module for image in chosen}) == 1]
        for chosen in sorted(alone, key=lambda chosen: (sum(i.tokens for i in chosen) != count, len(chosen))):
            if not any(image in self.used for image in chosen) and (found := _patches(chosen, count)):
                self.used += chosen
                patch, prefix = found
                counts = [prefix + (i.rows // patch) * (i.columns // patch) for i in chosen]
                return [
                    Piece(
                        tokens,
                        own if len(chosen) == 1 else str(tokens),
                        _grid(image.rows // patch, image.columns // patch),
                        prefix,
                        f"CHECK: {image.module} was given {image.rows}x{image.columns}, patches of {patch}",
                    )
                    for image, tokens in zip(chosen, counts, strict=True)
                ]
        return []

    def ranges(self, runs: Sequence[Run], part: Part | None) -> Iterator[tuple[Piece, list[str]]]:
        """Each image of a part, and the ranges of its tokens."""
        tokens = places(runs, part)
        total, start = runs[-1].stop, 0
        starts = self._starts(runs)
        pieces = self.pieces(part, len(tokens))
        if sum(piece.count for piece in pieces) != len(tokens):
            pieces = [Piece(len(tokens), str(len(tokens)), comment="CHECK: no grid is known")]
        for piece in pieces:
            own = tokens[start : start + piece.count]
            yield piece, list(_ranges(own, total, starts))
            start += piece.count

    def _starts(self, runs: Sequence[Run]) -> dict[int, str]:
        """Where images begin and end, as sums of the sizes before them, where each part is one run."""
        found, so_far, place = {0: ""}, list[str](), 0
        parts = [run.part for run in runs]
        whole = len(set(parts)) == len(parts) and all(run.known for run in runs)
        for run in runs if whole else ():
            pieces = self.pieces(run.part, run.stop - run.start)
            if sum(piece.count for piece in pieces) != run.stop - run.start:
                break
            for piece in pieces:
                so_far.append(piece.size)
                place += piece.count
                found[place] = " + ".join(so_far)
        return found


def _shapes(value: Any, path: str = "") -> Iterator[tuple[str, list[int]]]:
    """Lists of two to four numbers among arguments that are told as numbers, each by its path."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _shapes(item, f"{path}[{name!r}]" if path else str(name))
    elif isinstance(value, list) and path not in _OWN:
        if value and all(type(item) is int for item in value):
            if 2 <= len(value) <= 4:
                yield path, value
        else:
            for place, item in enumerate(value):
                yield from _shapes(item, f"{path}[{place}]")


def _grid(rows: int | str, columns: int | str) -> str:
    both = (f'"{each}"' if isinstance(each, str) else str(each) for each in (rows, columns))
    return f"[{', '.join(both)}]"


def _divisor(count: int, rows: int, columns: int) -> int | None:
    """The whole number by which a grid has to be divided to have so many places."""
    fits = (k for k in range(1, min(rows, columns) + 1) if not (rows % k or columns % k))
    return next((k for k in fits if (rows // k) * (columns // k) == count), None)


def _patches(images: Sequence[Image], count: int) -> tuple[int, int] | None:
    """The side of patches, and tokens before those of each image, that make so many tokens of all."""
    for prefix in PREFIXES:
        for patch in range(1, min(min(image.rows, image.columns) for image in images) + 1):
            whole = all(image.rows % patch == image.columns % patch == 0 for image in images)
            made = [prefix + (image.rows // patch) * (image.columns // patch) for image in images]
            told = all(image.tokens == tokens for image, tokens in zip(images, made, strict=True))
            if whole and told and sum(made) == count:
                return patch, prefix
    return None


def _ranges(tokens: Sequence[int], total: int, starts: Mapping[int, str]) -> Iterator[str]:
    """Slices that give the tokens in order."""
    place = 0
    while place < len(tokens):
        first = tokens[place]
        step = tokens[place + 1] - first if place + 1 < len(tokens) else 1
        last = place + 1
        while last < len(tokens) and tokens[last] - tokens[last - 1] == step and step > 0:
            last += 1
        stop = tokens[last - 1] + 1
        begin = starts.get(first, str(first)) if step == 1 else str(first or "")
        end = "" if stop + step - 1 >= total else starts.get(stop, str(stop)) if step == 1 else str(stop)
        yield f"{begin}:{end}" + (f":{step}" if step > 1 else "")
        place = last
