"""FLUX with references in its sequence: DreamO's calls on diffusers' blocks, and UNO's own blocks."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from tests.pipeline import joint_models
from tests.standins.restoration import Output

WIDTH, HEADS, CHANNELS = 16, 2, 4


def ids(rows: int, columns: int, down: int = 0, right: int = 0) -> torch.Tensor:
    found = torch.zeros(rows, columns, 3)
    found[..., 1] = torch.arange(rows)[:, None] + down
    found[..., 2] = torch.arange(columns) + right
    return found.flatten(0, 1)


def beside(grids: Any) -> list[torch.Tensor]:
    """Each picture below and to the right of those before."""
    down = right = 0
    found = []
    for rows, columns in grids:
        found.append(ids(rows, columns, down, right))
        down, right = down + rows, right + columns
    return found


class DreamOPipeline:
    """Generated and reference tokens in one input."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer, self.scheduler = (
            joint_models._flux_transformer(),
            FlowMatchEulerDiscreteScheduler(),
        )

    @torch.no_grad()
    def __call__(self, text: torch.Tensor, pictures: list[torch.Tensor], grids: Any, steps: int) -> Output:
        latents, places = pictures[0], torch.cat(beside(grids)).expand(len(text), -1, -1)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            noise = self.transformer(
                hidden_states=torch.cat([latents, *pictures[1:]], 1),
                timestep=t.expand(len(latents)) / 1000, pooled_projections=text[:, 0],
                encoder_hidden_states=text, txt_ids=torch.zeros(text.shape[1], 3), img_ids=places[0],
                return_dict=False,
            )[0]  # fmt: skip
            latents = self.scheduler.step(noise[:, : latents.shape[1]], t, latents, return_dict=False)[0]
        return Output(list(latents[..., :3].unflatten(1, grids[0]).sigmoid().numpy()))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DoubleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_norm1, self.txt_norm1 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.img_attn, self.txt_attn = Attention(), Attention()

    def forward(self, img: torch.Tensor, txt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = self.img_attn.heads(self.img_norm1(img))
        words = self.txt_attn.heads(self.txt_norm1(txt))
        mixed = attend(*(torch.cat(pair, 2) for pair in zip(words, own, strict=True)))
        split = txt.shape[1]
        return img + self.img_attn.proj(mixed[:, split:]), txt + self.txt_attn.proj(mixed[:, :split])


class SingleBlock(nn.Module):
    """Its last projection takes the mixed values and an MLP's at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pre_norm, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.linear2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.pre_norm(x)
        return x + self.linear2(torch.cat([attend(*self.attn.heads(normed)), normed.relu()], 2))


class Flux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.place = nn.Linear(CHANNELS, WIDTH), nn.Linear(3, WIDTH)
        self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(2))
        self.final_layer = nn.Linear(WIDTH, CHANNELS)

    def forward(
        self, img, img_ids, txt, txt_ids, timesteps, y, guidance=None, ref_img=None, ref_img_ids=None
    ):  # type: ignore[no-untyped-def]
        count = img.shape[1]
        pictures, places = [img, *(ref_img or ())], [img_ids, *(ref_img_ids or ())]
        img = torch.cat([self.img_in(x) + self.place(p) for x, p in zip(pictures, places, strict=True)], 1)
        img = img * (1 + timesteps[:, None, None])
        for block in self.double_blocks:
            img, txt = block(img, txt)
        img = torch.cat([txt, img], 1)
        for block in self.single_blocks:
            img = block(img)
        return self.final_layer(img[:, txt.shape[1] :][:, :count])


class UNOPipeline:
    """References beside the generated tokens in arguments of their own; the schedule is the sampler's."""

    scheduler = None

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Flux().eval()
        self.config = SimpleNamespace()

    @torch.no_grad()
    def __call__(self, text: torch.Tensor, pictures: list[torch.Tensor], grids: Any, steps: int) -> Output:
        latents, times = pictures[0], torch.linspace(1, 0, steps + 1).tolist()
        own, *others = (each.expand(len(text), -1, -1) for each in beside(grids))
        for now, then in pairwise(times):
            noise = self.model(
                img=latents, img_ids=own, ref_img=tuple(pictures[1:]), ref_img_ids=others, txt=text,
                txt_ids=None, y=None, timesteps=torch.full((len(text),), now),
            )  # fmt: skip
            latents = latents + (then - now) * noise
        return Output(list(latents[..., :3].unflatten(1, grids[0]).sigmoid().numpy()))
