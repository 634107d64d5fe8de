"""Modular pipelines of diffusers: captured by the adapters of their families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.qwenimage import encoders as qwenimage

from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.storage.reading.open import open_run
from tests.pipeline import edit_models, joint_models, models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.test_joint import ATTENTION, STEPS, TEXT, embeddings

pytestmark = pytest.mark.filterwarnings("ignore")  # what diffusers says of its own


def kontext():
    text = embeddings(1, 1)
    return "FluxKontextAutoBlocks", joint_models.flux_kontext(), {
        **text, "image": models.picture(5, 24, 32), "height": 16, "width": 24, "max_area": 16 * 24,
        "_auto_resize": False,
    }  # fmt: skip


def flux2(blocks, family, guidance=False):
    text, without = (embeddings(1, seed)["prompt_embeds"] for seed in (1, 2))
    ids = torch.zeros(1, TEXT, 4)
    given = {
        "prompt_embeds": text, "txt_ids": ids, "height": 64, "width": 96,
        "image": [models.picture(5, 64, 64), models.picture(6, 64, 96)],
    }  # fmt: skip
    if guidance:
        given |= {"negative_prompt_embeds": without, "negative_txt_ids": ids}
    return blocks, joint_models.flux2(family), given


def qwen21():
    slots = torch.tensor([False] * 3 + [True] * 4 + [False] * 4)[None]  # of words and of a picture
    draw = torch.Generator().manual_seed(5)
    words = torch.randn(2, 1, slots.shape[1], joint_models.WIDTH, generator=draw)
    mask = torch.ones(slots.shape, dtype=torch.long)
    return "QwenImage21AutoBlocks", edit_models.qwen21(), {
        "prompt_embeds": words[0], "prompt_embeds_mask": mask, "image_pad_mask": slots,
        "negative_prompt_embeds": words[1], "negative_prompt_embeds_mask": mask,
        "negative_image_pad_mask": slots, "image": models.picture(5, 64, 64), "output_resolution": 64,
        "height": 64, "width": 96, "use_kv_cache": True,
    }  # fmt: skip


def qwen_edit(blocks, parts, several):
    text, picture = embeddings(1, 1, mask=True), models.picture(5, 48, 32)
    given = {**text, **{f"negative_{name}": each for name, each in embeddings(1, 2, mask=True).items()}}
    return blocks, parts, {
        **given, "image": [picture] if several else picture, "height": 16, "width": 32
    }  # fmt: skip


@dataclass
class Case:
    """A pipeline, and where tokens stand in the calls of its attention."""

    make: Any
    adapter: str
    references: list[tuple[int, int]]
    calls: int = 1  # of a step
    gen: tuple[int, int] = (8, 12)
    queries: int = 0  # 0: as many as keys
    first: int = TEXT  # of the generated queries
    references_at: int = TEXT + 96
    keys: int = 0  # 0: nothing follows the references


PICTURES = [(8, 8), (8, 12)]
CASES = {
    "flux-kontext": Case(kontext, "flux-kontext", [(8, 16)]),
    "flux2": Case(lambda: flux2("Flux2AutoBlocks", diffusers.Flux2Pipeline), "flux2", PICTURES),
    "klein": Case(lambda: flux2("Flux2KleinAutoBlocks", diffusers.Flux2KleinPipeline), "flux2", PICTURES),
    "klein base": Case(
        lambda: flux2("Flux2KleinBaseAutoBlocks", diffusers.Flux2KleinPipeline, True), "flux2", PICTURES, 2
    ),
    "qwen edit": Case(
        lambda: qwen_edit("QwenImageEditAutoBlocks", joint_models.qwen_edit(), False),
        "qwen-image-edit", [(12, 8)], 2, (4, 8), references_at=TEXT + 32,
    ),
    "qwen edit plus": Case(
        lambda: qwen_edit("QwenImageEditPlusAutoBlocks", joint_models.qwen_edit_plus(), True),
        "qwen-image-edit", [(12, 8)], 2, (4, 8), references_at=TEXT + 32,
    ),
    "qwen 2.1": Case(qwen21, "qwen-image-2.1", [(4, 4)], 2, (4, 6), 24, 0, 3, 47),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_modular_pipeline_is_captured_as_its_family(case, tmp_path, monkeypatch):
    # References of 48x32 pixels instead of a megapixel.
    monkeypatch.setattr(qwenimage, "calculate_dimensions", lambda area, ratio: (32, 48, None))
    case = CASES[case]
    name, parts, given = case.make()
    blocks = getattr(diffusers, name)()
    blocks.sub_blocks.pop("text_encoder")
    pipe = blocks.init_pipeline()
    pipe.update_components(vae=parts.vae, transformer=parts.transformer, scheduler=parts.scheduler)
    if case.calls == 2:
        pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0))

    def generate():
        generator = torch.Generator().manual_seed(0)
        return pipe(
            **given, num_inference_steps=STEPS, generator=generator, output_type="np", output="images"
        )

    with capture(pipe, tmp_path / "r.zarr", samples=["s"]) as cap, cap.sample("s") as sample:
        images = generate()
        sample.generated = images[0]
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        np.testing.assert_array_equal(images, generate())
    if case.calls == 2:  # the guider labels its calls in words of its own
        with ablation(pipe, np.ones((1, *case.references[0]), bool), "mask"):
            assert (generate() != images).any()
    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["adapter"] == case.adapter
    assert [round(t) for t in run.timesteps] == [1000, 667, 333]
    assert len(run.layers) == len(seen) * len(case.references)
    rows = slice(case.first, case.first + case.gen[0] * case.gen[1])
    for layer, forwards in seen.items():
        assert len(forwards) == STEPS * case.calls
        start = case.references_at
        keys = case.keys or start + sum(rows * columns for rows, columns in case.references)
        size = (case.queries or keys, keys)
        for number, grid in enumerate(case.references):
            spec = run.layers[f"transformer.{layer}" + f"@reference-{number}" * (number > 0)]
            assert (spec.gen_grid, spec.ref_grid) == (case.gen, grid)
            whole = [c.logits for f in forwards[:: case.calls] for c in f if c.logits.shape[-2:] == size]
            own = torch.cat([logits[..., rows, start : start + spec.ref] for logits in whole]).numpy()
            scores = run.scores(spec.name).compute()[0]
            np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
            start += spec.ref
            agreed = run.record("s")["witness"][spec.name]
            assert (agreed["steps"], agreed["unwitnessed_steps"]) == (STEPS, 0)
            assert spec.value_norm
            assert spec.contribution
