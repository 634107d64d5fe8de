"""Load and place a model that does not fit, as ``pipeline.offload`` and ``pipeline.quantization`` say."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from i2am.flows.config.memory import MemoryOptions, Quantization
from i2am.flows.config.models import PretrainedSource
from i2am.storage.errors import ConfigError, MissingDependency, UnknownName

_PACKAGES = {
    "bitsandbytes_4bit": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "gguf": ("gguf", "gguf"),
}
"""Backend to the module that it needs, and what pip calls it."""


def check_packages(source: PretrainedSource) -> None:
    """Refuse, before anything is loaded, where a package is absent that diffusers would ask for."""
    needed = {}
    if source.offload is not None and source.offload.placement:
        needed["accelerate"] = "accelerate", f"pipeline.offload.{source.offload.placement}"
    if source.quantization is not None:
        module, package = _PACKAGES[source.quantization.quant_backend]
        what = f"pipeline.quantization.quant_backend {source.quantization.quant_backend!r}"
        needed |= {module: (package, what), "accelerate": ("accelerate", what)}
    for module, (package, what) in needed.items():
        if not _is_installed(module):
            raise MissingDependency(f"{what} needs {package}", remedy=f"pip install {package}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def loading_options(source: PretrainedSource, cls: Any, dtype: str) -> dict[str, Any]:
    """Further arguments of the pipeline's ``from_pretrained``."""
    options: dict[str, Any] = {}
    if source.offload is not None and source.offload.device_map is not None:
        options["device_map"] = source.offload.device_map
    asked = source.quantization
    if asked is None:
        return options
    index = cls.load_config(source.location, revision=source.revision)
    kinds = {name: kind for name, kind in index.items() if isinstance(kind, (list, tuple)) and kind[0]}
    for name in asked.components_to_quantize:
        if name not in kinds:
            raise UnknownName("component in pipeline.quantization.components_to_quantize", name, kinds)
    if asked.quant_backend == "gguf":
        [name] = asked.components_to_quantize
        return options | {name: _from_gguf(source, asked, name, kinds[name][1], dtype)}
    from diffusers import PipelineQuantizationConfig

    mapping = {name: _settings(asked, kinds[name][0]) for name in asked.components_to_quantize}
    return options | {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)}


def _settings(asked: Quantization, library: str) -> Any:
    """The configuration of a component's own library, which both name alike but for a few arguments."""
    if library == "transformers":
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known
    else:
        from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known
    arguments = dict(asked.quant_kwargs)
    if asked.quant_backend.startswith("bitsandbytes"):
        arguments.setdefault(f"load_in_{asked.quant_backend.removeprefix('bitsandbytes_')}", True)
    if asked.quant_backend == "torchao":
        arguments["quant_type"] = _torchao_type(arguments.get("quant_type"))
    if asked.quant_backend == "quanto" and library == "transformers" and "weights_dtype" in arguments:
        arguments["weights"] = arguments.pop("weights_dtype")
    return _made(known[asked.quant_backend], arguments)


def _torchao_type(asked: Any) -> Any:
    """``Int8WeightOnlyConfig``, or ``{Int4WeightOnlyConfig: {group_size: 32}}``, as torchao's own object."""
    quantization = importlib.import_module("torchao.quantization")
    name, arguments = next(iter(asked.items())) if isinstance(asked, dict) and asked else (asked, {})
    known = [each for each in dir(quantization) if each.endswith("Config")]
    if name not in known:
        raise UnknownName("pipeline.quantization.quant_kwargs.quant_type of torchao", str(name), known)
    return _made(getattr(quantization, name), arguments)


def _made(make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return make(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            "pipeline.quantization.quant_kwargs", expected=f"arguments of {make.__name__}",
            got=" ".join(str(error).split())[:200],
        ) from error  # fmt: skip


def _from_gguf(source: PretrainedSource, asked: Quantization, name: str, kind: str, dtype: str) -> Any:
    import diffusers
    import torch

    arguments = {"compute_dtype": dtype, **asked.quant_kwargs}
    arguments["compute_dtype"] = getattr(torch, str(arguments["compute_dtype"]), None)
    cls: Any = getattr(diffusers, kind, None)
    if not hasattr(cls, "from_single_file"):
        raise ConfigError(
            f"pipeline.quantization.components_to_quantize {name!r}",
            expected="a model of diffusers that is loaded from one file", got=kind,
        )  # fmt: skip
    try:
        return cls.from_single_file(
            asked.from_single_file,
            quantization_config=_made(diffusers.GGUFQuantizationConfig, arguments),
            config=source.location,
            subfolder=name,
            config_revision=source.revision,
            dtype=getattr(torch, dtype),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"pipeline.quantization.from_single_file {asked.from_single_file!r}",
            expected=f"the GGUF weights of a {kind}", got=" ".join(str(error).split())[:200],
        ) from error  # fmt: skip


def place(
    pipe: Any, offload: MemoryOptions | None, device: str, dtype: str, denoiser: Callable[[], Any]
) -> Any:
    """Call the methods that the configuration names, and put the pipeline on its device otherwise."""
    from i2am.pipeline.foreign_errors import as_capture_error

    asked = offload or MemoryOptions()
    for key, call in _calls(pipe, asked, device, dtype, denoiser).items():
        with as_capture_error(f"pipeline.offload.{key}", "leave it out, or correct it"):
            call()
    return pipe if asked.placement else pipe.to(device)


def _calls(
    pipe: Any, asked: MemoryOptions, device: str, dtype: str, denoiser: Callable[[], Any]
) -> dict[str, Callable[[], Any]]:
    """What is asked for, in the order in which diffusers wants it: numbers first, then places."""
    import torch

    calls: dict[str, Callable[[], Any]] = {}
    if (casting := asked.enable_layerwise_casting) is not None:
        options = casting.model_dump(exclude_none=True) | {"compute_dtype": casting.compute_dtype or dtype}
        options |= {name: getattr(torch, options[name]) for name in ("storage_dtype", "compute_dtype")}
        calls["enable_layerwise_casting"] = lambda: denoiser().enable_layerwise_casting(**options)
    if (slices := asked.enable_attention_slicing) is not None:
        calls["enable_attention_slicing"] = lambda: pipe.enable_attention_slicing(slices)
    for name in ("enable_tiling", "enable_slicing"):
        if getattr(asked.vae, name):
            calls[f"vae.{name}"] = lambda name=name: getattr(pipe.vae, name)()  # type: ignore[misc]
    if (groups := asked.enable_group_offload) is not None:
        chosen = groups.model_dump(mode="json", exclude_none=True)
        onto = torch.device(device)
        calls["enable_group_offload"] = lambda: pipe.enable_group_offload(onload_device=onto, **chosen)
    elif asked.placement not in (None, "device_map"):
        method = str(asked.placement)
        calls[method] = lambda: getattr(pipe, method)(device=device)
    return calls
