"""Factories of pipelines whose references are known to matter, or small models of other families."""

from __future__ import annotations

from typing import Any

from tests.flows.tiny import build

PLANTED = (5, 9)
"""Place of the only reference token that says anything."""


def planted(device: str, dtype: str, strength: float = 20.0) -> Any:
    """The tiny painter, whose reference tokens are all empty but one; many are drawn to that one."""
    import torch

    pipe = build(device, dtype)
    encoder = pipe.reference_encoder
    encode, place = encoder.forward, PLANTED[0] * encoder.grid[1] + PLANTED[1]

    def forward(image: Any) -> Any:
        tokens = torch.zeros_like(encode(image))
        tokens[:, place] = strength * encode(image)[:, place]
        return tokens

    encoder.forward = forward
    return pipe


def flux_kontext(device: str, dtype: str) -> Any:
    """FLUX Kontext's real classes; the text is fixed."""
    from tests.pipeline import joint_models
    from tests.pipeline.test_joint import embeddings

    pipe = joint_models.flux_kontext()

    class FluxKontextOfImages(type(pipe)):  # type: ignore[misc]
        def __call__(self, image: Any, generator: Any, **options: Any) -> Any:
            embeds = embeddings(1, 1) | {f"negative_{k}": v for k, v in embeddings(1, 2).items()}
            return super().__call__(
                image=image.resize((16, 16)), generator=generator, true_cfg_scale=2.0,
                height=16, width=16, max_area=256, _auto_resize=False, **embeds, **options,
            )  # fmt: skip

    pipe.__class__ = FluxKontextOfImages
    return pipe


def ip_adapter(device: str, dtype: str, kinds: tuple[str, ...] = ("full",), scales: Any = 0.8) -> Any:
    """Stable Diffusion with IP-Adapters, "full": of 2 x 2 patches; text and references are fixed."""
    import torch

    from tests.pipeline import unet_models

    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)
    pipe.set_ip_adapter_scale(scales)

    class StableDiffusionOfNothing(type(pipe)):  # type: ignore[misc]
        def __call__(self, generator: Any, **options: Any) -> Any:
            shape = (2, 1, unet_models.TEXT, unet_models.WIDTH)
            texts = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            return super().__call__(
                prompt_embeds=texts[0], negative_prompt_embeds=texts[1], height=32, width=32,
                ip_adapter_image_embeds=unet_models.image_embeds(kinds, True),
                generator=generator, **options,
            )  # fmt: skip

    pipe.__class__ = StableDiffusionOfNothing
    return pipe


def diptych(device: str, dtype: str) -> Any:
    """FLUX Fill that is given a canvas and its mask."""
    import torch
    from diffusers import FluxFillPipeline

    from tests.pipeline import joint_models

    class Diptych(FluxFillPipeline):  # type: ignore[misc]
        def __call__(self, image: Any, mask_image: Any, generator: Any, **options: Any) -> Any:
            text = torch.randn(1, 7, joint_models.WIDTH, generator=torch.Generator().manual_seed(1))
            return super().__call__(
                prompt_embeds=text, pooled_prompt_embeds=text[:, 0], image=image, mask_image=mask_image,
                height=image.height, width=image.width, generator=generator, **options,
            )  # fmt: skip

    pipe = Diptych(**joint_models.flux_fill_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_its_factory(make: Any, *unused: str) -> Any:
    """A stand-in that is called as its example's factory is, and makes images of the source's size.

    It makes nothing of the arguments that are ``unused``.
    """
    pipe = make()

    class AsItsFactory(type(pipe)):  # type: ignore[misc]
        def __call__(self, **given: Any) -> Any:
            found = super().__call__(**{name: value for name, value in given.items() if name not in unused})
            found.images = [image.resize(given["image"].size) for image in found.images]
            return found

    pipe.__class__ = AsItsFactory
    return pipe


def of_example(device: str, dtype: str, system: str) -> Any:
    """A small model with random weights of the system of ``examples/capture-{system}.yaml``."""
    from tests.pipeline import models
    from tests.standins import ldm, pasd, seesr

    makers: dict[str, Any] = {
        "paint-by-example": (models.paint_by_example,),
        "paint-by-example-ldm": (lambda: ldm.Pipeline(ldm.PLMSSampler),),
        "dci-vton": (lambda: ldm.Pipeline(ldm.PLMSSampler), "reference_mask", "warped_image", "warped_mask"),
        "stableviton": (strong_warps, "densepose_image", "agnostic_image"),
        "pasd": (pasd.make, "negative_prompt"),
        "pasd-light": (lambda: pasd.make(light=True), "negative_prompt"),
        "seesr": (seesr.make, "negative_prompt"),
        "ip-adapter-inpaint": (lambda: inpainting_with_ip_adapter("full"),),
        "ip-adapter-plus": (lambda: inpainting_with_ip_adapter("plus"),),
    }
    return as_its_factory(*makers[system])


def strong_warps() -> Any:
    """StableVITON whose warping blocks add so much that 8 bits show it."""
    from tests.standins import stableviton

    pipe = stableviton.Pipeline()
    for convolution in pipe.model.model.diffusion_model.warp_zero_convs:
        convolution.weight.data *= 10
    return pipe


def inpainting_with_ip_adapter(kind: str) -> Any:
    """Stable Diffusion's inpainting with an IP-Adapter: "full" keeps the 4 x 4 patches of its own CLIP."""
    import torch
    from diffusers import StableDiffusionInpaintPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    from tests.pipeline import unet_models

    config = CLIPVisionConfig(
        hidden_size=unet_models.CLIP, projection_dim=unet_models.CLIP, intermediate_size=16,
        num_attention_heads=4, num_hidden_layers=2, image_size=32, patch_size=8,
    )  # fmt: skip

    class OfAnyPrompt(StableDiffusionInpaintPipeline):  # type: ignore[misc]
        def encode_prompt(self, *given: Any, **named: Any) -> Any:
            shape = (2, 1, unet_models.TEXT, unet_models.WIDTH)
            return tuple(torch.randn(shape, generator=torch.Generator().manual_seed(1)))

    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(OfAnyPrompt), kind)
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )
    return pipe


def flux2(device: str, dtype: str) -> Any:
    """FLUX.2 klein's real classes, undistilled; the text is fixed."""
    from tests.pipeline import joint_models
    from tests.pipeline.test_joint import embeddings

    pipe = joint_models.flux2()

    class Flux2KleinOfImages(type(pipe)):  # type: ignore[misc]
        def __call__(self, image: Any, generator: Any, **options: Any) -> Any:
            return super().__call__(
                image=image, generator=generator, guidance_scale=1.0, height=16, width=24,
                prompt_embeds=embeddings(1, 1)["prompt_embeds"], **options,
            )  # fmt: skip

    pipe.__class__ = Flux2KleinOfImages
    return pipe
