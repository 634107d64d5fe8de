"""Editing models with references in their joint sequence: what is stored is what the kernel was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from i2am.pipeline.adapters.census import entry_of
from i2am.pipeline.adapters.contract import TokenLayout, Tokens
from i2am.pipeline.adapters.registry import adapters, find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.interventions.ablation import ablation
from i2am.storage.errors import CaptureError, InputError
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import edit_models, models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.norm_oracle import joint_norms, watch_joint

STEPS = 2
Grid = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One way to call a pipeline; sizes of the generated image and of references are in tokens."""

    count: int
    guided: bool
    gen: Grid
    refs: tuple[Grid, ...]
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Family:
    """How to make and call a pipeline, and where, worked out by hand, its tokens stand."""

    make: Callable[[], Any]
    side: int  # pixels of a token
    call: Callable[[Any, Call, Any], Any]  # (pipe, call, references): images
    path: str  # of attention modules
    # (call, layer, role, the denoiser's arguments): where generated queries begin, and each reference
    places: Callable[[Call, str, str, Any], tuple[int, list[int]]]
    layers: int
    blocks: tuple[str, ...] = ()  # of rows in a guided call; (): a call for each role
    plain: tuple[str, ...] = ("cond",)  # blocks of rows without guidance
    captured: tuple[str, ...] = ("cond", "uncond")
    kept: bool = False  # keys of references are made once
    before: Callable[[Call], int] = lambda call: 0  # calls of the denoiser before the first step


def one_after_the_other(start: int, grids: tuple[Grid, ...]) -> list[int]:
    return [start + sum(map(prod, grids[:number])) for number in range(len(grids))]


def qwen21(pipe: Any, call: Call, references: Any) -> Any:
    pipe.between = dict(call.options).get("between", 2)
    prompts = ["short", "a longer one", "short words"][: call.count]
    return pipe(
        prompts, references, negative_prompt=["none"] * call.count,
        true_cfg_scale=2.0 if call.guided else 1.0, height=call.gen[0] * 16, width=call.gen[1] * 16,
        output_resolution=64,
        use_kv_cache=dict(call.options).get("cache", True), **shared(),
    ).images  # fmt: skip


def fibo_edit(pipe: Any, call: Call, references: Any) -> Any:
    return pipe(
        '{"edit_instruction": "red"}', references, guidance_scale=5.0 if call.guided else 1.0,
        height=call.gen[0] * 16, width=call.gen[1] * 16, num_images_per_prompt=call.count, **shared(),
    ).images  # fmt: skip


def fibo2(pipe: Any, call: Call, references: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    words = torch.randn(2, call.count, 2, 10, edit_models.WIDTH, generator=draw)
    mask = torch.ones(call.count, 10, dtype=torch.bool)
    mask[1:2, 4:] = False  # a shorter prompt, with a gist of fewer tokens
    return pipe(
        image=references, prompt_embeds=words[0], prompt_embeds_mask=mask, negative_prompt_embeds=words[1],
        guidance_scale=5.0 if call.guided else 1.0, height=call.gen[0] * 8, width=call.gen[1] * 8, **shared(),
    ).images  # fmt: skip


def joyimage(pipe: Any, call: Call, references: Any) -> Any:
    return pipe(
        references, "red", call.gen[0] * 4, call.gen[1] * 4, guidance_scale=4.0 if call.guided else 1.0,
        num_images_per_prompt=call.count, **shared(),
    ).images  # fmt: skip


def joyimage_plus(pipe: Any, call: Call, references: Any) -> Any:
    return pipe(
        references and (references if isinstance(references[0], list) else [references] * call.count),
        ["short", "a longer one", "short words"][: call.count],
        call.gen[0] * 4, call.gen[1] * 4, guidance_scale=4.0 if call.guided else 1.0, **shared(),
    ).images  # fmt: skip


def glm_image(pipe: Any, call: Call, references: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    words = torch.randn(2, call.count, 7, edit_models.WIDTH, generator=draw)
    own = {"prior_token_ids": torch.randint(16, (call.count, prod(call.gen)), generator=draw)}
    if references:
        each = references if isinstance(references[0], list) else [references] * call.count
        grids = [torch.tensor([(1, x.height // 4, x.width // 4) for x in images]) for images in each]
        drawn = [torch.randint(16, (int(grid.prod(1).sum()),), generator=draw) for grid in grids]
        own |= {"image": each, "prior_token_image_ids": drawn, "source_image_grid_thw": grids}
    return pipe(
        prompt_embeds=words[0], negative_prompt_embeds=words[1], guidance_scale=2.0 if call.guided else 1.0,
        height=call.gen[0] * 4, width=call.gen[1] * 4, **own, **shared(),
    ).images  # fmt: skip


def omnigen(pipe: Any, call: Call, references: Any) -> Any:
    tags = " ".join(f"<img><|image_{number + 1}|></img>" for number in range(len(call.refs)))
    return pipe(
        [f"One two {tags} three"] * call.count, [references] * call.count, height=call.gen[0] * 16,
        width=call.gen[1] * 16, **shared(),
    ).images  # fmt: skip


def shared() -> dict[str, Any]:
    torch.manual_seed(0)  # some draw what the autoencoder gives without a generator
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": STEPS, "generator": generator, "output_type": "np"}


def after_words(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    """[seven words, generated, reference...]."""
    start, *others = one_after_the_other(7, (call.gen, *call.refs))
    return start, others


def before_words(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    start, *others = one_after_the_other(0, (call.gen, *call.refs))
    return start, others


def behind_references(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    """Queries are [seven words, generated], keys [reference..., words, generated]."""
    return 7, one_after_the_other(0, call.refs)


def fibo2_places(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    """Ten words have a gist of eight tokens, in front; beside a shorter one it stands last."""
    padded = role == "cond" and call.count > 1
    front = 8 if ".layers." in layer and not padded else 0
    start, *others = one_after_the_other(front, (call.gen, *call.refs))
    return start, others


def qwen21_places(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    """Three words first, and some after each reference; generated tokens are the only queries."""
    between = dict(call.options).get("between", 2)
    return 0, [start + number * between for number, start in enumerate(one_after_the_other(3, call.refs))]


def omnigen_places(call: Call, layer: str, role: str, given: Any) -> tuple[int, list[int]]:
    """The processor keeps places for images by zeros among the ids of words."""
    ids = given["input_ids"][0]
    starts = [at for at in range(1, len(ids)) if ids[at] == 0 != ids[at - 1]]
    return len(ids) + 1, starts


FAMILIES = {
    "qwen-image-2.1": Family(
        edit_models.qwen21, 16, qwen21, r"transformer_blocks\.\d+\.attn", qwen21_places, layers=2,
        kept=True,
    ),
    "glm-image": Family(
        edit_models.glm_image, 4, glm_image, r"transformer_blocks\.\d+\.attn1", behind_references, layers=2,
        captured=("cond",), kept=True, before=lambda call: len(call.refs) * call.count,
    ),
    "bria-fibo-edit": Family(
        edit_models.fibo_edit, 16, fibo_edit, r"(single_)?transformer_blocks\.\d+\.attn", after_words,
        layers=2, blocks=("uncond", "cond"),
    ),
    "bria-fibo-2": Family(
        edit_models.fibo2, 8, fibo2, r"(noise_refiner|layers)\.\d+\.attention", fibo2_places, layers=3
    ),
    "joyimage-edit": Family(
        edit_models.joyimage, 4, joyimage, r"double_blocks\.\d+\.attn", before_words, layers=2
    ),
    "joyimage-edit-plus": Family(
        lambda: edit_models.joyimage(plus=True), 4, joyimage_plus, r"double_blocks\.\d+\.attn", before_words,
        layers=2, blocks=("uncond", "cond"),
    ),
    "omnigen": Family(
        edit_models.omnigen, 16, omnigen, r"layers\.\d+\.self_attn", omnigen_places, layers=2,
        blocks=("cond", "uncond", "image"), plain=("cond", "uncond", "image"), captured=("cond",),
    ),
}  # fmt: skip

CALLS = [
    ("qwen-image-2.1", Call(1, False, (2, 4), ((4, 4),))),
    ("qwen-image-2.1", Call(3, True, (4, 2), ((4, 4), (2, 6), (2, 6)), (("between", 0),))),
    ("qwen-image-2.1", Call(1, True, (4, 4), ((6, 2), (4, 4)), (("cache", False),))),
    ("glm-image", Call(1, False, (4, 6), ((6, 4),))),
    ("glm-image", Call(3, True, (6, 4), ((4, 6), (3, 5), (2, 3)))),
    ("bria-fibo-edit", Call(1, False, (2, 3), ((3, 2),))),
    ("bria-fibo-edit", Call(3, True, (3, 2), ((2, 3), (3, 3), (1, 4)))),
    ("bria-fibo-2", Call(1, False, (4, 6), ((4, 6),))),
    ("bria-fibo-2", Call(3, True, (8, 4), ((4, 6), (5, 5), (6, 4)))),
    ("joyimage-edit", Call(1, False, (4, 6), ((4, 6),))),
    ("joyimage-edit", Call(3, True, (6, 4), ((6, 4),))),
    ("joyimage-edit-plus", Call(1, False, (4, 6), ((6, 4),))),
    ("joyimage-edit-plus", Call(3, True, (6, 4), ((4, 6), (5, 5), (2, 3)))),
    ("omnigen", Call(1, False, (2, 3), ((3, 2),))),
    ("omnigen", Call(3, False, (3, 2), ((2, 3), (3, 3), (1, 4)))),
]

WIDE = [
    (name, replace(call, count=count, guided=guided, refs=call.refs[:number]))
    for name, call in CALLS
    if len(call.refs) == 3
    for number in ((2, 3) if name == "bria-fibo-2" else (1, 2, 3))  # whose single image is cropped
    for count in (1, 2)
    for guided in ((False,) if name == "omnigen" else (False, True))
]


def references(family: Family, call: Call) -> list[Any]:
    return [models.picture(n, *(side * family.side for side in grid)) for n, grid in enumerate(call.refs)]


def record(pipe, path, family, call, **options):
    ids = [f"s{number}" for number in range(call.count)]
    with capture(pipe, path, samples=ids, value_norms=True, **options) as cap, cap.samples(ids) as handles:
        images = family.call(pipe, call, references(family, call))
        for handle, image in zip(handles, images, strict=True):
            handle.generated = image
    return images, open_run(path)


@dataclass
class Watched:
    """What the kernels of a generation without capture were given, and the denoiser's first arguments."""

    images: Any
    kernels: dict[str, list[Any]]  # by layer, the last kernel call of each forward
    values: dict[str, list[Any]]  # the same, for norms
    given: list[Any]


def watch(pipe, family, call, monkeypatch) -> Watched:
    given: list[Any] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    with (
        kernel_witness(pipe.transformer, family.path, monkeypatch) as kernels,
        watch_joint(pipe.transformer, monkeypatch) as values,
    ):
        images = family.call(pipe, call, references(family, call))
    hook.remove()
    last = {}
    for name, forwards in kernels.items():
        ends = np.cumsum([len(forward) for forward in forwards]) - 1
        last[name] = [values[name][end] for end in ends]
    found = {name: [forward[-1] for forward in forwards] for name, forwards in kernels.items()}
    start = family.before(call)
    steps = [{name: calls[start:] for name, calls in each.items()} for each in (found, last)]
    return Watched(images, *steps, given[start:])


def masked(call):
    if call.mask is None:
        return call.logits
    mask = call.mask.double() if call.mask.is_floating_point() else torch.where(call.mask, 0.0, -torch.inf)
    return call.logits + mask


@pytest.mark.parametrize(
    ("name", "call"), [*CALLS, *(pytest.param(*case, marks=pytest.mark.slow) for case in WIDE)]
)
def test_references_of_the_joint_sequence_are_stored_as_the_kernel_saw_them(
    tmp_path, monkeypatch, name, call
):
    family, path = FAMILIES[name], tmp_path / "r.zarr"
    pipe = family.make()
    blocks = family.blocks if call.guided else family.plain
    calls = [["cond"], ["uncond"]] if call.guided and not blocks else [list(blocks or family.plain)]
    roles = tuple(role for each in calls for role in each if role in family.captured)
    images, run = record(pipe, path, family, call, roles=roles)
    seen = watch(pipe, family, call, monkeypatch)
    np.testing.assert_array_equal(images, seen.images)

    assert len(seen.kernels) == family.layers
    assert len(run.layers) == family.layers * len(call.refs) * len(roles)
    assert run.attrs["guidance"] == {"calls": [own for own in calls if set(own) & set(family.captured)]}
    assert list(run.timesteps) == [float(t) for t in pipe.scheduler.timesteps]
    assert "without_norms" not in run.record("s0")["annotations"]
    for layer, spec in run.layers.items():
        check(run, layer, spec, family, call, calls, seen)
    assert verify(path).ok


def check(run, layer, spec, family, call, calls, seen):
    path, *marks = layer.removeprefix("transformer.").split("@")
    number = next((int(mark[10:]) for mark in marks if mark.startswith("reference-")), 0)
    assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == (call.gen, call.refs[number], 0)
    assert spec.static_key == (family.kept and dict(call.options).get("cache", True))
    turn = next(n for n, blocks in enumerate(calls) if spec.role in blocks)
    row = calls[turn].index(spec.role) * call.count
    start, others = family.places(call, layer, spec.role, seen.given[turn])
    gen = slice(start, start + prod(call.gen))
    ref = slice(others[number], others[number] + prod(call.refs[number]))
    scores, lse = run.scores(layer).compute(), run.lse(layer).compute()
    norms, contribution = run.value_norm(layer).compute(), run.contribution(layer).compute()
    for step in range(STEPS):
        kernel = seen.kernels[path][step * len(calls) + turn]
        rows = slice(row, row + call.count)
        own = kernel.logits[rows, :, gen]
        np.testing.assert_allclose(scores[:, step], own[..., ref], rtol=1e-5, atol=1e-5)
        total = masked(kernel).expand(len(kernel.logits), -1, -1, -1)[rows, :, gen].logsumexp(-1)
        np.testing.assert_allclose(lse[:, step], total, rtol=1e-5, atol=1e-5)
        for sample in range(call.count):
            given = seen.values[path][step * len(calls) + turn]
            values, added = joint_norms(given, row + sample, gen, ref)
            stored = norms[sample, 0 if spec.static_key else step]
            np.testing.assert_allclose(stored, values, rtol=1e-5, atol=1e-5 * values.max())
            np.testing.assert_allclose(contribution[sample, step], added, rtol=1e-5, atol=1e-5 * added.max())
    for sample in run.samples:
        agreement = run.record(sample)["witness"][layer]
        assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_census_names_the_adapter_and_a_call_without_references_is_refused(tmp_path, name):
    family, call = FAMILIES[name], Call(1, False, (4, 6) if name != "qwen-image-2.1" else (4, 4), ())
    pipe = family.make()
    assert find_adapter(pipe) is adapters()[name]
    assert entry_of(pipe).adapter == name
    assert set(adapters()[name].inputs(pipe)) <= inspect.signature(pipe.__call__).parameters.keys()
    assert adapters()[name].takes_lists(pipe) is (name != "joyimage-edit")  # whose lists are batches
    with pytest.raises(CaptureError, match=r"reference tokens of the joint sequence; .*; give the pipeline "):
        refused(pipe, tmp_path / "r.zarr", family, call, None)
    assert not (tmp_path / "r.zarr").exists()


def refused(pipe, path, family, call, images, **options):
    ids = [f"s{number}" for number in range(call.count)]
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids):
        family.call(pipe, call, images)


@pytest.mark.parametrize("number", [0, 3, 7, 9, 13])
def test_words_are_what_is_neither_generated_nor_of_a_reference(tmp_path, monkeypatch, number):
    name, call = CALLS[number]
    family = FAMILIES[name]
    pipe = family.make()
    _, run = record(pipe, tmp_path / "r.zarr", family, call, text=True)
    seen = watch(pipe, family, call, monkeypatch)
    words = {layer: spec for layer, spec in run.layers.items() if spec.reference == "text"}
    assert len(words) == family.layers - (name == "bria-fibo-2")  # its refining block sees no words
    for layer in words:
        path = layer.removeprefix("transformer.").partition("@")[0]
        start, others = family.places(call, layer, "cond", seen.given[0])
        kernel = seen.kernels[path][0]
        keys = kernel.logits.shape[-1]
        queries_end = (
            kernel.logits.shape[-2] - start - prod(call.gen)
        )  # generated tokens stand as near to the end
        left = np.ones(keys, bool)
        left[keys - queries_end - prod(call.gen) : keys - queries_end] = False
        for first, grid in zip(others, call.refs, strict=True):
            left[first : first + prod(grid)] = False
        if name == "omnigen":
            left[start - 1] = False  # the timestep's token
        left &= (masked(kernel)[0, 0, start] > -1e9).numpy()  # no padding
        own = kernel.logits[: call.count, :, start : start + prod(call.gen)][..., torch.from_numpy(left)]
        scores = run.scores(layer)[:, 0].compute()
        np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-5)
        for sample in run.samples:
            agreement = run.record(sample)["witness"][layer]
            assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)


def test_words_of_several_numbers_are_refused_where_some_are_masked(tmp_path):
    name, call = CALLS[1]
    pipe = FAMILIES[name].make()
    with pytest.raises(CaptureError, match="keys of words.*masked out; make one sample a call"):
        record(pipe, tmp_path / "r.zarr", FAMILIES[name], call, text=True)


def test_rows_whose_references_stand_elsewhere_are_refused(tmp_path):
    family, call = FAMILIES["omnigen"], Call(1, False, (2, 3), ((3, 2),))
    with pytest.raises(CaptureError, match=r"rows of role 'image'; expected .*known: cond;.*with roles="):
        refused(
            family.make(),
            tmp_path / "a.zarr",
            family,
            call,
            references(family, call),
            roles=("cond", "image"),
        )
    pipe, images = family.make(), references(family, call)
    tag = "<img><|image_1|></img>"
    with (
        pytest.raises(
            CaptureError, match=r"same places in all samples of a call; .*capture one sample a call"
        ),
        capture(pipe, tmp_path / "b.zarr", samples=["a", "b"]) as cap,
        cap.samples(["a", "b"]),
    ):
        pipe([f"red {tag} one", f"red {tag} one two"], [images] * 2, height=32, width=32, **shared())


@pytest.mark.parametrize("name", ["joyimage-edit-plus", "glm-image"])
def test_samples_with_references_of_other_sizes_are_refused(tmp_path, name):
    family, call = FAMILIES[name], Call(2, False, (4, 4), ())
    images = [[models.picture(1, 16, 24)], [models.picture(1, 24, 16)]]
    with pytest.raises(
        CaptureError, match=r"same sizes in all samples of a call; .*capture one sample a call"
    ):
        refused(family.make(), tmp_path / "r.zarr", family, call, images)


def test_two_captures_see_the_same_keys_that_were_kept_before_the_steps(tmp_path):
    family, call = FAMILIES["glm-image"], Call(1, False, (4, 6), ((6, 4), (2, 3)))
    pipe = family.make()
    with capture(pipe, tmp_path / "a.zarr", samples=["s0"]) as outer, outer.sample("s0") as sample:
        images, run = record(pipe, tmp_path / "b.zarr", family, call)
        sample.generated = images[0]
    other = open_run(tmp_path / "a.zarr")
    assert list(other.layers) == list(run.layers)
    for layer in run.layers:
        np.testing.assert_array_equal(other.scores(layer).compute(), run.scores(layer).compute())
    gone = np.ones((1, 6, 4), bool)
    with pytest.raises(InputError, match=r"'glm-image'.*kept before; change the reference image itself"):
        ablation(pipe, gone, "mask").__enter__()


@pytest.mark.parametrize(
    ("name", "refs", "first"),
    [("qwen-image-2.1", ((4, 4), (2, 6)), 16), ("bria-fibo-edit", ((2, 3), (3, 2)), 14)],
)
def test_patches_that_are_hidden_say_nothing(name, refs, first):
    """Neither to the image, nor to words and other patches of the reference."""
    family, call = FAMILIES[name], Call(1, False, (2, 4), refs)
    pipe, gone, seen = family.make(), np.zeros((1, prod(refs[1])), bool), []
    gone[0, [0, 3]] = True

    def noise(module, args, kwargs):
        tokens = kwargs["hidden_states"] = kwargs["hidden_states"].clone()
        seen.append(tokens.shape[1])
        tokens[:, first : first + prod(refs[1])][:, torch.from_numpy(gone[0])] = 9.0
        return args, kwargs

    def paint(otherwise=False):
        hook = pipe.transformer.register_forward_pre_hook(noise, with_kwargs=True) if otherwise else None
        images = family.call(pipe, call, references(family, call))
        if hook is not None:
            hook.remove()
        return images

    plain = paint()
    assert np.abs(paint(otherwise=True) - plain).max() > 1e-5
    with ablation(pipe, gone, "mask", reference=1):
        masked = paint()
    with ablation(pipe, gone, "mask", reference=1):
        np.testing.assert_allclose(paint(otherwise=True), masked, atol=1e-6)
    assert np.abs(masked - plain).max() > 1e-5
    np.testing.assert_array_equal(paint(), plain)


@pytest.mark.parametrize(
    ("name", "refs", "first"),
    [("qwen-image-2.1", ((4, 4), (2, 6)), 16), ("joyimage-edit-plus", ((2, 3), (3, 4)), 8 + 6)],
)
def test_patches_are_emptied_where_they_stand_in_the_denoisers_input(name, refs, first):
    family, call = FAMILIES[name], Call(2, True, (2, 4), refs)
    pipe, seen, size = family.make(), [], prod(refs[1])
    gone = np.zeros((2, size), bool)
    gone[0, [0, 3]] = gone[1, 5] = True

    def paint():
        seen.clear()
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
        )
        images = family.call(pipe, call, references(family, call))
        hook.remove()
        return images

    plain, before = paint(), list(seen)
    with ablation(pipe, gone, "latent", reference=1):
        emptied = paint()
    expected = before[0].clone()
    rows = slice(-2, None)  # of the conditional part
    expected[rows, first : first + size][torch.from_numpy(gone)] = 0
    torch.testing.assert_close(seen[0], expected)
    if name == "qwen-image-2.1":  # the unconditional call is another
        torch.testing.assert_close(seen[1], before[1])
    assert np.abs(emptied - plain).max() > 1e-5
    np.testing.assert_array_equal(paint(), plain)


def test_patches_that_the_denoiser_is_given_otherwise_than_its_keys_are_masked_alone():
    family, call = FAMILIES["joyimage-edit"], Call(1, False, (2, 2), ((2, 2),))
    pipe = family.make()
    with (
        pytest.raises(CaptureError, match=r"in the denoiser's input; .*words first.*mode='mask'"),
        ablation(pipe, np.ones((1, 2, 2), bool), "latent"),
    ):
        family.call(pipe, call, references(family, call))


def test_tokens_that_stand_together_are_a_slice():
    layout = TokenLayout((1, 3))
    assert Tokens.at(torch.tensor([4, 5, 6]), layout).where == slice(4, 7)
    for apart in ([4, 6, 5], [4, 5, 7]):
        assert Tokens.at(torch.tensor(apart), layout).positions().tolist() == apart
