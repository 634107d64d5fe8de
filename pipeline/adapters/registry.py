"""Find the adapter of a pipeline: built in, or from the entry-point group ``i2am.adapters``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from i2am.pipeline.adapters.anydoor import AnyDoor
from i2am.pipeline.adapters.bria_fibo2 import BriaFibo2
from i2am.pipeline.adapters.bria_fibo_edit import BriaFiboEdit
from i2am.pipeline.adapters.census import entry_of
from i2am.pipeline.adapters.contract import Adapter
from i2am.pipeline.adapters.diffusers_text import DiffusersText
from i2am.pipeline.adapters.diffusers_unet import DiffusersUNet
from i2am.pipeline.adapters.flux2 import Flux2
from i2am.pipeline.adapters.flux_canvas import FluxCanvas
from i2am.pipeline.adapters.flux_ip_adapter import FluxIPAdapter
from i2am.pipeline.adapters.flux_kontext import FluxKontext
from i2am.pipeline.adapters.flux_kontext_ip_adapter import FluxKontextIPAdapter
from i2am.pipeline.adapters.flux_redux import FluxRedux
from i2am.pipeline.adapters.flux_references import UNO, DreamO
from i2am.pipeline.adapters.glm_image import GlmImage
from i2am.pipeline.adapters.instantid import InstantID
from i2am.pipeline.adapters.ip_adapter import IPAdapter
from i2am.pipeline.adapters.joyimage import JoyImageEdit, JoyImageEditPlus
from i2am.pipeline.adapters.ldm import LatentDiffusion
from i2am.pipeline.adapters.omnigen import OmniGen
from i2am.pipeline.adapters.pasd import PASD
from i2am.pipeline.adapters.qwen_image import QwenImageEdit
from i2am.pipeline.adapters.qwen_image21 import QwenImage21
from i2am.pipeline.adapters.reference_unet import IDMVTON, Leffa, MimicBrush, OOTDiffusion
from i2am.pipeline.adapters.region import RegionLike
from i2am.pipeline.adapters.sd3_ip_adapter import SD3IPAdapter
from i2am.pipeline.adapters.seesr import SeeSR
from i2am.pipeline.adapters.stableviton import StableVITON
from i2am.pipeline.adapters.supir import SUPIR
from i2am.pipeline.adapters.unet_canvas import CatVTON, UNetCanvas
from i2am.pipeline.adapters.visualcloze import VisualCloze
from i2am.storage.errors import CaptureError, UnknownName

GROUP = "i2am.adapters"
"""Entry-point group: a name, and a class or factory that takes no argument and returns an adapter."""

_BUILT_IN: tuple[type[Adapter], ...] = (
    DiffusersUNet,
    DiffusersText,
    IPAdapter,
    InstantID,
    LatentDiffusion,
    AnyDoor,
    SUPIR,
    StableVITON,
    PASD,
    SeeSR,
    FluxKontext,
    FluxRedux,
    FluxIPAdapter,
    FluxKontextIPAdapter,
    SD3IPAdapter,
    Flux2,
    QwenImageEdit,
    IDMVTON,
    Leffa,
    OOTDiffusion,
    MimicBrush,
    CatVTON,
    UNetCanvas,
    FluxCanvas,
    VisualCloze,
    DreamO,
    UNO,
    QwenImage21,
    BriaFiboEdit,
    BriaFibo2,
    JoyImageEdit,
    JoyImageEditPlus,
    OmniGen,
    GlmImage,
)


@cache
def adapters() -> dict[str, Adapter]:
    """Every adapter at hand, by name; an installed one may replace a built-in one of the same name."""
    found: dict[str, Adapter] = {family.name: family() for family in _BUILT_IN}
    for entry in entry_points(group=GROUP):
        adapter: Adapter = entry.load()()
        found[adapter.name] = adapter
    return found


def described() -> list[dict[str, str]]:
    """Each adapter: its name, what it reads, the module that it is from, and what it serves."""
    facts = []
    for name, adapter in sorted(adapters().items()):
        module = type(adapter).__module__
        serves = sys.modules[module].__doc__ or type(adapter).__doc__ or ""
        built_in = type(adapter) in _BUILT_IN
        facts.append(
            {
                "adapter": name,
                "reads": adapter.reads,
                "from": "built in" if built_in else module,
                "serves": serves.strip().partition("\n")[0].rstrip(".").replace("``", ""),
            }
        )
    return facts


def find_adapter(
    pipe: Any, adapter: str | Adapter | None = None, region: RegionLike | None = None
) -> Adapter:
    """The adapter given, named, or, for None, the only one that matches ``pipe``.

    A pipeline that is given an image and attends to words alone is refused, unless the adapter is named.
    ``region`` is where the picture itself holds the reference: an adapter that takes one is meant.
    """
    if region is not None:
        return _find(pipe, adapter, lambda known: known.takes_region).looking_at(region)
    return _find(pipe, adapter, lambda known: known.region is not None or not known.takes_region)


def _find(pipe: Any, adapter: str | Adapter | None, meant: Callable[[Adapter], bool]) -> Adapter:
    known = adapters()
    if isinstance(adapter, str):
        if adapter not in known:
            raise UnknownName("adapter", adapter, known)
        return known[adapter]
    if adapter is not None:
        return adapter
    matching = [candidate for candidate in known.values() if meant(candidate) and candidate.matches(pipe)]
    words = [candidate.name for candidate in matching if candidate.reads == "text"]
    entry = entry_of(pipe)
    if len(matching) == 1 and not (words and entry is not None and entry.takes_image):
        return matching[0]
    if entry is not None and len(words) == len(matching):
        raise entry.refusal(pipe, words)
    raise CaptureError(
        f"adapter for {type(pipe).__name__}",
        expected="exactly one that matches, among " + ", ".join(sorted(known)),
        got=", ".join(sorted(found.name for found in matching)) or "none",
        remedy="name one: adapter='...'" if matching else "name one, or write one (CONTRIBUTING.md)",
    )
