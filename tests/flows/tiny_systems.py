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


def ip_adapter(device: str, dtype: str) -> Any:
    """Stable Diffusion with an IP-Adapter that keeps its 2 x 2 patches; text and reference are fixed."""
    import torch

    from tests.pipeline import unet_models

    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "full")

    class StableDiffusionOfNothing(type(pipe)):  # type: ignore[misc]
        def __call__(self, generator: Any, **options: Any) -> Any:
            shape = (2, 1, unet_models.TEXT, unet_models.WIDTH)
            texts = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            return super().__call__(
                prompt_embeds=texts[0], negative_prompt_embeds=texts[1], height=32, width=32,
                ip_adapter_image_embeds=unet_models.image_embeds(("full",), True),
                generator=generator, **options,
            )  # fmt: skip

    pipe.__class__ = StableDiffusionOfNothing
    return pipe


def small(pipe: Any) -> Any:
    """A stand-in that works at half the size of a scene."""

    class Small(type(pipe)):  # type: ignore[misc]
        def __call__(self, generator: Any, num_inference_steps: int, **images: Any) -> Any:
            halves = {name: image.resize((32, 32)) for name, image in images.items()}
            return super().__call__(generator=generator, num_inference_steps=num_inference_steps, **halves)

    pipe.__class__ = Small
    return pipe


def pasd(device: str, dtype: str) -> Any:
    from tests.standins import pasd

    return small(pasd.make())


def seesr(device: str, dtype: str) -> Any:
    from tests.standins import seesr

    return small(seesr.make())


def stableviton(device: str, dtype: str) -> Any:
    from tests.standins import stableviton

    return small(stableviton.Pipeline())
