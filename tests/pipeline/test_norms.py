"""Value norms and contributions of every family equal those by hand; what a model cannot give is said."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline
from torch import nn

from i2am.pipeline.adapters.diffusers_unet import DiffusersUNet
from i2am.pipeline.capture import capture
from i2am.pipeline.taps.value_flow import FlowTap, mixed_values
from i2am.storage.errors import ShapeMismatch
from i2am.storage.reading.open import open_run
from tests.pipeline import (
    joint_models,
    models,
    test_capture,
    test_diffusers_pipelines,
    test_joint,
    test_research_systems,
    test_stable_diffusion,
    unet_models,
)
from tests.pipeline.norm_oracle import cross_norms, joint_norms, watch_cross, watch_joint
from tests.pipeline.test_joint import TEXT, small_references  # noqa: F401

GAIN = 0.8  # of the test models' IP-Adapters


def record(pipe, path, generate, count=1, **options):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids) as handles:
        for handle, image in zip(handles, generate(pipe, count), strict=True):
            handle.generated = image
    return open_run(path)


def check(run, layer, sample, step, expected):
    """What is stored is what was made by hand, within 1e-5."""
    norms, added = expected
    spec = run.layers[layer]
    assert spec.value_norm
    assert spec.contribution
    stored = run.value_norm(layer).compute()[sample]
    own = stored[0 if spec.static_key else step]
    np.testing.assert_allclose(own, norms, rtol=1e-5, atol=1e-5 * norms.max())
    own = run.contribution(layer).compute()[sample, step]
    np.testing.assert_allclose(own, added, rtol=1e-5, atol=1e-5 * added.max())


def painter(pipe, count):
    return test_capture.generate(pipe, count)


def system(pipe, count, guidance=2.0):
    return test_research_systems.generate(pipe, count, guidance, size=(16, 16))


def text(pipe, count, kinds=()):
    return test_stable_diffusion.generate(pipe, kinds, count, height=32, width=32, steps=2)


def with_adapters(*kinds):
    return unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)


CROSS = {
    "painter": (models.painter, painter, 2),
    "paint-by-example": (
        models.paint_by_example,
        lambda pipe, count: test_diffusers_pipelines.paint(pipe, count, 2.0),
        1,
    ),
    "image-variation": (
        models.image_variation,
        lambda pipe, count: test_diffusers_pipelines.vary(pipe, count, 2.0),
        1,
    ),
    "text": (unet_models.stable_diffusion, text, 1),
    "text-xl": (unet_models.sdxl, text, 1),
    "one adapter": (lambda: with_adapters("base"), partial(text, kinds=("base",)), 2),
    "two adapters": (lambda: with_adapters("full", "plus"), partial(text, kinds=("full", "plus")), 1),
    **{
        name: (make, system, 2 if name == "dci-vton" else 1)
        for name, (make, *_) in test_research_systems.SYSTEMS.items()
        # Another sampler of the same modules; a system without contributions.
        if name not in ("stableviton-ddim", "supir")
    },
}


@pytest.mark.parametrize("family", CROSS)
def test_cross_attention_of_every_family(tmp_path, family):
    make, generate, count = CROSS[family]
    pipe = make()
    run = record(pipe, tmp_path / "r.zarr", generate, count)
    assert "without_norms" not in run.record("s0")["annotations"]
    unet = pipe.unet if hasattr(pipe, "unet") else pipe.model.model.diffusion_model
    controlnet = getattr(pipe, "controlnet", getattr(getattr(pipe, "model", None), "control_model", None))
    with watch_cross(unet) as own, watch_cross(controlnet or nn.Module()) as control:
        generate(pipe, count)
    seen = {f"unet.{path}" if hasattr(pipe, "unet") else path: calls for path, calls in own.seen.items()}
    prefix = "controlnet" if hasattr(pipe, "controlnet") else "control_model"
    seen |= {f"{prefix}.{path}": calls for path, calls in control.seen.items()}
    checked = 0
    for layer in run.layers:
        path, _, adapter = layer.partition(".processor.to_k_ip.")
        more = {"adapter": int(adapter), "gain": GAIN} if adapter else {}
        calls = seen[path][
            :: 2 if family in test_research_systems.SEPARATE else 1
        ]  # guidance in a call of its own
        assert len(calls) == len(run.timesteps)
        for step in (0, len(calls) - 1):
            for sample in range(count):
                check(run, layer, sample, step, cross_norms(calls[step], sample - count, **more))
                checked += 1
    assert checked == len(run.layers) * 2 * count


JOINT = {
    "kontext": (joint_models.flux_kontext, 1),
    "redux": (joint_models.Redux, 1),
    "qwen": (joint_models.qwen_edit, 2),
    "qwen-plus": (joint_models.qwen_edit_plus, 1),
    "flux2": (joint_models.flux2, 1),
    "flux2-kv": (partial(joint_models.flux2, Flux2KleinKVPipeline), 1),
}


@pytest.mark.parametrize("family", JOINT)
def test_joint_attention_of_every_family(tmp_path, monkeypatch, small_references, family):  # noqa: F811
    make, count = JOINT[family]
    pipe = make()
    images = {"qwen-plus": (24, 32), "flux2": (64, 72), "flux2-kv": (64, 72)}
    more = {"image": [models.picture(n, *images[family]) for n in (1, 2)]} if family in images else {}

    def generate(pipe, count):
        if not more:
            return test_joint.edit(pipe, count)
        arguments = test_joint.embeddings(1, 1, mask=family == "qwen-plus") | {"num_inference_steps": 2}
        arguments |= {"qwen-plus": {"true_cfg_scale": 1.0}, "flux2": {"guidance_scale": 1.0}}.get(family, {})
        arguments.pop("pooled_prompt_embeds", None)
        generator = torch.Generator().manual_seed(0)
        return pipe(**arguments, **more, height=16, width=24, generator=generator, output_type="np").images

    run = record(pipe, tmp_path / "r.zarr", generate, count)
    assert "without_norms" not in run.record("s0")["annotations"]
    transformer = (pipe.base if family == "redux" else pipe).transformer
    with watch_joint(transformer, monkeypatch) as seen:
        generate(pipe, count)
    for layer, spec in run.layers.items():
        name, _, number = layer.partition("@reference-")
        calls = seen[name.removeprefix("transformer.")]
        calls = [call for call in calls if call[1].shape == calls[-1][1].shape]  # Klein KV has another
        calls = calls[:: len(calls) // len(run.timesteps)]
        before = {"redux": -4, "flux2-kv": 0}.get(family, spec.gen)
        first = TEXT + before + int(number or 0) * spec.ref
        gen, ref = slice(TEXT, TEXT + spec.gen), slice(first, first + spec.ref)
        for step in range(len(run.timesteps)):
            for sample in range(count):
                check(run, layer, sample, step, joint_norms(calls[step], sample, gen, ref))


def test_some_heads_of_another_role_in_half_precision(tmp_path):
    """Norms are float32 whatever the model's dtype; contributions are those of all heads."""
    whole = record(models.painter().to(torch.bfloat16), tmp_path / "r.zarr", painter)
    some = record(
        models.painter().to(torch.bfloat16), tmp_path / "s.zarr", painter, heads=[1], roles=("uncond", "cond")
    )
    for layer in whole.layers:
        values = whole.value_norm(layer).compute()
        assert values.dtype == np.float32
        assert len(np.unique(values)) > values.size // 2  # not rounded to 8 bits
        np.testing.assert_array_equal(some.value_norm(layer).compute(), values[:, :, 1:])
        np.testing.assert_array_equal(some.contribution(layer).compute(), whole.contribution(layer).compute())
        assert some.layers[f"{layer}@uncond"].value_norm


class Rounded(nn.Linear):
    """A linear layer that computes otherwise, as quantised ones do."""

    def forward(self, x):
        return super().forward(x.round(decimals=3))


class Wrapped(nn.Module):
    """What stands around a module with a LoRA, whose weight is not all of it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.weight = base_layer, base_layer.weight

    def forward(self, x):
        return self.base_layer(x)


class Own(DiffusersUNet):
    """An adapter of a user's own that does not know where the stream, or the values, are."""

    def sites(self, pipe):
        first, second, *others = super().sites(pipe)
        return [replace(first, stream=None), replace(second, value=None), *others]


def test_what_cannot_be_measured_is_said_and_capture_goes_on(tmp_path):
    pipe = models.painter()
    sites = Own().sites(pipe)
    sites[2].output.__class__ = Rounded
    sites[3].attention.to_out[0] = Wrapped(sites[3].output)
    run = record(pipe, tmp_path / "r.zarr", painter, adapter=Own())
    found = [(run.layers[site.name].value_norm, run.layers[site.name].contribution) for site in sites]
    assert found == [(True, False), (False, False), (False, False), (False, False)]
    missing = run.record("s0")["annotations"]["without_norms"]
    reasons = [
        "stream",
        "no value or output projection",
        "a Rounded, has no plain",
        "a Wrapped, has no plain",
    ]
    for site, reason in zip(sites, reasons, strict=True):
        assert reason in missing[site.name]
    assert np.isfinite(run.value_norm(sites[0].name).compute()).all()


def test_masked_adapters_have_value_norms_alone(tmp_path):
    pipe = with_adapters("base")
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1

    def generate(pipe, count):
        embeds = unet_models.image_embeds(("base",), True)
        prompt = torch.ones(1, unet_models.TEXT, unet_models.WIDTH)
        return pipe(
            prompt_embeds=prompt, negative_prompt_embeds=-prompt, ip_adapter_image_embeds=embeds, height=32,
            width=32, num_inference_steps=2, output_type="np",
            cross_attention_kwargs={"ip_adapter_masks": [mask]},
        ).images  # fmt: skip

    run = record(pipe, tmp_path / "r.zarr", generate)
    assert {(spec.value_norm, spec.contribution) for spec in run.layers.values()} == {(True, False)}
    assert "masked" in next(iter(run.record("s0")["annotations"]["without_norms"].values()))


def test_a_run_is_gone_on_with_as_it_was_begun(tmp_path):
    path, pipe = tmp_path / "r.zarr", models.painter()
    for sample, norms in (("a", False), ("b", True)):
        with capture(pipe, path, samples=["a", "b"], value_norms=norms) as cap, cap.sample(sample) as handle:
            handle.generated = painter(pipe, 1)[0]
    run = open_run(path)
    assert run.samples == ("a", "b")
    assert not any(spec.value_norm or spec.contribution for spec in run.layers.values())
    with capture(pipe, tmp_path / "n.zarr", samples=["a", "b"]) as cap, cap.sample("a") as handle:
        handle.generated = painter(pipe, 1)[0]
    with (
        capture(pipe, tmp_path / "n.zarr", value_norms=False) as cap,
        pytest.raises(ShapeMismatch, match="its value_norm, as in the run.*value_norms=True"),
        cap.sample("b"),
    ):
        painter(pipe, 1)


def test_a_generation_that_stores_nothing_shows_what_the_run_will_hold(tmp_path):
    """As when a job tries whether the model works at all."""
    pipe = models.painter()
    with capture(pipe, tmp_path / "r.zarr", samples=["a", "b"]) as cap:
        for stores in (False, True, False):
            with cap.samples(["b"], keep=["b"] if stores else ()) as (handle,):
                handle.generated = painter(pipe, 1)[0]
    run = open_run(tmp_path / "r.zarr")
    assert run.samples == ("b",)
    assert all(spec.value_norm and spec.contribution for spec in run.layers.values())


def test_an_error_while_measuring_ends_the_sample_and_not_the_generation(tmp_path, monkeypatch):
    pipe = models.painter()
    plain = painter(pipe, 1)
    monkeypatch.setattr(FlowTap, "_on_output", lambda *_: 1 / 0)
    seen = []
    with (
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        pytest.raises(ZeroDivisionError),
        cap.sample("a"),
    ):
        seen.append(painter(pipe, 1))
    np.testing.assert_array_equal(seen[0], plain)


@pytest.mark.parametrize("kind", ["none", "added", "boolean"])
def test_mixing_in_blocks_is_mixing_at_once(monkeypatch, kind):
    torch.manual_seed(0)
    query, key, value = torch.randn(9, 2, 4), torch.randn(5, 2, 4), torch.randn(5, 2, 3)
    logits = torch.einsum("ghd,rhd->hgr", query, key) * 0.5
    mask = {"none": None, "added": torch.randn(1, 9, 5), "boolean": torch.rand(2, 1, 5) > 0.4}[kind]
    masked = logits if mask is None else logits + mask if kind == "added" else logits.where(mask, -torch.inf)
    expected = torch.einsum("hgr,rhd->ghd", masked.softmax(-1), value).flatten(1)
    for limit in (1 << 20, 90):
        monkeypatch.setattr("i2am.pipeline.taps.value_flow._BLOCK_BYTES", {"cpu": limit})
        torch.testing.assert_close(mixed_values(query, key, value, 0.5, mask=mask), expected)
        share = masked.logsumexp(-1) + 1
        torch.testing.assert_close(
            mixed_values(query, key, value, 0.5, share, mask), expected * float(np.exp(-1))
        )
