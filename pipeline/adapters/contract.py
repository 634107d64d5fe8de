"""What capture has to know about one family of models: its attention layers, token layout and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from i2am.pipeline.adapters.region import Region, RegionLike
from i2am.pipeline.compilation import original
from i2am.pipeline.timesteps import announced_steps, remaining_timesteps, scheduler_of
from i2am.storage.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Site:
    """One attention layer whose query and key are the outputs of two projections."""

    name: str  # module path below the pipeline: the name in the store
    attention: nn.Module  # the module that calls the projections and the kernel
    query: nn.Module  # a projection; its output is [row, token, heads * head dim]
    key: nn.Module  # as `query`
    # Its first argument is the feature map [row, channel, rows, columns] that becomes the query tokens: the
    # generated grid is read there, never inferred from a count.
    grid: nn.Module
    heads: int
    scale: float  # factor on q·k
    module_class: str  # of the attention module, for the record
    static_key: bool = True  # keys come from the reference alone and do not change over time
    reference_index: int = 0  # which of several references the keys belong to
    text: bool = False  # the keys are words
    # Where norms of values are read; None: they are not. The values' projection, and the linear one that
    # takes the mixed values back to the stream.
    value: nn.Module | None = None
    output: nn.Module | None = None
    stream: nn.Module | None = None  # its first argument is the stream that the output is added to: a norm
    # Factor on this attention's part of what ``output`` takes, None from it if there is no single one; None:
    # it is the only part.
    gain: Callable[[], float | None] | None = None


@dataclass(frozen=True, slots=True)
class JointSite:
    """One joint attention layer, whose query and key are read where they reach the attention call."""

    name: str
    attention: nn.Module
    """The attention module; its processor makes the call."""
    output: nn.Module | None = None
    """The linear projection whose first inputs are the heads' mixed values; None: no norms are read.

    An ``nn.Identity``: the mixed values are added as they are.
    """
    stream: nn.Module | None = None
    """As in `Site`; its tokens are all of the joint sequence, or its last ones."""
    stream_first: bool = False
    """The stream's tokens are the sequence's first ones, not its last."""
    block: nn.Module | None = None
    """In place of `stream`: the block at whose very end the attention's last output is added."""
    gain: Callable[[], float | None] | None = None
    """As in `Site`."""
    reference_index: int = 0
    """Which of several references the first of its keys' references is."""

    @property
    def module_class(self) -> str:
        return type(self.attention).__name__


AnySite: TypeAlias = Site | JointSite


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Order of reference tokens: ``prefix`` without a place, then ``grid`` (rows, columns), row by row."""

    grid: tuple[int, int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Some tokens of an attention call: from where to where, or which in what order, and their layout."""

    where: slice | torch.Tensor
    layout: TokenLayout

    @classmethod
    def after(cls, start: int, layout: TokenLayout) -> Tokens:
        """All tokens of a layout, one after the other."""
        return cls(slice(start, start + layout.tokens), layout)

    @classmethod
    def at(cls, places: torch.Tensor, layout: TokenLayout) -> Tokens:
        """Tokens at these places, in this order: a slice where they stand together."""
        places = places.cpu()
        start = int(places[0]) if len(places) else 0
        together = torch.equal(places, torch.arange(start, start + len(places)))
        return cls(slice(start, start + len(places)) if together else places, layout)

    def moved(self, by: int) -> Tokens:
        """The same tokens where others have come before them, or have gone."""
        where = self.where
        if isinstance(where, slice):
            return Tokens(slice(where.start + by, where.stop + by), self.layout)
        return Tokens(where + by, self.layout)

    def positions(self) -> torch.Tensor:
        """Where each token stands, on the CPU."""
        where = self.where
        return torch.arange(where.start, where.stop) if isinstance(where, slice) else where.cpu()


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Where tokens stand in a layer's attention call, whose queries need not be its keys."""

    queries: int  # in all
    keys: int
    generated: Tokens  # of the queries
    references: tuple[Tokens, ...]  # of the keys, in the order of the pipeline's images
    text: slice | torch.Tensor | None = None  # of the keys: those of words, from where to where, or which
    static_keys: bool = False  # the references' keys are those of an earlier call: they are stored once
    before: int = 0  # calls of the module with as many queries and keys that come before the layer's own
    # Further calls of the module that see some of these keys: their queries, and from which key to which.
    others: tuple[tuple[int, slice], ...] = ()
    # Where each reference's tokens stand in the denoiser's ``hidden_states``, [row, token, ...]; (): as the
    # keys do, after those of ``encoder_hidden_states``.
    inputs: tuple[slice, ...] = ()
    roles: tuple[str, ...] = ()  # whose rows these places are of, where others have other ones; (): of all


def patches_per_side(config: Any) -> int | None:
    """Patches on a side of the images that a vision transformer takes, from its configuration."""
    config = getattr(config, "vision_config", config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return size // patch if size and patch else None


def _says(pipe: Any, name: str) -> bool | None:
    """A yes or no of the pipeline's own; None if it has none, or none before its first call."""
    try:
        found = getattr(pipe, name, None)
    except AttributeError:
        return None
    return found if isinstance(found, bool) else None


class Adapter:
    """Knowledge of one family of pipelines: subclass it and override what differs.

    The defaults describe a family with one UNet, one call a step, and guidance as [uncond, cond] in one
    batch. Adapters hold no state; one instance serves every capture. A method that meets a model it does not
    know raises CaptureError.
    """

    name = ""
    """What users write in ``adapter=`` and configurations."""

    tiled = False
    """True where the pipeline may cut its latents into tiles and call the denoiser once for each."""

    reads = "reference"
    """``"text"`` where the keys are words: a pipeline that is given an image has to name such an adapter."""

    removable = True
    """False where no step's call has the reference's tokens: an ablation cannot reach them."""

    part = "unet"
    """Attribute of the pipeline that holds the denoiser."""

    takes_region = False
    """True where the reference is a region of the picture that is generated: a `Region`, in ``region``."""

    region: Region | None = None
    """Where it is; None: the user has to say."""

    def matches(self, pipe: Any) -> bool:
        """Whether this adapter is meant for ``pipe``."""
        raise NotImplementedError

    def looking_at(self, region: RegionLike) -> Adapter:
        """Make this adapter look for the reference in another region of the picture."""
        if not self.takes_region:
            raise CaptureError(
                f"adapter {self.name!r}: reference_region",
                expected="none: this family's reference is no part of the picture",
                got=repr(region),
                remedy="leave it out, or name an adapter of canvases: unet-canvas, flux-canvas",
            )
        found = copy(self)
        found.region = Region.read(region)
        return found

    def denoiser(self, pipe: Any) -> nn.Module:
        """The module whose call ends a step's work: a UNet, a transformer."""
        module = getattr(pipe, self.part, None)
        if not isinstance(module, nn.Module):
            raise CaptureError(
                f"adapter {self.name!r}: the pipeline's {self.part}",
                expected="a torch module",
                got=type(module).__name__,
                remedy="name another adapter, or give a pipeline of this family",
            )
        return module

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        """Modules called right before the denoiser with the same timestep, such as a ControlNet."""
        return ()

    def encoders(self, pipe: Any) -> Sequence[nn.Module]:
        """Modules whose calls make the reference's tokens before the denoiser runs, such as a second UNet."""
        return ()

    def sites(self, pipe: Any) -> Sequence[AnySite]:
        """Every layer that attends to the reference, in the order of the model's own modules."""
        raise NotImplementedError

    def text_sites(self, pipe: Any) -> Sequence[AnySite]:
        """Further layers, which attend to words; those of joint attention say it with `Spans.text`."""
        return ()

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Order of the ``tokens`` reference tokens of a key; ``grid`` is that of the query's tokens."""
        return TokenLayout(grid=(0, 0), prefix=tokens)

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans] | None:
        """Where tokens stand in each site's attention call, by its name; one without a reference has none.

        ``arguments`` are those of a denoiser call, by name; ``encoders`` among them is a list of the
        arguments of each encoder's latest call since the denoiser's last one, None where there was none.
        None: as in the call before, whose keys are kept.
        """
        raise NotImplementedError(f"adapter {self.name!r} has no joint attention")

    def prepares(self, pipe: Any, arguments: Mapping[str, Any]) -> bool:
        """Whether a call of the denoiser comes before the steps, to keep a reference's keys, say."""
        return False

    def shared_reference(self, pipe: Any) -> bool:
        """Where latents are tiled: True if all tiles see the whole reference, False if each sees its part."""
        return True

    def roles(self, pipe: Any, rows_per_sample: int) -> tuple[str, ...]:
        """Guidance role of each block of rows in a denoiser call, in order: ``("uncond", "cond")``, say."""
        known: dict[int, tuple[str, ...]] = {1: ("cond",), 2: ("uncond", "cond")}
        if _says(pipe, "do_perturbed_attention_guidance"):
            guided = _says(pipe, "do_classifier_free_guidance")
            known = {3: ("uncond", "cond", "perturbed")} if guided else {2: ("cond", "perturbed")}
        return self._known_roles(rows_per_sample, known)

    def guidance_is_on(self, pipe: Any) -> bool | None:
        """Whether the pipeline says that it uses guidance of any kind now; None if it does not say."""
        return _says(pipe, "do_perturbed_attention_guidance") or _says(pipe, "do_classifier_free_guidance")

    def empty_reference(
        self, pipe: Any, tokens: torch.Tensor, uncond: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What stands for no reference under guidance dropout, in place of ``tokens`` [row, token, width].

        ``uncond`` holds the unconditional rows of the same call, if there are any; None: not known.
        """
        return uncond

    def calls(self, pipe: Any) -> tuple[str, ...]:
        """Roles of a step's successive calls where guidance, if on, makes separate calls; else empty."""
        return ()

    def schedule(self, pipe: Any, first: float, tolerance: float) -> list[float]:
        """Timesteps of all steps of the generation, given that of its first call."""
        return remaining_timesteps(scheduler_of(pipe), first, tolerance, announced_steps(pipe))

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep in the ``arguments`` of a denoiser call, in the unit of the schedule."""
        return arguments.get("timestep")

    def takes_lists(self, pipe: Any) -> bool:
        """Whether a list of images is the references of one prompt to the pipeline, not one for each."""
        return False

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        """The pipeline's argument for each image, or list of them, that it takes: ``{"image": "source"}``."""
        return {}

    def _known_roles(self, rows: int, known: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
        if rows not in known:
            raise CaptureError(
                f"adapter {self.name!r}: rows for one sample in a denoiser call",
                expected=" or ".join(f"{count} ({', '.join(roles)})" for count, roles in known.items()),
                got=str(rows),
                remedy="declare every image of the call: cap.samples([...]) takes one id for each; or name "
                "the rows: guidance=[[...]]",
            )
        return known[rows]

    def _no_layer(self, root: nn.Module, wanted: str) -> CaptureError:
        """The error of a model without the layers of this family."""
        root = original(root)
        classes = sorted({type(m).__name__ for m in root.modules() if "ttention" in type(m).__name__})
        return CaptureError(
            f"adapter {self.name!r}: no layer to capture",
            expected=wanted,
            got=f"a {type(root).__name__} with {', '.join(classes) or 'no attention'}",
            remedy="name the adapter of this model's family",
        )
