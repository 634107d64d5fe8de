"""The factories of ``examples/research_tryon.py``, on fake modules; and a canvas from YAML on."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from i2am.flows.capture.job import prepare
from i2am.flows.capture.load_pipeline import call_inputs, load_pipeline
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig
from i2am.pipeline.adapters.registry import find_adapter
from i2am.storage.reading.open import open_run
from tests.flows.conftest import Outcome

EXAMPLES = Path(__file__).parents[2] / "examples"
CATVTON = """
import torch
class CatVTONPipeline:
    def __init__(self, base_ckpt, attn_ckpt, attn_ckpt_version="mix", weight_dtype=torch.float32,
                 device="cuda", skip_safety_check=False):
        assert skip_safety_check and weight_dtype == torch.float32 and device == "cpu"
        self.unet, self.noise_scheduler = "unet", "scheduler"
    def __call__(self, image, condition_image, mask, num_inference_steps=50, guidance_scale=2.5, height=1024,
                 width=768, generator=None):
        assert (width, height) == image.size
        return [condition_image]
"""
UNETS = """
from torch import nn
class UNet2DConditionModel(nn.Module):
    @classmethod
    def from_pretrained(cls, location, subfolder, torch_dtype): return cls()
    def forward(self, sample, timestep, encoder_hidden_states, garment_features=None): ...
"""
TRYON = """
class StableDiffusionXLInpaintPipeline:
    calls = []
    @classmethod
    def from_pretrained(cls, location, **parts):
        self = cls()
        vars(self).update(parts, scheduler="scheduler")
        return self
    def to(self, device): return self
    def encode_prompt(self, prompt, do_classifier_free_guidance): return [f"{prompt} {n}" for n in range(4)]
    def __call__(self, **named):
        self.calls.append(named)
        return ([named["image"]],)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Both repositories in one folder; what they add to Python is taken away again."""
    modules, path = set(sys.modules), list(sys.path)
    texts = {
        "model/pipeline.py": CATVTON, "src/tryon_pipeline.py": TRYON,
        "src/unet_hacked_tryon.py": UNETS, "src/unet_hacked_garmnet.py": UNETS,
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("model", "src", "research_tryon", "research_common"):
            del sys.modules[name]


def example(name: str, **arguments: Any) -> tuple[CaptureConfig, Any]:
    """A configuration, and its pipeline with other arguments of the factory, on the CPU."""
    config = load_capture(EXAMPLES / f"capture-{name}.yaml").model_copy(
        update={"device": "cpu", "dtype": "float32"}
    )
    source = config.pipeline.model_copy(update={"arguments": {**config.pipeline.arguments, **arguments}})
    return config, load_pipeline(config.model_copy(update={"pipeline": source}))


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (24, 32), (value, value, value))


def call(config: CaptureConfig, pipe: Any) -> dict[str, Any]:
    """Arguments of the example's call, its images told apart by their colour."""
    names = call_inputs(config, pipe)
    inspect.signature(pipe.__call__).bind(**names, **config.call, generator=None)
    return {k: picture(n) if name != "prompt" else "a hat" for n, (k, name) in enumerate(names.items(), 1)}


def test_catvton(checkout: Path) -> None:
    config, pipe = example("catvton", checkout=str(checkout))
    given = call(config, pipe)
    assert set(given) == {"image", "condition_image", "mask"}
    assert pipe(**given, **config.call).images == [given["condition_image"]]
    assert pipe.noise_scheduler == "scheduler"


def test_idm_vton(checkout: Path) -> None:
    config, pipe = example("idm-vton", checkout=str(checkout))
    assert find_adapter(pipe).name == "idm-vton"
    given = call(config, pipe)
    assert set(given) == {"image", "mask_image", "cloth", "pose_img"}
    pipe(**given, **config.call, generator=torch.Generator().manual_seed(1))
    named = sys.modules["src.tryon_pipeline"].StableDiffusionXLInpaintPipeline.calls[-1]
    assert named["cloth"].shape == named["pose_img"].shape == (1, 3, 32, 24)
    assert named["cloth"].unique().item() == pytest.approx(given["cloth"].getpixel((0, 0))[0] / 127.5 - 1)
    assert (named["prompt_embeds"], named["text_embeds_cloth"]) == (
        "model is wearing a garment 0",
        "a photo of a garment 0",
    )
    assert (named["strength"], named["height"], named["width"]) == (1.0, 32, 24)


def test_icedit_returns_the_right_half(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fill:
        transformer, scheduler = nn.Linear(1, 1), None

        @classmethod
        def from_pretrained(cls, location: str, torch_dtype: Any) -> Fill:
            return cls()

        def to(self, device: str) -> Fill:
            return self

        def load_lora_weights(self, location: str) -> None: ...

        def __call__(self, prompt: str, image: Any, mask_image: Any, **more: Any) -> Any:
            assert prompt.endswith("but a hat")
            assert image.size == mask_image.size == (more["width"], more["height"]) == (48, 32)
            painted = np.asarray(mask_image)
            assert (painted[:, :24] == 0).all()
            assert (painted[:, 24:] == 255).all()
            image.paste((200, 200, 200), (24, 0, 48, 32))
            return SimpleNamespace(images=[image])

    monkeypatch.setattr("diffusers.FluxFillPipeline", Fill)
    config, pipe = example("icedit")
    (image,) = pipe(**call(config, pipe), **config.call).images
    assert image.size == (24, 32)
    assert image.getcolors() == [(24 * 32, (200, 200, 200))]


def test_a_canvas_goes_from_yaml_to_ablation(tmp_path: Path, i2am: Callable[..., Outcome]) -> None:
    """The run, and the images that are generated again, have the two sides of what the pipeline returns."""
    noise = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "canvas.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 8:] = 255
    mask[:4, 8:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "m.csv").write_text("id,source,mask\na,canvas.png,mask.png\n")
    settings = {
        "out": "r.zarr", "pipeline": {"kind": "factory", "function": "tests.flows.tiny_systems:diptych"},
        "samples": {"manifest": "m.csv"}, "call": {"num_inference_steps": 2},
        "inputs": {"image": "source", "mask_image": "mask"}, "reference_region": {"left": 0.3333},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    outcome = i2am("plan", tmp_path / "c.yaml", "--json")
    assert outcome.status == 0, outcome.err
    outcome = i2am("capture", tmp_path / "c.yaml", "--quiet")
    assert outcome.status == 0, outcome.err
    run = open_run(tmp_path / "r.zarr")
    assert {(spec.gen_grid, spec.ref_grid) for spec in run.layers.values()} == {((8, 8), (8, 4))}
    assert run.image("generated", "a").shape == (16, 16, 3)
    np.testing.assert_array_equal(run.image("source", "a"), noise[:, 8:])
    np.testing.assert_array_equal(run.image("reference", "a"), noise[:, :8])
    np.testing.assert_array_equal(run.image("mask", "a")[..., 0], mask[:, 8:])
    words = ["--rank", "random", "--fractions", "0.5", "--draws", "1", "--blocks", "0", "--mode", "mask"]
    outcome = i2am(
        "ablate",
        tmp_path / "c.yaml",
        "--run",
        tmp_path / "r.zarr",
        "--out",
        tmp_path / "o",
        *words,
        "--quiet",
    )
    assert outcome.status == 0, outcome.err
    (tmp_path / "two.yaml").write_text(json.dumps(settings | {"batch_size": 2}))
    prepare(load_capture(tmp_path / "two.yaml"))  # the region says which adapter is meant, at every look-up
    (tmp_path / "c.yaml").write_text(json.dumps(settings | {"reference_region": "middle"}))
    outcome = i2am("capture", tmp_path / "c.yaml")
    assert outcome.status == 2
    assert "reference_region" in outcome.err
