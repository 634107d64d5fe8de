"""What is stored is what the attention kernel was given, or the sample is refused; no third outcome."""

from __future__ import annotations

import random
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import nn

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.recording.batch_rows import BatchSplitter
from i2am.storage.errors import CaptureError, InputError, ShapeMismatch
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.test_joint import edit, embeddings, small_references  # noqa: F401 - a fixture
from tests.pipeline.test_stable_diffusion import generate

NORM = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"


def record(pipe, path, make=generate, count=1, **options):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids) as handles:
        for handle, image in zip(handles, make(pipe, count=count), strict=True):
            handle.generated = image
    return open_run(path)


def agreements(run, sample="s0"):
    return run.record(sample)["witness"]


@pytest.mark.parametrize(
    ("processor", "kernel"),
    [
        (AttnProcessor2_0(), "scaled_dot_product_attention"),
        (AttnProcessor(), "softmax"),
        (SlicedAttnProcessor(4), "softmax"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_every_layer_sample_and_step_is_witnessed(tmp_path, processor, kernel, count):
    pipe = unet_models.stable_diffusion()
    pipe.unet.set_attn_processor(processor)
    run = record(pipe, tmp_path / "r.zarr", count=count)
    for sample in run.samples:
        found = agreements(run, sample)
        assert found.keys() == run.layers.keys()
        for layer, seen in found.items():
            assert seen["kernel"] == kernel
            assert (seen["steps"], seen["unwitnessed_steps"]) == (3, 0)
            assert seen["rows"] == 3 * run.layers[layer].heads * 4
            assert seen["largest_difference"] < 1e-4


@pytest.mark.parametrize("kinds", [("base",), ("base", "base"), ("full", "plus")])
def test_several_adapters_of_one_layer_are_told_apart(tmp_path, kinds):
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)
    run = record(pipe, tmp_path / "r.zarr", lambda pipe, count: generate(pipe, kinds, count))
    assert len(agreements(run)) == len(run.layers)
    assert all(seen["unwitnessed_steps"] == 0 for seen in agreements(run).values())


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize("make", [joint_models.flux_kontext, joint_models.qwen_edit])
def test_joint_attention_is_witnessed_where_it_stands_in_the_sequence(tmp_path, make):
    run = record(make(), tmp_path / "r.zarr", edit)
    assert all(seen["kernel"] == "scaled_dot_product_attention" for seen in agreements(run).values())
    assert all(seen["unwitnessed_steps"] == 0 for seen in agreements(run).values())


# ------------------------------------------------------------------------------------ planted faults


def _scaled(part, rng):
    return replace(part, query=part.query * 1.02)


def _other_head(part, rng):
    return replace(part, query=part.query.roll(1, 0))


def _other_tokens(part, rng):
    return replace(part, key=part.key.flip(1))


def _neighbour(part, rng):
    return replace(part, key=torch.randn_like(part.key))


FAULTS = {"scale": _scaled, "head": _other_head, "token": _other_tokens, "neighbour": _neighbour}


def plant(folder, monkeypatch, fault, times):
    """Plant a fault in one layer, at one step, of one of two samples, and see that it refuses them."""
    pipe, rng = unet_models.stable_diffusion(), random.Random(fault)
    split, layers = BatchSplitter.split, len(find_adapter(pipe).sites(pipe))
    before: dict = {}
    plan: dict = {}

    def faulty(self, layer, rows, samples, tile):
        parts = list(split(self, layer, rows, samples, tile))
        name = parts[0].spec.name
        plan["calls"] = plan.get("calls", 0) + 1
        last, before[name] = before.get(name), parts
        if plan["calls"] != plan["at"]:
            return iter(parts)
        plan["done"] = True
        first, second = parts
        if fault == "row":
            first = replace(first, query=second.query)
        elif fault == "step":
            first = replace(first, query=last[0].query)
        else:
            first = FAULTS[fault](first, rng)
        return iter([first, second])

    monkeypatch.setattr(BatchSplitter, "split", faulty)
    for number in range(times):
        before.clear()
        plan.clear()
        plan["at"] = rng.randint(layers + 1 if fault == "step" else 1, 3 * layers)
        with pytest.raises(InputError, match="not what the kernel .* was given|the key changes over time"):
            record(pipe, folder / f"{number}.zarr", count=2)
        assert plan["done"]


def plant_in_model(folder, fault, times):
    """Change the model itself while it generates: a random layer at a random step, or a random mask."""
    rng = random.Random(fault)
    for number in range(times):
        pipe = unet_models.stable_diffusion()
        layers = [m for m in pipe.unet.modules() if getattr(m, "is_cross_attention", False)]
        layer, step = rng.choice(layers), rng.randrange(3)
        mask = torch.ones(1, unet_models.TEXT)
        mask[:, rng.sample(range(unet_models.TEXT), rng.randint(3, 8))] = 0
        calls = []

        def change(module, args, kwargs, layer=layer, step=step, mask=mask, calls=calls):
            calls.append(1)
            if fault == "mask":
                return args, {**kwargs, "encoder_attention_mask": mask}
            if len(calls) == step + 2:  # the first call is over: the capture has found its layers
                name = rng.choice(["to_q", "to_k"])
                setattr(layer, name, _Shifted(getattr(layer, name)))
            return args, kwargs

        with (
            pytest.raises(CaptureError, match="not what the kernel .* was given|the key changes over time"),
            capture(pipe, folder / f"{number}.zarr", samples=["a"]) as cap,
            cap.sample("a"),
        ):
            pipe.unet.register_forward_pre_hook(change, with_kwargs=True)
            generate(pipe, guidance=1.0, steps=5)


KINDS = [*FAULTS, "row", "step", "mask", "lora"]


def planted(folder, monkeypatch, fault, times):
    if fault in ("mask", "lora"):
        plant_in_model(folder, fault, times)
    else:
        plant(folder, monkeypatch, fault, times)


@pytest.mark.parametrize("fault", KINDS)
def test_planted_faults_are_found(tmp_path, monkeypatch, fault):
    planted(tmp_path, monkeypatch, fault, 2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", KINDS)
def test_a_hundred_planted_faults_are_found_each_time(tmp_path, monkeypatch, fault):
    planted(tmp_path, monkeypatch, fault, 13)


class _Shifted(nn.Module):
    """What a LoRA does to a projection: its output and something more."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.more(x)


def _wrap_projections(pipe):
    for module in pipe.unet.modules():
        if getattr(module, "is_cross_attention", False):
            module.to_q = _Shifted(module.to_q)


def test_a_projection_that_is_replaced_between_two_samples_is_followed(tmp_path):
    pipe = unet_models.stable_diffusion()
    with capture(pipe, tmp_path / "r.zarr", samples=["a", "b"]) as cap:
        with cap.sample("a") as s:
            s.generated = generate(pipe)[0]
        _wrap_projections(pipe)
        with cap.sample("b") as s:
            s.generated = generate(pipe)[0]
    run = open_run(tmp_path / "r.zarr")
    layer = next(iter(run.layers))
    assert not np.array_equal(run.read(layer, "a").query, run.read(layer, "b").query)
    assert all(seen["largest_difference"] < 1e-4 for seen in agreements(run, "b").values())


def test_a_projection_that_is_replaced_during_a_generation_refuses_the_sample(tmp_path):
    pipe = unet_models.stable_diffusion()

    def late(pipe, step, timestep, values):
        if step == 1:
            _wrap_projections(pipe)
        return values

    call = pipe.__class__.__call__
    with (
        pytest.raises(CaptureError, match="not what the kernel"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        call(
            pipe, prompt_embeds=torch.randn(1, 11, unet_models.WIDTH), guidance_scale=1.0, height=32,
            width=32, num_inference_steps=4, output_type="np", callback_on_step_end=late,
        )  # fmt: skip


def test_a_masked_reference_is_refused(tmp_path):
    pipe = unet_models.stable_diffusion()
    mask = torch.ones(1, unet_models.TEXT)
    mask[:, 4:] = 0
    with (
        pytest.raises(CaptureError, match="masked out"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        hook = pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "encoder_attention_mask": mask}), with_kwargs=True
        )
        try:
            generate(pipe, guidance=1.0)
        finally:
            hook.remove()


# ---------------------------------------------------------------------------------- rows and guidance


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_several_images_of_one_id_are_refused(tmp_path, guidance):
    pipe = unet_models.stable_diffusion()
    with (
        pytest.raises(CaptureError, match="declare every image of the call"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        pipe(
            prompt_embeds=torch.randn(1, 11, unet_models.WIDTH),
            negative_prompt_embeds=torch.randn(1, 11, unet_models.WIDTH),
            guidance_scale=guidance, num_images_per_prompt=2, height=32, width=32, num_inference_steps=2,
            output_type="np",
        )  # fmt: skip


def test_two_rows_without_guidance_are_refused_where_the_pipeline_says_nothing(tmp_path, monkeypatch):
    """A pipeline that does not declare its guidance: the rows' latents tell."""
    pipe = models.painter()
    assert not hasattr(pipe, "do_classifier_free_guidance")
    pictures = {"image": models.picture(1), "mask_image": models.hole(), "reference_image": models.picture(2)}
    twice = {name: [value, value] for name, value in pictures.items()}
    with (
        pytest.raises(CaptureError, match="declare every image|latents that differ"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        pipe(**twice, num_inference_steps=2, guidance_scale=1.0)


# ------------------------------------------------------------------------------- threads, overlapping


def test_threads_with_pipelines_of_their_own_do_not_meet(tmp_path):
    pipes = [joint_models.flux_kontext() for _ in range(2)]
    with torch.no_grad():
        for parameter in pipes[1].transformer.parameters():
            parameter.mul_(1.1)
    alone = []
    for number, pipe in enumerate(pipes):
        run = record(pipe, tmp_path / f"alone-{number}.zarr", edit)
        alone.append({layer: run.read(layer, "s0").query for layer in run.layers})
    errors: list[Exception] = []
    start = threading.Barrier(3)

    def capturing(number):
        try:
            start.wait()
            record(pipes[number], tmp_path / f"both-{number}.zarr", edit)
        except Exception as error:  # noqa: BLE001 - asserted on below
            errors.append(error)

    bystander = joint_models.flux_kontext()

    def generating():
        start.wait()
        edit(bystander)

    threads = [threading.Thread(target=capturing, args=(n,)) for n in (0, 1)]
    threads.append(threading.Thread(target=generating))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number in (0, 1):
        run = open_run(tmp_path / f"both-{number}.zarr")
        for layer, query in alone[number].items():  # a thread of its own may round otherwise
            np.testing.assert_allclose(run.read(layer, "s0").query, query, rtol=1e-4, atol=1e-5)


def test_a_thread_that_only_generates_with_the_same_pipeline_is_passed_over(tmp_path):
    pipe = unet_models.stable_diffusion()
    expected = record(pipe, tmp_path / "alone.zarr")
    with capture(pipe, tmp_path / "r.zarr", samples=["s0"]) as cap, cap.sample("s0") as s:
        other = threading.Thread(target=lambda: generate(pipe, guidance=1.0, height=32, width=32))
        other.start()
        other.join()
        s.generated = generate(pipe)[0]
    run = open_run(tmp_path / "r.zarr")
    for layer in run.layers:
        np.testing.assert_array_equal(run.read(layer, "s0").query, expected.read(layer, "s0").query)


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize("make", [joint_models.flux_kontext, joint_models.qwen_edit])
def test_captures_that_overlap_and_end_in_any_order_leave_nothing_behind(tmp_path, make):
    import sys

    pipe = make()
    module = sys.modules[type(pipe.transformer.transformer_blocks[0].attn.processor).__module__]
    dispatch, context = module.dispatch_attention_fn, vars(pipe.transformer).get("cache_context")
    first = capture(pipe, tmp_path / "a.zarr", samples=["x"])
    second = capture(pipe, tmp_path / "b.zarr", samples=["x"])
    one, two = first.__enter__(), second.__enter__()
    in_one, in_two = one.sample("x"), two.sample("x")
    handles = in_one.__enter__(), in_two.__enter__()
    image = edit(pipe)[0]
    for handle in handles:
        handle.generated = image
    in_one.__exit__(None, None, None)
    first.__exit__(None, None, None)
    in_two.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert module.dispatch_attention_fn is dispatch
    assert vars(pipe.transformer).get("cache_context") is context
    a, b = open_run(tmp_path / "a.zarr"), open_run(tmp_path / "b.zarr")
    for layer in a.layers:
        np.testing.assert_array_equal(a.read(layer, "x").query, b.read(layer, "x").query)


# ------------------------------------------------------------- capture may fail, a user's call may not


def test_an_error_of_captures_own_is_raised_when_the_sample_closes(tmp_path, monkeypatch):
    pipe = unet_models.stable_diffusion()
    plain = generate(pipe)

    def broken(self, *args, **kwargs):
        raise ValueError("a fault of capture's own")

    monkeypatch.setattr(BatchSplitter, "split", broken)
    images = []
    with (
        pytest.raises(ValueError, match="a fault of capture's own"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        images.append(generate(pipe))
    np.testing.assert_array_equal(images[0], plain)


def test_a_kernel_called_with_positional_arguments(tmp_path):
    pipe = unet_models.stable_diffusion()

    class Positional(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
            query, key, value = (
                x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
            )
            out = nn.functional.scaled_dot_product_attention(query, key, value, None, 0.0, False)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

    pipe.unet.set_attn_processor(Positional())
    run = record(pipe, tmp_path / "r.zarr")
    assert all(seen["kernel"] == "scaled_dot_product_attention" for seen in agreements(run).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_the_log_sum_exp_is_exact_under_autocast(tmp_path, dtype):
    pipe = joint_models.flux_kontext()
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # of the model's own
    with torch.autocast("cpu", dtype=dtype):
        run = record(pipe, tmp_path / "r.zarr", edit)
    for layer in run.layers:
        block = run.read(layer, "s0")
        logits = block.logits()
        lse = run.lse(layer).compute()[0]
        assert float(np.exp(np.logaddexp.reduce(logits, axis=-1) - lse).max()) <= 1 + 1e-4


# -------------------------------------------------------------------------------- another checkpoint


@pytest.mark.parametrize("change", ["weights", "one value in each tensor", "scheduler"])
def test_a_run_is_not_resumed_with_another_model(tmp_path, change):
    pipe, path = unet_models.stable_diffusion(), tmp_path / "r.zarr"
    with capture(pipe, path, samples=["a", "b"]) as cap, cap.sample("a") as s:
        s.generated = generate(pipe)[0]
    other = unet_models.stable_diffusion()
    if change == "scheduler":
        other.scheduler.register_to_config(clip_sample=True)
    elif change == "weights":
        torch.manual_seed(5)
        other.unet = models._unet(4)
    else:
        with torch.no_grad():
            for parameter in other.unet.mid_block.attentions[0].transformer_blocks[0].attn2.parameters():
                parameter.view(-1)[0] += 0.01
    expected = "scheduler of the run" if change == "scheduler" else "layer '.*attn2' of the run"
    with (
        pytest.raises(ShapeMismatch, match=f"{expected}.*the model that began the run"),
        capture(other, path, samples=["a", "b"]) as cap,
        cap.sample("b"),
    ):
        generate(other)
    same = unet_models.stable_diffusion()
    with capture(same, path, samples=["a", "b"]) as cap, cap.sample("b") as s:
        s.generated = generate(same)[0]
    assert open_run(path).samples == ("a", "b")
