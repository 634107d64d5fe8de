"""What lets a model run that does not fit: offload and quantisation, by diffusers' own names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from i2am.storage.configuration.base import Free, Name, Positive, Strict

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


class GroupOffload(Strict):
    """Arguments of ``enable_group_offload``; ``onload_device`` is the capture's ``device``."""

    offload_type: Literal["block_level", "leaf_level"] = "block_level"
    num_blocks_per_group: Positive | None = None
    non_blocking: bool = False
    use_stream: bool = False
    record_stream: bool = False
    low_cpu_mem_usage: bool = False
    offload_to_disk_path: Path | None = None
    exclude_modules: Annotated[list[Name], Field(description="parts that stay on the device")] = []

    @model_validator(mode="after")
    def _as_diffusers_takes_them(self) -> GroupOffload:
        if (self.offload_type == "block_level") != (self.num_blocks_per_group is not None):
            raise ValueError("num_blocks_per_group with offload_type: block_level, and with no other")
        if self.record_stream and not self.use_stream:
            raise ValueError("use_stream: true where record_stream is true")
        return self


class LayerwiseCasting(Strict):
    """Arguments of the denoiser's ``enable_layerwise_casting``; ``compute_dtype`` None: the capture's."""

    storage_dtype: Dtype = "float8_e4m3fn"
    compute_dtype: Dtype | None = None
    skip_modules_pattern: list[str] | None = None
    non_blocking: bool = False


class VaeMemory(Strict):
    """Which of the VAE's own methods to call."""

    enable_tiling: bool = False
    enable_slicing: bool = False


def _slice_size(value: Any) -> Any:
    if value in (None, "auto", "max") or (type(value) is int and value > 0):
        return value
    raise ValueError("auto, max, or heads at a time")


class MemoryOptions(Strict):
    """Where weights lie while they are not used, and what else saves memory: methods of the pipeline."""

    enable_model_cpu_offload: bool = False
    enable_sequential_cpu_offload: bool = False
    enable_group_offload: GroupOffload | None = None
    device_map: Annotated[
        Literal["balanced", "cuda", "cpu"] | None, Field(description="of from_pretrained; no device then")
    ] = None
    enable_layerwise_casting: LayerwiseCasting | None = None
    enable_attention_slicing: Annotated[int | str | None, BeforeValidator(_slice_size)] = None
    vae: VaeMemory = VaeMemory()

    @property
    def placement(self) -> str | None:
        """The one key that says where weights lie, if there is one."""
        chosen = [name for name in PLACEMENTS if getattr(self, name)]
        return chosen[0] if chosen else None

    @model_validator(mode="after")
    def _one_place(self) -> MemoryOptions:
        if sum(bool(getattr(self, name)) for name in PLACEMENTS) > 1:
            raise ValueError(f"at most one of {', '.join(PLACEMENTS)}")
        return self


PLACEMENTS = (
    "enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload", "device_map",
)  # fmt: skip


def _by_name(value: Any) -> Any:
    """``offload: enable_model_cpu_offload`` stands for ``offload: {enable_model_cpu_offload: true}``."""
    return {value: True} if isinstance(value, str) else value


Offload: TypeAlias = Annotated[MemoryOptions, BeforeValidator(_by_name)]


class Quantization(Strict):
    """As diffusers' ``PipelineQuantizationConfig`` names it; GGUF weights come from a file of their own."""

    quant_backend: Literal["bitsandbytes_4bit", "bitsandbytes_8bit", "torchao", "quanto", "gguf"]
    quant_kwargs: Annotated[
        Free, Field(description="of the backend's own class; quant_type of torchao by its class's name")
    ] = {}
    components_to_quantize: Annotated[list[Name], Field(min_length=1)] = ["transformer"]
    from_single_file: Annotated[
        str | None, Field(min_length=1, description="the .gguf file: a path or URL")
    ] = None

    @model_validator(mode="after")
    def _gguf_has_one_file(self) -> Quantization:
        gguf = self.quant_backend == "gguf"
        if gguf != (self.from_single_file is not None):
            raise ValueError("from_single_file with quant_backend: gguf, and with no other")
        if gguf and len(self.components_to_quantize) > 1:
            raise ValueError("one of components_to_quantize with quant_backend: gguf: its file holds one")
        return self


def check_devices(offload: MemoryOptions | None, quantization: Quantization | None, device: str) -> None:
    """Refuse a device that contradicts the rest, in the words of the file."""
    offload = offload or MemoryOptions()
    on_cpu = device.partition(":")[0] == "cpu"
    where = offload.placement
    streams = offload.enable_group_offload is not None and offload.enable_group_offload.use_stream
    if where == "device_map":
        if not on_cpu:
            raise ValueError(
                f"no device beside pipeline.offload.device_map, which places the parts; got {device}"
            )
        on_cpu = offload.device_map == "cpu"
    elif on_cpu and where in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        raise ValueError(f"device: cuda, or another accelerator, with pipeline.offload.{where}; got {device}")
    elif on_cpu and streams:
        raise ValueError(f"device: cuda with pipeline.offload.enable_group_offload.use_stream; got {device}")
    if on_cpu and quantization is not None and quantization.quant_backend.startswith("bitsandbytes"):
        backend = quantization.quant_backend
        raise ValueError(f"device: cuda with pipeline.quantization.quant_backend: {backend}; got {device}")
