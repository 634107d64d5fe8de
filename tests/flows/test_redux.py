"""FLUX Redux from two folders, by diffusers' own classes with small random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

import i2am
from i2am.flows.capture.load_pipeline import call_inputs, load_pipeline
from i2am.flows.config.models import CaptureConfig
from tests.pipeline import joint_models

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The pair as ``save_pretrained`` writes it; the prior's text is 512 zeros of 4096 channels, as ever."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(vision),
        feature_extractor=SiglipImageProcessor(size={"height": 8, "width": 8}),
        image_embedder=ReduxImageEncoder(redux_dim=8, txt_in_features=4096),
    ).save_pretrained(tmp_path / "prior")
    parts = joint_models.flux_kontext().components
    wide = {**parts["transformer"].config, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
    parts["transformer"] = FluxTransformer2DModel.from_config(wide)
    FluxPipeline(**parts).save_pretrained(tmp_path / "base")
    return tmp_path


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def test_a_redux_pair_from_two_folders(folders: Path) -> None:
    source = {
        "kind": "factory", "function": "i2am.pipeline.adapters.flux_redux_pipeline:load",
        "arguments": {"prior": str(folders / "prior"), "base": str(folders / "base")},
    }  # fmt: skip
    config = CaptureConfig.model_validate(
        {"out": "a.zarr", "pipeline": source, "samples": {"manifest": "m.csv"}}
    )
    pipe = load_pipeline(config)
    assert call_inputs(config, pipe) == {"image": "reference"}

    def paint(*references: Image.Image) -> np.ndarray:
        generators = [torch.Generator().manual_seed(1) for _ in references]
        options = {"height": 8, "width": 16, "num_inference_steps": 2, "output_type": "np"}
        return np.stack(pipe(list(references), generator=generators, **options).images)

    plain = paint(picture(1), picture(2))
    assert not np.array_equal(plain[0], plain[1])  # each is painted from its own reference
    np.testing.assert_allclose(plain[1:], paint(picture(2)), atol=1e-5)
    with (
        i2am.capture(pipe, folders / "r.zarr", samples=["a", "b"]) as cap,
        cap.samples(["a", "b"]) as handles,
    ):
        captured = paint(picture(1), picture(2))
        for handle, image in zip(handles, captured, strict=True):
            handle.generated = (image * 255).astype(np.uint8)
    np.testing.assert_array_equal(plain, captured)
    layers = i2am.open_run(folders / "r.zarr").layers
    assert {(layer.gen_grid, layer.ref_grid) for layer in layers.values()} == {((4, 8), (2, 2))}
    assert len(layers) == 4
