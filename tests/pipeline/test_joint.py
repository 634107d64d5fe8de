"""Joint attention on diffusers' own FLUX and Qwen-Image: spans, roles, log-sum-exp, kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxKontextPipeline,
    QwenImageEditInpaintPipeline,
)

from i2am.pipeline.capture import capture
from i2am.pipeline.taps.logsumexp import row_logsumexp
from i2am.storage.errors import CaptureError, UnknownName
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import joint_models, models
from tests.pipeline.kernel_spy import kernel_witness

STEPS, TEXT = 3, 7
EVERY = np.ones((1, 1, 1, 1), bool)
ATTENTION = r"(single_)?transformer_blocks\.\d+\.attn"


def embeddings(count, seed, mask=False):
    """Prompt embeddings as the text encoders would give them."""
    generator = torch.Generator().manual_seed(seed)
    found = {"prompt_embeds": torch.randn(count, TEXT, joint_models.WIDTH, generator=generator)}
    if mask:
        keep = torch.ones(count, TEXT, dtype=torch.bool)
        if count > 1:
            keep[1, 4:] = False  # prompts of two lengths, padded
        found["prompt_embeds_mask"] = keep
    else:
        found["pooled_prompt_embeds"] = torch.randn(count, joint_models.WIDTH, generator=generator)
    return found


def edit(pipe, count=1, guidance=2.0, height=16, width=24, **more):
    """Generate with a pipeline of either family."""
    qwen = "Qwen" in type(pipe).__name__
    arguments = embeddings(count, 1, mask=qwen)
    if guidance > 1:
        arguments |= {f"negative_{k}": v for k, v in embeddings(count, 2, mask=qwen).items()}
    if isinstance(pipe, FluxKontextPipeline):
        arguments |= {"max_area": height * width, "_auto_resize": False}
    if not isinstance(pipe, joint_models.Redux):
        arguments |= {"image": [models.picture(5, 24, 32)], "true_cfg_scale": guidance}
    return pipe(
        **arguments,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **more,
    ).images


@pytest.fixture
def small_references(monkeypatch):
    """The reference of Qwen's pipelines at 24x32 pixels instead of a megapixel."""
    for name, size in (("edit", (32, 24, None)), ("edit_plus", (32, 24))):
        module = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}"
        monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio, size=size: size)


def record(pipe, path, count=1, **options):
    images = {name: options.pop(name) for name in ("guidance", "height", "width", "image") if name in options}
    return stored(pipe, path, lambda: edit(pipe, count, **images), count, **options)


def stored(pipe, path, generate, count, **options):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids) as handles:
        out = generate()
        for handle, image in zip(handles, out, strict=True):
            handle.generated = image
    return out


def watched(pipe, path, monkeypatch, generate, count=1, **options):
    """The run of a generation, whose images are the same with a capture, and its calls at the kernel."""
    plain = generate()
    np.testing.assert_array_equal(stored(pipe, path, generate, count, **options), plain)
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        generate()
    return open_run(path), seen


def check(run, seen, start, references, roles, count):
    """Stored scores, and the share of every reference, are those of the kernel's own joint logits."""
    for name, forwards in seen.items():
        for index, role in enumerate(roles):
            for number, (first, tokens) in enumerate(references):
                marks = [f"reference-{number}"] * (number > 0) + [role] * (role != "cond")
                layer = "@".join([f"transformer.{name}", *marks])
                spec = run.layers[layer]
                assert (spec.role, spec.lse, spec.ref, spec.static_key) == (role, True, tokens, False)
                shares = number and spec.representation == "factors"
                owner = "@".join([f"transformer.{name}", *marks[1:]]) if shares else ""
                assert (spec.reference, spec.query_of) == (marks[0] if number else "reference", owner)
                calls = [forward[0] for forward in forwards[index :: len(roles)]]
                assert len(calls) == STEPS
                logits = np.stack([c.logits[..., start : start + spec.gen, :].numpy() for c in calls], axis=1)
                masked = np.stack(
                    [np.where(EVERY if c.mask is None else c.mask.numpy(), 0, -np.inf) for c in calls],
                    axis=1,
                )
                scores = run.scores(layer).compute()
                own = logits[..., first : first + tokens]
                np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
                lse = np.logaddexp.reduce(logits + masked, axis=-1)
                np.testing.assert_allclose(run.lse(layer), lse, rtol=1e-5, atol=1e-5)
                for sample in run.samples:
                    agreement = run.record(sample)["witness"][layer]
                    assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)
    assert len(run.samples) == count


@pytest.mark.parametrize(
    ("count", "guidance", "size"), [(1, 1.0, (16, 24)), (1, 2.0, (16, 16)), (3, 2.0, (24, 16))]
)
@pytest.mark.parametrize("family", ["kontext", "qwen"])
def test_images_are_equal_and_scores_are_the_models_own(
    tmp_path, monkeypatch, small_references, family, count, guidance, size
):
    pipe = joint_models.flux_kontext() if family == "kontext" else joint_models.qwen_edit()
    images = {"guidance": guidance, "height": size[0], "width": size[1]}
    plain = edit(pipe, count, **images)
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)
    np.testing.assert_array_equal(record(pipe, tmp_path / "r.zarr", count, roles=roles, **images), plain)
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        np.testing.assert_array_equal(edit(pipe, count, **images), plain)

    run = open_run(tmp_path / "r.zarr")
    down = 2 if family == "kontext" else 4  # small autoencoders; then patches of 2x2
    generated = (size[0] // down, size[1] // down)
    reference = (24 // down, 32 // down)
    assert len(run.layers) == len(seen) * len(roles) == (4 if family == "kontext" else 2) * len(roles)
    assert all(spec.gen_grid == generated and spec.ref_grid == reference for spec in run.layers.values())
    assert run.attrs["guidance"] == {"calls": [[role] for role in roles]}
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    first = TEXT + generated[0] * generated[1]
    check(run, seen, TEXT, [(first, reference[0] * reference[1])], roles, count)
    assert verify(tmp_path / "r.zarr").ok


@pytest.mark.parametrize(("count", "guidance", "size"), [(1, 1.0, (24, 24)), (3, 2.0, (32, 16))])
def test_longcat_has_kontexts_layout(tmp_path, monkeypatch, count, guidance, size):
    module = "diffusers.pipelines.longcat_image.pipeline_longcat_image_edit"
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: size)
    pipe, path = joint_models.longcat_edit(), tmp_path / "r.zarr"
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)

    def call():
        return pipe(
            models.picture(5, 24, 32), "red", "", num_inference_steps=STEPS, guidance_scale=guidance,
            num_images_per_prompt=count, generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    run, seen = watched(pipe, path, monkeypatch, call, count, roles=roles)
    grid = (size[1] // 2, size[0] // 2)  # the pipeline's sizes are (width, height)
    assert len(run.layers) == 4 * len(roles)
    assert all(spec.gen_grid == spec.ref_grid == grid for spec in run.layers.values())
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    tokens = grid[0] * grid[1]
    check(run, seen, TEXT, [(TEXT + tokens, tokens)], roles, count)


@pytest.mark.parametrize(
    ("references", "count", "guidance", "size"),
    [(1, 1, 2.0, (24, 16)), (2, 3, 1.0, (16, 24)), (3, 3, 2.0, (16, 32))],
)
def test_several_references_are_layers_of_their_own(tmp_path, monkeypatch, references, count, guidance, size):
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
    resized = lambda area, ratio: (32, 24) if ratio > 1 else (16, 24)  # noqa: E731 - (width, height)
    monkeypatch.setattr(f"{module}.calculate_dimensions", resized)
    pipe, grids = joint_models.qwen_edit_plus(), [(6, 8), (6, 4), (6, 8)][:references]
    images = [models.picture(n, 4 * rows, 4 * columns) for n, (rows, columns) in enumerate(grids)]
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)
    given = embeddings(1, 1, mask=True)  # the pipeline takes one prompt
    if guidance > 1:
        given |= {f"negative_{name}": value for name, value in embeddings(1, 2, mask=True).items()}

    def generate():
        return pipe(
            image=images, **given, true_cfg_scale=guidance, height=size[0], width=size[1],
            num_images_per_prompt=count, num_inference_steps=STEPS, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    path = tmp_path / "r.zarr"
    run, seen = watched(pipe, path, monkeypatch, generate, count, roles=roles)
    generated = (size[0] // 4, size[1] // 4)
    assert len(run.layers) == len(roles) * references * len(seen)
    for name, spec in run.layers.items():
        number = int(name.partition("reference-")[2][:1] or 0)
        assert (spec.gen_grid, spec.ref_grid) == (generated, grids[number])
    first = TEXT + generated[0] * generated[1]
    places = [(first + sum(r * c for r, c in grids[:n]), r * c) for n, (r, c) in enumerate(grids)]
    check(run, seen, TEXT, places, roles, count)


def test_qwen_inpainting_begins_late_and_sees_its_image(tmp_path, monkeypatch):
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_inpaint"
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: (32, 24, None))
    pipe = QwenImageEditInpaintPipeline(**joint_models.qwen_edit().components)
    given = embeddings(1, 1, mask=True)
    given |= {f"negative_{name}": value for name, value in embeddings(1, 2, mask=True).items()}

    def call():
        return pipe(
            models.picture(5, 24, 32), mask_image=models.hole(24, 32), **given, true_cfg_scale=2.0,
            strength=0.75, num_inference_steps=4, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    pipe.set_progress_bar_config(disable=True)
    plain, path, roles = call(), tmp_path / "r.zarr", ("cond", "uncond")
    with capture(pipe, path, samples=["a"], roles=roles) as cap, cap.sample("a") as sample:
        captured = call()
        sample.generated = captured[0]
    np.testing.assert_array_equal(captured, plain)
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        call()
    run = open_run(path)
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps[-STEPS:]]
    assert all(spec.gen_grid == spec.ref_grid == (6, 8) for spec in run.layers.values())
    check(run, seen, TEXT, [(TEXT + 48, 48)], roles, 1)


@pytest.mark.parametrize(
    ("family", "count", "guidance", "references", "size"),
    [
        ("klein", 1, 4.0, 1, (16, 24)),
        ("klein", 3, 4.0, 2, (24, 16)),
        ("klein", 1, 1.0, 3, (16, 16)),
        ("dev", 3, 4.0, 3, (32, 16)),
        ("dev", 1, 1.0, 1, (24, 24)),
    ],
)
def test_flux2_has_several_references_of_grids_of_their_own(
    tmp_path, monkeypatch, family, count, guidance, references, size
):
    pipe = joint_models.flux2(Flux2KleinPipeline if family == "klein" else Flux2Pipeline)
    sizes = [(64, 64), (96, 64), (64, 80)][:references]
    given = {"image": [models.picture(n, *size) for n, size in enumerate(sizes)]}
    given["prompt_embeds"] = embeddings(count, 1)["prompt_embeds"]
    roles = ("cond",)
    if family == "klein" and guidance > 1:
        roles, given["negative_prompt_embeds"] = ("cond", "uncond"), embeddings(count, 2)["prompt_embeds"]

    def call():
        return pipe(
            **given, guidance_scale=guidance, height=size[0], width=size[1], num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    path = tmp_path / "r.zarr"
    kept = {"roles": roles, "representation": "factors" if count > 1 else "auto"}
    run, seen = watched(pipe, path, monkeypatch, call, count, **kept)
    grids = [(rows // 8, columns // 8) for rows, columns in sizes]
    assert len(run.layers) == 4 * len(roles) * references
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    generated = size[0] // 8, size[1] // 8
    first = TEXT + generated[0] * generated[1]
    places = [(first + sum(r * c for r, c in grids[:n]), r * c) for n, (r, c) in enumerate(grids)]
    for name, spec in run.layers.items():
        number = int(name.partition("reference-")[2][:1] or 0)
        assert (spec.gen_grid, spec.ref_grid, spec.contribution) == (generated, grids[number], True)
    check(run, seen, TEXT, places, roles, count)
    assert verify(path).ok


def test_flux2_without_an_image_is_refused(tmp_path):
    pipe = joint_models.flux2(Flux2Pipeline)
    with (
        pytest.raises(CaptureError, match=r"generated ones alone; give the pipeline image="),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        pipe(prompt_embeds=embeddings(1, 1)["prompt_embeds"], height=16, width=24, num_inference_steps=1)
    assert not (tmp_path / "r.zarr").exists()


def test_flux2_inpainting_sees_the_image_and_a_reference(tmp_path, monkeypatch):
    pipe = joint_models.flux2(Flux2KleinInpaintPipeline)

    def call():
        return pipe(
            image=models.picture(1, 16, 24), image_reference=models.picture(2, 24, 32),
            mask_image=models.hole(16, 24), guidance_scale=4.0, num_inference_steps=4, strength=0.75,
            prompt_embeds=embeddings(1, 1)["prompt_embeds"],
            negative_prompt_embeds=embeddings(1, 2)["prompt_embeds"],
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    plain, path, roles = call(), tmp_path / "r.zarr", ("cond", "uncond")
    with capture(pipe, path, samples=["a"], roles=roles) as cap, cap.sample("a") as sample:
        captured = call()
        sample.generated = captured[0]
    np.testing.assert_array_equal(captured, plain)
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        call()
    run = open_run(path)
    assert len(run.timesteps) == STEPS
    first = "transformer.transformer_blocks.0.attn"
    assert [run.layers[first + mark].ref_grid for mark in ("", "@reference-1")] == [(2, 3), (3, 4)]
    check(run, seen, TEXT, [(TEXT + 6, 6), (TEXT + 12, 12)], roles, 1)


@pytest.mark.parametrize(
    ("count", "steps", "size"), [(1, None, (16, 24)), (3, slice(1, None), (24, 16)), (1, None, (16, 16))]
)
def test_keys_that_flux2_keeps_are_stored_once(tmp_path, monkeypatch, count, steps, size):
    pipe, sizes = joint_models.flux2(Flux2KleinKVPipeline), [(64, 64), (96, 64)]
    images = [models.picture(n, *size) for n, size in enumerate(sizes)]

    def call():
        return pipe(
            images, prompt_embeds=embeddings(count, 1)["prompt_embeds"], height=size[0], width=size[1],
            num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip

    path = tmp_path / "r.zarr"
    run, seen = watched(pipe, path, monkeypatch, call, count, steps=steps)
    kept = range(STEPS)[steps or slice(None)]
    assert len(run.layers) == 8
    for name, forwards in seen.items():
        for layer, grid, first in (("", (8, 8), TEXT), ("@reference-1", (12, 8), TEXT + 64)):
            spec = run.layers[f"transformer.{name}{layer}"]
            generated = size[0] // 8, size[1] // 8
            assert (spec.static_key, spec.gen_grid, spec.ref_grid) == (True, generated, grid)
            assert (spec.value_norm, spec.contribution) == (True, True)
            logits = np.stack([forwards[n][0].logits[:, :, TEXT:].numpy() for n in kept], 1)
            own = logits[..., first : first + grid[0] * grid[1]]
            np.testing.assert_allclose(run.scores(spec.name).compute(), own, rtol=1e-5, atol=1e-5)
            lse = np.logaddexp.reduce(logits, -1)
            np.testing.assert_allclose(run.lse(spec.name), lse, rtol=1e-5, atol=1e-5)
            for number in range(count):
                agreement = run.record(f"s{number}")["witness"][spec.name]
                assert (agreement["steps"], agreement["unwitnessed_steps"]) == (len(kept), 0)
    assert verify(path).ok


def test_redux_tokens_stand_at_the_end_of_the_text(tmp_path, monkeypatch):
    pipe = joint_models.Redux()
    out = record(pipe, tmp_path / "r.zarr")
    with kernel_witness(pipe.base.transformer, ATTENTION, monkeypatch) as seen:
        np.testing.assert_array_equal(out, edit(pipe, guidance=1.0))
    run = open_run(tmp_path / "r.zarr")
    assert all(spec.ref_grid == (2, 2) for spec in run.layers.values())
    check(run, seen, TEXT, [(TEXT - 4, 4)], ("cond",), 1)


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_every_kernel_gives_the_same_scores(tmp_path, backend):
    pipe = joint_models.flux_kontext()
    record(pipe, tmp_path / "default.zarr")
    pipe.transformer.set_attention_backend(backend)
    record(pipe, tmp_path / "other.zarr")
    first, second = open_run(tmp_path / "default.zarr"), open_run(tmp_path / "other.zarr")
    for name in first.layers:
        np.testing.assert_allclose(second.scores(name), first.scores(name), rtol=1e-4, atol=1e-4)


def test_a_processor_that_calls_torch_itself_is_seen_too(tmp_path):
    """A user's processor, in a module that does not know diffusers' dispatch."""
    pipe = joint_models.flux_kontext()
    record(pipe, tmp_path / "default.zarr")
    original = pipe.transformer.transformer_blocks[0].attn.processor

    class Own(type(original)):
        def __call__(self, attn, *args, **kwargs):
            import diffusers.models.transformers.transformer_flux as module

            dispatch = module.dispatch_attention_fn

            def plain(query, key, value, **rest):
                heads = [x.transpose(1, 2) for x in (query, key, value)]
                return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)

            module.dispatch_attention_fn = plain
            try:
                return super().__call__(attn, *args, **kwargs)
            finally:
                module.dispatch_attention_fn = dispatch

    for block in pipe.transformer.transformer_blocks:
        block.attn.processor = Own()
    record(pipe, tmp_path / "own.zarr")
    first, second = open_run(tmp_path / "default.zarr"), open_run(tmp_path / "own.zarr")
    for name in first.layers:
        np.testing.assert_allclose(second.scores(name), first.scores(name), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_stored_as_it_was_and_its_rounded_timesteps_are_known(tmp_path, monkeypatch):
    pipe = joint_models.flux_kontext().to(torch.bfloat16)

    def generate():
        arguments = {k: v.bfloat16() for k, v in embeddings(1, 1).items()}
        negative = {f"negative_{k}": v.bfloat16() for k, v in embeddings(1, 2).items()}
        return pipe(
            image=[models.picture(5, 16, 16)], **arguments, **negative, true_cfg_scale=2.0, height=16,
            width=16, max_area=256, _auto_resize=False, num_inference_steps=40, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    plain = generate()
    with capture(pipe, tmp_path / "r.zarr", samples=["a"], layers=[0, -1]) as cap, cap.sample("a") as sample:
        image = generate()[0]
        sample.generated = image
    np.testing.assert_array_equal(image, plain[0])
    run = open_run(tmp_path / "r.zarr")
    assert len(run.timesteps) == 40
    assert {spec.dtype for spec in run.layers.values()} == {"bfloat16"}
    assert verify(tmp_path / "r.zarr").ok


def test_what_cannot_be_is_said_before_an_image_exists(tmp_path):
    pipe = joint_models.flux_kontext()
    with (
        capture(pipe, tmp_path / "r.zarr", samples=["a"], roles=("uncond",)) as cap,
        pytest.raises(UnknownName, match="role 'uncond'"),
        cap.sample("a"),
    ):
        edit(pipe, guidance=1.0)
    with (
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        pytest.raises(CaptureError, match=r"reference tokens.*give the pipeline image="),
        cap.sample("a"),
    ):
        pipe(**embeddings(1, 1), height=32, width=32, max_area=1024, num_inference_steps=1, output_type="np")
    assert not (tmp_path / "r.zarr").exists()
    for module in pipe.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_logsumexp_in_blocks_is_the_whole_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, n, 3, 8, generator=generator) for n in (13, 29))
    masks = {
        "none": None,
        "keys": torch.rand(2, 1, 1, 29, generator=generator) > 0.3,
        "pairs": torch.rand(2, 1, 13, 29, generator=generator) > 0.3,
        "added": torch.randn(2, 3, 13, 29, generator=generator),
    }
    logits = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * 0.5
    monkeypatch.setattr("i2am.pipeline.taps.logsumexp._BLOCK_BYTES", {"cpu": 4 * 2 * 3 * 29 * 4})
    for name, mask in masks.items():
        whole = (
            logits if mask is None else logits + mask if name == "added" else logits.where(mask, -torch.inf)
        )
        found = row_logsumexp(query, key, 0.5, mask)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), whole.logsumexp(-1), rtol=1e-5, atol=1e-5)
