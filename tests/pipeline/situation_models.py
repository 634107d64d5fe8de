"""The families of the table of situations: small models of the real classes, and one way to run each."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    ControlNetModel,
    Flux2KleinKVPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from torch import nn

from tests.pipeline import joint_models, models, unet_models
from tests.standins import ldm, pasd, seesr, stableviton

STEPS, TEXT, SIDE = 2, 11, 32
"""Steps, text tokens, and pixels on a side of most situations."""


@dataclass(frozen=True)
class Family:
    """How to make and run a pipeline, and where its attention and its conditional rows are."""

    make: Callable[[], Any]
    run: Callable[..., Any]  # (pipe, prompts, images for each, guidance, dtype, more): the images
    path: str = r".+\.attn2"  # of attention modules, below `roots`
    roots: tuple[tuple[str, str], ...] = (("unet", "unet."),)  # attribute, and prefix of layers' names
    separate: bool = False  # guidance makes calls of its own, the conditional one first
    cond_first: bool = False  # in a batch
    joint: Callable[[Any, int], tuple[int, int]] | None = None  # layer, reference number: where tokens begin
    kinds: tuple[str, ...] = ()  # IP-Adapters
    adapter: str | None = None  # where it has to be named


def _noise(count: int) -> Any:
    return torch.Generator().manual_seed(count)


def _text(seed: int, count: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, tokens, unet_models.WIDTH, generator=_noise(seed)).to(dtype)


def _stable_diffusion(
    pipe: Any,
    prompts: int,
    each: int,
    guidance: float,
    dtype: torch.dtype,
    kinds: tuple[str, ...] = (),
    **more: Any,
) -> Any:
    name = type(pipe).__name__
    given: dict[str, Any] = {"prompt_embeds": _text(1, prompts, TEXT, dtype)}
    if guidance > 1:
        given["negative_prompt_embeds"] = _text(2, prompts, TEXT, dtype)
    if "XL" in name:
        given["pooled_prompt_embeds"] = _text(3, prompts, 1, dtype)[:, 0]
        if guidance > 1:
            given["negative_pooled_prompt_embeds"] = _text(4, prompts, 1, dtype)[:, 0]
    if kinds:
        embeds = unet_models.image_embeds(kinds, guidance > 1)
        given["ip_adapter_image_embeds"] = [x.to(dtype) for x in embeds]
    if any(kind in name for kind in ("Pix2Pix", "Img2Img", "Inpaint", "ControlNet")):
        given["image"] = [models.picture(i, SIDE, SIDE) for i in range(prompts)]
    if "Inpaint" in name:
        given["mask_image"] = [models.hole(SIDE, SIDE)] * prompts
    if "Img2Img" not in name and "Pix2Pix" not in name:
        given |= {"height": SIDE, "width": SIDE}
    return pipe(
        **given, guidance_scale=guidance, num_images_per_prompt=each,
        generator=_noise(0), output_type="np", **{"num_inference_steps": STEPS, **more},
    ).images  # fmt: skip


def _ip_adapters(*kinds: str) -> Family:
    def run(*args: Any, **more: Any) -> Any:
        return _stable_diffusion(*args, kinds=kinds, **more)

    make = lambda: unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)  # noqa: E731
    return Family(make, run, kinds=kinds)


def _controlnet() -> Any:
    base = unet_models.stable_diffusion()
    torch.manual_seed(3)
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32)).eval()
    pipe = StableDiffusionControlNetPipeline(
        **{k: v for k, v in base.components.items() if k != "image_encoder"},
        controlnet=controlnet, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _paint(pipe: Any, prompts: int, each: int, guidance: float, dtype: torch.dtype, **more: Any) -> Any:
    return pipe(
        image=[models.picture(i, SIDE, SIDE) for i in range(prompts)],
        mask_image=[models.hole(SIDE, SIDE)] * prompts,
        example_image=[models.picture(5 + i, SIDE, SIDE) for i in range(prompts)],
        num_images_per_prompt=each, num_inference_steps=STEPS, guidance_scale=guidance,
        generator=_noise(0), output_type="np",
    ).images  # fmt: skip


def _vary(pipe: Any, prompts: int, each: int, guidance: float, dtype: torch.dtype, **more: Any) -> Any:
    return pipe(
        image=[models.picture(3 + i, SIDE, SIDE) for i in range(prompts)], height=SIDE, width=SIDE,
        num_inference_steps=STEPS, guidance_scale=guidance, num_images_per_prompt=each,
        generator=_noise(0), output_type="np",
    ).images  # fmt: skip


def _standin(pipe: Any, prompts: int, each: int, guidance: float, dtype: torch.dtype, **more: Any) -> Any:
    side = SIDE if hasattr(pipe, "model") or hasattr(pipe, "controlnet") else 20
    given: dict[str, Any] = {"image": [models.picture(i, side, side) for i in range(prompts)]}
    if not hasattr(pipe, "controlnet"):
        given["mask_image"] = [models.hole(side, side)] * prompts
        given["reference_image"] = [models.picture(50 + i, side, side) for i in range(prompts)]
    return pipe(
        **given, guidance_scale=guidance, generator=_noise(0), num_inference_steps=STEPS, **more
    ).images


def _joint(pipe: Any, prompts: int, each: int, guidance: float, dtype: torch.dtype, **more: Any) -> Any:
    name = type(pipe).__name__
    given: dict[str, Any] = {}
    for seed, prefix in ((1, ""), (2, "negative_"))[: 1 + (guidance > 1)]:
        given[f"{prefix}prompt_embeds"] = _text(seed, prompts, TEXT, dtype)
        if "Qwen" in name:
            given[f"{prefix}prompt_embeds_mask"] = torch.ones(prompts, TEXT, dtype=torch.bool)
        else:
            given[f"{prefix}pooled_prompt_embeds"] = _text(seed + 5, prompts, 1, dtype)[:, 0]
    if "Kontext" in name:
        given |= {"max_area": 16 * 24, "_auto_resize": False}
    if name != "Redux":
        references = [models.picture(5 + i, 24, 32) for i in range(1 + ("Plus" in name))]
        given |= {"image": references, "true_cfg_scale": guidance}
    plus = "_plus" if "Plus" in name else ""
    module = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit{plus}"
    with ExitStack() as small:  # Qwen's reference at 24x32 pixels instead of a megapixel
        if "Qwen" in name:
            size = (32, 24) if plus else (32, 24, None)
            small.enter_context(patch(f"{module}.calculate_dimensions", lambda area, ratio: size))
        return pipe(
            **given, height=16, width=24, num_inference_steps=STEPS, num_images_per_prompt=each,
            generator=_noise(0), output_type="np", **more,
        ).images  # fmt: skip


def _flux2(pipe: Any, prompts: int, each: int, guidance: float, dtype: torch.dtype, **more: Any) -> Any:
    """Klein; its variant that keeps keys has no guidance."""
    given: dict[str, Any] = {"prompt_embeds": _text(1, prompts, TEXT, dtype)}
    if "KV" not in type(pipe).__name__:
        given |= {"guidance_scale": guidance, "negative_prompt_embeds": _text(2, prompts, TEXT, dtype)}
    return pipe(
        [models.picture(5 + n, 64, 72) for n in range(2)], **given, height=16, width=24,
        num_inference_steps=STEPS, num_images_per_prompt=each, generator=_noise(0), output_type="np", **more,
    ).images  # fmt: skip


def _after_generated(spec: Any, number: int) -> tuple[int, int]:
    return TEXT, TEXT + spec.gen + number * spec.ref


def _after_text(spec: Any, number: int) -> tuple[int, int]:
    return TEXT, TEXT + number * spec.ref


def _end_of_text(spec: Any, number: int) -> tuple[int, int]:
    return TEXT, TEXT - spec.ref


def _transformer(make: Callable[[], Any], joint: Any = _after_generated, root: str = "transformer") -> Family:
    path = r"(single_)?transformer_blocks\.\d+\.attn"
    return Family(make, _joint, path, ((root, "transformer."),), separate=root == "transformer", joint=joint)


def _latent(make: Callable[[], Any], **facts: Any) -> Family:
    return Family(make, _standin, roots=(("model.model.diffusion_model", ""),), **facts)


def _with(kind: Any) -> Callable[[], Any]:
    return lambda: unet_models.stable_diffusion(kind)


def _words(make: Callable[[], Any], **facts: Any) -> Family:
    """Stable Diffusion that is given an image, and attends to words alone."""
    return Family(make, _stable_diffusion, adapter="diffusers-text", **facts)


def _restoration(make: Callable[[], Any], path: str) -> Family:
    return Family(make, _standin, path, (("unet", "unet."), ("controlnet", "controlnet.")))


FAMILIES = {
    "sd": Family(unet_models.stable_diffusion, _stable_diffusion),
    "sdxl": Family(unet_models.sdxl, _stable_diffusion),
    "img2img": _words(_with(StableDiffusionImg2ImgPipeline)),
    "inpaint": _words(_with(StableDiffusionInpaintPipeline)),
    "pix2pix": _words(_with(StableDiffusionInstructPix2PixPipeline), cond_first=True),
    "controlnet": _words(_controlnet),
    "ip-adapter": _ip_adapters("base"),
    "ip-adapters": _ip_adapters("full", "plus"),
    "paint-by-example": Family(models.paint_by_example, _paint),
    "variation": Family(models.image_variation, _vary),
    "painter": Family(models.painter, _standin),
    "kontext": _transformer(joint_models.flux_kontext),
    "redux": _transformer(joint_models.Redux, _end_of_text, "base.transformer"),
    "qwen-edit": _transformer(joint_models.qwen_edit),
    "qwen-edit-plus": _transformer(joint_models.qwen_edit_plus),
    "flux2": replace(_transformer(joint_models.flux2), run=_flux2),
    "flux2-kv": replace(
        _transformer(lambda: joint_models.flux2(Flux2KleinKVPipeline), _after_text),
        run=_flux2,
        separate=False,
    ),
    "ldm": _latent(ldm.Pipeline),
    "ldm, memory efficient": _latent(
        lambda: ldm.Pipeline(ldm.PLMSSampler, ldm.MemoryEfficientCrossAttention)
    ),
    "stableviton": _latent(stableviton.Pipeline, separate=True),
    "pasd": _restoration(pasd.make, r".*pixel_attentions.*attn2"),
    "seesr": _restoration(seesr.make, r".*image_attentions.*attn2"),
}


def attention_modules(pipe: Any, family: Family) -> list[nn.Module]:
    """The attention that is captured."""
    models = [root_of(pipe, attribute) for attribute, _ in family.roots]
    return [m for model in models for name, m in model.named_modules() if re.fullmatch(family.path, name)]


def root_of(pipe: Any, root: str) -> nn.Module:
    """The model at the dotted path ``root``, as it was before it was compiled."""
    for name in root.split("."):
        pipe = getattr(pipe, name)
    return getattr(pipe, "_orig_mod", pipe)
