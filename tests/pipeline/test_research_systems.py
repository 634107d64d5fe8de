"""Capture on stand-ins of research code: see tests/standins."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.storage.errors import CaptureError
from i2am.storage.format.tile import Tile
from i2am.storage.name_patterns import matching_names
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import models
from tests.pipeline.kernel_spy import kernel_witness
from tests.standins import anydoor, ldm, pasd, seesr, stableviton, supir

LDM = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
LDM += [f"output_blocks.{i}.1" for i in range(3, 12)]
WARPS = [f"warp_flow_blks.{i}" for i in range(9)]
CONTROL = [f"control_model.{name}" for name in LDM if not name.startswith("output")]
PASD = [f"unet.up_blocks.{i}.pixel_attentions.{j}" for i in range(4) for j in range(3)]
LIGHT = [f"unet.up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in range(3)]
DOWN = [f"down_blocks.{i}.image_attentions.{j}" for i in range(3) for j in range(2)]
UP = [f"up_blocks.{i}.image_attentions.{j}" for i in (1, 2, 3) for j in range(3)]
MID = ["mid_block.image_attentions.0"]
SEESR = [f"controlnet.{name}" for name in DOWN + MID] + [f"unet.{name}" for name in DOWN + MID + UP]


def blocks(names, end="attn2"):
    """The attention of these transformers."""
    return {f"{name}.transformer_blocks.0.{end}" for name in names}


def generate(pipe, count=1, guidance=2.0, size=(32, 32), seed=0, **more):
    images = {"image": [models.picture(seed + i, *size) for i in range(count)]}
    if hasattr(pipe, "sampler"):  # those with a reference beside the image
        images["mask_image"] = [models.hole(*size) for _ in range(count)]
        images["reference_image"] = [models.picture(seed + 50 + i, *size) for i in range(count)]
    single = {name: batch[0] for name, batch in images.items()} if count == 1 else images
    more.setdefault("num_inference_steps", 2)
    found = pipe(
        **single, guidance_scale=guidance, generator=torch.Generator().manual_seed(seed), **more
    ).images
    return np.stack([np.asarray(image) for image in found])


def record(pipe, path, count=1, options=None, **images):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, **(options or {})) as cap, cap.samples(ids) as handles:
        out = generate(pipe, count, **images)
        for handle, image in zip(handles, out, strict=True):
            handle.generated = Image.fromarray(image)
    return out


@pytest.fixture
def logits_of(monkeypatch):
    """Run a generation and give the logits of each layer's calls, seen at the model's own kernel."""

    def witness(pipe, path, run):
        if hasattr(pipe, "model"):
            return _ldm_logits(_roots(pipe), path, run, monkeypatch)
        found = {}
        with (
            kernel_witness(pipe.unet, path, monkeypatch) as unet,
            kernel_witness(pipe.controlnet, path, monkeypatch) as controlnet,
        ):
            run()
        for part, seen in (("unet", unet), ("controlnet", controlnet)):
            found |= {f"{part}.{name}": [calls[0].logits for calls in each] for name, each in seen.items()}
        return found

    return witness


def _ldm_logits(roots, path, run, monkeypatch):
    names = {module: prefix + name for prefix, root in roots for name, module in root.named_modules()}
    found = {}
    for kind in (ldm.CrossAttention, ldm.MemoryEfficientCrossAttention):
        original = kind.attend

        def attend(self, q, k, v, original=original):
            logits = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
            found.setdefault(names.get(self, ""), []).append(logits)
            return original(self, q, k, v)

        monkeypatch.setattr(kind, "attend", attend)
    run()
    return {name: calls for name, calls in found.items() if re.fullmatch(path, name)}


SYSTEMS = {
    "paint-by-example": (lambda: ldm.Pipeline(ldm.PLMSSampler), blocks(LDM), "ldm"),
    "dci-vton": (
        lambda: ldm.Pipeline(ldm.DDIMSampler, ldm.MemoryEfficientCrossAttention),
        blocks(LDM),
        "ldm",
    ),
    "stableviton": (stableviton.Pipeline, blocks(LDM + WARPS), "stableviton"),
    "stableviton-ddim": (
        lambda: stableviton.Pipeline(
            stableviton.SeparateDDIMSampler, attention=ldm.MemoryEfficientCrossAttention
        ),
        blocks(LDM + WARPS),
        "stableviton",
    ),
    "pasd": (pasd.make, blocks(PASD), "pasd"),
    "pasd-light": (lambda: pasd.make(light=True), blocks(LIGHT, "attn2_plus"), "pasd"),
    "seesr": (seesr.make, blocks(SEESR), "seesr"),
    "anydoor": (
        lambda: anydoor.Pipeline(ldm.MemoryEfficientCrossAttention),
        blocks(LDM + CONTROL),
        "anydoor",
    ),
    "supir": (supir.Pipeline, {"project_modules.1.attn", "project_modules.2.attn"}, "supir"),
}
ATTENTION = r".*(attn2|attn2_plus|project_modules\.\d+\.attn)"
SEPARATE = ("stableviton", "anydoor")
"""Systems whose guidance makes calls of its own."""


@pytest.mark.parametrize(
    ("count", "guidance", "size"), [(1, 1.0, (16, 16)), (1, 2.0, (32, 16)), (3, 2.0, (16, 32))]
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_images_are_equal_and_scores_are_the_models_own(tmp_path, logits_of, system, count, guidance, size):
    make, layers, adapter = SYSTEMS[system]
    pipe = make()
    separate = adapter in SEPARATE and guidance > 1
    roles = ("cond", "uncond") if separate else ("cond",)
    images = {"count": count, "guidance": guidance, "size": size}
    plain = generate(pipe, **images)
    np.testing.assert_array_equal(
        record(pipe, tmp_path / "r.zarr", options={"roles": roles}, **images), plain
    )
    again = []
    seen = logits_of(pipe, ATTENTION, lambda: again.append(generate(pipe, **images)))
    np.testing.assert_array_equal(again[0], plain)

    run = open_run(tmp_path / "r.zarr")
    assert run.attrs["adapter"] == adapter
    assert {name for name in run.layers if "@" not in name} == layers
    calls = {1.0: [["cond"]], 2.0: [["cond"], ["uncond"]] if separate else [["uncond", "cond"]]}[guidance]
    assert run.attrs["guidance"] == {"calls": calls}
    for name in layers:
        for number, role in enumerate(roles):
            layer = name if role == "cond" else f"{name}@{role}"
            rows = [call[-count:].numpy() for call in seen[name][number :: len(roles)]]
            own = np.stack(rows, axis=1)
            np.testing.assert_allclose(run.scores(layer), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
            spec = run.layers[layer]
            assert spec.gen_grid[0] * size[1] == spec.gen_grid[1] * size[0]
            assert spec.static_key == ("warp" not in name and adapter not in ("pasd", "supir"))
            expected = {
                "ldm": ((0, 0), 1),
                "seesr": ((12, 12), 1),
                "pasd": (spec.gen_grid, 0),
                "supir": (spec.gen_grid, 0),
                "anydoor": ((4, 4), 1),
                "stableviton": (spec.gen_grid, 0) if "warp" in name else ((0, 0), 1),
            }[adapter]
            assert (spec.ref_grid, spec.ref_prefix) == expected
    assert verify(tmp_path / "r.zarr").ok


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_stand_in_uses_its_reference(system):
    """Else the tests above would show nothing."""
    make, layers, _ = SYSTEMS[system]
    pipe = make()
    before, found = generate(pipe), 0
    for prefix, root in _roots(pipe):
        for name, module in root.named_modules():
            if prefix + name in layers:
                torch.nn.init.zeros_(module.to_v.weight)
                found += 1
    assert found == len(layers)
    assert (generate(pipe) != before).any()


def _roots(pipe):
    """Prefixes of layers' names, and the models that have them."""
    if not hasattr(pipe, "model"):
        return [("unet.", pipe.unet), ("controlnet.", pipe.controlnet)]
    control = getattr(pipe.model, "control_model", torch.nn.Module())
    return [("", pipe.model.model.diffusion_model), ("control_model.", control)]


def test_plms_calls_once_more_and_every_call_is_a_step(tmp_path):
    pipe = ldm.Pipeline(ldm.PLMSSampler)
    record(pipe, tmp_path / "r.zarr", num_inference_steps=4)
    assert open_run(tmp_path / "r.zarr").timesteps == (751, 501, 501, 251, 1)
    record(ldm.Pipeline(), tmp_path / "d.zarr", num_inference_steps=4)
    assert open_run(tmp_path / "d.zarr").timesteps == (751, 501, 251, 1)
    record(pipe, tmp_path / "one.zarr", num_inference_steps=1)
    assert open_run(tmp_path / "one.zarr").timesteps == (1, 1)


def test_separate_calls_in_the_other_order_are_told_by_the_user(tmp_path, monkeypatch):
    pipe = stableviton.Pipeline()
    noise = stableviton._SeparateCalls._noise

    def other_order(self, x, step, cond, unconditional_guidance_scale=1.0, unconditional_conditioning=None):
        return noise(self, x, step, unconditional_conditioning, 1 - unconditional_guidance_scale, cond)

    record(pipe, tmp_path / "usual.zarr", options={"roles": ("cond", "uncond"), "steps": 0})
    monkeypatch.setattr(stableviton._SeparateCalls, "_noise", other_order)
    with pytest.raises(CaptureError, match=r"denoiser call at step 0.*guidance="):
        record(pipe, tmp_path / "odd.zarr", options={"guidance": [["cond"], ["image"], ["uncond"]]})
    options = {"guidance": [["uncond"], ["cond"]], "roles": ("cond", "uncond"), "steps": 0}
    record(pipe, tmp_path / "other.zarr", options=options)
    usual, other = open_run(tmp_path / "usual.zarr"), open_run(tmp_path / "other.zarr")
    assert other.attrs["guidance"] == {"calls": [["uncond"], ["cond"]]}
    for name in usual.layers:
        np.testing.assert_allclose(other.scores(name), usual.scores(name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("system", "chosen"),
    [("pasd", ["*up_blocks.[13]*"]), ("seesr", ["*down_blocks.0*", "*up_blocks.1*"]), ("supir", None)],
)
def test_tiles_are_recorded_with_their_places(tmp_path, logits_of, system, chosen):
    make, layers, _ = SYSTEMS[system]
    layers = matching_names("layer", chosen, sorted(layers)) if chosen else layers
    pipe = make()
    images = {"count": 2, "size": (32, 24), "tile_size": 8, "num_inference_steps": 2}
    plain = generate(pipe, **images)
    np.testing.assert_array_equal(
        record(pipe, tmp_path / "r.zarr", options={"layers": chosen}, **images), plain
    )
    seen = logits_of(pipe, ATTENTION, lambda: generate(pipe, **images))
    run = open_run(tmp_path / "r.zarr")
    # 16 x 12 latents, tiles of 8 that overlap by 2, column by column, the last ones moved to the edge
    corners = [(top, left) for left in (0, 4) for top in (0, 6, 8)]
    assert len(run.layers) == len(layers) * len(corners)
    assert run.attrs["guidance"] == {"calls": [["uncond", "cond"]]}
    for name in layers:
        for number, corner in enumerate(corners):
            layer = f"{name}@tile-{corner[0]}-{corner[1]}"
            tile = Tile(*corner, 8, 8, 16, 12)
            assert run.layers[layer].tile == tile
            assert run.layers[layer].ref_tile == (None if system == "seesr" else tile)
            calls = seen[name][number :: len(corners)]
            own = np.stack([call[-2:].numpy() for call in calls], axis=1)
            np.testing.assert_allclose(run.scores(layer), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
    assert verify(tmp_path / "r.zarr").ok


def test_supir_is_recorded_with_the_steps_of_its_sampler_and_value_norms_alone(tmp_path):
    pipe, called = supir.Pipeline(), []
    unet = pipe.model.model.diffusion_model
    with unet.register_forward_pre_hook(
        lambda _, args, kwargs: called.append(int(kwargs["timesteps"][0])), with_kwargs=True
    ):
        record(pipe, tmp_path / "r.zarr", s_churn=1.0)
    values, attention = [], unet.project_modules[1].attn
    with attention.to_v.register_forward_hook(lambda *args: values.append(args[-1][-1])):
        generate(pipe, s_churn=1.0)
    run, layer = open_run(tmp_path / "r.zarr"), "project_modules.1.attn"
    assert run.timesteps == tuple(called)
    missing = run.record("s0")["annotations"]["without_norms"]
    assert set(missing) == set(run.layers)
    assert "stream" in missing[layer]
    assert not run.layers[layer].contribution
    weight = attention.to_out[0].weight.double().unflatten(1, (ldm.HEADS, -1))
    for step, value in enumerate(values):
        given = torch.einsum("chd,thd->htc", weight, value.double().unflatten(1, (ldm.HEADS, -1)))
        np.testing.assert_allclose(
            run.value_norm(layer).compute()[0, step], given.norm(dim=-1).detach(), rtol=1e-5
        )


def test_a_schedule_that_starts_late_is_recorded_as_it_runs(tmp_path):
    pipe = seesr.make()
    record(pipe, tmp_path / "r.zarr", start_steps=400, num_inference_steps=4)
    assert open_run(tmp_path / "r.zarr").timesteps == (251, 1)


def test_without_a_sampler_the_timesteps_must_be_given(tmp_path):
    pipe = ldm.Pipeline()
    sampler, pipe.sampler = pipe.sampler, None

    class Bare:
        model = pipe.model

    def call():
        pipe.sampler = sampler
        return generate(pipe)[0]

    with (
        capture(Bare(), tmp_path / "r.zarr", samples=["a"]) as cap,
        pytest.raises(CaptureError, match=r"timesteps of the generation.*timesteps=\[\.\.\.\]"),
        cap.sample("a"),
    ):
        call()
    with (
        capture(Bare(), tmp_path / "r.zarr", samples=["a"], timesteps=[501, 1]) as cap,
        cap.sample("a") as sample,
    ):
        sample.generated = call()
    assert open_run(tmp_path / "r.zarr").samples == ("a",)


def test_each_system_has_one_adapter(monkeypatch):
    for make, _, adapter in SYSTEMS.values():
        pipe = make()
        assert find_adapter(pipe).name == adapter
    sampler = ldm.Pipeline().sampler
    assert find_adapter(sampler).name == "ldm"  # a sampler that holds the model is enough
    with pytest.raises(CaptureError, match=r"adapter for object.*expected exactly one.*got none"):
        find_adapter(object())


def test_an_adapter_of_another_package_is_found_by_its_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint, EntryPoints

    from i2am.pipeline.adapters import registry

    entry = EntryPoint("mine", "tests.standins.own_adapter:Mine", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]))
    registry.adapters.cache_clear()
    try:
        pipe = ldm.Pipeline()
        assert find_adapter(pipe, "mine").sites(pipe)[0].name.startswith("output_blocks.11")
    finally:
        registry.adapters.cache_clear()
