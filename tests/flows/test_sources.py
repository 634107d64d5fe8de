"""Loading pipelines as configurations describe them: folders, IP-Adapters, the Redux pair."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2am.flows.capture.load_pipeline import _load_ip_adapters, call_inputs, load_pipeline
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig, PretrainedSource
from i2am.pipeline.adapters.registry import find_adapter
from i2am.storage.errors import CaptureError, ConfigError
from tests.pipeline import joint_models, unet_models

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as ``save_pretrained`` writes it, and two IP-Adapters in the original format."""
    folder = tmp_path_factory.mktemp("models")
    vision = CLIPVisionConfig(
        hidden_size=24, projection_dim=unet_models.CLIP, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=3, image_size=8, patch_size=4,
    )  # fmt: skip
    pipe = unet_models.stable_diffusion()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(vision),
        feature_extractor=CLIPImageProcessor(size=8, crop_size=8),
        tokenizer=CLIPTokenizer(vocab=words, merges=[]),
    )
    pipe.save_pretrained(folder / "sd")
    for kind in ("base", "full"):
        state = unet_models.ip_adapter_state(pipe, kind)
        flat = {f"{part}.{name}": value for part, each in state.items() for name, value in each.items()}
        save_file({name: value.contiguous() for name, value in flat.items()}, folder / f"{kind}.safetensors")
    return folder


def settings(folders: Path, **source: Any) -> CaptureConfig:
    pipeline = {
        "kind": "pretrained", "location": str(folders / "sd"), "class": "StableDiffusionPipeline", **source
    }  # fmt: skip
    samples = {"manifest": "m.csv"}
    return CaptureConfig.model_validate({"out": "a.zarr", "pipeline": pipeline, "samples": samples})


def adapters(folders: Path, *scales: float) -> list[dict[str, Any]]:
    names = ("full", "base")
    return [
        {"location": str(folders), "weight_name": f"{name}.safetensors", "scale": scale}
        for name, scale in zip(names, scales, strict=False)
    ]


def test_ip_adapters_are_loaded_with_their_scales(folders: Path) -> None:
    config = settings(folders, ip_adapters=adapters(folders, 0.5, 0.25))
    pipe = load_pipeline(config)
    adapter = find_adapter(pipe)
    assert adapter.name == "ip-adapter"
    assert len(adapter.sites(pipe)) == 2 * 4
    processor = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor
    assert processor.scale == [0.5, 0.25]
    wanted = unet_models.ip_adapter_state(unet_models.stable_diffusion(), "full")["ip_adapter"]
    loaded = [p.to_k_ip[0].weight for p in pipe.unet.attn_processors.values() if hasattr(p, "to_k_ip")]
    for name, weight in zip([n for n in wanted if "to_k" in n], loaded, strict=True):
        torch.testing.assert_close(weight, wanted[name])
    site = adapter.sites(pipe)[0]
    assert adapter.layout(pipe, site, 5, (4, 4)).grid == (2, 2)  # the image encoder's: 8 pixels, patches of 4
    assert call_inputs(config, pipe) == {"ip_adapter_image": "reference", "prompt": "prompt"}


def test_what_cannot_be_loaded_is_one_error(folders: Path, tmp_path: Path) -> None:
    wanted = settings(folders, ip_adapters=[{"location": str(tmp_path), "weight_name": "a.safetensors"}])
    message = r"ip_adapters a\.safetensors; expected safetensors weights that fit a StableDiffusionPipeline"
    with pytest.raises(ConfigError, match=message):  # not there
        load_pipeline(wanted)
    fitting = load_file(folders / "base.safetensors")
    small = {name: torch.ones(3, 3) if "to_k_ip" in name else value for name, value in fitting.items()}
    for state in (small, {"x": torch.ones(2)}):
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(ConfigError, match=message):
            load_pipeline(wanted)
    (tmp_path / "a.safetensors").write_bytes(b"junk" * 30)
    with pytest.raises(ConfigError, match=message):
        load_pipeline(wanted)
    with pytest.raises(ValueError, match="pattern"):
        settings(folders, ip_adapters=[{"location": "x", "weight_name": "a.bin"}])
    pipe_without = settings(folders, **{"class": "DDIMPipeline"}, ip_adapters=adapters(folders, 1.0))
    with pytest.raises(CaptureError, match="expected one that takes IP-Adapters"):
        load_pipeline(pipe_without)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_ip_adapters_of_transformers_are_loaded_with_their_scales(tmp_path: Path, kind: str) -> None:
    """FLUX's loader takes a repository of the encoder, Stable Diffusion 3's one adapter alone."""
    pipe = joint_models.flux() if kind == "flux" else joint_models.sd3()
    files = [
        {"location": str(tmp_path), "weight_name": f"{n}.safetensors", "scale": 0.5 - n / 4} for n in (0, 1)
    ]
    state_of = joint_models.flux_ip_adapter_state if kind == "flux" else joint_models.sd3_ip_adapter_state
    for file in files:
        state = {f"{part}.{k}": v for part, own in state_of(pipe).items() for k, v in own.items()}
        save_file(state, tmp_path / file["weight_name"])
    name = type(pipe).__name__
    source = {"kind": "pretrained", "location": "x", "class": name, "ip_adapters": files}
    if kind == "sd3":
        with pytest.raises(ConfigError, match="expected one, for a StableDiffusion3Pipeline; got 2"):
            _load_ip_adapters(pipe, PretrainedSource.model_validate(source))
        source["ip_adapters"] = files[:1]
    _load_ip_adapters(pipe, PretrainedSource.model_validate(source))
    assert find_adapter(pipe).name == f"{kind}-ip-adapter"
    scale = pipe.transformer.transformer_blocks[1].attn.processor.scale
    assert scale == ([0.5, 0.25] if kind == "flux" else 0.5)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("capture-*.yaml")), ids=lambda p: p.stem)
def test_what_an_example_passes_is_what_its_pipeline_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_capture(path)
    source = config.pipeline
    if source.kind == "embedded":
        assert set(config.call) <= set(inspect.signature(load_pipeline(config).__call__).parameters)
    elif source.kind == "pretrained":
        taken = inspect.signature(getattr(diffusers, source.class_name).__call__).parameters
        assert {"generator", *(config.inputs or {}), *config.call} <= set(taken)
    else:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        module, _, name = source.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        assert inspect.signature(function).bind(device="cpu", dtype="float32", **source.arguments)


def test_an_argument_of_the_call_is_not_asked_of_the_samples(folders: Path) -> None:
    config = settings(folders).model_copy(update={"call": {"prompt": "a cat"}})
    assert call_inputs(config, load_pipeline(config)) == {}


def test_a_redux_pair_asks_its_prior_once_for_each_image() -> None:
    from i2am.pipeline.adapters.flux_redux_pipeline import ReduxPair

    asked, painted = [], []

    def prior(image: Any) -> Any:
        asked.append(image)
        return SimpleNamespace(
            prompt_embeds=torch.full((1, 2, 3), image), pooled_prompt_embeds=torch.ones(1, 4)
        )

    def base(**arguments: Any) -> str:
        painted.append(arguments)
        return "images"

    assert ReduxPair(prior, base)([1.0, 2.0], height=8) == "images"
    assert asked == [1.0, 2.0]
    assert painted[0]["height"] == 8
    assert painted[0]["prompt_embeds"].shape == (2, 2, 3)
    assert painted[0]["prompt_embeds"][1, 0, 0] == 2.0
