"""References that are a side of the model's picture: CatVTON's canvas, FLUX Fill, VisualCloze."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, VisualClozeGenerationPipeline

from i2am.pipeline.adapters.region import Region
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.storage.errors import CaptureError, InputError, ShapeMismatch
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.norm_oracle import joint_norms, watch_joint
from tests.standins.catvton import CatVTONPipeline

STEPS, TEXT = 2, 7


def dress(pipe, count=1, guidance=2.0, person=(8, 6), garment=None, mask=1.0, **more):
    draw = torch.Generator().manual_seed(1)
    latents = [torch.randn(count, 4, *size, generator=draw) for size in (person, garment or person)]
    painted = torch.full((count, 1, *person), mask)
    return pipe(*latents, painted, STEPS, guidance, draw, **more).images


def record(generate, pipe, path, count=1, images=None, **options):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, ids, **options) as cap, cap.samples(ids, images=images) as handles:
        out = generate()
        for handle, image in zip(handles, out, strict=True):
            handle.generated = image
    return np.stack([np.asarray(each) for each in out]), open_run(path)


def halves(grid, side, share=0.5):
    """Places of the generated and of the reference's tokens, row by row, and their grids."""
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    axis = 0 if side in ("top", "bottom") else 1
    size = round(grid[axis] * share)
    first = np.split(places, [size if side in ("left", "top") else grid[axis] - size], axis)
    generated, reference = reversed(first) if side in ("left", "top") else first
    return generated, reference


def check(run, layer, seen, generated, reference, rows, start=0):
    """Stored scores and log-sum-exp of one layer are those of the kernel's own logits."""
    spec = run.layers[layer]
    assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == (generated.shape, reference.shape, 0)
    gen, ref = generated.ravel() + start, reference.ravel() + start
    assert len(seen) == STEPS
    logits = np.stack([calls[0].logits[rows].numpy() for calls in seen], 1)[..., gen, :]
    np.testing.assert_allclose(run.scores(layer).compute(), logits[..., ref], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.lse(layer), np.logaddexp.reduce(logits, -1), rtol=1e-5, atol=1e-5)
    for sample in run.samples:
        agreement = run.record(sample)["witness"][layer]
        assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)


CANVASES = {  # CatVTON's own, and those of users: axis, garment first, its size, region
    "catvton": (-2, False, (8, 6), None),
    "right": (-1, False, (8, 6), "right"),
    "top": (-2, True, (4, 6), {"top": 1 / 3}),
    "left": (-1, True, (8, 10), {"left": 0.625}),
}


@pytest.mark.parametrize(
    ("canvas", "count", "guidance"),
    [("catvton", 1, 1.0), ("catvton", 3, 2.0), ("right", 1, 1.0), ("top", 1, 2.0), ("left", 2, 1.0)],
)
def test_sides_of_a_unets_canvas(tmp_path, monkeypatch, canvas, count, guidance):
    axis, first, garment, region = CANVASES[canvas]
    pipe = CatVTONPipeline(axis, first)
    adapter = None if region is None else "unet-canvas"
    roles = ("uncond", "cond") if guidance > 1 else ("cond",)

    def generate():
        return dress(pipe, count, guidance, garment=garment)

    plain = np.stack(generate())
    options = {"adapter": adapter, "reference_region": region, "roles": roles}
    images, run = record(generate, pipe, tmp_path / "r.zarr", count, **options)
    np.testing.assert_array_equal(images, plain)
    with kernel_witness(pipe.unet, r".*attn1", monkeypatch) as seen:
        generate()
    assert run.attrs["adapter"] == adapter or "catvton"
    side, share = next(iter(region.items())) if isinstance(region, dict) else (region or "bottom", 0.5)
    assert run.attrs["reference_region"] == {side: share}
    assert len(run.layers) == len(seen) * len(roles) == 7 * len(roles)
    size = [8, 6]
    size[axis] += garment[axis]
    for name, calls in seen.items():
        level = 1 if "down_blocks.0" in name or "up_blocks.1" in name else 2
        generated, reference = halves([each // level for each in size], side, share)
        for number, role in enumerate(roles):
            layer = f"unet.{name}" + f"@{role}" * (role != "cond")
            check(run, layer, calls, generated, reference, slice(number * count, (number + 1) * count))
            assert run.layers[layer].static_key is False


def test_norms_on_a_canvas(tmp_path):
    pipe = CatVTONPipeline(-1)
    given = []
    block = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    _, run = record(
        lambda: dress(pipe), pipe, tmp_path / "r.zarr", adapter="unet-canvas", reference_region="right"
    )
    hook = block.register_forward_pre_hook(lambda _, args: given.append(args[0].double()))
    dress(pipe)
    hook.remove()
    generated, reference = (part.ravel() for part in halves((8, 12), "right"))
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    for step, stream in enumerate(given):
        normed = torch.nn.functional.layer_norm(
            stream, stream.shape[-1:], block.norm1.weight.double(), block.norm1.bias.double()
        )
        q, k, v = (
            (normed @ getattr(block.attn1, f"to_{name}").weight.double().T)
            .unflatten(-1, (block.attn1.heads, -1))
            .transpose(1, 2)
            for name in "qkv"
        )
        call = type("Block", (), {"attn": block.attn1}), q, k, v, None, stream
        norms, added = joint_norms(call, 1, generated, reference)  # the conditional row
        np.testing.assert_allclose(run.value_norm(layer).compute()[0, step], norms, rtol=1e-4)
        np.testing.assert_allclose(run.contribution(layer).compute()[0, step], added, rtol=1e-3)


def test_a_region_that_is_none_is_refused(tmp_path):
    pipe = CatVTONPipeline()
    with pytest.raises(
        CaptureError, match=r"reference's region; expected a side .* the mask leaves.*'top': 0.5"
    ):
        record(lambda: dress(pipe), pipe, tmp_path / "a.zarr", adapter="catvton", reference_region="top")
    with pytest.raises(
        CaptureError, match=r"attn1'.*between two of its 7 rows; got bottom 0.5.*3.5.*layers="
    ):
        record(lambda: dress(pipe, person=(7, 6)), pipe, tmp_path / "b.zarr")
    fine = ["*down_blocks.0*"]
    _, run = record(lambda: dress(pipe, person=(7, 6)), pipe, tmp_path / "c.zarr", layers=fine)
    assert [spec.ref_grid for spec in run.layers.values()] == [(7, 6)]
    with pytest.raises(CaptureError, match=r"'unet-canvas': the side of the canvas.*reference_region='left'"):
        record(lambda: dress(pipe), pipe, tmp_path / "d.zarr", adapter="unet-canvas")
    with pytest.raises(CaptureError, match=r"'flux-kontext': reference_region; .*'left'.*unet-canvas"):
        capture(
            joint_models.flux_kontext(),
            tmp_path / "e.zarr",
            ["a"],
            adapter="flux-kontext",
            reference_region="left",
        )
    for wrong in (
        "middle",
        {"left": 1.0},
        {"left": 0.3, "top": 0.3},
        {},
        {"left": "0.5"},
        0.5,
        ["left"],
        {"left": True},
    ):
        with pytest.raises(InputError, match=r"reference_region; expected left, right, top, bottom"):
            Region.read(wrong)
    assert find_adapter(pipe).name == "catvton"
    assert find_adapter(pipe, None, "left").name == "catvton"  # and not that of any UNet's canvas


def test_a_run_is_not_continued_with_the_other_side(tmp_path):
    pipe = CatVTONPipeline()
    options = {"adapter": "unet-canvas", "reference_region": "bottom"}
    ids = ["a", "b"]
    with capture(pipe, tmp_path / "r.zarr", ids, **options) as cap, cap.sample("a") as sample:
        sample.generated = dress(pipe)[0]
    options["reference_region"] = "top"
    with (
        pytest.raises(ShapeMismatch, match="reference_region of the run"),
        capture(pipe, tmp_path / "r.zarr", ids, **options),
    ):
        pass


@pytest.mark.parametrize(("side", "share", "size"), [("left", 0.5, (12, 16)), ("bottom", 0.25, (16, 12))])
def test_sides_of_flux_fills_canvas(tmp_path, monkeypatch, side, share, size):
    pipe = FluxFillPipeline(**joint_models.flux_fill_parts())
    pipe.set_progress_bar_config(disable=True)
    tokens = halves((size[0] // 2, size[1] // 2), side, share)
    pixels, kept = halves(size, side, share)
    mask = np.zeros(size, np.uint8)
    mask.flat[pixels.ravel()] = 255
    canvas = models.picture(1, *size)

    def generate():
        draw = torch.Generator().manual_seed(0)
        embeds = torch.randn(1, TEXT, joint_models.WIDTH, generator=draw)
        return pipe(
            image=canvas, mask_image=models.Image.fromarray(mask), prompt_embeds=embeds, output_type="np",
            pooled_prompt_embeds=embeds[:, 0], height=size[0], width=size[1], num_inference_steps=STEPS,
            generator=draw,
        ).images  # fmt: skip

    plain = generate()
    given = {"source": [canvas], "mask": [models.Image.fromarray(mask)]}
    images, run = record(generate, pipe, tmp_path / "r.zarr", images=given, reference_region={side: share})
    np.testing.assert_array_equal(images, plain)
    assert run.attrs["adapter"] == "flux-canvas"
    with kernel_witness(pipe.transformer, r"(single_)?transformer_blocks\.\d+\.attn", monkeypatch) as seen:
        generate()
    with watch_joint(pipe.transformer, monkeypatch) as calls:
        generate()
    assert len(seen) == len(run.layers) == 4
    for name, each in seen.items():
        check(run, f"transformer.{name}", each, *tokens, slice(None), TEXT)
        gen, ref = (part.ravel() + TEXT for part in tokens)
        for step, call in enumerate(calls[name]):
            norms, added = joint_norms(call, 0, gen, ref)
            np.testing.assert_allclose(
                run.value_norm(f"transformer.{name}").compute()[0, step], norms, rtol=1e-5
            )
            np.testing.assert_allclose(
                run.contribution(f"transformer.{name}").compute()[0, step], added, rtol=1e-4
            )
    # The canvas is kept as its two sides, and no mask that paints all of one.
    picture = np.asarray(canvas).reshape(-1, 3)
    np.testing.assert_array_equal(run.image("source", "s0"), picture[pixels])
    np.testing.assert_array_equal(run.image("reference", "s0"), picture[kept])
    whole = (plain[0] * 255).round().astype(np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(run.image("generated", "s0"), whole[pixels])
    assert "mask" not in run.images
    other = {"left": "right", "bottom": "top"}[side]
    with pytest.raises(CaptureError, match="the mask leaves as it is"):
        record(generate, pipe, tmp_path / "o.zarr", reference_region={other: 1 - share})
    gone = np.ones((1, 4, 4), bool)
    family = find_adapter(pipe, None, {side: share})
    with ablation(pipe, gone, "mask", adapter=family):
        assert np.abs(generate() - plain).max() > 0


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_visualcloze_are_references(tmp_path, monkeypatch, rows):
    class OfAnyPrompt(VisualClozeGenerationPipeline):
        def encode_prompt(self, num_images_per_prompt, **arguments):
            text = torch.randn(1, TEXT, joint_models.WIDTH, generator=torch.Generator().manual_seed(3))
            return text, text[:, 0], torch.zeros(TEXT, 3)

    pipe = OfAnyPrompt(**joint_models.flux_fill_parts(), resolution=12)
    pipe.set_progress_bar_config(disable=True)
    shapes = [(12, 12), (16, 9), (8, 18)][:rows]  # of the images of each row
    pictures = [[models.picture(3 * i + j, *shape) for j in range(3)] for i, shape in enumerate(shapes)]
    pictures[-1][1] = None  # the target stands between two conditions

    def generate():
        return pipe(
            task_prompt="a task", content_prompt="a thing", image=pictures, num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    plain = generate()
    images, run = record(generate, pipe, tmp_path / "r.zarr")
    np.testing.assert_array_equal(images, plain)
    assert run.attrs["adapter"] == "visualcloze"
    with kernel_witness(pipe.transformer, r"(single_)?transformer_blocks\.\d+\.attn", monkeypatch) as seen:
        generate()
    sizes = [pipe.image_processor.preprocess_image([row], 1)[1][0] for row in pictures]
    grids = [(row[0][0] // 2, [image[1] // 2 for image in row]) for row in sizes]
    start, parts = TEXT, []
    for number, (height, widths) in enumerate(grids):
        places = np.arange(height * sum(widths)).reshape(height, -1) + start
        start += places.size
        last = number == len(grids) - 1
        parts.append(np.split(places, np.cumsum(widths)[:-1], 1) if last else places)
    before, target, after = parts.pop()
    for name, calls in seen.items():
        for number, reference in enumerate([*parts, before, after]):
            layer = f"transformer.{name}" + f"@reference-{number}" * (number > 0)
            check(run, layer, calls, target, reference, slice(None))
    assert len(run.layers) == 4 * (len(parts) + 2)


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sliced_attention_is_stored_right_or_refused(tmp_path, slices, guidance):
    """The processor makes a call for each slice of rows and heads: one slice is no layer."""
    pipe = CatVTONPipeline()
    heads = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads
    _, whole = record(lambda: dress(pipe, guidance=guidance), pipe, tmp_path / "whole.zarr")
    pipe.unet.set_attention_slice(slices)
    if slices < heads * (2 if guidance > 1 else 1):
        with pytest.raises(CaptureError, match="slicing"):
            record(lambda: dress(pipe, guidance=guidance), pipe, tmp_path / "sliced.zarr")
        return
    _, run = record(lambda: dress(pipe, guidance=guidance), pipe, tmp_path / "sliced.zarr")
    for layer, spec in whole.layers.items():
        assert run.layers[layer].heads == spec.heads
        np.testing.assert_allclose(run.scores(layer), whole.scores(layer), rtol=1e-4, atol=1e-4)
