"""Reference tokens at odd places of rectangular calls, each layer with a layout of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from i2am.pipeline.adapters.contract import Adapter, JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.pipeline.interventions.attention_loss import attention_loss
from i2am.storage.errors import CaptureError
from i2am.storage.reading.open import open_run
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.norm_oracle import joint_norms, watch_joint

WIDTH, HEADS, STEPS, TEXT = 16, 2, 3, 4
GEN, LAYOUTS = TokenLayout((2, 3)), (TokenLayout((2, 2)), TokenLayout((1, 3), prefix=1))
REGISTERS = 2  # queries that are no part of the picture
ORDER = torch.randperm(TEXT + 8 + 6, generator=torch.Generator().manual_seed(1))  # key to what stands there
QUERIES = torch.tensor([7, 2, 0, 5, 1, 3, 6, 4])


def places(order, start, tokens):
    """Where the tokens from ``start`` on have come to stand."""
    return order.argsort()[start : start + tokens]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden_states, keys, mask=None, kept=None):
        given = self.to_q(hidden_states), self.to_k(keys), self.to_v(keys)
        query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in given)
        F.scaled_dot_product_attention(query, query, query)  # another call, which is not the layer's own
        if kept is not None:  # keys of an earlier call, after the new ones
            key, value = (torch.cat(pair, 2) for pair in zip((key, value), kept, strict=True))
        return self.to_out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attention()

    def forward(self, hidden_states, **given):
        return hidden_states + self.attn(self.norm(hidden_states), **given)


class Denoiser(nn.Module):
    """Generated tokens see text and two references in a shuffled sequence; then a reference that is kept."""

    def __init__(self):
        super().__init__()
        self.odd, self.cached = Block(), Block()
        self.registers = nn.Parameter(torch.randn(1, REGISTERS, WIDTH))
        self.mask = torch.ones(1, 1, len(QUERIES), len(ORDER), dtype=torch.bool)
        self.mask[..., ::2, places(ORDER, 0, 1)] = False  # half of the queries do not see the first word

    def forward(self, hidden_states, timestep, text, references, kept):
        rows = len(hidden_states)
        stream = torch.cat([self.registers.expand(rows, -1, -1), hidden_states], 1)[:, QUERIES]
        keys = torch.cat([text, *references, hidden_states], 1)[:, ORDER]
        stream = self.odd(hidden_states=stream, keys=keys, mask=self.mask)
        stream = stream[:, places(QUERIES, REGISTERS, GEN.tokens)]
        return self.cached(hidden_states=stream, keys=text, kept=kept) * (timestep / 1000 + 1)


class Pipe:
    def __init__(self):
        torch.manual_seed(0)
        self.transformer, self.scheduler = Denoiser().eval(), FlowMatchEulerDiscreteScheduler()

    @torch.no_grad()
    def __call__(self, count):
        draw = torch.Generator().manual_seed(3)
        latents, text, *references = (
            torch.randn(count, tokens, WIDTH, generator=draw)
            for tokens in (GEN.tokens, TEXT, *(layout.tokens for layout in LAYOUTS))
        )
        kept = [torch.randn(count, HEADS, 4, WIDTH // HEADS, generator=draw) for _ in range(2)]
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            noise = self.transformer(latents, t, text=text, references=references, kept=kept)
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents[..., :3].unflatten(1, GEN.grid).sigmoid().numpy()


class Odd(Adapter):
    name, part, lost = "odd", "transformer", 0

    def sites(self, pipe):
        blocks = pipe.transformer.odd, pipe.transformer.cached
        return [
            JointSite(f"transformer.{name}.attn", block.attn, block.attn.to_out, block.norm)
            for name, block in zip(("odd", "cached"), blocks, strict=True)
        ]

    def roles(self, pipe, rows_per_sample):
        return self._known_roles(rows_per_sample, {1: ("cond",)})

    def spans(self, pipe, arguments, sites):
        starts = TEXT, TEXT + LAYOUTS[0].tokens
        found = {
            "transformer.odd.attn": Spans(
                len(QUERIES),
                len(ORDER),
                Tokens(places(QUERIES, REGISTERS, GEN.tokens), GEN),
                tuple(
                    Tokens(places(ORDER, start, layout.tokens - self.lost), layout)
                    for start, layout in zip(starts, LAYOUTS, strict=True)
                ),
            ),
            "transformer.cached.attn": Spans(
                GEN.tokens, TEXT + 4, Tokens.after(0, GEN), (Tokens.after(TEXT, LAYOUTS[0]),),
                text=slice(0, TEXT), static_keys=True,
            ),
        }  # fmt: skip
        return {site.name: found[site.name] for site in sites}


def record(pipe, path, count, adapter=None):
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, samples=ids, adapter=adapter or Odd()) as cap, cap.samples(ids) as handles:
        images = pipe(count)
        for handle, image in zip(handles, images, strict=True):
            handle.generated = image
    return images, open_run(path)


@pytest.mark.parametrize("count", [1, 3])
def test_tokens_at_odd_places_are_stored_as_the_kernel_saw_them(tmp_path, monkeypatch, count):
    pipe = Pipe()
    plain = pipe(count)
    images, run = record(pipe, tmp_path / "r.zarr", count)
    np.testing.assert_array_equal(images, plain)
    with kernel_witness(pipe.transformer, r"\w+\.attn", monkeypatch) as seen:
        pipe(count)
    with watch_joint(pipe.transformer, monkeypatch) as given:
        pipe(count)

    odd, first = places(QUERIES, REGISTERS, GEN.tokens), TEXT + LAYOUTS[0].tokens
    expected = {
        "transformer.odd.attn": (odd, places(ORDER, TEXT, 4), LAYOUTS[0]),
        "transformer.odd.attn@reference-1": (odd, places(ORDER, first, 4), LAYOUTS[1]),
        "transformer.cached.attn": (torch.arange(6), torch.arange(TEXT, TEXT + 4), LAYOUTS[0]),
    }
    assert set(run.layers) == set(expected)
    for layer, (gen, ref, layout) in expected.items():
        spec = run.layers[layer]
        assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == (GEN.grid, layout.grid, layout.prefix)
        assert spec.static_key == ("cached" in layer)
        name = layer.partition("@")[0].removeprefix("transformer.")
        calls = [forward[1] for forward in seen[name]]  # the second of two calls
        logits = np.stack([call.logits[:, :, gen].numpy() for call in calls], 1)
        np.testing.assert_allclose(run.scores(layer).compute(), logits[..., ref], rtol=1e-5, atol=1e-5)
        masked = [np.True_ if call.mask is None else call.mask[:, :, gen].numpy() for call in calls]
        logits = np.where(
            np.stack([np.broadcast_to(m, logits[:, 0].shape) for m in masked], 1), logits, -np.inf
        )
        np.testing.assert_allclose(run.lse(layer), np.logaddexp.reduce(logits, -1), rtol=1e-5, atol=1e-5)
        for sample in range(count):
            agreement = run.record(f"s{sample}")["witness"][layer]
            assert agreement["unwitnessed_steps"] == 0
            assert agreement["steps"] == STEPS
            for step, call in enumerate(given[name][1::2]):
                norms, added = joint_norms(call, sample, gen.numpy(), ref.numpy())
                values = run.value_norm(layer).compute()[sample]
                np.testing.assert_allclose(values[0 if spec.static_key else step], norms, rtol=1e-5)
                np.testing.assert_allclose(run.contribution(layer).compute()[sample, step], added, rtol=1e-5)


def test_a_layout_of_more_tokens_than_are_named_is_refused(tmp_path):
    adapter = Odd()
    adapter.lost = 1
    with pytest.raises(CaptureError, match=r"odd\.attn.*reference tokens; expected 4 .*got 3"):
        record(Pipe(), tmp_path / "r.zarr", 1, adapter)


def test_patches_at_odd_places_are_hidden(monkeypatch):
    """Removed patches get no weight: as if the mask of the model itself had hidden them."""
    pipe, other = Pipe(), Pipe()
    before = pipe(1)
    hidden = places(ORDER, TEXT, 4)[[0, 3]]
    other.transformer.mask[..., hidden] = False
    gone = torch.tensor([[True, False, False, True]])
    with ablation(pipe, gone, "mask", layers=["transformer.odd.attn"], adapter=Odd()):
        np.testing.assert_allclose(pipe(1), other(1), atol=1e-6)
    assert np.abs(other(1) - before).max() > 1e-5
    with pytest.raises(CaptureError, match="mode='mask'"), ablation(pipe, gone, "latent", adapter=Odd()):
        pipe(1)


def test_a_loss_of_tokens_at_odd_places_flows_back():
    pipe = Pipe()
    with attention_loss(pipe, "score_variance", layers=["transformer.odd.attn"], adapter=Odd()) as attention:
        inputs = [torch.randn(1, n, WIDTH) for n in (GEN.tokens, TEXT, 4, 4)]
        kept = [torch.randn(1, HEADS, 4, WIDTH // HEADS) for _ in range(2)]
        pipe.transformer(inputs[0], torch.tensor(500.0), text=inputs[1], references=inputs[2:], kept=kept)
        attention.take().backward()
    assert pipe.transformer.odd.attn.to_k.weight.grad.abs().max() > 0
    assert pipe.transformer.cached.attn.to_k.weight.grad is None
