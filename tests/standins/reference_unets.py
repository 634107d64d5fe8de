"""The structure of IDM-VTON, Leffa, OOTDiffusion and MimicBrush: a second UNet whose features join attn1."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from torch import nn

from tests.standins.restoration import Output, Resnet

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """Self-attention to its own tokens and to those that join it, before the norm or after it."""

    before_norm = False

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn1 = Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS)
        self.ff = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: torch.Tensor, joining: torch.Tensor | None = None) -> Any:
        count, kept = hidden_states.shape[1], hidden_states
        if joining is not None and self.before_norm:
            hidden_states = torch.cat([hidden_states, joining], 1)
        normed = self.norm1(hidden_states)
        if joining is not None and not self.before_norm:
            mixed = self.attn1(torch.cat([normed, joining], 1))[:, :count] + hidden_states
        else:
            mixed = (self.attn1(normed) + hidden_states)[:, :count]
        mixed = self.ff(self.norm3(mixed)) + mixed
        return mixed, kept if self.before_norm else normed


class BlockBefore(Block):
    before_norm = True


class BankBlock(Block):
    """Two calls, with the bank and without it, half of each; unconditional rows look at themselves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bank: list[torch.Tensor] = []
        self.reads = False

    def forward(self, hidden_states: torch.Tensor, joining: torch.Tensor | None = None) -> Any:
        normed = self.norm1(hidden_states)
        alone = self.attn1(normed, encoder_hidden_states=normed)
        if self.reads:
            joined = torch.cat([normed, *self.bank], 1)
            both = self.attn1(joined, encoder_hidden_states=joined)[:, : hidden_states.shape[1]]
            mixed, half = both * 0.5 + alone * 0.5 + hidden_states, len(normed) // 2
            own = self.attn1(normed[:half], encoder_hidden_states=normed[:half]) + hidden_states[:half]
            hidden_states = torch.cat([own, mixed[half:]])
        else:
            self.bank.append(normed.clone())
            hidden_states = alone + hidden_states
        return self.ff(self.norm3(hidden_states)) + hidden_states, normed


class Transformer(nn.Module):
    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([block()])

    def forward(
        self, x: torch.Tensor, joining: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        size, tokens, made = x.shape[2:], x.flatten(2).transpose(1, 2), []
        for block in self.transformer_blocks:
            tokens, feature = block(tokens, joining.pop(0) if joining else None)
            made.append(feature)
        return tokens.transpose(1, 2).unflatten(2, size), made


class Level(nn.Module):
    def __init__(self, channels: int, block: type[Block]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, WIDTH)])
        self.attentions = nn.ModuleList([Transformer(block)])

    def forward(self, x: torch.Tensor, t: Any, joining: list[torch.Tensor]) -> Any:
        return self.attentions[0](self.resnets[0](x, t), joining)


class UNet(nn.Module):
    """Two resolutions; the modules are in diffusers' order, in which the middle comes last."""

    def __init__(self, channels: int, block: type[Block] = Block) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([Level(channels, block), Level(WIDTH, block)])
        self.up_blocks = nn.ModuleList([Level(2 * WIDTH, block), Level(2 * WIDTH, block)])
        self.mid_block = Level(WIDTH, block)
        self.conv_out = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def run(self, x: torch.Tensor, t: Any, joining: Any = ()) -> tuple[torch.Tensor, list[torch.Tensor]]:
        joining, skips, features = list(joining), [], []
        for number, level in enumerate(self.down_blocks):
            x, made = level(F.interpolate(x, scale_factor=0.5) if number else x, t, joining)
            skips.append(x)
            features += made
        x, made = self.mid_block(x, t, joining)
        features += made
        for level in self.up_blocks:
            skip = skips.pop()
            x, made = level(torch.cat([F.interpolate(x, skip.shape[2:]), skip], 1), t, joining)
            features += made
        return self.conv_out(x), features


class Encoder(UNet):
    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True):  # type: ignore[no-untyped-def]
        return self.run(sample, timestep)


class GarmentUNet(UNet):
    def forward(self, sample, timestep, encoder_hidden_states=None, garment_features=None):  # type: ignore[no-untyped-def]
        return self.run(sample, timestep, garment_features)[:1]


class ReferenceFeaturesUNet(UNet):
    def forward(self, sample, timestep, encoder_hidden_states=None, reference_features=None):  # type: ignore[no-untyped-def]
        return self.run(sample, timestep, reference_features)[:1]


class SpatialUNet(UNet):
    def forward(self, sample, spatial_attn_inputs, timestep, encoder_hidden_states=None):  # type: ignore[no-untyped-def]
        return self.run(sample, timestep, spatial_attn_inputs)[:1]


class BankUNet(UNet):
    """Its middle and its way up read banks, once they have been told to."""

    def forward(self, sample, timestep, encoder_hidden_states=None):  # type: ignore[no-untyped-def]
        return self.run(sample, timestep)[:1]

    def banks(self) -> list[BankBlock]:
        found = [m for part in (self.mid_block, self.up_blocks) for m in part.modules()]
        return [block for block in found if isinstance(block, BankBlock)]


class _Pipeline:
    """What the four share: latents of a person and a reference, and guidance in one batch."""

    scheduler: Any

    def loop(
        self, person: torch.Tensor, steps: int, guidance: float, generator: Any, scheduler: Any
    ) -> Output:
        latents = torch.randn(person.shape, generator=generator)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            rows = torch.cat([latents] * (2 if guidance > 1 else 1))
            noise = self.noise(torch.cat([rows, person.repeat(len(rows) // len(person), 1, 1, 1)], 1), t)
            if guidance > 1:
                uncond, cond = self.halves(noise)
                noise = uncond + guidance * (cond - uncond)
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
        return Output(list(latents.sigmoid().movedim(1, -1).numpy()))

    def noise(self, rows: torch.Tensor, t: Any) -> torch.Tensor:
        raise NotImplementedError

    def halves(self, noise: torch.Tensor) -> Any:
        return noise.chunk(2)


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False)


class IDMVTON(_Pipeline):
    """The garment's UNet is called at each step; zeros stand for its features in unconditional rows."""

    def __init__(self) -> None:
        self.scheduler, self.unet, self.unet_encoder = _ddim(), GarmentUNet(6).eval(), Encoder(3).eval()
        self.do_classifier_free_guidance = False

    @torch.no_grad()
    def __call__(self, person, reference, num_inference_steps, guidance_scale, generator):  # type: ignore[no-untyped-def]
        self.do_classifier_free_guidance, self.cloth = guidance_scale > 1, reference
        return self.loop(person, num_inference_steps, guidance_scale, generator, self.scheduler)

    def noise(self, rows: torch.Tensor, t: Any) -> torch.Tensor:
        features = self.unet_encoder(self.cloth, t, None, return_dict=False)[1]
        if self.do_classifier_free_guidance:
            features = [torch.cat([torch.zeros_like(each), each]) for each in features]
        return self.unet(rows, t, encoder_hidden_states=None, garment_features=features)[0]


class Leffa(_Pipeline):
    """Guidance goes through the reference's UNet too, which one call may serve for all steps."""

    def __init__(self) -> None:
        self.noise_scheduler = _ddim()
        self.unet, self.unet_encoder = ReferenceFeaturesUNet(6).eval(), Encoder(3).eval()

    @torch.no_grad()
    def __call__(  # type: ignore[no-untyped-def]
        self, person, reference, num_inference_steps, guidance_scale, generator, ref_acceleration=False
    ):
        self.reference = reference
        if guidance_scale > 1:
            self.reference = torch.cat([torch.zeros_like(reference), reference])
        self.noise_scheduler.set_timesteps(num_inference_steps)
        middle = self.noise_scheduler.timesteps[num_inference_steps // 2]
        self.features = self.unet_encoder(self.reference, middle)[1] if ref_acceleration else None
        return self.loop(person, num_inference_steps, guidance_scale, generator, self.noise_scheduler)

    def noise(self, rows: torch.Tensor, t: Any) -> torch.Tensor:
        features = self.features or self.unet_encoder(self.reference, t)[1]
        return self.unet(rows, t, encoder_hidden_states=None, reference_features=features)[0]


class OOTDiffusion(_Pipeline):
    """The garment's UNet is called once, at timestep 0; conditional rows come first."""

    def __init__(self) -> None:
        self.scheduler = _ddim()
        self.unet_vton, self.unet_garm = SpatialUNet(6, BlockBefore).eval(), Encoder(3, BlockBefore).eval()

    @torch.no_grad()
    def __call__(self, person, reference, num_inference_steps, guidance_scale, generator):  # type: ignore[no-untyped-def]
        if guidance_scale > 1:
            reference = torch.cat([reference, torch.zeros_like(reference)])
        self.features = self.unet_garm(reference, 0)[1]
        return self.loop(person, num_inference_steps, guidance_scale, generator, self.scheduler)

    def noise(self, rows: torch.Tensor, t: Any) -> torch.Tensor:
        return self.unet_vton(rows, list(self.features), t, encoder_hidden_states=None)[0]

    def halves(self, noise: torch.Tensor) -> Any:
        return reversed(noise.chunk(2))


class _Inner(_Pipeline):
    def __init__(self) -> None:
        self.scheduler, self.unet = _ddim(), BankUNet(6, BankBlock).eval()

    @torch.no_grad()
    def __call__(self, referencenet, person, reference, num_inference_steps, guidance_scale, generator):  # type: ignore[no-untyped-def]
        self.referencenet, self.reference = referencenet, reference.repeat(2, 1, 1, 1)
        for block in self.unet.banks():
            block.reads = True
        return self.loop(person, num_inference_steps, guidance_scale, generator, self.scheduler)

    def noise(self, rows: torch.Tensor, t: Any) -> torch.Tensor:
        reading, writing = self.unet.banks(), self.referencenet.banks()
        for block in (*reading, *writing):
            block.bank.clear()
        self.referencenet(self.reference, t)
        for reader, writer in zip(reading, writing, strict=True):
            reader.bank = list(writer.bank)
        return self.unet(rows, t)[0]


class MimicBrush:
    """An object that holds the pipeline and the reference's UNet."""

    def __init__(self) -> None:
        self.pipe, self.referencenet = _Inner(), BankUNet(3, BankBlock).eval()

    def __call__(self, **arguments: Any) -> Output:
        return self.pipe(self.referencenet, **arguments)
