"""Build the pipeline that a configuration names: embedded, pretrained, or made by the user's own function."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from i2am.flows.capture.memory import check_packages, loading_options, place
from i2am.flows.config.models import CaptureConfig, FactorySource, PretrainedSource
from i2am.storage.errors import (
    CaptureError,
    ConfigError,
    InputError,
    MissingDependency,
    NotFound,
    UnknownName,
)


def load_pipeline(config: CaptureConfig) -> Any:
    """Load the pipeline, on its device, with its own progress bar off."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # advice for those who write pipelines
    check_installed()
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading; the job shows its own
    source = config.pipeline
    if isinstance(source, PretrainedSource):
        check_packages(source)
        check_device(config.device)
        pipe = _pretrained(source, config.dtype)
        place(pipe, source.offload, config.device, config.dtype, partial(_denoiser, pipe, config))
    elif isinstance(source, FactorySource):
        pipe = _factory(source, config.device, config.dtype)
    else:
        from i2am.pipeline.embedded.weights import load_pipeline as embedded

        check_device(config.device)
        pipe = embedded(device=config.device, dtype=config.dtype)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def check_installed() -> None:
    """Refuse where torch or diffusers is absent."""
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"capture needs {package}", remedy="pip install 'i2am[capture]'")


def call_inputs(config: CaptureConfig, pipe: Any) -> dict[str, str | list[str]]:
    """Which argument of the pipeline's call takes which image or text of a sample, or a list of them."""
    if config.inputs is not None:
        return dict(config.inputs)
    from i2am.pipeline.adapters.registry import find_adapter

    known = find_adapter(pipe, config.adapter, config.reference_region).inputs(pipe)
    return {
        argument: names if isinstance(names, str) else list(names)
        for argument, names in known.items()
        if argument not in config.call
    }


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError("device", expected="cpu, cuda, cuda:1, mps, ...", got=repr(device)) from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            "device",
            expected=f"one of {torch.cuda.device_count()} CUDA devices",
            got=device + (f" with CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""),
            remedy="use device: cpu"
            if visible is None
            else "name GPUs that this machine has, or device: cpu",
        )
    try:
        torch.empty(1, device=wanted)
    except Exception as error:
        raise ConfigError(
            "device",
            expected="one that this machine has",
            got=f"{device}: {str(error).splitlines()[0][:200]}",
            remedy="use device: cpu",
        ) from error


def _denoiser(pipe: Any, config: CaptureConfig) -> Any:
    from i2am.pipeline.adapters.registry import find_adapter

    return find_adapter(pipe, config.adapter, config.reference_region).denoiser(pipe)


def _pretrained(source: PretrainedSource, dtype: str) -> Any:
    import diffusers
    import torch

    cls = getattr(
        diffusers, source.class_name, diffusers.DiffusionPipeline if source.trust_remote_code else None
    )
    if cls is None:
        known = [name for name in dir(diffusers) if name.endswith("Pipeline")]
        raise UnknownName("pipeline class of diffusers", source.class_name, known)
    options: dict[str, Any] = {"revision": source.revision, "variant": source.variant}
    if source.trust_remote_code:
        options |= {"trust_remote_code": True, "custom_pipeline": source.location}
    folder = Path(source.location)
    if (folder.is_absolute() or source.location.startswith(".")) and not folder.is_dir():
        raise NotFound(f"pipeline folder {folder} does not exist", remedy="correct pipeline.location")
    try:
        options |= loading_options(source, cls, dtype)
        pipe = cls.from_pretrained(
            source.location, dtype=getattr(torch, dtype), use_safetensors=True, **options
        )
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"pipeline.location {source.location!r}",
            expected=f"a {source.class_name} with safetensors weights",
            got=" ".join(str(error).split())[:200],
        ) from error
    if source.ip_adapters:
        _load_ip_adapters(pipe, source)
    return pipe


def _load_ip_adapters(pipe: Any, source: PretrainedSource) -> None:
    """Load all IP-Adapters at once, which is the only way diffusers takes several."""
    from safetensors import SafetensorError

    from i2am.pipeline.foreign_errors import as_capture_error

    if not hasattr(pipe, "load_ip_adapter"):
        raise CaptureError(
            f"pipeline.class {source.class_name!r}", expected="one that takes IP-Adapters", got="none",
            remedy="leave out pipeline.ip_adapters",
        )  # fmt: skip
    adapters = source.ip_adapters
    parents = {parent.__name__ for parent in type(pipe).__mro__}
    alone = "SD3IPAdapterMixin" in parents
    if alone and len(adapters) > 1:
        raise ConfigError(
            "pipeline.ip_adapters", expected=f"one, for a {source.class_name}", got=str(len(adapters)),
            remedy="leave the others out",
        )  # fmt: skip

    def each(name: str) -> Any:
        values = [getattr(adapter, name) for adapter in adapters]
        return values[0] if alone else values

    repository = "FluxIPAdapterMixin" in parents  # FLUX's encoder is not in the IP-Adapter's own
    encoder = "image_encoder_pretrained_model_name_or_path" if repository else "image_encoder_folder"
    try:
        pipe.load_ip_adapter(
            each("location"), subfolder=each("subfolder"), weight_name=each("weight_name"),
            **{encoder: source.image_encoder_folder},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            "pipeline.ip_adapters " + ", ".join(adapter.weight_name for adapter in adapters),
            expected=f"safetensors weights that fit a {source.class_name}",
            got=" ".join(str(error).split())[:200],
        ) from error
    with as_capture_error("pipeline.ip_adapters: scale", "correct scale, a number or blocks of the UNet"):
        # FLUX takes a list of one for the scales of its blocks.
        pipe.set_ip_adapter_scale(adapters[0].scale if repository and len(adapters) == 1 else each("scale"))


def of_the_function(source: FactorySource) -> AbstractContextManager[None]:
    """An error of the user's module or function, told in one line."""
    from i2am.pipeline.foreign_errors import as_capture_error

    return as_capture_error(
        f"pipeline.function {source.function!r} failed", "correct the function, or pipeline.arguments"
    )


def _factory(source: FactorySource, device: str, dtype: str) -> Any:
    function = find_function(source)
    check_device(device)
    with of_the_function(source):
        pipe = function(device=device, dtype=dtype, **source.arguments)
    if not callable(pipe):
        raise CaptureError(
            f"pipeline.function {source.function!r}", expected="a callable pipeline", got=type(pipe).__name__
        )
    return pipe


def find_function(source: FactorySource) -> Callable[..., Any]:
    """The user's function, of a module beside the configuration or on the Python path."""
    module_name, _, name = source.function.partition(":")
    if source.folder is not None:
        sys.path.insert(0, str(source.folder))
    try:
        with of_the_function(source):
            module = importlib.import_module(module_name)
    except CaptureError as failed:
        error = failed.__cause__
        if not isinstance(error, ModuleNotFoundError) or not module_name.startswith(error.name or "?"):
            raise
        raise ConfigError(
            f"pipeline.function {source.function!r}",
            expected="a module on the Python path or beside the configuration",
            got=f"no module named {error.name!r}",
        ) from None
    finally:
        if source.folder is not None:
            sys.path.remove(str(source.folder))
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UnknownName(
            f"function in {module_name}", name, [n for n in vars(module) if not n.startswith("_")]
        )
    return function
