"""Losses over a model's own attention: their values by hand, their gradients, where they are read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import i2am
from i2am.pipeline.interventions.loss_terms import centre_variation, score_variance
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.kernel_spy import kernel_witness


def random_scores(rows=2, heads=3, gen=(3, 4), ref=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, heads, gen[0] * gen[1], ref[0] * ref[1])
    scores = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    inside = torch.rand(rows, shape[2], generator=generator) < 0.7
    return scores, inside


def variance_by_hand(scores, inside):
    found = []
    for row, head, ref in itertools.product(*map(range, (*scores.shape[:2], scores.shape[3]))):
        values = [float(scores[row, head, g, ref]) for g in range(scores.shape[2]) if inside[row, g]]
        found.append(np.var(values) if values else 0.0)
    return np.mean(found)


def variation_by_hand(scores, inside, gen, ref):
    steps = []
    for row, head in itertools.product(*map(range, scores.shape[:2])):
        centres = {}
        for y, x in itertools.product(*map(range, gen)):
            weights = np.exp(scores[row, head, y * gen[1] + x].numpy())
            weights /= weights.sum()
            place = [((r // ref[1] + 0.5) / ref[0], (r % ref[1] + 0.5) / ref[1]) for r in range(len(weights))]
            centres[y, x] = sum(w * np.array(p) for w, p in zip(weights, place, strict=True))
        for (y, x), centre in centres.items():
            for other in ((y + 1, x), (y, x + 1)):
                if (
                    other in centres
                    and inside[row, y * gen[1] + x]
                    and inside[row, other[0] * gen[1] + other[1]]
                ):
                    steps.append(np.abs(centres[other] - centre).sum())
    return np.mean(steps)


@pytest.mark.parametrize("seed", range(3))
def test_the_terms_equal_a_loop_by_hand(seed):
    scores, inside = random_scores(seed=seed)
    assert float(score_variance(scores, inside)) == pytest.approx(variance_by_hand(scores, inside), rel=1e-12)
    found = float(centre_variation(scores, inside, (3, 4), (2, 3)))
    assert found == pytest.approx(variation_by_hand(scores, inside, (3, 4), (2, 3)), rel=1e-12)


@pytest.mark.parametrize("term", [score_variance, lambda s, i: centre_variation(s, i, (3, 4), (2, 3))])
def test_their_gradients_equal_finite_differences(term):
    scores, inside = random_scores(rows=1, heads=2)
    assert torch.autograd.gradcheck(lambda s: term(s, inside), scores.requires_grad_())


def test_an_empty_mask_counts_nothing():
    scores, inside = random_scores()
    assert score_variance(scores, inside & False) == 0
    assert centre_variation(scores, inside & False, (3, 4), (2, 3)) == 0


def call_painter(pipe, rows=2):
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(rows, pipe.unet.config.in_channels, 8, 8, generator=generator)
    tokens = torch.randn(rows, 25, 24, generator=generator)
    return pipe.unet(planes, 500, encoder_hidden_states=tokens).sample


@pytest.mark.parametrize("kind", ["centre_variation", "score_variance"])
def test_it_is_read_where_the_kernel_reads(kind, monkeypatch):
    pipe = models.painter()
    mask = torch.zeros(2, 20, 20)
    mask[:, 5:15, 4:18] = 1
    with (
        kernel_witness(pipe.unet, r".*attn2", monkeypatch) as seen,
        i2am.attention_loss(pipe, kind, mask=mask) as attention,
    ):
        call_painter(pipe)
        found = attention.take()
    terms = []
    for calls in seen.values():
        # The kernel's call, and not the softmax of the loss itself.
        logits = next(call.logits.detach() for call in calls[0] if call.logits.ndim == 4)
        edge = round(logits.shape[2] ** 0.5)
        inside = F.adaptive_avg_pool2d(mask[:, None], edge).flatten(1) >= 0.5
        if kind == "score_variance":
            terms.append(variance_by_hand(logits, inside))
        else:
            terms.append(variation_by_hand(logits, inside, (edge, edge), (5, 5)))
    assert len(terms) == 4
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("kind", ["centre_variation", "score_variance"])
def test_training_with_it_lowers_it(kind):
    pipe = models.painter()
    optimiser = torch.optim.SGD(pipe.unet.parameters(), lr=0.05)
    values = []
    with i2am.attention_loss(pipe.unet, kind, ref_grid=(5, 5)) as attention:
        for _ in range(4):
            call_painter(pipe)
            loss = attention.take()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            values.append(loss.item())
    assert values[-1] < values[0]
    query = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_q"))
    assert query.weight.grad.abs().max() > 0


def call_flux(transformer):
    def tokens(*shape):
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

    ids = torch.tensor([[stream, y, x] for stream in (0, 1) for y in range(4) for x in range(3)])
    transformer(
        hidden_states=tokens(24, 4), encoder_hidden_states=tokens(5, joint_models.WIDTH),
        pooled_projections=tokens(joint_models.WIDTH), timestep=torch.tensor([0.5]), img_ids=ids.float(),
        txt_ids=torch.zeros(5, 3),
    )  # fmt: skip


def test_a_gradient_flows_through_joint_attention():
    pipe = joint_models.flux_kontext()
    with i2am.attention_loss(pipe, "centre_variation") as attention:
        call_flux(pipe.transformer)
        attention.take().backward()
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight.grad.abs().max() > 0


def test_it_leaves_nothing_behind_and_changes_nothing():
    pipe = models.painter()
    before = call_painter(pipe)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    with i2am.attention_loss(pipe) as attention:
        assert torch.equal(call_painter(pipe), before)
        attention.take()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()] == hooks


def test_refusals():
    pipe = models.painter()
    with pytest.raises(i2am.InputError, match="kind; expected centre_variation or score_variance"):
        i2am.attention_loss(pipe, "entropy").__enter__()
    with pytest.raises(i2am.InputError, match=r"mask; expected \[row or 1, y, x\]"):
        i2am.attention_loss(pipe, mask=torch.ones(4)).__enter__()
    with i2am.attention_loss(pipe, mask=torch.ones(3, 20, 20)) as attention:
        with pytest.raises(i2am.CaptureError, match="a forward call of the model"):
            attention.take()
        with pytest.raises(i2am.InputError, match="1 or 2 rows"):
            call_painter(pipe)
    pipe.unet.enable_gradient_checkpointing()
    with pytest.raises(i2am.CaptureError, match="disable_gradient_checkpointing"):
        i2am.attention_loss(pipe).__enter__()


def test_tokens_without_a_place_are_refused():
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "plus")
    with (
        pytest.raises(i2am.CaptureError, match="reference tokens that have a place.*leave the layer out"),
        i2am.attention_loss(pipe, adapter="ip-adapter"),
    ):
        text = torch.randn(1, unet_models.TEXT, unet_models.WIDTH)
        pipe.unet(
            torch.randn(1, 4, 8, 8), 500, encoder_hidden_states=text,
            added_cond_kwargs={"image_embeds": unet_models.image_embeds(("plus",), guidance=False)},
        )  # fmt: skip


def test_a_validation_without_gradient_does_not_count():
    pipe = models.painter()
    with i2am.attention_loss(pipe) as attention:
        with torch.no_grad():
            call_painter(pipe)
        with pytest.raises(i2am.CaptureError, match="a forward call of the model"):
            attention.take()
