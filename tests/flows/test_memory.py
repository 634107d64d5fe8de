"""Models that do not fit, by configuration: what is refused in one line, and what is done to the pipeline."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers.hooks import group_offloading

from i2am.flows.capture import memory
from i2am.flows.capture.load_pipeline import load_pipeline
from i2am.flows.capture.memory import check_packages, place
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.memory import MemoryOptions
from i2am.flows.config.models import CaptureConfig
from i2am.storage.configuration.yaml_file import parse_config
from i2am.storage.errors import CaptureError, ConfigError, InputError, MissingDependency, UnknownName
from tests.flows import test_sources
from tests.pipeline import unet_models

folders = test_sources.folders
pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of their own

CUDA, UNET = {"device": "cuda"}, {"components_to_quantize": ["unet"]}
GROUPS = {"enable_group_offload": {"offload_type": "leaf_level"}}


def text(location: Any = "a/b", top: dict[str, Any] | None = None, **source: Any) -> str:
    pipeline = {"kind": "pretrained", "location": str(location), "class": "StableDiffusionPipeline", **source}
    facts = {"out": "a.zarr", "pipeline": pipeline, "samples": {"manifest": "m.csv"}, **(top or {})}
    return yaml.safe_dump(facts)


def config(*given: Any, **source: Any) -> CaptureConfig:
    return parse_config(text(*given, **source), CaptureConfig, "c.yaml")


def quantization(backend: str = "quanto", **more: Any) -> dict[str, Any]:
    return {"quant_backend": backend, **more}


@pytest.mark.parametrize(
    ("top", "source", "message"),
    [
        (
            {},
            {"offload": "enable_cpu_offload"},
            r"unknown key 'pipeline.offload.enable_cpu_offload'; did you mean",
        ),
        ({}, {"offload": 3}, r"'pipeline.offload'"),
        (
            CUDA,
            {"offload": {"enable_model_cpu_offload": True, "device_map": "balanced"}},
            r"'pipeline.offload'; expected at most one of enable_model_cpu_offload, .* device_map",
        ),
        ({}, {"offload": {"device_map": "auto"}}, r"'pipeline.offload.device_map'; expected 'balanced'"),
        (CUDA, {"offload": {"device_map": "balanced"}}, r"no device beside pipeline.offload.device_map"),
        (
            {},
            {"offload": "enable_model_cpu_offload"},
            r"with pipeline.offload.enable_model_cpu_offload; got c",
        ),
        ({}, {"offload": "enable_sequential_cpu_offload"}, r"device: cuda.*enable_sequential_cpu_offload"),
        (
            {},
            {"offload": {"enable_group_offload": {}}},
            r"enable_group_offload'; expected num_blocks_per_group",
        ),
        (
            CUDA,
            {"offload": {"enable_group_offload": {"offload_type": "leaf_level", "num_blocks_per_group": 1}}},
            r"enable_group_offload'; expected num_blocks_per_group with offload_type: block_level",
        ),
        (
            CUDA,
            {"offload": {"enable_group_offload": {"offload_type": "leaf_level", "record_stream": True}}},
            r"enable_group_offload'; expected use_stream: true where record_stream is true",
        ),
        (
            {},
            {"offload": {"enable_group_offload": {"offload_type": "leaf_level", "use_stream": True}}},
            r"device: cuda with pipeline.offload.enable_group_offload.use_stream; got cpu",
        ),
        (
            {},
            {"offload": {"enable_layerwise_casting": {"storage_dtype": "int8"}}},
            r"enable_layerwise_casting.storage_dtype'; expected 'float32'",
        ),
        (
            {},
            {"offload": {"enable_attention_slicing": 0}},
            r"'pipeline.offload.enable_attention_slicing'; expected auto, max, or heads at a time; got 0",
        ),
        (
            {},
            {"offload": {"vae": {"enable_tilling": True}}},
            r"vae.enable_tilling'; did you mean 'enable_tiling'",
        ),
        (
            {},
            {"quantization": quantization("int8")},
            r"quantization.quant_backend'; expected 'bitsandbytes_4bit'",
        ),
        ({}, {"quantization": {}}, r"missing key 'pipeline.quantization.quant_backend'"),
        ({}, {"quantization": quantization(components_to_quantize=[])}, r"components_to_quantize'; expected"),
        (
            {},
            {"quantization": quantization("bitsandbytes_8bit")},
            r"device: cuda with pipeline.quantization.quant_backend: bitsandbytes_8bit; got cpu",
        ),
        (
            {},
            {"quantization": quantization("gguf")},
            r"quantization'; expected from_single_file with quant_backend",
        ),
        (
            {},
            {"quantization": quantization("quanto", from_single_file="a.gguf")},
            r"quantization'; expected from_single_file with quant_backend: gguf, and with no other",
        ),
    ],
)
def test_what_contradicts_is_one_line_that_names_the_field(top: Any, source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config("a/b", top, **source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_configurations_go_to_other_processes_as_they_are() -> None:
    whole = config(
        "a/b",
        offload={"device_map": "balanced", "vae": {"enable_tiling": True}},
        quantization=quantization("torchao", quant_kwargs={"quant_type": "Int8WeightOnlyConfig"}),
    )
    assert CaptureConfig.model_validate_json(whole.model_dump_json(by_alias=True)) == whole
    short = config("a/b", CUDA, offload="enable_model_cpu_offload")
    assert short == config("a/b", CUDA, offload={"enable_model_cpu_offload": True})


def test_files_are_read_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    groups = {"enable_group_offload": {"offload_type": "leaf_level", "offload_to_disk_path": "weights"}}
    gguf = quantization("gguf", from_single_file="m/a.gguf")
    (tmp_path / "c.yaml").write_text(text(offload=groups, quantization=gguf))
    source: Any = load_capture(tmp_path / "c.yaml").pipeline
    assert source.offload.enable_group_offload.offload_to_disk_path == tmp_path.resolve() / "weights"
    assert source.quantization.from_single_file == str(tmp_path / "m" / "a.gguf")
    gguf["from_single_file"] = "https://huggingface.co/a/b/blob/main/c.gguf"
    (tmp_path / "c.yaml").write_text(text(quantization=gguf))
    source = load_capture(tmp_path / "c.yaml").pipeline
    assert source.quantization.from_single_file == gguf["from_single_file"]


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ({"offload": GROUPS}, "accelerate"),
        ({"offload": {"device_map": "balanced"}}, "accelerate"),
        ({"quantization": quantization()}, "optimum-quanto"),
        ({"quantization": quantization("torchao")}, "torchao"),
        ({"quantization": quantization("gguf", from_single_file="a.gguf")}, "gguf"),
    ],
)
def test_a_package_that_is_absent_is_named_before_anything_is_loaded(
    source: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = importlib.util.find_spec
    absent = ("accelerate", "optimum", "torchao", "gguf", "bitsandbytes")

    def find(name: str, *more: Any) -> Any:
        if name.startswith("optimum."):
            raise ModuleNotFoundError(name)
        return None if name in absent else present(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(MissingDependency, match=rf"needs {package}; pip install {package}$"):
        load_pipeline(config("no/such", **source))


def test_other_memory_savers_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_is_installed", lambda module: False)
    check_packages(config("a/b", offload={"enable_attention_slicing": "auto"}).pipeline)  # type: ignore[arg-type]


def test_a_loaded_pipeline_has_what_was_asked_for(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_is_installed", lambda module: True)
    monkeypatch.setattr(group_offloading, "send_to_device", lambda given, *device: given, raising=False)
    casting = {"compute_dtype": "float32"}
    asked = {**GROUPS, "enable_layerwise_casting": casting, "vae": {"enable_tiling": True}}
    pipe = load_pipeline(config(folders / "sd", offload=asked))
    assert (
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight.dtype == torch.float8_e4m3fn
    )
    assert pipe.vae.use_tiling
    assert not pipe.vae.use_slicing
    assert pipe.unet.conv_out._diffusers_hook.get_hook("group_offloading") is not None
    slim = load_pipeline(config(folders / "sd", offload={"vae": {"enable_slicing": True}}))
    assert slim.vae.use_slicing


class Asked:
    """A pipeline that notes what is called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name == "vae":
            return self
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        ({}, [("to", "cuda:1", {})]),
        ({"device_map": "balanced"}, []),
        ({"enable_model_cpu_offload": True}, [("enable_model_cpu_offload", {"device": "cuda:1"})]),
        ({"enable_sequential_cpu_offload": True}, [("enable_sequential_cpu_offload", {"device": "cuda:1"})]),
        (
            {"enable_group_offload": {"num_blocks_per_group": 2, "exclude_modules": ["vae"]}},
            [
                (
                    "enable_group_offload",
                    {
                        "onload_device": torch.device("cuda:1"),
                        "offload_type": "block_level",
                        "num_blocks_per_group": 2,
                        "exclude_modules": ["vae"],
                        **dict.fromkeys(
                            ("non_blocking", "use_stream", "record_stream", "low_cpu_mem_usage"), False
                        ),
                    },
                )
            ],
        ),
        (
            {
                "enable_model_cpu_offload": True,
                "enable_layerwise_casting": {},
                "enable_attention_slicing": 2,
                "vae": {"enable_slicing": True, "enable_tiling": True},
            },
            [
                (
                    "enable_layerwise_casting",
                    {
                        "storage_dtype": torch.float8_e4m3fn,
                        "compute_dtype": torch.bfloat16,
                        "non_blocking": False,
                    },
                ),
                ("enable_attention_slicing", 2, {}),
                ("enable_tiling", {}),
                ("enable_slicing", {}),
                ("enable_model_cpu_offload", {"device": "cuda:1"}),
            ],
        ),
    ],
)
def test_methods_are_called_as_they_are_named(asked: Any, calls: Any) -> None:
    pipe = Asked()
    place(pipe, MemoryOptions.model_validate(asked), "cuda:1", "bfloat16", lambda: pipe)
    assert pipe.calls == calls


def test_what_a_pipeline_cannot_do_is_one_line() -> None:
    class Plain:
        def to(self, device: str) -> Plain:
            return self

    with pytest.raises(CaptureError, match=r"pipeline.offload.vae.enable_tiling; got .*; leave it out"):
        place(
            Plain(), MemoryOptions.model_validate({"vae": {"enable_tiling": True}}), "cpu", "float32", Plain
        )


def test_gguf_weights_go_to_the_class_that_the_pipeline_has(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_is_installed", lambda module: True)
    seen: dict[str, Any] = {}
    own = unet_models.stable_diffusion().unet

    def load(cls: Any, path: str, **arguments: Any) -> Any:
        seen.update(arguments, path=path)
        if path == "broken.gguf":
            raise ValueError("no\nheader")
        return own

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_single_file", classmethod(load))
    gguf = quantization("gguf", from_single_file="a.gguf", quant_kwargs={"compute_dtype": "bfloat16"}, **UNET)
    assert load_pipeline(config(folders / "sd", quantization=gguf)).unet is own
    assert seen["path"] == "a.gguf"
    assert (seen["config"], seen["subfolder"], seen["dtype"]) == (str(folders / "sd"), "unet", torch.float32)
    assert seen["quantization_config"].compute_dtype == torch.bfloat16
    for change, message in (
        (
            {"from_single_file": "broken.gguf"},
            r"'broken.gguf'; expected the GGUF weights of a UNet.*got no header",
        ),
        ({"components_to_quantize": ["scheduler"]}, r"'scheduler'; expected a model of diffusers"),
        ({"components_to_quantize": ["transformer"]}, r"components_to_quantize 'transformer'"),
        ({"quant_kwargs": {"dtype": "bfloat16"}}, r"quant_kwargs; expected arguments of GGUF"),
    ):
        with pytest.raises(InputError, match=message):
            load_pipeline(config(folders / "sd", quantization=gguf | change))


def test_real_backends_quantise_what_is_named_and_no_more(folders: Path) -> None:
    for name in ("accelerate", "torchao"):
        pytest.importorskip(name)
    kind = {"quant_type": "Int8WeightOnlyConfig"}
    pipe = load_pipeline(
        config(folders / "sd", quantization=quantization("torchao", quant_kwargs=kind, **UNET))
    )
    assert type(
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight
    ).__module__.startswith("torchao")
    assert type(pipe.vae.decoder.conv_in.weight) is torch.nn.Parameter
    pytest.importorskip("optimum.quanto")
    pipe = load_pipeline(config(folders / "sd", quantization=quantization("quanto", **UNET)))
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q).__name__ == "QLinear"
    with pytest.raises(UnknownName, match="quant_type of torchao"):
        load_pipeline(
            config(
                folders / "sd",
                quantization=quantization("torchao", quant_kwargs={"quant_type": "Int8"}, **UNET),
            )
        )


def test_a_device_map_places_the_parts(folders: Path) -> None:
    pytest.importorskip("accelerate")
    pipe = load_pipeline(config(folders / "sd", offload={"device_map": "cpu"}))
    assert pipe.unet.device.type == "cpu"
