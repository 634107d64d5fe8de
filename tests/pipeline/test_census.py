"""Every pipeline of the installed diffusers is captured by an adapter, or answered with a reason."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from torch import nn

from benchmarks.table import ADAPTERS, table
from i2am.pipeline.adapters.census import ATTENDED, MECHANISMS, NOT_GIVEN, UNATTENDED, census, entry_of
from i2am.pipeline.adapters.registry import adapters, find_adapter
from i2am.storage.errors import CaptureError
from tests.pipeline import diffusers_sources, joint_models, models, unet_models

IMAGE = re.compile(
    r"(.*_)?(image|images|video|mask|controls?|conditions|hint|reference|conditioning_frames"
    r"|image_embeds|image_embeddings|(image|video|keyframes|reference)_latents)"
)
"""Arguments of a call that take an image, a mask, a video or what is made of them."""
NOT_IMAGE = re.compile(r"(negative_)?(.*attention_mask.*|.*embeds_mask|ip_adapter_.*)|num_.*|use_.*")


FOLDER = Path(diffusers.__file__).parent


@cache
def known():
    return diffusers_sources.classes(FOLDER / "modular_pipelines") | plain()


@cache
def plain():
    return diffusers_sources.classes(FOLDER / "pipelines")


@cache
def installed():
    """Every pipeline; a modular one takes what its own blocks take."""
    found = diffusers_sources.pipelines(plain(), set(dir(diffusers)))
    for name in set(dir(diffusers)) - {"ModularPipeline"}:
        if name.endswith("ModularPipeline"):
            blocks = getattr(diffusers, getattr(diffusers, name).default_blocks_name)()
            unet = [str(part.type_hint) for part in blocks.expected_components if part.name == "unet"]
            call = tuple(each.name for each in blocks.inputs if each.name)
            found[name] = diffusers_sources.Declared((), call, "".join(unet))
    return found


def pipe_of(name, **parts):
    """A stand-in of a pipeline class: its name, its parents' names, and the parts given."""
    pipe = diffusers_sources.stub(known(), name)()
    vars(pipe).update(parts)
    return pipe


def unet(*paths):
    """A module with a module at each path."""
    root = nn.Module()
    for path in paths:
        here = root
        for part in path.split("."):
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
    return root


ATTN2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def test_the_census_has_every_pipeline_of_the_installed_diffusers_and_no_other():
    missing, gone = installed().keys() - census().keys(), census().keys() - installed().keys()
    assert (missing, gone) == (set(), set()), (
        "read their code, and correct pipeline/adapters/census.tsv, or modular.tsv"
    )


def test_a_pipeline_that_a_release_adds_is_seen_also_where_its_call_is_inherited(tmp_path):
    (tmp_path / "new.py").write_text(
        "class OldPipeline(DiffusionPipeline):\n    def __call__(self, prompt, image): ...\n"
        "class NewPipeline(mixins.Loader, OldPipeline): ...\n"
        "class HiddenPipeline(OldPipeline): ...\n"
        "class NewPipelineOutput(BaseOutput): ...\n"
    )
    found = diffusers_sources.classes(tmp_path)
    exported = {"OldPipeline", "NewPipeline", "NewPipelineOutput", "OtherPipeline"}
    seen = diffusers_sources.pipelines(found, exported)
    assert {name: declared.call for name, declared in seen.items()} == dict.fromkeys(
        ("OldPipeline", "NewPipeline"), ("prompt", "image")
    )


def test_entries_agree_with_the_arguments_of_the_calls():
    """Where nothing goes in, no argument takes an image; IP-Adapters are on the denoisers that are read."""
    for name in installed().keys() & census().keys():
        entry, declared = census()[name], installed()[name]
        arguments = declared.call
        assert set(entry.mechanisms) <= MECHANISMS.keys(), name
        takes = [each for each in arguments if IMAGE.fullmatch(each) and not NOT_IMAGE.fullmatch(each)]
        if name not in ("StableDiffusionPix2PixZeroPipeline",) and entry.mechanisms != ("other",):
            assert bool(takes) is entry.takes_image, (name, takes)  # Pix2Pix Zero: its `invert` takes it
        given = entry.ip_adapter not in (None, NOT_GIVEN)
        assert given is ("ip_adapter_image" in arguments), name
    assert ATTENDED.keys().isdisjoint(UNATTENDED)


LOADED = {
    "ip-adapter": ("unet", f"{ATTN2}.processor.to_k_ip.0", "IPAdapterMixin"),
    "sd3-ip-adapter": ("transformer", "transformer_blocks.0.attn.processor.to_k_ip", "SD3IPAdapterMixin"),
    **dict.fromkeys(
        ("flux-ip-adapter", "flux-kontext-ip-adapter"),
        ("transformer", "transformer_blocks.0.attn.processor.to_k_ip.0", "FluxIPAdapterMixin"),
    ),
}
"""What reads an IP-Adapter, to the model and the module that there are once one is loaded, and by whom."""


def test_every_pipeline_that_may_load_an_ip_adapter_is_captured_with_it_or_answered():
    source = (Path(diffusers.__file__).parent / "loaders" / "ip_adapter.py").read_text(encoding="utf-8")
    loaders = {
        part.partition(":")[0] for part in source.split("\nclass ")[1:] if "def load_ip_adapter(" in part
    }
    assert loaders - {"ModularIPAdapterMixin"} == {mixin for *_, mixin in LOADED.values()}
    answers = dict.fromkeys([None, NOT_GIVEN, *LOADED], 0)
    for name in installed().keys() & census().keys():
        entry, own = census()[name], loaders & diffusers_sources.parents(known(), name)
        answers[entry.ip_adapter] += 1
        if entry.ip_adapter in LOADED:
            model, path, mixin = LOADED[entry.ip_adapter]
            assert {each.removeprefix("Modular") for each in own} == {mixin}, name
            loaded = pipe_of(name, **{model: unet(path)}, text_encoder=nn.Module())
            assert find_adapter(loaded).name == entry.ip_adapter, name
        else:
            assert bool(own) is (entry.ip_adapter == NOT_GIVEN), name
    assert min(answers.values()) > 0


def test_each_pipeline_is_captured_or_answered_with_its_reason():
    for name in census():
        check_answer(name)


def check_answer(name):
    entry = census()[name]
    pipe = pipe_of(name)
    try:
        assert find_adapter(pipe).name == entry.adapter, name
    except CaptureError as error:
        says, remedy = str(error), str(error).rpartition("; ")[2]
        assert says.startswith(f"adapter for {name}; expected attention to tokens of a reference; got ")
        assert all(f"{MECHANISMS[each]}" in says for each in entry.mechanisms)
        if entry.adapter:
            assert f"adapter={entry.adapter!r}" in remedy
            assert find_adapter(pipe, entry.adapter).name == entry.adapter
        else:
            assert ("no adapter reads that yet" if entry.attended else "attention cannot answer") in says
            assert ("write an adapter" in remedy) is entry.attended
            assert ("load_ip_adapter" in remedy) is (entry.ip_adapter not in (None, NOT_GIVEN))
        assert ("IP-Adapter" in says) is (entry.ip_adapter is not None)
        assert len(says) < 600
        assert "\n" not in says


def test_pipelines_that_attend_to_words_alone_are_captured_where_no_image_goes_in_or_by_name():
    parts = {"unet": unet(ATTN2), "text_encoder": nn.Module()}
    assert find_adapter(pipe_of("StableDiffusionPipeline", **parts)).name == "diffusers-text"
    own = type("MyPipeline", (), {})()  # of nobody's table
    vars(own).update(parts)
    assert find_adapter(own).name == "diffusers-text"
    for name in ("MarigoldDepthPipeline", "StableDiffusionControlNetPipeline", "BlipDiffusionPipeline"):
        pipe = pipe_of(name, **parts)
        with pytest.raises(CaptureError, match=rf"{name}.*adapter='diffusers-text' captures its words"):
            find_adapter(pipe)
        assert find_adapter(pipe, "diffusers-text").name == "diffusers-text"


@pytest.mark.parametrize(
    "kind",
    [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline],
)
def test_real_pipelines_are_told_what_to_load(kind):
    pipe = unet_models.stable_diffusion(kind)
    with pytest.raises(CaptureError, match=r"attention cannot answer; load an IP-Adapter: .*, or adapter='d"):
        find_adapter(pipe)
    assert find_adapter(unet_models.with_ip_adapters(pipe, "base")).name == "ip-adapter"


@pytest.mark.parametrize(
    "make",
    [
        models.paint_by_example,
        models.image_variation,
        joint_models.flux_kontext,
        joint_models.longcat_edit,
        joint_models.qwen_edit,
        joint_models.qwen_edit_plus,
        joint_models.flux2,
    ],
)
def test_real_pipelines_are_taken_by_the_adapter_that_the_census_names(make):
    pipe = make()
    adapter = entry_of(pipe).adapter
    assert find_adapter(pipe) is adapters()[adapter]
    assert adapters()[adapter].sites(pipe)


def test_a_prior_is_taken_beside_the_pipeline_that_uses_it():
    entry = census()["FluxPriorReduxPipeline"]
    assert find_adapter(SimpleNamespace(prior=pipe_of(entry.pipeline))).name == entry.adapter
    with pytest.raises(CaptureError, match=r"the one to capture\); capture it with adapter='flux-redux'"):
        find_adapter(pipe_of(entry.pipeline))


def test_a_subclass_is_answered_as_its_parent_and_modular_pipelines_by_their_blocks():
    class Mine(diffusers_sources.stub(known(), "LucyEditPipeline")):
        pass

    assert entry_of(Mine()) is census()["LucyEditPipeline"]
    own = type("MyModularPipeline", (type("ModularPipeline", (), {}),), {})()  # of the user's own blocks
    with pytest.raises(CaptureError, match=r"MyModularPipeline.*modular \(the blocks.*no adapter reads"):
        find_adapter(own)
    with pytest.raises(CaptureError, match=r"Flux3ModularPipeline.*joint \(tokens.*no adapter reads"):
        find_adapter(pipe_of("Flux3ModularPipeline"))
    assert entry_of(object()) is None


def test_the_readmes_table_is_the_programs():
    shown = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert table() in shown
    assert {name for names in ADAPTERS for name in names.split()} <= set(adapters())
