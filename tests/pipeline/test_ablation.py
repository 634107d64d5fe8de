"""Ablation of reference tokens: against models that were given other tokens to begin with, or fewer."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline

from i2am.flows.experiments.ablate import choose_reference
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.pipeline.taps.call_arguments import call_arguments
from i2am.storage.errors import CaptureError, InputError
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, models, unet_models
from tests.pipeline.test_joint import edit, embeddings, small_references  # noqa: F401 - a fixture
from tests.pipeline.test_research_systems import generate as restore
from tests.pipeline.test_stable_diffusion import generate
from tests.standins import pasd, seesr, stableviton


def some(samples=2, grid=(5, 5), share=0.4, seed=0):
    """A random set of tokens for each sample, of one size."""
    rng = np.random.default_rng(seed)
    tokens = grid[0] * grid[1]
    sets = [rng.permutation(tokens) < round(share * tokens) for _ in range(samples)]
    return np.stack(sets).reshape(samples, *grid)


def paint(pipe, removed=None, guidance=1.5, mode="empty", **options):
    inputs = [[make(seed) for seed in (1, 2)] for make in (models.picture, lambda _: models.hole())]
    references = [models.picture(seed) for seed in (7, 8)]
    with nullcontext() if removed is None else ablation(pipe, removed, mode, **options):
        return pipe(
            *inputs, references, num_inference_steps=3, guidance_scale=guidance, output_type="np",
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        ).images  # fmt: skip


def painted_with(change, **options):
    """Paint with an encoder whose tokens are changed before the model ever sees them."""
    pipe = models.painter()
    encode = pipe.reference_encoder.forward
    pipe.reference_encoder.forward = lambda image: torch.stack([*map(change, range(2), encode(image))])
    return paint(pipe, **options)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_emptied_tokens_are_as_if_the_encoder_had_made_them_so(guidance):
    gone = some()

    def emptied(sample, tokens):
        return tokens.masked_fill(torch.from_numpy(gone[sample].reshape(-1, 1)), 0)

    found = paint(models.painter(), gone, guidance)
    np.testing.assert_array_equal(found, painted_with(emptied, guidance=guidance))
    assert (found != paint(models.painter(), guidance=guidance)).any()


def test_tokens_become_the_mean_of_their_own_sample():
    gone = some()

    def averaged(sample, tokens):
        return torch.where(torch.from_numpy(gone[sample].reshape(-1, 1)), tokens.mean(0), tokens)

    np.testing.assert_array_equal(paint(models.painter(), gone, mode="mean"), painted_with(averaged))


def test_masked_tokens_are_as_if_they_had_never_been_there():
    gone = some()
    pipe = models.painter()
    # The unconditional rows, all zero, give the same however many there are.
    fewer = painted_with(lambda sample, tokens: tokens[torch.from_numpy(~gone[sample].reshape(-1))])
    found = paint(pipe, gone, mode="mask")
    assert np.abs(found.astype(int) - fewer.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - paint(models.painter()).astype(int)).max() > 3


def test_with_everything_masked_there_is_no_reference():
    everything = np.ones((2, 5, 5), bool)
    found = paint(models.painter(), everything, mode="mask")
    assert np.abs(found.astype(int) - painted_with(lambda _, tokens: tokens * 0).astype(int)).max() <= 1


def test_layers_and_tokens_may_be_chosen():
    gone = some()
    pipe = models.painter()
    names = [site.name for site in find_adapter(pipe).sites(pipe)]
    one = paint(pipe, gone, layers=names[0])
    assert (one != paint(pipe, gone)).any()
    assert (one != paint(pipe)).any()
    np.testing.assert_array_equal(paint(pipe, gone), paint(pipe, gone.reshape(2, -1)))
    finer = gone.repeat(3, 1).repeat(3, 2)
    np.testing.assert_array_equal(paint(pipe, gone), paint(pipe, finer))


def test_nothing_is_left_behind_even_after_an_error():
    pipe = models.painter()
    before = paint(pipe)
    with pytest.raises(ZeroDivisionError), ablation(pipe, some()):
        1 / 0  # noqa: B018
    for mode in ("empty", "mean", "mask"):
        np.testing.assert_array_equal(paint(pipe, np.zeros((2, 5, 5), bool), mode=mode), before)
        paint(pipe, some(), mode=mode)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    np.testing.assert_array_equal(paint(pipe), before)


def tokens_seen(pipe, projection, run):
    """What each call of a projection was given."""
    seen = []
    module = pipe.unet.get_submodule(projection)
    hook = module.register_forward_hook(lambda _, args, __: seen.append(args[0].detach().flatten(1, -2)))
    run()
    hook.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("projection", ["to_k_ip.0", "to_v_ip.0", "to_k_ip.1"])
def test_an_ip_adapter_gets_the_unconditional_tokens_in_their_places(projection):
    kinds = ("full", "full")
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)
    path = next(n for n, _ in pipe.unet.named_modules() if n.endswith(f"attn2.processor.{projection}"))
    before = tokens_seen(pipe, path, lambda: generate(pipe, kinds))
    gone = np.array([[[True, False], [True, True]]])

    def run():
        with ablation(pipe, gone, adapter="ip-adapter"):
            generate(pipe, kinds)

    found = tokens_seen(pipe, path, run)
    changed = before.clone()
    if projection.endswith("0"):  # the first of two references
        changed[:, 1, [1, 3, 4]] = before[:, 0, [1, 3, 4]]  # after the class token, which stays
    torch.testing.assert_close(found, changed, rtol=0, atol=0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_pooled_token_becomes_the_vector_that_was_learned_for_none(guidance):
    pipe = models.paint_by_example()
    torch.nn.init.normal_(pipe.image_encoder.uncond_vector)
    path = next(name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_v"))

    def run():
        with ablation(pipe, np.ones((1, 1), bool)):
            pipe(
                image=models.picture(0, 32, 32), mask_image=models.hole(32, 32), num_inference_steps=2,
                example_image=models.picture(1, 32, 32), height=32, width=32, guidance_scale=guidance,
            )  # fmt: skip

    found = tokens_seen(pipe, path, run)
    assert torch.equal(found[:, -1:], pipe.image_encoder.uncond_vector.detach().expand_as(found[:, -1:]))


@pytest.mark.parametrize("make", [models.paint_by_example, models.image_variation])
def test_one_token_is_its_own_mean(make):
    pipe = make()
    images = {"image": models.picture(0, 32, 32), "height": 32, "width": 32, "num_inference_steps": 2}
    if make is models.paint_by_example:
        images |= {"mask_image": models.hole(32, 32), "example_image": models.picture(1, 32, 32)}
    with ablation(pipe, np.zeros((1, 1), bool), "mean"):
        pipe(**images)
    with (
        pytest.raises(InputError, match="expected empty or mask, for a single token; got mean"),
        ablation(pipe, np.ones((1, 1), bool), "mean"),
    ):
        pipe(**images)


def test_an_ip_adapter_without_guidance_has_no_empty_token():
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), "full")
    for mode in ("mean", "mask"):
        with ablation(pipe, some(1, (2, 2)), mode, adapter="ip-adapter"):
            found = generate(pipe, ("full",), guidance=1.0)
        assert (found != generate(pipe, ("full",), guidance=1.0)).any()
    with (
        pytest.raises(CaptureError, match="the empty token.*got none; generate with guidance"),
        ablation(pipe, some(1, (2, 2)), adapter="ip-adapter"),
    ):
        generate(pipe, ("full",), guidance=1.0)


def test_masks_of_two_ip_adapters_reach_the_right_kernel_call():
    kinds = ("full", "full")
    pipe = unet_models.with_ip_adapters(unet_models.stable_diffusion(), *kinds)
    embeds = generate(pipe, kinds)
    found = []
    for reference in (0, 1):
        with ablation(pipe, np.ones((1, 5), bool), "mask", adapter="ip-adapter", reference=reference):
            found.append(generate(pipe, kinds))
        scales = [0.8, 0.8]
        scales[reference] = 1e-12  # its attention counts nothing
        pipe.set_ip_adapter_scale(scales)
        without = generate(pipe, kinds)
        pipe.set_ip_adapter_scale([0.8, 0.8])
        # Only the conditional rows lose theirs, so their effect is compared.
        assert not np.array_equal(found[-1], embeds)
        assert np.abs(found[-1] - without).max() < np.abs(embeds - without).max()
    assert (found[0] != found[1]).any()


def without_patches(pipe, keep):
    """Drop reference patches from the denoiser's input, and their positions, in conditional calls."""
    calls = []
    forward = pipe.transformer.forward

    def fewer(*, hidden_states, img_ids, **arguments):
        calls.append(len(calls))
        if (len(calls) - 1) % 2 == 0:  # the conditional call comes first
            start = int((img_ids[:, 0] == 0).sum())
            kept = torch.cat([torch.ones(start, dtype=torch.bool), torch.from_numpy(keep)])
            hidden_states, img_ids = hidden_states[:, kept], img_ids[kept]
        return forward(hidden_states=hidden_states, img_ids=img_ids, **arguments)

    pipe.transformer.forward = fewer


def test_masked_patches_of_joint_attention_are_as_if_they_had_never_been_there():
    gone = some(1, (3, 4))
    pipe, other = joint_models.flux_kontext(), joint_models.flux_kontext()
    before = edit(pipe)
    with ablation(pipe, gone, "mask"):
        found = edit(pipe)
    grid = []
    sequence = find_adapter(pipe).sequence
    hook = pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: grid.append(sequence(pipe, kwargs).references[0].layout.grid),
        with_kwargs=True,
    )
    edit(pipe)
    hook.remove()
    share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(gone).float()[:, None], grid[0])
    without_patches(other, (share.flatten() < 0.5).numpy())
    np.testing.assert_allclose(found, edit(other), atol=1e-5)
    assert np.abs(found - before).max() > 1e-4
    np.testing.assert_array_equal(edit(pipe), before)


@pytest.mark.parametrize(
    ("make", "name", "own"),  # where the reference begins: after the generated patches, or the text
    [
        (joint_models.flux_kontext, "hidden_states", 96),
        (joint_models.qwen_edit, "hidden_states", 24),
        (joint_models.Redux, "encoder_hidden_states", 3),
    ],
)
@pytest.mark.parametrize("mode", ["latent", "mean"])
@pytest.mark.usefixtures("small_references")
def test_patches_of_joint_attention_are_replaced_in_conditional_calls_alone(make, name, own, mode):
    pipe = make()
    transformer = getattr(pipe, "base", pipe).transformer
    guidance = 2.0 if name == "hidden_states" else 1.0
    seen = []

    def see(module, args, kwargs):
        seen.append(call_arguments(module, args, kwargs)[name].detach().clone())

    edit(pipe, guidance=guidance)
    with ablation(pipe, np.ones((1, 3, 4), bool), mode):
        hook = transformer.register_forward_pre_hook(see, with_kwargs=True)
        edit(pipe, guidance=guidance)
    found, seen = seen, []
    edit(pipe, guidance=guidance)
    hook.remove()
    assert torch.equal(found[0][:, :own], seen[0][:, :own])
    for call, (old, new) in enumerate(zip(seen, found, strict=True)):
        old, new = old[:, own:], new[:, own:]
        if call % 2 and guidance > 1:  # an unconditional call
            assert torch.equal(new, old)
        elif mode == "latent":
            assert not new.any()
        else:
            torch.testing.assert_close(new, old.mean(1, keepdim=True).expand_as(old))


@pytest.mark.usefixtures("small_references")
def test_the_other_references_of_a_joint_sequence_are_left_alone(tmp_path):
    pipe = joint_models.qwen_edit_plus()
    seen = []

    def generate():
        pipe(
            image=[models.picture(1, 24, 32), models.picture(2, 24, 32)], **embeddings(1, 1, mask=True),
            true_cfg_scale=1.0, height=24, width=16, num_inference_steps=1, output_type="np",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    def see(module, args, kwargs):
        seen.append(kwargs["hidden_states"].detach().clone())

    with capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap, cap.sample("a"):
        generate()
    run = open_run(tmp_path / "r.zarr")
    parts = []
    for name in (None, "reference", "reference-1"):
        if name is None:
            with pytest.raises(InputError, match="expected one of reference, reference-1"):
                choose_reference(run, None)
        number, own = (0, []) if name is None else choose_reference(run, name)
        parts.append(list(getattr(own, "layers", ())))
        gone = np.full((1, 3, 4), name is not None)
        with ablation(pipe, gone, "latent", reference=number):
            hook = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
            generate()
            hook.remove()
    assert sorted(parts[1] + parts[2]) == sorted(run.layers)
    assert [name.removesuffix("@reference-1") for name in parts[2]] == parts[1]
    before, first, second = seen  # 24 generated patches, then 48 of each reference
    assert before[:, 24:].any(-1).all()
    assert torch.equal(first[:, 72:], before[:, 72:])
    assert torch.equal(second[:, :72], before[:, :72])
    assert not first[:, 24:72].any()
    assert not second[:, 72:].any()


@pytest.mark.parametrize(
    ("make", "mode"), [(pasd.make, "mask"), (seesr.make, "mean"), (stableviton.Pipeline, "mask")]
)
def test_the_systems_of_the_paper(make, mode):
    pipe = make()
    before = restore(pipe)
    with ablation(pipe, some(1, (8, 8)), mode):
        found = restore(pipe)
    assert (found != before).any()
    with ablation(pipe, np.zeros((1, 8, 8), bool), mode):
        np.testing.assert_array_equal(restore(pipe), before)
    np.testing.assert_array_equal(restore(pipe), before)


def test_each_tile_loses_its_own_part_of_the_reference():
    images = {"size": (32, 24), "tile_size": 8}
    gone = np.zeros((1, 16, 12), bool)
    gone[:, :2] = True  # the first rows: only the upper tiles see them
    pipe = pasd.make()
    kept = []
    layer = next(
        n
        for n, _ in pipe.unet.named_modules()
        if n.endswith("up_blocks.3.pixel_attentions.2.transformer_blocks.0.attn2.to_k")
    )
    before = tokens_seen(pipe, layer, lambda: restore(pipe, **images))

    def run():
        with ablation(pipe, gone, "mean"):
            restore(pipe, **images)

    found = tokens_seen(pipe, layer, run)
    rows = round((found.shape[2]) ** 0.5)
    for old, new in zip(before[: len(before) // 2], found, strict=False):  # the first step
        assert torch.equal(old[0], new[0])  # an unconditional row
        kept.append(sorted({int(t) // rows for t in torch.nonzero((old[1] != new[1]).any(-1))[:, 0]}))
    assert [0, 1] in kept
    assert [] in kept
    assert all(each in ([0, 1], []) for each in kept)


def test_references_in_both_halves_have_no_empty_token():
    with (
        pytest.raises(CaptureError, match="the empty token.*got rows with it.*mode mean or mask"),
        ablation(seesr_pipe := seesr.make(), some(1, (8, 8))),
    ):
        restore(seesr_pipe)


def test_refusals():
    pipe = models.painter()
    with pytest.raises(InputError, match="mode; expected empty or mean or latent or mask; got 'zero'"):
        ablation(pipe, some(), "zero").__enter__()
    with pytest.raises(InputError, match="expected empty, mean or mask; got latent"):
        ablation(pipe, some(), "latent").__enter__()
    with pytest.raises(InputError, match="expected latent, mean or mask, for joint attention; got empty"):
        ablation(joint_models.flux_kontext(), some()).__enter__()
    with pytest.raises(InputError, match=r"removed; expected bool .* got float64 \(2, 5, 5\)"):
        ablation(pipe, some() * 1.0).__enter__()
    with pytest.raises(InputError, match="removed tokens of layer .*expected 25 for each sample; got 4"):
        paint(pipe, np.ones((2, 4), bool))
    with pytest.raises(
        CaptureError, match="rows of a denoiser call; expected a multiple of 3 samples; got 4"
    ):
        paint(pipe, some(3))
    pooled = models.paint_by_example()
    with (
        pytest.raises(CaptureError, match="expected conditional rows of a layer whose tokens have a place"),
        ablation(pooled, some(1)),
    ):
        pooled(
            image=models.picture(0, 32, 32), mask_image=models.hole(32, 32), num_inference_steps=2,
            example_image=models.picture(1, 32, 32), height=32, width=32,
        )  # fmt: skip
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules())


def test_patches_whose_keys_flux2_keeps_are_removed_where_they_are_computed():
    pipe, seen = joint_models.flux2(Flux2KleinKVPipeline), []
    image = [models.picture(n, 64, 64) for n in (1, 2)]

    def call():
        seen.clear()
        return pipe(
            image, prompt_embeds=embeddings(1, 1)["prompt_embeds"], height=16, width=24, output_type="np",
            num_inference_steps=2, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    before, gone = call(), some(1, (8, 8))
    see = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    call()
    plain = seen[0]
    see.remove()
    with ablation(pipe, gone, "latent", reference=1):
        see = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
        )
        removed = call()
        see.remove()
    expected = plain.clone()
    expected[:, 64:128][torch.from_numpy(gone).flatten(1)] = 0
    np.testing.assert_array_equal(seen[0], expected)
    assert [tokens.shape[1] for tokens in seen] == [128 + 6, 6]
    with ablation(pipe, gone, "mask", reference=1):
        masked = call()

    def hidden_otherwise(module, args, kwargs):
        tokens = kwargs["hidden_states"]
        if tokens.shape[1] > 6:
            tokens[:, 64:128][torch.from_numpy(gone).flatten(1)] = 9.0

    with ablation(pipe, gone, "mask", reference=1):
        change = pipe.transformer.register_forward_pre_hook(hidden_otherwise, with_kwargs=True)
        otherwise = call()
        change.remove()
    # Patches that are hidden say nothing: neither to the image, nor to others, whose keys are kept.
    np.testing.assert_allclose(otherwise, masked, atol=1e-6)
    for other in (removed, masked):
        assert np.abs(other - before).max() > 1e-5
    np.testing.assert_array_equal(call(), before)
