"""The factories of ``examples/`` on checkouts whose modules have the repositories' names and signatures."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2am.flows.capture.load_pipeline import load_pipeline
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import CaptureConfig, FactorySource
from i2am.pipeline.adapters.anydoor import AnyDoor
from i2am.pipeline.adapters.instantid import InstantID
from i2am.pipeline.adapters.ip_adapter import of_instantid
from i2am.pipeline.adapters.ldm import LatentDiffusion
from i2am.pipeline.adapters.pasd import PASD
from i2am.pipeline.adapters.seesr import SeeSR
from i2am.pipeline.adapters.stableviton import StableVITON
from i2am.pipeline.adapters.supir import SUPIR
from i2am.storage.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"

RESTORATION = """
from pathlib import Path
from types import SimpleNamespace
import torch
class Pipe:
    unet = controlnet = scheduler = "part"
    calls = []
    def __call__(self, *given, **named):
        self.calls.append((given, named))
        return SimpleNamespace(images=[float(torch.rand(1))])
def load(args, accelerator, xformers):
    assert Path(args.pretrained_model_path).is_dir(), "paths are read from the checkout"
    assert accelerator.mixed_precision == "no" and not xformers
    return Pipe()
load_pasd_pipeline = load_seesr_pipeline = load
def load_tag_model(args, device):
    assert Path("base").is_dir(), "RAM is read from the checkout"
    return "tagger"
def get_validation_prompt(args, image, model, device):
    return f"tags, {args.prompt},", "tokens"
"""

LDM = """
import torch
from types import SimpleNamespace
from torch import nn
def instantiate_from_config(config):
    return Model()
class Model(nn.Module):
    num_timesteps = 1000
    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = nn.Linear(1, 1)
        self.learnable_vector = nn.Parameter(torch.zeros(1, 1, 2))
    def encode_first_stage(self, pixels): return nn.functional.avg_pool2d(pixels, 8)
    def get_first_stage_encoding(self, mean): return mean + 1e-3 * torch.randn(mean.shape)
    def decode_first_stage(self, latents): return latents
    def get_learned_conditioning(self, images): return images.mean((2, 3))[:, None]
    def proj_out(self, tokens): return tokens
    def q_sample(self, latents, step, noise): return latents * 0.1 + noise
    def get_input(self, batch, key):
        images = batch[key].permute(0, 3, 1, 2)
        cond = {"c_crossattn": [images], "c_concat": [], "first_stage_cond": 0}
        return self.encode_first_stage(images), cond
    def get_unconditional_conditioning(self, count): return self.learnable_vector.repeat(count, 1, 1)
class PLMSSampler:
    calls = []
    def __init__(self, model): self.model = model
    def sample(self, *given, **named):
        self.calls.append((given, named))
        return named["x_T"], None
"""


ANYDOOR = """
import numpy as np, torch
model, ddim_sampler, calls = "model", "sampler", []
def inference_single_image(ref_image, ref_mask, tar_image, tar_mask, guidance_scale):
    calls.append((ref_image, ref_mask, tar_image, tar_mask, guidance_scale))
    return (torch.rand(tar_image.shape) * 255).numpy().astype(np.uint8)
"""

SUPIR_UTIL = """
from pathlib import Path
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign, self.calls, self.model = sign, [], nn.Module()
    def batchify_sample(self, *given, **named):
        self.calls.append((given, named))
        return given[0]
def create_SUPIR_model(path, SUPIR_sign):
    return Model(SUPIR_sign)
def PIL2Tensor(image): return torch.zeros(3, image.height, image.width), image.height, image.width
def Tensor2PIL(pixels, rows, columns): return f"image {rows}x{columns}"
"""

FACES = """
import numpy as np
class FaceAnalysis:
    def __init__(self, name, root, providers): pass
    def prepare(self, ctx_id, det_size): pass
    def get(self, image):
        sizes = {"small": 3, "large": 9}
        return [{"embedding": k, "kps": k, "bbox": np.array([1, 1, 1 + n, 1 + n])} for k, n in sizes.items()]
"""

INSTANTID = """
class StableDiffusionXLInstantIDPipeline:
    @classmethod
    def from_pretrained(cls, base, controlnet, torch_dtype):
        pipe = cls()
        pipe.controlnet = controlnet
        return pipe
    def to(self, device): return self
    def load_ip_adapter_instantid(self, path): self.face = path
    def __call__(self, prompt, **named): return named
def draw_kps(image, points): return f"points of {points}"
"""

OWN = "run_inference", "SUPIR", "insightface", "pipeline_stable_diffusion_xl_instantid"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Both kinds of repository in one folder; what they add to Python is taken away again."""
    modules, path = set(sys.modules), list(sys.path)
    (tmp_path / "base").mkdir()
    plms = "from ldm.util import PLMSSampler"
    hacked = """from ldm.util import PLMSSampler as Plain
class PLMSSampler(Plain):
    def sample(self, *given, **named): return *super().sample(*given, **named), None
"""
    config = (
        "import types\nOmegaConf = types.SimpleNamespace(load=lambda path: types.SimpleNamespace(model=0))"
    )
    texts = {
        "test_pasd.py": RESTORATION, "test_seesr.py": RESTORATION, "ldm/util.py": LDM, "omegaconf.py": config,
        "ldm/models/diffusion/plms.py": plms, "cldm/plms_hacked.py": hacked, "run_inference.py": ANYDOOR,
        "SUPIR/util.py": SUPIR_UTIL, "insightface/app.py": FACES,
        "pipeline_stable_diffusion_xl_instantid.py": INSTANTID,
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in {"ldm", "cldm", "omegaconf", "test_pasd", "test_seesr", *OWN} | {
            file.stem for file in EXAMPLES.glob("*.py")
        }:
            del sys.modules[name]


def build(function: str, **arguments: Any) -> Any:
    source = {"kind": "factory", "function": function, "folder": str(EXAMPLES), "arguments": arguments}
    samples = {"manifest": "m.csv"}
    return load_pipeline(
        CaptureConfig.model_validate({"out": "a.zarr", "pipeline": source, "samples": samples})
    )


def grey(value: int, rows: int = 32, columns: int = 24) -> Image.Image:
    return Image.new("RGB", (columns, rows), (value, value, value))


def left_half() -> Image.Image:
    mask = Image.new("L", (24, 32), 0)
    mask.paste(255, (0, 0, 8, 32))
    return mask


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_pasd(checkout: Path) -> None:
    pipe = build("research_restoration:pasd", checkout=str(checkout), base="base", weights="w", light=True)
    assert (pipe.unet, pipe.controlnet, pipe.scheduler) == ("part",) * 3
    before = torch.get_rng_state()
    images = [pipe(grey(9), "a wall", seed(n), num_inference_steps=7).images for n in (1, 1, 2)]
    assert images[0] == images[1] != images[2]  # what the encoder draws is the sample's own
    assert torch.equal(before, torch.get_rng_state())
    (settings, prompt, _), named = sys.modules["test_pasd"].Pipe.calls[0]
    assert (settings.num_inference_steps, settings.use_pasd_light) == (7, True)
    assert named["num_inference_steps"] == 7
    assert prompt == "a wall, clean, high-resolution, 8k"


def test_seesr(checkout: Path) -> None:
    where = {"checkout": str(checkout), "base": "base", "weights": "w", "tagger": "t"}
    pipe = build("research_restoration:seesr", **where, latent_tiled_size=96)
    pipe(grey(9), "a wall", seed(1), negative_prompt="blur")
    (prompt, image), named = sys.modules["test_seesr"].Pipe.calls[0]
    assert prompt == "tags, a wall, clean, high-resolution, 8k"
    assert (named["height"], named["width"]) == image.size[::-1] == (32, 24)
    assert named["ram_encoder_hidden_states"] == "tokens"
    assert (named["latent_tiled_size"], named["start_point"]) == (96, "lr")
    assert named["negative_prompt"] == "blur"


def ldm(checkout: Path, name: str, state: dict[str, Any] | None = None, **more: Any) -> Any:
    weights = {"model.diffusion_model.weight": torch.ones(1, 1), "model.diffusion_model.bias": torch.ones(1)}
    torch.save(weights if state is None else state, checkout / "m.ckpt")
    return build(f"research_ldm:{name}", checkout=str(checkout), config="c.yaml", checkpoint="m.ckpt", **more)


def test_paint_by_example(checkout: Path) -> None:
    pipe = ldm(checkout, "paint_by_example")
    assert pipe.model.model.diffusion_model.bias.item() == 1  # the checkpoint's
    both = {"image": [grey(255)] * 2, "mask_image": [left_half()] * 2, "reference_image": [grey(9)] * 2}
    first = pipe(**both, generator=[seed(1), seed(2)], num_inference_steps=3, guidance_scale=5.0).images
    again = pipe(**both, generator=[seed(1), seed(2)], num_inference_steps=3, guidance_scale=5.0).images
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    _, named = pipe.sampler.calls[-1]
    kept = np.array([0, 1, 1])[None, None, None].repeat(2, 0).repeat(4, 2)
    np.testing.assert_array_equal(named["test_model_kwargs"]["inpaint_mask"], kept)
    np.testing.assert_allclose(named["test_model_kwargs"]["inpaint_image"], kept.repeat(3, 1), atol=0.01)
    assert (named["S"], named["batch_size"], named["shape"]) == (3, 2, [3, 4, 3])
    assert named["unconditional_conditioning"].shape == (2, 1, 2)
    assert not torch.equal(named["x_T"][0], named["x_T"][1])
    pipe(grey(255), left_half(), grey(9), generator=seed(1), guidance_scale=1.0)
    assert pipe.sampler.calls[-1][1]["unconditional_conditioning"] is None
    assert torch.equal(pipe.sampler.calls[-1][1]["x_T"][0], named["x_T"][0])  # whatever its batch


def test_dci_vton_paints_from_the_warped_garment(checkout: Path) -> None:
    pipe = ldm(checkout, "dci_vton")
    garment = grey(0)
    garment.paste((255, 255, 255), (8, 8, 16, 16))
    own = garment.convert("L")
    pipe(
        grey(255), left_half(), garment, own, grey(0), Image.new("L", (24, 32), 255),
        generator=seed(1), num_inference_steps=3,
    )  # fmt: skip
    _, named = pipe.sampler.calls[-1]
    latents = named["test_model_kwargs"]["inpaint_image"]
    expected = np.array([-1, 1, 1])[None, None, None].repeat(3, 1).repeat(4, 2)
    np.testing.assert_allclose(latents, expected, atol=0.01)
    np.testing.assert_allclose(
        named["x_T"] - 0.1 * latents, torch.randn((1, 3, 4, 3), generator=seed(1))[0][None]
    )
    white = (1 - np.array([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
    whole = ldm(checkout, "paint_by_example")
    whole(grey(255), left_half(), garment, generator=seed(1))
    seen, unseen = (call[1]["conditioning"][0, 0].numpy() for call in pipe.sampler.calls[-2:])
    assert (
        np.abs(seen - white) < np.abs(unseen - white)
    ).all()  # cut out, the garment is most of the picture


def test_stableviton(checkout: Path) -> None:
    pipe = ldm(checkout, "stableviton")
    pipe(grey(255), left_half(), grey(9), grey(50), grey(60), generator=seed(1), num_inference_steps=3)
    batch = pipe.model.batch
    assert batch["agn_mask"].shape == (1, 32, 24, 1)
    np.testing.assert_array_equal(batch["agn_mask"][0, 0, :, 0], [0] * 8 + [1] * 16)  # 1 where it is kept
    assert batch["agn"].unique().item() == pytest.approx(50 / 127.5 - 1)
    given, named = pipe.sampler.calls[-1]
    assert given[:3] == (3, 1, (3, 4, 3))
    assert given[3]["c_crossattn"][0].shape == (1, 1, 3)
    assert named["unconditional_conditioning"]["first_stage_cond"] == 0


def test_anydoor(checkout: Path) -> None:
    pipe = build("research_ldm:anydoor", checkout=str(checkout))
    assert (pipe.model, pipe.sampler) == ("model", "sampler")
    given = grey(255), left_half(), grey(9), Image.new("L", (24, 32), 255)
    found = [np.asarray(pipe(*given, generator=seed(n), guidance_scale=3.0).images[0]) for n in (1, 1, 2)]
    assert np.array_equal(*found[:2])
    assert not np.array_equal(*found[1:])
    reference, whole, source, hole, scale = sys.modules["run_inference"].calls[0]
    assert (reference[0, 0, 0], source[0, 0, 0], scale) == (9, 255, 3.0)
    assert (whole.sum(), hole.sum()) == (32 * 24, 32 * 8)


def test_supir(checkout: Path) -> None:
    pipe = build("research_restoration:supir", checkout=str(checkout), sign="F", s_churn=5)
    assert pipe(grey(9), "a wall", seed(7), num_inference_steps=3).images == ["image 32x24"]
    (pixels, prompt), named = pipe.model.calls[0]
    assert (tuple(pixels.shape), prompt) == ((1, 3, 32, 24), ["a wall"])
    assert named == {"num_steps": 3, "cfg_scale": 4.0, "seed": 7, "s_churn": 5}
    assert (pipe.model.model.dtype, pipe.model.sign) == (torch.float32, "F")


def test_instantid_sees_the_largest_face(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.ControlNetModel.from_pretrained", lambda path, **_: f"net of {path}")
    pipe = build("research_instantid:instantid", checkout=str(checkout), base="sdxl")
    named = pipe("a man", grey(9), guidance_scale=5.0)
    assert (named["image_embeds"], named["image"]) == ("large", "points of large")
    assert (pipe.controlnet, pipe.face) == (
        "net of checkpoints/ControlNetModel",
        "checkpoints/ip-adapter.bin",
    )
    assert of_instantid(pipe)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("paint-by-example-ldm", LatentDiffusion()),
        ("dci-vton", LatentDiffusion()),
        ("stableviton", StableVITON()),
        ("pasd", PASD()),
        ("pasd-light", PASD()),
        ("seesr", SeeSR()),
        ("anydoor", AnyDoor()),
        ("supir", SUPIR()),
        ("instantid", InstantID()),
    ],
)
def test_an_example_calls_its_pipeline_with_what_it_takes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapter: Any
) -> None:
    config = load_capture(EXAMPLES / f"capture-{name}.yaml")
    assert isinstance(config.pipeline, FactorySource)
    arguments = {**config.pipeline.arguments, "checkout": str(checkout)}
    monkeypatch.setattr("diffusers.ControlNetModel.from_pretrained", lambda path, **_: path)
    if "base" in arguments:
        (checkout / arguments["base"]).mkdir(parents=True)
    elif "checkpoint" in arguments:
        ldm(checkout, "paint_by_example")
        arguments["checkpoint"] = "m.ckpt"
    pipe = build(config.pipeline.function, **arguments)
    inputs = config.inputs or adapter.inputs(pipe)
    assert inspect.signature(pipe.__call__).bind(**dict.fromkeys(inputs), **config.call, generator=None)


def test_a_checkpoint_that_does_not_fit_or_holds_code(checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.ckpt; expected all weights .* 2 of its UNet missing"):
        ldm(checkout, "paint_by_example", {})
    whole = {"state_dict": {}, "callback": Path("x")}
    with pytest.raises(ConfigError, match="expected weights alone"):
        ldm(checkout, "paint_by_example", whole)
    with pytest.raises(ConfigError, match="2 of its UNet missing"):
        ldm(checkout, "paint_by_example", whole, trust=True)
