"""IP-Adapters of transformers and of Kolors, beside perturbed guidance, and of InstantID."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    FluxKontextPipeline,
    StableDiffusionPAGPipeline,
    UNet2DConditionModel,
)

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.storage.errors import CaptureError, InputError
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import joint_models, models, test_joint, unet_models
from tests.pipeline.joint_models import WIDTH
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.norm_oracle import cross_norms, joint_norms, watch_cross, watch_ends, watch_joint
from tests.pipeline.test_joint import STEPS, TEXT, embeddings
from tests.pipeline.test_norms import check
from tests.standins import instantid

MAKE = {
    "flux": joint_models.flux_ip_adapter,
    "chroma": lambda adapters: joint_models.flux_ip_adapter(adapters, joint_models.chroma()),
    "kontext": lambda adapters: joint_models.flux_ip_adapter(adapters, joint_models.flux_kontext()),
    "sd3": lambda adapters: joint_models.sd3_ip_adapter(),
}
IMAGES = 1, 2
"""Images of the first and the second adapter."""


def generate(pipe, family, adapters=1, count=1, guidance=1.0, size=(16, 24)):
    draw = torch.Generator().manual_seed(4)
    given, names = embeddings(count, 1), ("", "negative_")[: 1 + (guidance > 1)]
    if guidance > 1:
        given |= {f"negative_{name}": value for name, value in embeddings(count, 2).items()}
    if family == "sd3":  # the pipeline repeats one image for all prompts
        given["ip_adapter_image_embeds"] = torch.randn(len(names), 3, WIDTH, generator=draw)
    else:
        images = [torch.randn(1, n, WIDTH, generator=draw) for n in IMAGES[:adapters]]
        given |= {"ip_adapter_image_embeds": images}
        given["negative_ip_adapter_image_embeds"] = [torch.zeros_like(image) for image in images]
    if family == "chroma":
        given = {name: value for name, value in given.items() if "pooled" not in name}
        given |= {f"{name}prompt_attention_mask": torch.ones(count, TEXT) for name in names}
    if family == "kontext":
        size_of = {"max_area": size[0] * size[1], "_auto_resize": False}
        given |= {"image": [models.picture(5, 24, 32)], **size_of}
    scale = "true_cfg_scale" if family in ("flux", "kontext") else "guidance_scale"
    return pipe(
        **given, **{scale: guidance}, height=size[0], width=size[1], num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images  # fmt: skip


@pytest.mark.parametrize(
    ("family", "adapters", "count", "guidance", "size"),
    [
        ("flux", (0,), 1, 1.0, (16, 24)),
        ("flux", (0, 1), 3, 2.0, (24, 16)),
        ("flux", (1,), 1, 1.0, (16, 16)),
        ("chroma", (0,), 1, 1.0, (16, 16)),
        ("chroma", (0, 1), 3, 2.0, (16, 24)),
        ("kontext", (0,), 1, 1.0, (16, 24)),
        ("kontext", (0, 1), 3, 2.0, (24, 16)),
        ("sd3", (0,), 1, 1.0, (16, 24)),
        ("sd3", (0,), 3, 2.0, (16, 16)),
    ],
)
def test_image_tokens_have_a_softmax_of_their_own(
    tmp_path, monkeypatch, family, adapters, count, guidance, size
):
    pipe, ids, path = MAKE[family](max(adapters) + 1), [f"s{i}" for i in range(count)], tmp_path / "r.zarr"
    images = {"adapters": max(adapters) + 1, "count": count, "guidance": guidance, "size": size}
    monkeypatch.setattr("tests.pipeline.test_ip_adapters.IMAGES", (2, 2) if adapters == (1,) else IMAGES)
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)
    plain = generate(pipe, family, **images)
    layers = [f"*.to_k_ip.{number}" for number in adapters] if family == "flux" else None
    with capture(pipe, path, samples=ids, roles=roles, layers=layers) as cap, cap.samples(ids) as handles:
        captured = generate(pipe, family, **images)
        for handle, image in zip(handles, captured, strict=True):
            handle.generated = image
    np.testing.assert_array_equal(captured, plain)
    paths = r"(single_)?transformer_blocks\.\d+\.attn2?"
    with kernel_witness(pipe.transformer, paths, monkeypatch) as seen:
        generate(pipe, family, **images)
    with watch_joint(pipe.transformer, monkeypatch) as given, watch_ends(pipe.transformer) as ends:
        generate(pipe, family, **images)

    run, down = open_run(path), 2
    grid = (size[0] // down, size[1] // down)
    tokens = grid[0] * grid[1]
    own = [layer for layer in run.layers if "to_k_ip" in layer]
    assert len(own) == len(roles) * (3 if family == "sd3" else 2 * len(adapters))  # dual attention: one more
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    if family == "kontext":  # beside the joint softmax over the image that is edited
        assert len(run.layers) == len(own) + 4 * len(roles)
        test_joint.check(run, seen, TEXT, [(TEXT + tokens, 12 * 16)], roles, count)
    missing = run.record("s0")["annotations"].get("without_norms", {})
    assert {name.partition(".processor")[0] for name in missing} == (
        {"transformer.transformer_blocks.0.attn2"} if family == "sd3" else set()
    )
    for layer in own:
        spec = run.layers[layer]
        name, _, number = layer.partition("@")[0].removeprefix("transformer.").partition(".processor.to_k_ip")
        number = int(number[1:] or 0)
        assert (spec.gen_grid, spec.ref_grid) == (grid, (0, 0))
        shown = number + (family == "kontext")
        assert spec.reference == (f"reference-{shown}" if shown else "reference")
        first = tokens if family == "sd3" else 0  # generated tokens are keys too
        monkey = (2, 2) if adapters == (1,) else IMAGES
        assert spec.ref_prefix == (5 if family == "sd3" else 4 * monkey[number])
        assert spec.static_key == (family != "sd3")
        index, every = roles.index(spec.role), len(roles)
        row = 0
        if family == "sd3":  # [uncond, cond] in one batch
            row, index, every = count * (len(roles) - 1 - index), 0, 1
        rows = slice(row, row + count)
        forwards = seen[name][index::every]
        logits = np.stack([forward[1 + number].logits[rows, :, :tokens].numpy() for forward in forwards], 1)
        scores = run.scores(layer).compute()
        np.testing.assert_allclose(scores, logits[..., first:], rtol=1e-5, atol=1e-5 * np.abs(logits).max())
        np.testing.assert_allclose(run.lse(layer), np.logaddexp.reduce(logits, -1), rtol=1e-5, atol=1e-5)
        second = name.endswith("attn2")
        many = len(given[name]) // (STEPS * every)
        calls = given[name][1 + number :: many][index::every]
        gain = 0.5 if family == "sd3" else (0.7, 0.5)[number]
        for sample in range(count):
            agreement = run.record(f"s{sample}")["witness"][layer]
            assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)
            for step, (block, *seen_call, stream) in enumerate(calls):
                if family != "sd3":
                    stream = ends[name][index::every][step]
                call = (SimpleNamespace(attn=block.attn2) if second else block, *seen_call, stream)
                places = slice(0, tokens), slice(first, first + spec.ref)
                norms, added = joint_norms(call, row + sample, *places, gain, family == "sd3")
                if not second:
                    check(run, layer, sample, step, (norms, added))
                    continue
                assert (spec.value_norm, spec.contribution) == (True, False)
                assert "stream" in missing[layer]
                np.testing.assert_allclose(run.value_norm(layer).compute()[sample, step], norms, rtol=1e-5)
    assert verify(path).ok


def test_each_reference_of_kontext_can_be_captured_alone(tmp_path):
    pipe = MAKE["kontext"](1)
    assert find_adapter(pipe).name == "flux-kontext-ip-adapter"
    for adapter, count in (("flux-kontext", 4), ("flux-ip-adapter", 2)):
        path = tmp_path / f"{adapter}.zarr"
        with capture(pipe, path, samples=["a"], adapter=adapter) as cap, cap.sample("a") as sample:
            sample.generated = generate(pipe, "kontext")[0]
        run = open_run(path)
        assert len(run.layers) == count
        assert all(("to_k_ip" in layer) is (adapter == "flux-ip-adapter") for layer in run.layers)
        assert {spec.gen_grid for spec in run.layers.values()} == {(8, 12)}


def test_words_are_kept_beside_both_kinds_of_reference(tmp_path):
    pipe, path = MAKE["kontext"](2), tmp_path / "r.zarr"
    with capture(pipe, path, samples=["a"], text=True, steps=0) as cap, cap.sample("a") as sample:
        sample.generated = generate(pipe, "kontext", 2)[0]
    found = Counter(spec.reference for spec in open_run(path).layers.values())
    assert found == {"reference": 4, "text": 4, "reference-1": 2, "reference-2": 2}
    assert find_adapter(pipe).inputs(pipe)["ip_adapter_image"] == "reference-1"
    pipe = MAKE["flux"](1)
    with (
        capture(pipe, tmp_path / "f.zarr", samples=["a"], text=True) as cap,
        pytest.raises(CaptureError, match=r"keys of words.*leave text=True out"),
        cap.sample("a"),
    ):
        generate(pipe, "flux")


def test_what_a_model_is_not_given_or_does_not_call_is_said(tmp_path):
    pipe = MAKE["sd3"](1)
    with (
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        pytest.raises(
            CaptureError, match=r"embeddings of an image; got none; give the pipeline ip_adapter_image="
        ),
        cap.sample("a"),
    ):
        pipe(**embeddings(1, 1), guidance_scale=1.0, height=16, width=16, num_inference_steps=1)
    pipe.set_ip_adapter_scale(0)
    with pytest.raises(CaptureError, match=r"no layer to capture.*set_ip_adapter_scale"):
        capture(pipe, tmp_path / "r.zarr", samples=["a"])
    bare = joint_models.flux_kontext()
    assert isinstance(bare, FluxKontextPipeline)
    assert find_adapter(bare).name == "flux-kontext"
    with pytest.raises(CaptureError, match=r"no layer to capture.*load_ip_adapter"):
        capture(bare, tmp_path / "r.zarr", samples=["a"], adapter="flux-ip-adapter")


def test_tokens_of_the_second_of_two_equal_adapters_are_hidden(monkeypatch):
    monkeypatch.setattr("tests.pipeline.test_ip_adapters.IMAGES", (1, 1))
    pipe, gone = MAKE["flux"](2), torch.tensor([[True, False, False, True]])
    plain = generate(pipe, "flux", 2)
    with ablation(pipe, gone, "mask", reference=1):
        found = generate(pipe, "flux", 2)
    kernel, calls = F.scaled_dot_product_attention, []

    def hiding(query, key, *rest, **more):
        if key.shape[2] == 4:
            calls.append(key)
            more["attn_mask"] = ~gone if len(calls) % 2 == 0 else None
        return kernel(query, key, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", hiding)
    np.testing.assert_allclose(found, generate(pipe, "flux", 2), atol=1e-6)
    assert np.abs(found - plain).max() > 1e-5
    with pytest.raises(InputError, match="expected 0 to 1; got 2"), ablation(pipe, gone, "mask", reference=2):
        generate(pipe, "flux", 2)


def kolors():
    """Kolors' UNet has SDXL's shape, and a projection of its one text encoder's tokens."""
    with pytest.MonkeyPatch.context() as patch:  # its tokenizer's library is not installed
        library = SimpleNamespace(SentencePieceProcessor=None, __spec__=None)
        patch.setitem(sys.modules, "sentencepiece", library)
        patch.setattr(torch.jit, "script", lambda function: function)  # deprecated
        module = importlib.import_module("diffusers.pipelines.kolors.pipeline_kolors")
    torch.manual_seed(0)
    base = unet_models.sdxl()
    config = {**base.unet.config, "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj"}
    unet = UNet2DConditionModel.from_config(config).eval()
    pipe = module.KolorsPipeline(base.vae, None, None, unet, base.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_pag():
    return unet_models.stable_diffusion(StableDiffusionPAGPipeline)


@pytest.mark.parametrize(
    ("make", "kinds", "count", "guidance", "scale"),
    [
        (kolors, ("plus",), 1, 5.0, None),
        (with_pag, ("plus", "base"), 2, 5.0, 2.0),
        (with_pag, ("full",), 3, 1.0, 2.0),
        (with_pag, ("base",), 1, 5.0, 0.0),
        (with_pag, (), 1, 1.0, 2.0),
    ],
)
def test_kolors_and_the_rows_of_perturbed_guidance(
    tmp_path, monkeypatch, make, kinds, count, guidance, scale
):
    pipe, path, ids = make(), tmp_path / "r.zarr", [f"s{i}" for i in range(count)]
    pipe = unet_models.with_ip_adapters(pipe, *kinds) if kinds else pipe
    draw, names = torch.Generator().manual_seed(1), ("", "negative_")[: 1 + (guidance > 1)]
    given = {f"{name}prompt_embeds": torch.randn(count, 7, WIDTH, generator=draw) for name in names}
    if "Kolors" in type(pipe).__name__:
        given |= {f"{name}pooled_prompt_embeds": torch.randn(count, WIDTH, generator=draw) for name in names}
    if kinds:
        given["ip_adapter_image_embeds"] = unet_models.image_embeds(kinds, guidance > 1)
    given |= {} if scale is None else {"pag_scale": scale}

    def call():
        return pipe(
            **given, guidance_scale=guidance, height=32, width=24, num_inference_steps=2, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    plain = call()
    rows = ["uncond"] * (guidance > 1) + ["cond"] + ["perturbed"] * bool(scale)
    with capture(pipe, path, samples=ids, roles=rows) as cap, cap.samples(ids) as handles:
        captured = call()
        for handle, image in zip(handles, captured, strict=True):
            handle.generated = image
    np.testing.assert_array_equal(captured, plain)
    with kernel_witness(pipe.unet, r".*attn2", monkeypatch) as seen:
        call()
    run = open_run(path)
    assert run.attrs["guidance"] == {"calls": [rows]}
    assert run.attrs["adapter"] == ("ip-adapter" if kinds else "diffusers-text")
    assert len(run.layers) == len(seen) * len(rows) * max(1, len(kinds))
    for name, forwards in seen.items():
        for number, role in enumerate(rows):
            layer = f"unet.{name}" + ".processor.to_k_ip.0" * bool(kinds) + f"@{role}" * (role != "cond")
            own = slice(number * count, (number + 1) * count)
            logits = np.stack([forward[bool(kinds)].logits[own].numpy() for forward in forwards], 1)
            scores = run.scores(layer).compute()
            np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
            witness = run.record("s0")["witness"][layer]
            assert (witness["steps"], witness["unwitnessed_steps"]) == (2, 0)


@pytest.mark.parametrize(("count", "guidance", "size"), [(1, 1.0, (32, 48)), (3, 5.0, (32, 32))])
def test_a_face_is_seen_by_instantids_unet_and_controlnet(tmp_path, monkeypatch, count, guidance, size):
    pipe, path, ids = instantid.make(), tmp_path / "r.zarr", [f"s{i}" for i in range(count)]
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)
    draw = torch.Generator().manual_seed(1)
    text, face = (torch.randn(count, n, WIDTH, generator=draw) for n in (7, instantid.FACE))

    def call():
        image = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(2))
        return pipe(text, face, image, guidance, 2, *size).images

    plain = call()
    with capture(pipe, path, samples=ids, roles=roles) as cap, cap.samples(ids) as handles:
        captured = call()
        for handle, image in zip(handles, captured, strict=True):
            handle.generated = image
    np.testing.assert_array_equal(captured, plain)
    with (
        kernel_witness(pipe.unet, r".*attn2", monkeypatch) as unet,
        kernel_witness(pipe.controlnet, r".*attn2", monkeypatch) as control,
    ):
        call()
    with watch_cross(pipe.controlnet) as given:
        call()
    run = open_run(path)
    assert run.attrs["adapter"] == "instantid"
    assert run.attrs["guidance"] == {"calls": [["uncond", "cond"] if guidance > 1 else ["cond"]]}
    assert "without_norms" not in run.record("s0")["annotations"]
    layers = {f"controlnet.{name}": (calls, 0) for name, calls in control.items()}
    layers |= {f"unet.{name}.processor.to_k_ip.0": (calls, 1) for name, calls in unet.items()}
    assert len(run.layers) == len(layers) * len(roles)
    for name, (forwards, number) in layers.items():
        for role in roles:
            layer = name if role == "cond" else f"{name}@{role}"
            spec = run.layers[layer]
            assert (spec.ref_grid, spec.ref_prefix, spec.static_key) == ((0, 0), instantid.FACE, True)
            assert spec.gen_grid[0] * size[1] == spec.gen_grid[1] * size[0]
            own = slice(-count, None) if role == "cond" else slice(None, count)
            logits = [forward[number].logits for forward in forwards]
            logits = [x.unflatten(0, (-1, spec.heads)) if x.ndim == 3 else x for x in logits]
            logits = np.stack([x[own].numpy() for x in logits], 1)
            scores = run.scores(layer).compute()
            np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
            agreement = run.record(ids[-1])["witness"][layer]
            assert (agreement["steps"], agreement["unwitnessed_steps"]) == (2, 0)
    for name, calls in given.seen.items():
        check(run, f"controlnet.{name}", 0, 1, cross_norms(calls[1], -count))
    assert verify(path).ok


def test_what_a_mask_of_regions_leaves_of_a_face_has_no_contribution(tmp_path, monkeypatch):
    pipe = instantid.make()
    inputs = torch.ones(1, 7, WIDTH), torch.ones(1, instantid.FACE, WIDTH), torch.rand(1, 3, 32, 32)
    for mask in (None, torch.ones(64)):
        monkeypatch.setattr(instantid.region_control, "prompt_image_conditioning", [{"region_mask": mask}])
        path = tmp_path / f"{mask is None}.zarr"
        with capture(pipe, path, samples=["a"]) as cap, cap.sample("a") as sample:
            sample.generated = pipe(*inputs, 1.0, 1, 32, 32).images[0]
        found = {
            name.partition(".")[0]: (spec.value_norm, spec.contribution)
            for name, spec in open_run(path).layers.items()
        }
        assert found == {"controlnet": (True, True), "unet": (True, mask is None)}
