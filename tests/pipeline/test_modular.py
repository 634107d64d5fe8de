"""Modular pipelines of diffusers: captured by the adapters of their families."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from i2am.pipeline.capture import capture
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models
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


CASES = {
    "flux-kontext": (kontext, "flux-kontext", [(8, 16)], 1),
    "flux2": (lambda: flux2("Flux2AutoBlocks", diffusers.Flux2Pipeline), "flux2", [(8, 8), (8, 12)], 1),
    "klein": (
        lambda: flux2("Flux2KleinAutoBlocks", diffusers.Flux2KleinPipeline), "flux2", [(8, 8), (8, 12)], 1,
    ),
    "klein base": (
        lambda: flux2("Flux2KleinBaseAutoBlocks", diffusers.Flux2KleinPipeline, True),
        "flux2", [(8, 8), (8, 12)], 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_modular_pipeline_is_captured_as_its_family(case, tmp_path, monkeypatch):
    make, adapter, references, calls = CASES[case]
    name, parts, given = make()
    blocks = getattr(diffusers, name)()
    blocks.sub_blocks.pop("text_encoder")
    pipe = blocks.init_pipeline()
    pipe.update_components(vae=parts.vae, transformer=parts.transformer, scheduler=parts.scheduler)

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
    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["adapter"] == adapter
    assert [round(t) for t in run.timesteps] == [1000, 667, 333]
    assert len(run.layers) == len(seen) * len(references)
    for layer, forwards in seen.items():
        start = TEXT + 8 * 12
        assert len(forwards) == STEPS * calls
        for number, grid in enumerate(references):
            spec = run.layers[f"transformer.{layer}" + f"@reference-{number}" * (number > 0)]
            assert (spec.gen_grid, spec.ref_grid) == ((8, 12), grid)
            own = [f[0].logits[..., TEXT : TEXT + 96, start : start + spec.ref] for f in forwards[::calls]]
            scores = run.scores(spec.name).compute()[0]
            np.testing.assert_allclose(
                scores, torch.cat(own), rtol=1e-5, atol=1e-5 * float(own[0].abs().max())
            )
            start += spec.ref
            agreed = run.record("s")["witness"][spec.name]
            assert (agreed["steps"], agreed["unwitnessed_steps"]) == (STEPS, 0)
            assert spec.value_norm
            assert spec.contribution
