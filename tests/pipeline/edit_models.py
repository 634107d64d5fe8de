"""Small editing pipelines of diffusers' real classes, with random weights.

Their text encoders are left out: words are drawn from the prompt's length.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

WIDTH = 32
PLAIN = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


def _words(prompts: Any, tokens: int, *more: int) -> torch.Tensor:
    """[prompt, *more, token, WIDTH], drawn from each prompt's length."""
    draws = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
    return torch.stack([torch.randn(*more, tokens, WIDTH, generator=draw) for draw in draws])


def _short(mask: torch.Tensor, prompts: Any, by: int) -> torch.Tensor:
    """The mask without the last tokens of prompts that begin with "short"."""
    for row, prompt in zip(mask, prompts, strict=True):
        if prompt.startswith("short"):
            row[len(row) - by :] = 0
    return mask


def _each(prompts: Any, times: int = 1) -> list[str]:
    given = [prompts] if isinstance(prompts, str) else prompts
    return [str(prompt) for prompt in given for _ in range(times)]


# ------------------------------------------------------------------------------------- Qwen-Image-2.1


class Qwen21OfAnyPrompt(QwenImage21Pipeline):  # type: ignore[misc]
    """Three words, the images' slots with ``between`` words after each, then two words."""

    between = 2

    def encode_prompt(
        self, prompt: Any, image: Any = None, num_images_per_prompt: int = 1, **given: Any
    ) -> Any:
        prompts = _each(prompt)
        slots = [False] * 3
        for width, height in (each.size for each in image or ()):
            slots += [True] * (width * height // 32**2) + [False] * self.between
        slots += [False] * 2
        mask = _short(torch.ones(len(prompts), len(slots), dtype=torch.long), prompts, 1)
        words = _words(prompts, len(slots)).repeat_interleave(num_images_per_prompt, 0)
        mask = mask.repeat_interleave(num_images_per_prompt, 0)
        return words, None if mask.all() else mask, torch.tensor(slots)[None].expand(len(prompts), -1)


def qwen21() -> Any:
    """Two blocks, two heads; a token stands for 16x16 pixels."""
    torch.manual_seed(0)
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1] * 5, num_res_blocks=1,
        temperal_downsample=[False] * 4, **PLAIN,
    )  # fmt: skip
    processor = type("Processor", (), {"apply_chat_template": lambda *_, **__: [[0, 0]]})()
    processor.tokenizer = SimpleNamespace(encode=lambda _: [7])
    pipe = Qwen21OfAnyPrompt(
        FlowMatchEulerDiscreteScheduler(), vae.eval(), None, processor, transformer.eval()
    )
    return _quiet(pipe)


# --------------------------------------------------------------------------------------------- Bria FIBO


class FiboOfAnyPrompt(BriaFiboEditPipeline):  # type: ignore[misc]
    def encode_prompt(
        self, prompt: Any, guidance_scale: float = 5, num_images_per_prompt: int = 1, **given: Any
    ) -> Any:
        prompts = _each(prompt, num_images_per_prompt)
        words, mask = _words(prompts, 7), torch.ones(len(prompts), 7)
        ids = torch.zeros(len(prompts), 7, 3)
        layers = [
            torch.randn(len(prompts), 7, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
        ]
        if guidance_scale <= 1:
            return words, None, ids, mask, None, layers, None
        empty = mask.clone()
        empty[:, 4:] = 0  # an empty prompt is shorter, and padded
        return words, -words, ids, mask, empty, layers, [-layer for layer in layers]


def fibo_edit() -> Any:
    """A double and a single block, two heads; a token stands for 16x16 pixels."""
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        text_encoder_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1] * 5, num_res_blocks=1, temperal_downsample=[False] * 4, **PLAIN
    )
    pipe = FiboOfAnyPrompt(transformer.eval(), FlowMatchEulerDiscreteScheduler(), vae.eval(), None, None)
    return _quiet(pipe)


def fibo2() -> Any:
    """A refining and two main blocks, two heads; a token stands for 8x8 pixels."""
    torch.manual_seed(0)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=12,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 16, 16),
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4,) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    )
    pipe = BriaFibo2Pipeline(transformer.eval(), FlowMatchEulerDiscreteScheduler(), vae.eval(), None, None)
    pipe.default_sample_size = 10  # of several images, each has about 1600 pixels
    return _quiet(pipe)


# ---------------------------------------------------------------------------------------------- JoyImage


class JoyOfAnyPrompt(JoyImageEditPipeline):  # type: ignore[misc]
    def encode_prompt_multiple_images(self, prompt: Any, num_images_per_prompt: int = 1, **given: Any) -> Any:
        prompts = _each(prompt, num_images_per_prompt)
        return _words(prompts, 7), torch.ones(len(prompts), 7, dtype=torch.long)

    encode_prompt = encode_prompt_multiple_images


class JoyPlusOfAnyPrompt(JoyImageEditPlusPipeline):  # type: ignore[misc]
    def encode_prompt_multiple_images(self, prompt: Any, **given: Any) -> Any:
        prompts = [each.removesuffix("<|im_end|>\n").rpartition("\n")[2] for each in _each(prompt)]
        return _words(prompts, 7), _short(torch.ones(len(prompts), 7, dtype=torch.long), prompts, 2)


def joyimage(plus: bool = False) -> Any:
    """Two blocks, two heads; a token stands for 4x4 pixels, and no image is resized."""
    torch.manual_seed(0)
    family = JoyImageEditPlusTransformer3DModel if plus else JoyImageEditTransformer3DModel
    transformer = family(
        in_channels=4,
        hidden_size=WIDTH,
        num_attention_heads=2,
        text_dim=WIDTH,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    )
    for name, table in transformer.named_parameters():
        if name.endswith("modulate_table"):  # zero in a new model, whose blocks then add nothing
            torch.nn.init.normal_(table)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        scale_factor_spatial=2, **PLAIN,
    )  # fmt: skip
    kind = JoyPlusOfAnyPrompt if plus else JoyOfAnyPrompt
    pipe = kind(FlowMatchEulerDiscreteScheduler(), vae.eval(), None, None, transformer.eval(), None)
    processor = pipe.image_processor if plus else pipe.vae_image_processor
    processor.get_default_height_width = lambda image, height=None, width=None: (
        height or image.size[1],
        width or image.size[0],
    )
    return _quiet(pipe)


# --------------------------------------------------------------------------------------------- GLM-Image


def glm_image() -> Any:
    """Two blocks, two heads; a token stands for 4x4 pixels."""
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=WIDTH,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4,) * 2,
        norm_num_groups=1,
        **PLAIN,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return _quiet(GlmImagePipeline(None, None, None, None, vae.eval(), transformer.eval(), scheduler))


# ----------------------------------------------------------------------------------------------- OmniGen


class Tokenizer:
    """A token at the start, and one for each word."""

    model_max_length = 1000

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[1, *(5 + len(word) for word in text.split())])


def _transforms() -> Any:
    """What OmniGen's processor uses of torchvision, for where it is not installed."""

    def compose(parts: Any) -> Any:
        def run(image: Any) -> Any:
            for part in parts:
                image = part(image)
            return image

        return run

    return SimpleNamespace(
        Compose=compose,
        Lambda=lambda function: function,
        ToTensor=lambda: lambda image: torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).float(),
        Normalize=lambda mean, std, inplace: lambda image: (image - 0.5) / 0.5,
    )


def omnigen() -> Any:
    """Two layers, two heads; a token stands for 16x16 pixels."""
    torch.manual_seed(0)
    if not hasattr(processor_omnigen, "transforms"):
        processor_omnigen.transforms = _transforms()
        pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    transformer = OmniGenTransformer2DModel(
        hidden_size=WIDTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=WIDTH,
        num_layers=2,
        pad_token_id=0,
        vocab_size=64,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=8,
        time_step_dim=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    return _quiet(OmniGenPipeline(transformer.eval(), scheduler, vae.eval(), Tokenizer()))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
