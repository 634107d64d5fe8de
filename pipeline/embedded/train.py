"""Train the embedded model: ``python -m i2am.pipeline.embedded.train --out DIR``.

Uses the GPU where there is one, else the CPU. It can be stopped at any moment and run again with the same
``--out``: it goes on from the last checkpoint. Scenes are drawn on the fly, every one once.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from i2am.pipeline.embedded.architecture import build_painter
from i2am.pipeline.embedded.painter import ReferencePainter, condition_planes
from i2am.pipeline.embedded.reading import TRUTH, Reader, reading_truth
from i2am.pipeline.embedded.scenes import make_scene
from i2am.pipeline.interventions.attention_loss import Kind, attention_loss

FIRST_TRAINING_SEED = 1_000_000
"""Seeds below are held out: evaluation and the demo never meet a training scene."""

OUTSIDE_WEIGHT = 0.05
"""Weight of the loss outside the mask, where the pipeline keeps the scene's own pixels."""

LEAST_NOISE = 0.5
"""Variance of the noise below which the loss grows no further."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training does; the defaults are those of the shipped model."""

    steps: int = 12000  # in all
    reading_steps: int = 2500  # of them, at the beginning: the encoder alone learns to read
    batch_size: int = 8
    peak: float = 1e-3  # highest learning rate
    seed: int = 0  # of weights and noise
    widths: tuple[int, int, int] = (32, 64, 128)
    attention: Kind | None = None  # a loss over attention inside the mask, added with `attention_weight`
    attention_weight: float = 0.0
    reading_weight: float = 0.1  # of the loss of `Reader`


class SceneStream(IterableDataset[Batch]):
    """Batches of training scenes [batch, c, y, x]: target, reference in [-1, 1], hole in {0, 1}; the truth.

    ``first`` is the index of the first batch: a resumed training does not see its scenes again.
    """

    def __init__(self, batch_size: int, first: int) -> None:
        self.batch_size, self.first = batch_size, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.first + offset
        while True:
            start = FIRST_TRAINING_SEED + index * self.batch_size
            scenes = [make_scene(seed) for seed in range(start, start + self.batch_size)]
            yield {
                "target": _floats(np.stack([s.target for s in scenes])),
                "reference": _floats(np.stack([s.reference for s in scenes])),
                "hole": torch.from_numpy(np.stack([s.mask for s in scenes]))[:, None].float(),
                **reading_truth(scenes),
            }
            index += stride


def _floats(images: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class Denoiser(nn.Module):
    """The trained modules of a pipeline, and their loss.

    A share ``drop`` of the references is replaced by zeros, for classifier-free guidance.
    """

    def __init__(self, pipe: ReferencePainter, reading_weight: float, drop: float = 0.1) -> None:
        super().__init__()
        self.unet, self.encoder = pipe.unet, pipe.reference_encoder
        self.reader = Reader(self.encoder.config.token_dim)
        self.fold, self.drop, self.reading_weight = pipe.fold, drop, reading_weight
        self.parts: dict[str, float] = {}  # running means of the two losses
        self.alphas: torch.Tensor
        self.register_buffer("alphas", pipe.scheduler.alphas_cumprod.clone())

    def forward(
        self, target: torch.Tensor, reference: torch.Tensor, hole: torch.Tensor, **truth: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of v, masked pixels counting 1 and the others :data:`OUTSIDE_WEIGHT`.

        ``reading_weight`` of the reader's loss is added.
        """
        tokens = self.encoder(reference)
        reading = self._noted("reading", self.reader(tokens, **truth))
        painting = self._noted("painting", self._paint(tokens, target, hole))
        loss: torch.Tensor = painting + self.reading_weight * reading
        return loss

    def read(self, reference: torch.Tensor, truth: Batch) -> torch.Tensor:
        """The reader's loss alone."""
        return self._noted("reading", self.reader(self.encoder(reference), **truth))

    def _paint(self, tokens: torch.Tensor, target: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        count = len(target)
        # Noisy steps more often than clean ones: there the object is decided, by the reference alone.
        draw = torch.rand(count, device=target.device) ** 0.4
        timestep = (draw * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * torch.randn_like(target)
        keep = (torch.rand(count, 1, 1, device=target.device) >= self.drop).float()
        tokens = tokens * keep
        parts = [F.pixel_unshuffle(noisy, self.fold), condition_planes(target, hole, self.fold)]
        planes = torch.cat(parts, 1).to(memory_format=torch.channels_last)
        predicted = F.pixel_shuffle(
            self.unet(planes, timestep, encoder_hidden_states=tokens).sample, self.fold
        )
        weight = hole + OUTSIDE_WEIGHT * (1 - hole)
        to_velocity = 1 / (1 - alpha).clamp(min=LEAST_NOISE)  # v's error is the sample's over the noise
        loss: torch.Tensor = ((predicted - target) ** 2 * weight * to_velocity).sum() / (3 * weight.sum())
        return loss

    @torch.no_grad()
    def _noted(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        value = loss.item()
        self.parts[name] = 0.98 * self.parts.get(name, value) + 0.02 * value
        return loss


class Training:
    """The state of a training: model, its running average, optimiser, step; saved and restored whole.

    The learning rate rises to its peak over 200 steps, and falls to zero over the last 30% of all.
    """

    def __init__(self, out: Path, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.out, self.recipe, self.device, self.step = out, recipe, device, 0
        self.pipe = build_painter(recipe.widths)
        self.model = Denoiser(self.pipe, recipe.reading_weight)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.peak, betas=(0.9, 0.99), weight_decay=0.01
        )
        if self._checkpoint.exists():
            state = torch.load(self._checkpoint, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = int(state["step"])
            torch.manual_seed(self.step + (recipe.seed << 32))

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def learn(self, batch: Batch) -> float:
        """One optimiser step; the batch's loss."""
        steps = self.recipe.steps
        rate = min((self.step + 1) / 200, 1.0, max((steps - self.step) / (0.3 * steps), 0.0))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.peak * rate
        loss = self._loss({name: x.to(self.device) for name, x in batch.items()})
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.item()

    def _loss(self, batch: Batch) -> torch.Tensor:
        if self.step < self.recipe.reading_steps:
            truth = {name: batch[name] for name in TRUTH}
            read: torch.Tensor = self.model.read(batch["reference"], truth)
            return read
        kind, weight = self.recipe.attention, self.recipe.attention_weight
        if kind is None:
            found: torch.Tensor = self.model(**batch)
            return found
        with attention_loss(self.pipe, kind, mask=batch["hole"]) as attention:
            painted: torch.Tensor = self.model(**batch)
            return painted + weight * attention.take()

    def save(self) -> None:
        """Write the checkpoint atomically: a kill leaves the last one or this one, never half of one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        scratch = self._checkpoint.with_suffix(".tmp")
        torch.save(state, scratch)
        os.replace(scratch, self._checkpoint)

    def export(self, folder: Path) -> None:
        """Save the averaged model as a pipeline in float16 safetensors."""
        pipe = build_painter(self.recipe.widths)
        pipe.unet.load_state_dict(self.average.unet.state_dict())
        pipe.reference_encoder.load_state_dict(self.average.encoder.state_dict())
        pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


def train(out: Path, recipe: Recipe, workers: int | None = None, until: int | None = None) -> Path:
    """Train, or go on training, to step ``until`` (None: the recipe's last); return the weights' folder.

    The folder is ``out/model``, or ``out/model-STEP`` for an earlier step. ``workers`` is the number of
    processes that draw scenes; None is 8 with a GPU, else none.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(out, recipe, device)
    steps = recipe.steps if until is None else min(until, recipe.steps)
    workers = workers if workers is not None else (8 if device.type == "cuda" else 0)
    batches = iter(
        DataLoader(SceneStream(recipe.batch_size, training.step), batch_size=None, num_workers=workers)
    )
    loss_column = TextColumn("loss {task.fields[loss]:.4f}")
    smooth, saved = float("nan"), time.monotonic()
    with (
        Progress(loss_column, *Progress.get_default_columns()[1:]) as progress,
        (out / "log.jsonl").open("a") as log,
    ):
        bar = progress.add_task("train", total=steps, completed=training.step, loss=smooth)
        while training.step < steps:
            loss = training.learn(next(batches))
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            progress.update(bar, completed=training.step, loss=smooth)
            if training.step % 50 == 0:
                parts = {name: round(value, 5) for name, value in training.model.parts.items()}
                log.write(json.dumps({"step": training.step, "loss": round(smooth, 5), **parts}) + "\n")
                log.flush()
            if time.monotonic() - saved > 120:
                training.save()
                saved = time.monotonic()
    training.save()
    model = out / ("model" if training.step == recipe.steps else f"model-{training.step}")
    training.export(model)
    facts = {**asdict(recipe), "step": training.step, "device": device.type}
    losses = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (model / "training.json").write_text(json.dumps({**facts, "losses": losses[9::10]}, indent=1) + "\n")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model; run again to go on.")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint, log and weights")
    for name, words in (
        ("steps", "optimiser steps in all"),
        ("reading_steps", "of them, at the beginning: the encoder alone learns to read"),
        ("batch_size", "scenes in a step"),
        ("peak", "highest learning rate"),
    ):
        default = getattr(Recipe(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=words)
    parser.add_argument(
        "--workers", type=int, help="processes that draw scenes; default 8 with a GPU, else 0"
    )
    options = vars(parser.parse_args())
    train(options.pop("out"), workers=options.pop("workers"), recipe=Recipe(**options))


if __name__ == "__main__":
    main()
