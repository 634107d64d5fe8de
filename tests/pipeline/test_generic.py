"""Models that no adapter knows, captured by a description that i2am probe drafts, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import i2am
from i2am.pipeline.adapters.generic.expressions import evaluate, positions
from i2am.pipeline.drafting.dependence import Part, Tried
from i2am.pipeline.drafting.draft import draft
from i2am.pipeline.drafting.layouts import layouts
from i2am.pipeline.drafting.watch import AttentionCall
from tests.pipeline import joint_models, models
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.test_joint import edit, small_references  # noqa: F401
from tests.standins.strangers import Choir, Look, Own, Tailor, Weaver, tailor, try_on, weaver

PAGE = Path(__file__).parents[2] / "docs" / "your-own-model.md"


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def weave(pipe, count=1, **given):
    left = [models.picture(seed, 32, 32) for seed in range(count)]
    right = [models.picture(9 + seed, 16, 32) for seed in range(count)]
    return pipe(left, right, generators(count), **given).images


def sew(pipe, count=1, **given):
    garments = [models.picture(seed, 24, 16) for seed in range(count)]
    return pipe(garments, generators(count), **given).images


def record(make, pipe, path, adapter, count=1, roles=("cond",), **given):
    ids = [f"s{number}" for number in range(count)]
    with (
        i2am.capture(pipe, path, samples=ids, adapter=adapter, roles=roles) as cap,
        cap.samples(ids) as handles,
    ):
        images = make(pipe, count, **given)
        for handle, image in zip(handles, images, strict=True):
            handle.generated = image
    return images, i2am.open_run(path)


def equal_to_the_kernel(run, layer, calls, gen, ref, rows):
    """Scores of each sample, and the log-sum-exp, are those of the kernel in double precision."""
    logits = np.stack([call.logits[rows].numpy() for call in calls], 1)
    own = logits[..., gen, :]
    np.testing.assert_allclose(run.scores(layer).compute(), own[..., ref], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.lse(layer), np.logaddexp.reduce(own, -1), rtol=1e-5, atol=1e-5)
    for sample in run.samples:
        agreement = run.record(sample)["witness"][layer]
        assert (agreement["steps"], agreement["unwitnessed_steps"]) == (len(calls), 0)
        assert agreement["kernel"] == "scaled_dot_product_attention"


@pytest.fixture(scope="module")
def weaver_file(tmp_path_factory):
    """As drafted; nothing had to be corrected."""
    pipe, call = weaver()
    file = tmp_path_factory.mktemp("weaver") / "weaver.yaml"
    file.write_text(draft(pipe, lambda: call(pipe)).text)
    return file


@pytest.fixture(scope="module")
def tailor_file(tmp_path_factory):
    pipe = tailor("cpu", "float32")
    file = tmp_path_factory.mktemp("tailor") / "tailor.yaml"
    file.write_text(draft(pipe, lambda: try_on(pipe)).text)
    return file


def watched(rows, generate, monkeypatch):
    """Value, weights and stream of each call of the rows' attention, in double precision, by row."""
    found, kernel, running = {}, torch.nn.functional.scaled_dot_product_attention, []

    def spy(q, k, v, *args, **kwargs):
        if running:
            weights = (
                q.double() @ k.double().transpose(-1, -2) * kwargs.get("scale", q.shape[-1] ** -0.5)
            ).softmax(-1)
            found.setdefault(running[-1][0], []).append((v.double(), weights, running[-1][1].double()))
        return kernel(q, k, v, *args, **kwargs)

    hooks = []
    for number, row in enumerate(rows):
        enter = row.register_forward_pre_hook(
            lambda _, args, number=number: running.append((number, args[0]))
        )
        hooks += [enter, row.register_forward_hook(lambda *_: running.pop() and None)]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        generate()
    for hook in hooks:
        hook.remove()
    return found


def check_norms(run, layer, output, calls, gen, ref, rows):
    weight = output.weight.detach().double().T.unflatten(0, (2, -1))
    static = run.layers[layer].static_key
    for step, (value, weights, stream) in enumerate(calls):
        told = value[rows][:, :, ref] @ weight
        added = (weights[rows][:, :, gen][..., ref] @ told).sum(1).norm(dim=-1)
        values = run.value_norm(layer).compute()[:, 0 if static else step]
        np.testing.assert_allclose(values, told.norm(dim=-1), rtol=1e-5)
        shares = run.contribution(layer).compute()[:, step]
        np.testing.assert_allclose(shares, added / stream[rows].norm(dim=-1), rtol=1e-5)


SCALE = 0.2 * (16 // 2) ** 0.5  # the spy knows no scale


@pytest.mark.parametrize(("count", "guidance"), [(1, 1.0), (3, 2.0)])
def test_two_references_at_odd_places_of_a_rectangular_call(
    tmp_path, monkeypatch, weaver_file, count, guidance
):
    pipe = Weaver()
    plain = weave(pipe, count, guidance=guidance)
    images, run = record(weave, pipe, tmp_path / "r.zarr", weaver_file, count, guidance=guidance)
    np.testing.assert_array_equal(images, plain)
    with kernel_witness(pipe.engine.loom, r"rows\.\d\.weave", monkeypatch) as seen:
        weave(pipe, count, guidance=guidance)
    given = watched(pipe.engine.loom.rows, lambda: weave(pipe, count, guidance=guidance), monkeypatch)
    assert list(run.timesteps) == [900.0, 500.0, 100.0]
    rows = slice(-count, None)  # the conditional ones
    parts = {"": ((4, 4), np.arange(17)), "@reference-1": ((2, 4), np.arange(17, 34, 2))}
    assert len(run.layers) == 4
    for name, forwards in seen.items():
        calls = [forward[1] for forward in forwards]
        for call in calls:
            call.logits *= SCALE
        for part, (grid, ref) in parts.items():
            layer = f"engine.loom.{name}{part}"
            spec = run.layers[layer]
            assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == ((4, 6), grid, 1)
            assert spec.static_key
            gen = np.arange(2, 26)
            equal_to_the_kernel(run, layer, calls, gen, ref, rows)
            row = pipe.engine.loom.rows[int(name[5])]
            check_norms(run, layer, row.weave.back, given[int(name[5])][1::2], gen, ref, rows)
    described = run.attrs["adapter_description"]
    assert (run.attrs["adapter"], described["denoiser"]) == ("weaver", "engine.loom")
    assert i2am.GenericAdapter(**described).description == described


def test_cross_attention_at_two_resolutions_with_guidance_in_calls_of_its_own(
    tmp_path, monkeypatch, tailor_file
):
    pipe = Tailor()
    plain = sew(pipe, 2)
    images, run = record(sew, pipe, tmp_path / "r.zarr", str(tailor_file), 2, roles=("cond", "uncond"))
    np.testing.assert_array_equal(images, plain)
    with kernel_witness(pipe.core, r"look\.\d", monkeypatch) as seen:
        sew(pipe, 2)
    assert len(run.layers) == 4
    assert list(run.timesteps) == pipe.scheduler.timesteps.tolist()
    for name, grid in (("look.0", (8, 8)), ("look.1", (4, 4))):
        for index, role in enumerate(("@uncond", "")):
            spec = run.layers[f"core.{name}{role}"]
            assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == (grid, (6, 4), 0)
            calls = [forward[0] for forward in seen[name][index::2]]
            every = np.arange(24)
            equal_to_the_kernel(
                run, f"core.{name}{role}", calls, np.arange(grid[0] * grid[1]), every, slice(None)
            )


def test_a_draft_holds_for_other_sizes_of_the_picture_and_of_its_reference(tmp_path, monkeypatch):
    pipe, file = Choir(), tmp_path / "choir.yaml"
    file.write_text(draft(pipe, lambda: pipe(models.picture(1, 24, 32), generators(1))).text)

    def sing(pipe, count):
        return pipe(models.picture(3, 32, 16), generators(1), size=(12, 8)).images

    _, run = record(sing, pipe, tmp_path / "r.zarr", str(file))
    with kernel_witness(pipe.chorus, r"voices\.\d\.sing", monkeypatch) as seen:
        sing(pipe, 1)
    given = watched(pipe.chorus.voices, lambda: sing(pipe, 1), monkeypatch)
    assert list(run.timesteps) == pipe.sigmas.tolist()
    assert len(run.layers) == 2
    for name, forwards in seen.items():
        layer = f"chorus.{name}"
        spec = run.layers[layer]
        assert (spec.gen_grid, spec.ref_grid, spec.ref_prefix) == ((6, 4), (4, 2), 0)
        calls = [forward[0] for forward in forwards]
        equal_to_the_kernel(run, layer, calls, np.arange(24), np.arange(24, 32), slice(None))
        voice = pipe.chorus.voices[int(name[7])]
        every = np.arange(24), np.arange(24, 32), slice(None)
        check_norms(run, layer, voice.sing.back, given[int(name[7])], *every)


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize(
    ("make", "name"),
    [(joint_models.flux_kontext, "flux-kontext"), (joint_models.qwen_edit, "qwen-image-edit")],
)
def test_the_draft_for_a_known_family_says_what_its_adapter_does(tmp_path, make, name):
    pipe = make()
    files = {"described": draft(pipe, lambda: edit(pipe)).text}
    if "kontext" in name:
        files["page"] = blocks("yaml")[1]
    runs = [captured(pipe, tmp_path / "own.zarr", name)]
    for kind, text in files.items():
        (tmp_path / f"{kind}.yaml").write_text(text)
        runs.append(captured(pipe, tmp_path / f"{kind}.zarr", str(tmp_path / f"{kind}.yaml")))
    own, described = runs[:2]
    assert own.layers == described.layers
    assert own.record("s")["witness"] == described.record("s")["witness"]
    for layer in own.layers:
        for kind in ("lse", "value_norm", "contribution"):
            np.testing.assert_array_equal(
                *(np.asarray(getattr(run, kind)(layer)) for run in (own, described))
            )
        for run in runs[1:]:
            assert run.timesteps == own.timesteps
            np.testing.assert_array_equal(run.scores(layer).compute(), own.scores(layer).compute())


def captured(pipe, path, adapter):
    """Another shape than a draft's."""
    with i2am.capture(pipe, path, ["s"], adapter=adapter, text=True) as cap, cap.sample("s") as s:
        s.generated = edit(pipe, height=24, width=16)[0]
    return i2am.open_run(path)


def blocks(language):
    """Of the page on models that no adapter knows."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_shows_what_is_drafted_and_captures(tmp_path, monkeypatch, weaver_file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model.yaml").write_text(blocks("yaml")[0])
    shown, drafted = (i2am.GenericAdapter.read(path) for path in ("my-model.yaml", weaver_file))
    assert {**shown.description, "inputs": {}} == {**drafted.description, "inputs": {}}
    left, right = models.picture(1, 32, 32), models.picture(2, 16, 32)
    scope = {"i2am": i2am, "pipe": Weaver(), "left": left, "right": right, "generator": generators(1)}
    exec(blocks("python")[1], scope)
    assert len(i2am.open_run("study.zarr").layers) == 4


def test_references_that_different_modules_see_keep_their_numbers(tmp_path):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.coat, self.hat = Look(), Look()

        def forward(self, x, t, coat, hat):
            return self.hat(self.coat(x, coat), hat)

    class Wardrobe:
        def __init__(self):
            torch.manual_seed(3)
            self.both, self.steps = Both(), [2.0, 1.0]
            self.coat, self.hat = torch.randn(1, 16, 3, 4), torch.randn(1, 16, 2, 5)

        @torch.no_grad()
        def __call__(self):
            x = torch.ones(1, 16, 4, 4)
            for step in self.steps:
                x = self.both(x, torch.tensor(step), self.coat, self.hat)
            return [x[0, :3].sigmoid().permute(1, 2, 0).numpy()]

    pipe, file = Wardrobe(), tmp_path / "wardrobe.yaml"
    file.write_text(draft(pipe, pipe).text)
    _, run = record(lambda pipe, count: pipe(), pipe, tmp_path / "r.zarr", file)
    found = {layer: (spec.reference, spec.ref_grid) for layer, spec in run.layers.items()}
    assert found == {"both.coat": ("reference", (3, 4)), "both.hat": ("reference-1", (2, 5))}


def test_self_attention_as_large_as_a_look_is_left_out():
    """Its keys all depend on the picture; those of the look that has as many do not."""

    class Then(Own):
        def __init__(self, look):
            super().__init__()
            self.look = look

        def forward(self, features, garment):
            return super().forward(self.look(features, garment))

    pipe = Tailor()
    pipe.core.look[1] = Then(pipe.core.look[1])
    found = draft(pipe, lambda: pipe(models.picture(1, 16, 16), generators(1)))
    modules = re.findall("modules: (.*)  #", found.text)
    assert modules == ['["core.look.0", "core.look.*.look"]']
    assert found.left["core.look.1", 0] == "attention to itself alone"


def test_tokens_that_mixed_too_little_to_be_measured_stand_as_before():
    """What reaches a token through a softmax may be lost in rounding: then not every key changes."""
    parts = [
        Part(name, name == "latents", torch.ones(1), (1, 6, 4), 6) for name in ("latents", "text", "views")
    ]
    gen, text, views = (torch.arange(6) // 2 == number for number in range(3))
    every, most = torch.ones(6, dtype=torch.bool), torch.arange(6) != 4
    found = {}
    for number, changed in enumerate([(gen, text, views), (every, most, every), (most, every, every)]):
        call = AttentionCall(f"net.{number}", 0, "Block", "sdpa", (1, 1, 6, 6, 4), None, 0.5, "net", 0)
        both = dict(zip(parts, changed, strict=True))
        found[f"net.{number}", 0] = Tried(call, False, both, both)
    taken, left = layouts(found)
    assert not left
    for number, layout in enumerate(taken.values()):
        assert [(run.start, run.stop, run.part) for run in layout.keys] == [
            (0, 2, None), (2, 4, parts[1]), (4, 6, parts[2])
        ]  # fmt: skip
        assert layout.references == [parts[2]]
        assert layout.inherited == (number > 0)


def test_trials_run_under_the_pipelines_own_autocast():
    pipe = Tailor()
    pipe.core.to(torch.bfloat16)

    def call():
        with torch.autocast("cpu", torch.bfloat16):
            try_on(pipe)

    assert 'modules: "core.look.*"' in draft(pipe, call).text


DESCRIBED = {
    "denoiser": "core",
    "timestep": "t",
    "guidance": [["uncond"], ["cond"]],
    "layers": [{"modules": "core.look.*", "references": [{"grid": ["garment[2]", "garment[3]"]}]}],
}


def described(**layer):
    """The tailor's description with other words for its layers."""
    return i2am.GenericAdapter(**{**DESCRIBED, "layers": [{**DESCRIBED["layers"][0], **layer}]})


def refused(tmp_path, adapter, make=sew, pipe=None, **given):
    with pytest.raises(i2am.InputError) as error:
        record(make, pipe or Tailor(), tmp_path / "r.zarr", adapter, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"references": [{"at": "0:20", "grid": ["garment[2]", "garment[3]"]}]}, "0; got 20 of 24"),
        ({"references": [{"at": ":25"}]}, "references.0.at; got 25, in ':25', is outside 24 tokens"),
        ({"references": [{"at": ":9"}, {"at": "8:"}]}, "references.1.at; got 1 keys that are named twice"),
        ({"references": [{"grid": ["garmet[2]", 4]}]}, "0.grid; got there is no 'garmet' among"),
        ({"references": [{"grid": ["garment[7]", 4]}]}, "'garment.7.' does not exist"),
        ({"references": [{"grid": ["garment", 4]}]}, "'garment' is no number"),
        ({"generated": {"at": "1:"}}, "generated.grid; got 63 tokens, which are no part of latents of 8x8"),
        ({"queries": 64}, "'core.look.1'.*one call of.*64 queries and any keys; got 16 queries and 24 keys"),
        ({"call": 1}, "'core.look.0'.*call 1 of.*any queries"),
        ({"modules": "core.lok.*"}, "module 'core.lok"),
        ({"modules": "core.look"}, "layers that the denoiser called"),
        ({"output": "to_out"}, "layers.0.output; got no module 'to_out' in a Look or beside it"),
        ({"text": ["0::2", "5:"], "references": [{"at": "1::2"}]}, "at; got 10 keys that are named"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_the_model_is_refused(tmp_path, layer, words):
    assert re.search(words, said := refused(tmp_path, described(**layer))), said


def test_a_module_of_several_calls_has_to_say_which(tmp_path):
    layers = [{"modules": "*.weave", "generated": {"at": "2:"}, "references": [{"at": ":17"}]}]
    adapter = i2am.GenericAdapter(
        denoiser="engine.loom", timestep={"argument": "when", "times": 1000}, schedule="engine.levels",
        guidance=[["uncond", "cond"]], layers=layers,
    )  # fmt: skip
    said = refused(tmp_path, adapter, weave, Weaver())
    assert "an adapter that says which call it is" in said or "is outside" in said


def test_heads_among_the_rows_are_no_guidance(tmp_path):
    """A kernel that is given [row * head, token, dim] would look like twice the rows."""
    pipe = Tailor()

    def folded(self, features, garment):
        q, k, v = (
            x.flatten(2).unflatten(1, (2, -1)).transpose(2, 3).flatten(0, 1)
            for x in (self.ask(features), self.offer(garment), self.give(garment))
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return mixed.unflatten(0, (-1, 2)).transpose(2, 3).flatten(1, 2).view_as(features)

    for look in pipe.core.look:
        look.forward = folded.__get__(look)
    adapter = i2am.GenericAdapter(**{**DESCRIBED, "guidance": [["uncond", "cond"]]})
    assert "rows of its attention call; expected the 1 of the latents; got 2" in refused(
        tmp_path, adapter, pipe=pipe, guidance=1.0
    )


def test_sites_inside_sites_keep_their_own_calls(tmp_path):
    """A module that makes a call of its own around one that makes another."""
    pipe = Tailor()

    class Around(torch.nn.Module):
        def __init__(self, look):
            super().__init__()
            self.inner, self.outer = look, type(look)()

        def forward(self, features, garment):
            return self.outer(self.inner(features, garment), garment[..., :3])

    class Mixed(Around):
        def forward(self, features, garment):
            own = super().forward(features, garment)
            q = own.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)
            k = garment.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)
            return own + torch.nn.functional.scaled_dot_product_attention(q, k, k).transpose(2, 3).reshape(
                own.shape
            )

    pipe.core.look[1] = Mixed(pipe.core.look[1])
    adapter = i2am.GenericAdapter(
        **{
            **DESCRIBED,
            "layers": [
                {
                    "modules": ["core.look.0", "core.look.1", "core.look.1.inner"],
                    "keys": 24,
                    "references": [{}],
                },
                {"modules": "core.look.1.outer", "references": [{"grid": [6, 3]}]},
            ],
        }
    )
    plain = sew(pipe)
    images, run = record(sew, pipe, tmp_path / "r.zarr", adapter)
    np.testing.assert_array_equal(images, plain)
    assert {name: spec.ref for name, spec in run.layers.items()} == {
        "core.look.0": 24, "core.look.1": 24, "core.look.1.inner": 24, "core.look.1.outer": 18,
    }  # fmt: skip
    assert all(found["unwitnessed_steps"] == 0 for found in run.record("s0")["witness"].values())


def by_matmul(self, q, k, v):
    return (torch.matmul(q, k.transpose(2, 3)) * 0.3).softmax(-1) @ v


def by_module(self, q, k, v):
    return self.attend((q * 0.3) @ k.transpose(-2, -1)) @ v


def folded(multiply):
    """Heads among the rows, as the older libraries have them."""

    def attention(self, q, k, v):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return torch.bmm(torch.softmax(multiply(q, k), dim=2), v).unflatten(0, (-1, 2))

    return attention


by_einsum = folded(lambda q, k: torch.einsum("b i d, b j d -> b i j", q, k) * 0.3)
by_baddbmm = folded(
    lambda q, k: torch.baddbmm(
        q.new_zeros(len(q), q.shape[1], k.shape[1]), q, k.transpose(1, 2), beta=0, alpha=0.3
    )
)
biased = folded(lambda q, k: torch.bmm(q, k.transpose(1, 2)) + torch.linspace(0, 3, k.shape[1]))


def written_out(attention):
    """The tailor, whose looks compute their attention so."""

    def forward(self, features, garment):
        q, k, v = (
            x.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)
            for x in (self.ask(features), self.offer(garment), self.give(garment))
        )
        return attention(self, q, k, v).transpose(2, 3).reshape(features.shape)

    pipe = Tailor()
    for look in pipe.core.look:
        look.attend = torch.nn.Softmax(dim=-1)
        look.forward = forward.__get__(look)
    return pipe


@pytest.mark.parametrize("attention", [by_matmul, by_module, by_einsum, by_baddbmm])
def test_a_softmax_that_is_written_out_is_read_too(tmp_path, attention):
    pipe = written_out(attention)
    text = draft(pipe, lambda: try_on(pipe)).text
    assert ("heads: 2" in text) == (attention in (by_einsum, by_baddbmm))
    (tmp_path / "drafted.yaml").write_text(text)
    plain = sew(pipe, 2)
    images, run = record(sew, pipe, tmp_path / "r.zarr", str(tmp_path / "drafted.yaml"), 2)
    np.testing.assert_array_equal(images, plain)
    given = []
    hooks = [
        look.register_forward_pre_hook(lambda m, args: given.append((m, *args))) for look in pipe.core.look
    ]
    sew(pipe, 2)
    for hook in hooks:
        hook.remove()
    for number, look in enumerate(pipe.core.look):
        logits = []
        for _, features, garment in [call for call in given if call[0] is look][1::2]:  # the conditional ones
            q, k = (
                torch.einsum("oi,bihw->bohw", layer.weight.double()[:, :, 0, 0], x.double())
                + layer.bias.double()[:, None, None]
                for layer, x in ((look.ask, features), (look.offer, garment))
            )
            q, k = (x.flatten(2).unflatten(1, (2, -1)).detach() for x in (q, k))
            logits.append(torch.einsum("bhdi,bhdj->bhij", q, k) * 0.3)
        own, layer = torch.stack(logits, 1), f"core.look.{number}"
        np.testing.assert_allclose(run.scores(layer).compute(), own, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run.lse(layer), own.logsumexp(-1), rtol=1e-5, atol=1e-5)
        for sample in run.samples:
            agreement = run.record(sample)["witness"][layer]
            assert (agreement["kernel"], agreement["steps"], agreement["unwitnessed_steps"]) == (
                "softmax",
                3,
                0,
            )
            assert layer in str(run.record(sample)["annotations"])  # why it has no norms


@pytest.mark.parametrize("first", [20, 10])
def test_a_mask_of_logits_that_are_written_out(tmp_path, first):
    """Of words it counts in the log-sum-exp; of a reference it is refused."""
    seen = []

    def attention(self, q, k, v):
        hidden = torch.arange(k.shape[2]) >= first
        seen.append((0.3 * q @ k.transpose(2, 3)).masked_fill(hidden, -torch.inf))
        return seen[-1].softmax(-1) @ v

    pipe, adapter = written_out(attention), described(references=[{"at": ":20"}], text="20:")
    if first < 20:
        assert "expected a logit masked out" in refused(tmp_path, adapter, pipe=pipe)
        return
    _, run = record(sew, pipe, tmp_path / "r.zarr", adapter)
    own = torch.stack(seen[2::4], 1)  # of the conditional calls, the first layer's
    np.testing.assert_allclose(run.scores("core.look.0").compute(), own[..., :20], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.lse("core.look.0"), own.logsumexp(-1), rtol=1e-5)


def test_logits_that_are_no_plain_product_are_refused(tmp_path):
    said = refused(tmp_path, described(heads=2), pipe=written_out(biased))
    assert "core.look.0" in said
    assert "got none from Look" in said


class Torchs(torch.nn.Module):
    """A look by torch's own module, which calls the kernel where no mode sees it."""

    def __init__(self, weights):
        super().__init__()
        self.mha, self.weights = torch.nn.MultiheadAttention(16, 2, batch_first=True), weights

    def forward(self, features, garment):
        q, k = (x.flatten(2).transpose(1, 2) for x in (features, garment))
        mixed = self.mha(q, k, k, need_weights=self.weights)[0]
        return mixed.transpose(1, 2).reshape(features.shape)


@pytest.mark.parametrize("weights", [False, True])
def test_torchs_own_attention_module_is_read_or_refused(tmp_path, monkeypatch, weights):
    pipe = Tailor()
    pipe.core.look[0] = Torchs(weights).eval()
    adapter = described(modules="core.look.*" if not weights else "core.look.0.mha", call=0, output=None)
    assert "torch.backends.mha.set_fastpath_enabled(False)" in refused(tmp_path, adapter, pipe=pipe)
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    if weights:
        assert "scaled_dot_product_attention with any queries" in refused(tmp_path, adapter, pipe=pipe)
        return
    plain = sew(pipe)
    images, run = record(sew, pipe, tmp_path / "r.zarr", adapter)
    np.testing.assert_array_equal(images, plain)
    with kernel_witness(pipe.core, r"look\.0", monkeypatch) as seen:
        sew(pipe)
    calls = [forward[0] for forward in seen["look.0"][1::2]]
    equal_to_the_kernel(run, "core.look.0", calls, np.arange(64), np.arange(24), slice(None))


def test_a_run_does_not_go_on_with_another_description(tmp_path):
    pipe, path = Tailor(), tmp_path / "r.zarr"
    with i2am.capture(pipe, path, ["a", "b"], adapter=described()) as cap, cap.sample("a"):
        sew(pipe)
    other = described(references=[{}])
    with pytest.raises(i2am.ConfigError, match="captured with another description"):
        i2am.capture(pipe, path, ["a", "b"], adapter=other).__enter__()
    with i2am.capture(pipe, path, ["a", "b"], adapter=described()) as cap, cap.sample("b"):
        sew(pipe)
    assert list(i2am.open_run(path).samples) == ["a", "b"]


def test_patches_are_hidden_where_the_sizes_of_the_call_are_said():
    from i2am.pipeline.interventions.ablation import ablation

    pipe, gone = Tailor(), torch.zeros(1, 24, dtype=torch.bool)
    gone[:, :12] = True
    before = sew(pipe)
    adapter = described(modules="core.look.0", queries="latent_rows * latent_columns", keys=24)
    with ablation(pipe, gone, "mask", adapter=adapter):
        assert np.abs(np.stack(sew(pipe)) - np.stack(before)).max() > 1e-6
    with (
        pytest.raises(i2am.InputError, match="say queries: and keys:"),
        ablation(pipe, gone, "mask", adapter=described()),
    ):
        sew(pipe)


def of(reference):
    return {"layers": [{"modules": "x", "references": [reference]}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": []}, "GenericAdapter: 'layers'; expected"),
        ({"layer": []}, "unknown key 'layer'; did you mean 'layers'"),
        ({"denoiser": None}, "GenericAdapter: 'denoiser'; expected"),
        ({"layers": [{"modules": "x"}]}, "missing key 'layers.0.references'; add it; i2am probe"),
        (of({"at": "5"}), "layers.0.references.0.at.0'; expected a range"),
        (of({"grid": [1, "__import__('os')"]}), "0.grid'; expected latents, or"),
        (of({"grid": "square"}), "0.grid'; expected latents, or"),
        (of({"prefix": "2 ** 9"}), "prefix'; expected a whole number, or"),
        ({"guidance": [["uncond", "cond"], ["image"]]}, "guidance'; expected one call of several row blocks"),
        ({"guidance": [["cond"], ["cond"]]}, "guidance'; expected one call"),
        ({"timestep": {"argument": "t", "time": 2}}, "unknown key 'timestep.time'; did you mean 'times'"),
    ],
)
def test_a_description_that_cannot_be_is_refused_by_its_path(change, words):
    with pytest.raises(i2am.ConfigError, match=words) as error:
        i2am.GenericAdapter(**{**DESCRIBED, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"), [(None, "does not exist; correct the path"), ("", "an empty file")]
)
def test_a_file_that_describes_nothing_is_refused(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(i2am.InputError, match=f"{words}.*i2am probe MODULE:FACTORY"):
        i2am.capture(Tailor(), tmp_path / "r.zarr", ["a"], adapter=str(file))


def test_arithmetic_and_nothing_else():
    sizes = {"keys": 90, "text": (1, 7), "shapes": [[(1, 4, 6)]], "named": {"ids": 5}}
    assert evaluate("keys - text[1] * 2 // 3 % 5 - -1", sizes) == 90 - 7 * 2 // 3 % 5 + 1
    assert evaluate('shapes[0][0][text[1] - 5] + named["ids"]', sizes) == 11
    assert list(positions("-10::4", 90, sizes)) == [80, 84, 88]
    assert list(positions("text[1]:keys // 9", 90, sizes)) == [7, 8, 9]
    for text in (
        "keys / 2", "abs(keys)", "keys.real", "keys and 1", "[1][0]", "(lambda: 1)()", "True", "1.5",
        "keys if 1 else 2",
        "2 ** 99", "'a' * 9", "keys; 1", "", "(" * 150, "f'{keys}'", "keys[:1]", "a := 1", "1 << 99",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="a whole number, or names"):
            evaluate(text, sizes)
    for text in ("keys // 0", "keys % (keys - 90)", "text", "text + 1", "nothing", "text[9]", "keys[0]"):
        with pytest.raises(ValueError, match="divides by 0|no number|there is no|does not exist"):
            evaluate(text, sizes)
    with pytest.raises(ValueError, match="the step of"):
        positions("::0", 90, sizes)
