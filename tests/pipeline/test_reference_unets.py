"""Self-attention that a second UNet's features join: stand-ins of four systems, see tests/standins."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial, wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.pipeline.interventions.attention_loss import attention_loss
from i2am.storage.errors import CaptureError, UnknownName
from i2am.storage.reading.open import open_run
from tests.pipeline.norm_oracle import joint_norms
from tests.standins import reference_unets

STEPS, SIZE, TURNED = 2, (8, 6), (6, 8)  # as many tokens, in another order
LEVELS = {"down_blocks.0": 1, "down_blocks.1": 2, "mid_block": 2, "up_blocks.0": 2, "up_blocks.1": 1}


def make(name):
    torch.manual_seed(0)
    return getattr(reference_unets, name)()


def generate(pipe, count=1, guidance=2.0, reference=SIZE, **more):
    draw = torch.Generator().manual_seed(1)
    person, picture = (torch.randn(count, 3, *size, generator=draw) for size in (SIZE, reference))
    given = {"num_inference_steps": STEPS, "guidance_scale": guidance, "generator": draw, **more}
    return np.stack(pipe(person=person, reference=picture, **given).images)


def record(pipe, path, count=1, roles=("cond",), layers=None, **given):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, ids, layers, roles=roles) as cap, cap.samples(ids) as handles:
        images = generate(pipe, count, **given)
        for handle, image in zip(handles, images, strict=True):
            handle.generated = image
    return images, open_run(path)


@contextmanager
def watched(unet, keys, monkeypatch):
    """Kernel arguments of each attn1's calls of this many keys for each level, and the block's stream."""
    found, inside, kernel, hooks = {}, [], F.scaled_dot_product_attention, []

    def spy(query, key, value, *args, **kwargs):
        if inside and key.shape[2] == keys[inside[-1][0].partition(".attentions")[0]]:
            path, block, stream = inside[-1]
            rest = torch.zeros(len(stream), key.shape[2] - stream.shape[1], stream.shape[2])
            call = SimpleNamespace(attn=block.attn1), query, key, value, None, torch.cat([stream, rest], 1)
            found.setdefault(path, []).append(call)
        return kernel(query, key, value, *args, **kwargs)

    for path, block in unet.named_modules():
        if hasattr(block, "attn1"):
            enter = partial(lambda b, args, path: inside.append((path, b, args[0].clone())), path=path)
            hooks.append(block.register_forward_pre_hook(enter))
            hooks.append(block.register_forward_hook(lambda *_: inside.pop() and None))
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        yield found
    for hook in hooks:
        hook.remove()


SYSTEMS = {  # class: adapter, the UNet's place, its blocks of rows under guidance, reference, keys stay
    "IDMVTON": ("idm-vton", "unet", ("uncond", "cond"), (10, 4), False),
    "Leffa": ("leffa", "unet", ("uncond", "cond"), TURNED, False),
    "OOTDiffusion": ("ootdiffusion", "unet_vton", ("cond", "uncond"), SIZE, True),
    "MimicBrush": ("mimicbrush", "unet", ("without_reference", "cond"), TURNED, False),
}


CASES = [(system, *case) for system in SYSTEMS for case in ((1, 1.0), (3, 2.0))]
CASES.remove(("MimicBrush", 1, 1.0))  # it always has guidance


@pytest.mark.parametrize(("system", "count", "guidance"), CASES)
def test_images_are_equal_and_scores_are_the_models_own(tmp_path, monkeypatch, system, count, guidance):
    name, part, rows, size, static = SYSTEMS[system]
    pipe, rows = make(system), rows if guidance > 1 else ("cond",)
    given = {"guidance": guidance, "reference": size}
    plain = generate(pipe, count, **given)
    images, run = record(pipe, tmp_path / "r.zarr", count, rows, **given)
    np.testing.assert_array_equal(images, plain)
    tokens = {at: (SIZE[0] * SIZE[1] + size[0] * size[1]) // level**2 for at, level in LEVELS.items()}
    unet = find_adapter(pipe).denoiser(pipe)
    with watched(unet, tokens, monkeypatch) as seen:
        generate(pipe, count, **given)

    levels = {k: v for k, v in LEVELS.items() if system != "MimicBrush" or "down" not in k}
    places = [f"{at}.attentions.0.transformer_blocks.0" for at in levels]
    assert set(run.layers) == {
        f"{part}.{place}.attn1" + f"@{role}" * (role != "cond") for place in places for role in rows
    }
    assert run.attrs["adapter"] == name
    assert run.attrs["guidance"] == {"calls": [list(rows)]}
    assert run.attrs["scheduler"]["class"].endswith("Scheduler")
    for place, level in zip(places, levels.values(), strict=True):
        gen, ref = (tuple(side // level for side in grid) for grid in (SIZE, size))
        own, other = (
            np.arange(gen[0] * gen[1]),
            np.arange(gen[0] * gen[1], tokens[place[: place.index(".att")]]),
        )
        assert len(seen[place]) == STEPS
        for role in rows:
            layer = f"{part}.{place}.attn1" + f"@{role}" * (role != "cond")
            spec = run.layers[layer]
            assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == (gen, ref, 0)
            assert (spec.static_key, spec.lse) == (static, True)
            first = rows.index(role) * count
            scores, lse = run.scores(layer).compute(), run.lse(layer).compute()
            values, shares = run.value_norm(layer).compute(), run.contribution(layer).compute()
            for step, call in enumerate(seen[place]):
                q, k = (x[first : first + count].double() for x in call[1:3])
                logits = (q[:, :, own] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).numpy()
                np.testing.assert_allclose(scores[:, step], logits[..., other], rtol=1e-5, atol=1e-5)
                expected = np.logaddexp.reduce(logits, -1)
                np.testing.assert_allclose(lse[:, step], expected, rtol=1e-5, atol=1e-5)
                for sample in range(count):
                    norms, added = joint_norms(call, first + sample, own, other)
                    np.testing.assert_allclose(values[sample, 0 if static else step], norms, rtol=1e-5)
                    share = added / 2 if system == "MimicBrush" else added
                    np.testing.assert_allclose(shares[sample, step], share, rtol=1e-4)
            for sample in range(count):
                agreement = run.record(f"s{sample}")["witness"][layer]
                assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)


def test_features_that_are_made_once_are_stored_once(tmp_path):
    pipe = make("Leffa")
    _, run = record(pipe, tmp_path / "once.zarr", ref_acceleration=True)
    _, other = record(pipe, tmp_path / "each.zarr")
    assert all(spec.static_key for spec in run.layers.values())
    assert not any(spec.static_key for spec in other.layers.values())


def test_what_does_not_fit_is_refused(tmp_path):
    pipe = make("IDMVTON")
    inner = pipe.unet_encoder.forward

    @wraps(inner)
    def fewer(*args, **kwargs):
        sample, features = inner(*args, **kwargs)
        return sample, features[:-1] if lost == "one" else [each[:, 1:] for each in features]

    pipe.unet_encoder.forward = fewer
    for lost, message in (("one", r"one for each of 5.*got 4"), ("tokens", r"expected 48, .*level; got 47")):
        with pytest.raises(CaptureError, match=message):
            record(pipe, tmp_path / f"{lost}.zarr")
    pipe = make("OOTDiffusion")
    features = pipe.unet_garm(torch.randn(1, 3, *SIZE), 0)[1]
    pipe.unet_garm._call_impl = lambda *args: (None, features)  # of another time: no hook sees a call
    with pytest.raises(CaptureError, match=r"kept from an earlier call.*one sample context"):
        record(pipe, tmp_path / "elsewhere.zarr", guidance=1.0)
    alone = type("MimicBrushPipeline", (), {"unet": make("MimicBrush").pipe.unet})()
    with pytest.raises(CaptureError, match=r"got MimicBrushPipeline; give the MimicBrush_RefNet"):
        capture(alone, tmp_path / "alone.zarr", ["a"])
    with pytest.raises(UnknownName, match="without_reference"):
        record(make("MimicBrush"), tmp_path / "dropped.zarr", roles=("uncond",))


def test_an_ip_adapter_beside_the_second_unet_is_left_to_its_own_adapter():
    pipe = make("IDMVTON")
    pipe.unet.down_blocks[0].attn2 = torch.nn.Module()
    pipe.unet.down_blocks[0].attn2.processor = torch.nn.Module()
    pipe.unet.down_blocks[0].attn2.processor.to_k_ip = torch.nn.Linear(1, 1)
    assert find_adapter(pipe).name == "idm-vton"
    assert not find_adapter(pipe, "ip-adapter").matches(pipe)


def test_the_reference_can_be_hidden():
    """Ablation masks the patches' keys at every joint call: all of them gone, the reference is not seen."""
    pipe, others = make("IDMVTON"), []
    gone = np.ones((1, *SIZE), bool)
    for draw in (1, 2):
        with ablation(pipe, gone, "mask"):
            torch.manual_seed(draw)
            person = torch.zeros(1, 3, *SIZE)
            others.append(
                pipe(person, torch.randn(1, 3, *SIZE), STEPS, 1.0, torch.Generator().manual_seed(0)).images[0]
            )
    np.testing.assert_allclose(others[0], others[1], atol=1e-6)
    shown = pipe(person, torch.randn(1, 3, *SIZE), STEPS, 1.0, torch.Generator().manual_seed(0)).images[0]
    assert np.abs(shown - others[0]).max() > 1e-4


def test_a_loss_flows_back_to_both_unets():
    pipe, t = make("IDMVTON"), torch.tensor(5)
    with attention_loss(pipe, "centre_variation") as attention:
        features = pipe.unet_encoder(torch.randn(1, 3, *TURNED), t)[1]
        pipe.unet(torch.randn(1, 6, *SIZE), t, garment_features=features)
        attention.take().backward()
    for unet in (pipe.unet, pipe.unet_encoder):
        block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
        assert block.norm1.weight.grad.abs().max() > 0
