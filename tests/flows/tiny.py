"""A factory as a user would write it: the embedded pipeline's class, small, with fixed random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def build(
    device: str,
    dtype: str,
    delay: float = 0.0,
    broken: Sequence[str] = (),
    mended: str = "",
    hangs_without: str = "",
) -> Any:
    """Make a pipeline of about 0.1 million parameters; ``delay`` seconds are slept in every denoiser call.

    The scenes of the ids ``broken`` cannot be painted until there is a file ``mended``. Whoever finds no
    file ``hangs_without`` makes it, and hangs in its first step.
    """
    import time

    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from i2am.pipeline.embedded.encoder import ReferenceEncoder
    from i2am.pipeline.embedded.painter import PLACES, ReferencePainter

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=7 * 4 + PLACES,
        out_channels=12,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    if delay:
        unet.register_forward_pre_hook(lambda *_: time.sleep(delay))
    if hangs_without:
        unet.register_forward_pre_hook(lambda *_: _hang(Path(hangs_without)))
    pipe = ReferencePainter(unet=unet, reference_encoder=ReferenceEncoder(), scheduler=DDIMScheduler())
    pipe = pipe.to(device, getattr(torch, dtype))
    if broken:
        _break(pipe, {int(id.rsplit("-", 1)[1]) for id in broken}, Path(mended))
    return pipe


def _hang(note: Path) -> None:
    import time

    if not note.exists():
        note.touch()
        time.sleep(600)


def build_with_secrets(device: str, dtype: str, hf_token: str, **others: Any) -> Any:
    """A pipeline that tells its token in the error of its second scene."""
    pipe = build(device, dtype)
    whole = type(pipe)

    class Talkative(whole):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, generator: Any, **rest: Any) -> Any:
            if generator.initial_seed() == 1:
                raise ConnectionError(f"refused with {hf_token}")
            return super().__call__(*args, generator=generator, **rest)

    pipe.__class__ = Talkative
    return pipe


def _break(pipe: Any, seeds: set[int], mended: Path) -> None:
    whole = type(pipe)

    class Broken(whole):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, generator: Any, **rest: Any) -> Any:
            if generator.initial_seed() in seeds and not mended.exists():
                raise ValueError("this scene cannot be painted")
            return super().__call__(*args, generator=generator, **rest)

    pipe.__class__ = Broken


def not_a_pipeline(device: str, dtype: str) -> int:
    """Return what no capture can use."""
    return 3
