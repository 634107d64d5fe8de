"""Keys of words beside those of references, and queries that several layers share: each stored once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from i2am.analysis.drawing.save_maps import save_references
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.recording.weights import attention_fingerprint
from i2am.pipeline.taps.kernels import dispatched_call
from i2am.pipeline.taps.logsumexp import row_logsumexp
from i2am.storage.errors import CaptureError
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.norm_oracle import cross_norms, watch_cross
from tests.pipeline.test_joint import ATTENTION, STEPS, TEXT, edit, record, small_references
from tests.pipeline.test_stable_diffusion import generate

assert small_references  # a fixture
FACTORS = {"representation": "factors"}


def files_of(run, layer):
    """The stored arrays of a layer."""
    return {
        path.split("/")[2] for path in run.files(run.samples[0]) if path.startswith(f"attention/{layer}/")
    }


def witnessed(run, layers, steps):
    for sample in run.samples:
        for layer in layers:
            agreement = run.record(sample)["witness"][layer]
            assert (agreement["steps"], agreement["unwitnessed_steps"]) == (steps, 0), layer


@pytest.mark.parametrize(("family", "count", "guidance"), [("kontext", 3, 2.0), ("qwen", 1, 1.0)])
def test_words_of_a_joint_sequence(tmp_path, monkeypatch, small_references, family, count, guidance):
    pipe = joint_models.flux_kontext() if family == "kontext" else joint_models.qwen_edit()
    given = {"guidance": guidance, "height": 16, "width": 24}
    roles = ("cond", "uncond") if guidance > 1 else ("cond",)
    plain = edit(pipe, count, **given)
    out = record(pipe, tmp_path / "r.zarr", count, roles=roles, text=True, **FACTORS, **given)
    np.testing.assert_array_equal(out, plain)
    with kernel_witness(pipe.transformer, ATTENTION, monkeypatch) as seen:
        edit(pipe, count, **given)
    run = open_run(tmp_path / "r.zarr")
    words = {name: spec for name, spec in run.layers.items() if spec.reference == "text"}
    assert len(words) == len(seen) * len(roles) == len(run.layers) / 2
    for name, spec in words.items():
        site = name.partition("@")[0]
        mark = "" if spec.role == "cond" else f"@{spec.role}"
        assert (name, spec.query_of) == (f"{site}@text{mark}", f"{site}{mark}")
        assert (spec.ref_grid, spec.ref, spec.static_key, spec.contribution) == ((0, 0), TEXT, False, True)
        assert files_of(run, name) == {"key", "lse", "value_norm", "contribution"}
        forwards = seen[site.removeprefix("transformer.")][roles.index(spec.role) :: len(roles)]
        logits = np.stack([forward[0].logits.numpy() for forward in forwards], 1)
        own = logits[..., TEXT : TEXT + spec.gen, :TEXT]
        np.testing.assert_allclose(run.scores(name), own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
        np.testing.assert_array_equal(run.lse(name).compute(), run.lse(spec.query_of).compute())
    witnessed(run, run.layers, STEPS)
    assert verify(run.path).ok


def test_words_beside_two_ip_adapters_share_their_query(tmp_path):
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "full", "plus")
    given = {"height": 32, "width": 32, "steps": 2}
    plain = generate(pipe, ("full", "plus"), 1, **given)
    with capture(pipe, tmp_path / "r.zarr", ["a"], text=True, **FACTORS) as cap, cap.sample("a") as sample:
        sample.generated = generate(pipe, ("full", "plus"), 1, **given)[0]
    run = open_run(tmp_path / "r.zarr")
    np.testing.assert_array_equal(run.image("generated", "a"), np.round(plain[0] * 255).astype(np.uint8))
    with watch_cross(pipe.unet) as found:
        generate(pipe, ("full", "plus"), 1, **given)
    sites = sorted({name.partition(".processor")[0] for name in run.layers})
    assert len(run.layers) == 3 * len(sites)
    for site in sites:
        adapters = [f"{site}.processor.to_k_ip.{number}" for number in range(2)]
        kinds = [run.layers[name].reference for name in (*adapters, site)]
        assert kinds == ["reference", "reference-1", "text"]
        owners = {run.layers[name].query_of for name in (*adapters, site)}
        (owner,) = owners - {""}
        assert sum("query" in files_of(run, name) for name in (*adapters, site)) == 1
        assert "query" in files_of(run, owner)
        calls = found.seen[site.removeprefix("unet.")]
        for step, call in enumerate(calls):
            norms, added = cross_norms(call, 1)  # the conditional row
            np.testing.assert_allclose(run.value_norm(site)[0, 0], norms, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(run.contribution(site)[0, step], added, rtol=1e-5, atol=1e-6)
            module, tokens, (words, images), _ = call
            query = module.to_q(tokens[1]).double()
            for name, key in (
                (site, module.to_k(words[1])),
                (adapters[1], module.processor.to_k_ip[1](images[1][1].flatten(0, -2))),
            ):
                q, k = (
                    x.detach().double().unflatten(-1, (module.heads, -1)).transpose(0, 1)
                    for x in (query, key)
                )
                own = (q @ k.transpose(1, 2)).numpy() * run.layers[name].logit_scale
                np.testing.assert_allclose(run.scores(name)[0, step], own, rtol=1e-5, atol=1e-5)
    witnessed(run, run.layers, 2)
    assert verify(run.path).ok
    save_references(run, tmp_path / "all.png")  # where both pictures and the words were used, in one figure
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size[0] > 800


def test_a_model_without_words_says_so(tmp_path):
    with pytest.raises(CaptureError, match="layers that attend to words.*leave text=True out"):
        capture(models.painter(), tmp_path / "r.zarr", ["a"], text=True)


def test_text_attention_counts_in_the_fingerprint():
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "base")
    adapter = find_adapter(pipe)
    names = [site.name for site in adapter.text_sites(pipe)]
    before = attention_fingerprint(pipe, adapter, names)
    assert list(before) == names
    pipe.unet.get_submodule(names[0].removeprefix("unet.")).to_k.weight.data += 1
    after = attention_fingerprint(pipe, adapter, names)
    assert [name for name in names if before[name] != after[name]] == names[:1]


@pytest.mark.parametrize("scale", [None, 0.5])
def test_masks_and_grouped_heads_of_diffusers_dispatch(scale):
    """As its native backends take them: a mask of [row, key], fewer heads of keys, causal calls."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, 4, 8, generator=draw), torch.randn(2, 7, 2, 8, generator=draw)
    mask = torch.rand(2, 7, generator=draw) > 0.3
    call = dispatched_call(query, key, key, mask, 0.0, False, scale, True)
    q, k = call.query.transpose(1, 2), call.key.transpose(1, 2)
    whole = key.repeat_interleave(2, 2)
    logits = torch.einsum("rqhd,rkhd->rhqk", query, whole) * (scale or 8**-0.5)
    logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    torch.testing.assert_close(row_logsumexp(q, k, call.scale, call.mask), logits.logsumexp(-1))
    seen = dispatched_call(query, whole, whole, is_causal=True).mask
    assert seen is not None
    assert torch.equal(seen, torch.ones(5, 7, dtype=torch.bool).tril())
