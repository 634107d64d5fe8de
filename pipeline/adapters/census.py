"""How each pipeline of diffusers sees the image that it is given, and which adapter reads that.

``census.tsv`` has a line for every pipeline that diffusers 0.42 exports, from reading its code, and
``modular.tsv`` for every modular one with its own blocks. ``adapter``: what reads its tokens of the image;
``ip_adapter``: what reads an IP-Adapter that may be loaded; "-": nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from i2am.storage.errors import CaptureError

NOT_GIVEN = "not given"
"""In ``ip_adapter``: one may be loaded, and the pipeline's call takes no image for it."""

ATTENDED = {
    "cross": "cross-attention to tokens of the image",
    "joint": "tokens of the image are keys beside the generated ones, in one softmax",
    "cached": "keys of the image are kept from an earlier call",
    "frames": "latents of the image are frames of the generated video",
    "canvas": "image and result are parts of one canvas",
    "words": "a text encoder reads the image, and its tokens are among those of the text",
    "modular": "the blocks that the pipeline is put together from decide",
}
"""Mechanisms by which tokens of the image are, or may be, keys of a softmax."""

UNATTENDED = {
    "nothing": "it takes no image",
    "other": "it generates no image",
    "start": "the latents start from the image",
    "blend": "outside the mask, the image's own latents are put back at every step",
    "channels": "the image's latents are further channels of the denoiser's input",
    "control": "features of the image are added to the denoiser's (ControlNet, T2I-Adapter)",
    "vector": "the image is one vector, added to the embedding of the timestep",
    "linear": "tokens of the image meet linear attention, which has no map",
    "convolution": "the image goes through convolutions alone",
    "prior": "it makes tokens for another pipeline, which is the one to capture",
}
"""Mechanisms without a softmax over the image, in this pipeline."""

MECHANISMS = ATTENDED | UNATTENDED


@dataclass(frozen=True, slots=True)
class Entry:
    """What the census says about a pipeline class."""

    pipeline: str
    mechanisms: tuple[str, ...]
    adapter: str | None
    ip_adapter: str | None

    @property
    def takes_image(self) -> bool:
        return self.mechanisms != ("nothing",)

    @property
    def attended(self) -> bool:
        """Whether attention looks at the image, so that an adapter can be written."""
        return not ATTENDED.keys().isdisjoint(self.mechanisms)

    @property
    def answer(self) -> str:
        """Who answers for the image, in the words of a table."""
        own = self.adapter or ("no adapter yet" if self.attended else "attention cannot answer")
        own = own if self.takes_image else "no image"
        loaded = {None: "", NOT_GIVEN: "; an IP-Adapter is given no image"}
        return own + loaded.get(self.ip_adapter, f"; with an IP-Adapter: {self.ip_adapter}")

    def refusal(self, pipe: Any, words: Sequence[str]) -> CaptureError:
        """Why no adapter is chosen; ``words`` are adapters that read the pipeline's text alone."""
        why = ": no adapter reads that yet" if self.attended else ": attention cannot answer"
        remedies = [f"adapter={name!r} captures its words" for name in words]
        if self.adapter:
            why, remedies = "", [f"capture it with adapter={self.adapter!r}", *remedies]
        elif self.attended:
            remedies.append("write an adapter (CONTRIBUTING.md)")
        if self.ip_adapter == NOT_GIVEN:
            why += ", and its call takes no image for an IP-Adapter"
        elif self.ip_adapter:
            remedies.insert(0, "load an IP-Adapter: pipe.load_ip_adapter(...)")
        return CaptureError(
            f"adapter for {type(pipe).__name__}",
            expected="attention to tokens of a reference",
            got=", ".join(f"{each} ({MECHANISMS[each]})" for each in self.mechanisms) + why,
            remedy=", or ".join(remedies)
            or "name an adapter, or choose a pipeline that attends to its image: i2am adapters --pipelines",
        )


@cache
def census() -> dict[str, Entry]:
    """Every entry, by the name of the pipeline's class."""
    found = {}
    for name in ("census.tsv", "modular.tsv"):
        with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                answers = (
                    None if row[column] == "-" else row[column] for column in ("adapter", "ip_adapter")
                )
                found[row["pipeline"]] = Entry(row["pipeline"], tuple(row["mechanisms"].split()), *answers)
    return found


def entry_of(pipe: Any) -> Entry | None:
    """The entry of a pipeline's class, or of the nearest class that it derives from."""
    known = census()
    for parent in type(pipe).__mro__:
        if parent.__name__ in known:
            return known[parent.__name__]
        if parent.__name__ == "ModularPipeline":
            return Entry(type(pipe).__name__, ("modular",), None, None)
    return None
