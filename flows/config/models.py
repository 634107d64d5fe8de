"""The models of the configuration files of a capture and of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from i2am.flows.config.call import check_call
from i2am.flows.config.memory import Offload, Quantization, check_devices
from i2am.flows.config.samples import Samples
from i2am.flows.config.selections import IndexField, LayersField
from i2am.storage.configuration.base import Free, ImageNames, Name, Seed, Size, Strict
from i2am.storage.redaction import redacted

SLURM = "dask_jobqueue.SLURMCluster"
"""What ``cluster: slurm`` stands for."""


class EmbeddedSource(Strict):
    """The trained pipeline that comes with the project."""

    kind: Literal["embedded"] = "embedded"


class IPAdapterWeights(Strict):
    """An IP-Adapter to load into a diffusers pipeline."""

    location: Annotated[str, Field(min_length=1, description="folder or hub id")]
    subfolder: str = ""
    weight_name: Annotated[str, Field(pattern=r"^[^/]+\.safetensors$")]
    scale: float | Free = 1.0


class PretrainedSource(Strict):
    """A diffusers pipeline from a local folder or a hub id; weights are read from safetensors alone."""

    kind: Literal["pretrained"]
    location: Annotated[str, Field(min_length=1, description="folder or hub id")]
    class_name: Annotated[str, Field(alias="class", min_length=1, description="pipeline class of diffusers")]
    revision: str | None = None
    variant: str | None = None
    trust_remote_code: bool = False
    ip_adapters: Annotated[list[IPAdapterWeights], Field(description="loaded after the pipeline")] = []
    image_encoder_folder: Annotated[
        str | None,
        Field(description="of the IP-Adapters' image encoder, or its hub id; None: the pipeline has one"),
    ] = None
    offload: Offload | None = None
    quantization: Quantization | None = None


class FactorySource(Strict):
    """A pipeline that the user's ``module:function`` returns, given device, dtype and `arguments`."""

    kind: Literal["factory"]
    function: Annotated[
        str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300, description="module:function")
    ]
    arguments: Free = {}
    folder: Annotated[Path | None, Field(description="where the module is looked for first")] = None


def _shorthand(value: Any) -> Any:
    """``pipeline: embedded`` stands for ``pipeline: {kind: embedded}``."""
    return {"kind": value} if isinstance(value, str) else value


PipelineSource: TypeAlias = Annotated[
    EmbeddedSource | PretrainedSource | FactorySource,
    Field(discriminator="kind"),
    BeforeValidator(_shorthand),
]


class Sweep(Strict):
    """How a sweep is spread over processes, and how hard it tries."""

    gpus: Annotated[
        list[Annotated[str, Field(pattern=r"^[\w-]+$")] | Annotated[int, Field(ge=0)]] | None,
        Field(min_length=1, description="one process for each, as CUDA_VISIBLE_DEVICES names them"),
    ] = None
    workers: Annotated[int, Field(ge=1, description="processes where no GPUs are named")] = 1
    shard: Annotated[int, Field(ge=1, description="samples of one shard, rounded up to whole batches")] = 64
    retries: Annotated[int, Field(ge=0, description="of a shard whose process is lost or fails")] = 3
    backoff: Annotated[float, Field(ge=0, description="seconds before the first retry; doubles")] = 10.0
    patience: Annotated[
        float, Field(ge=0, description="seconds that a finished sweep waits for a lost Prefect server")
    ] = 30.0
    deadline: Annotated[
        float,
        Field(gt=0, description="of its processes, each of which is replaced; else as `deadline`"),
    ] = 3600.0


class CaptureConfig(Strict):
    """One capture: which pipeline, which samples, what to keep, where to write it.

    Relative paths are read from the folder of the configuration file.
    """

    out: Annotated[str, Field(min_length=1, description="the run: a folder NAME.zarr or a URL")]
    pipeline: PipelineSource
    samples: Samples
    call: Annotated[
        Free, AfterValidator(check_call), Field(description="arguments of the pipeline's call")
    ] = {}
    inputs: Annotated[
        dict[str, ImageNames] | None,
        Field(description="call argument -> image or text of the sample, or several; None: the family's"),
    ] = None
    seed: Annotated[Seed, Field(description="of samples that name none of their own: seed + position")] = 0
    batch_size: Annotated[int, Field(ge=1)] = 1
    adapter: Annotated[
        str | None, Field(description="a name, or a YAML file that describes one; None: the pipeline's")
    ] = None
    reference_region: Annotated[
        Literal["left", "right", "top", "bottom"]
        | dict[Literal["left", "right", "top", "bottom"], Annotated[float, Field(gt=0, lt=1)]]
        | None,
        Field(description="side of the model's picture that is the reference: half of it, or its share"),
    ] = None
    roles: Annotated[list[Name], Field(min_length=1)] = ["cond"]
    guidance: Annotated[
        list[Annotated[list[Name], Field(min_length=1)]] | None,
        Field(min_length=1, description="calls of a step, each a list of row blocks; None: the family's"),
    ] = None
    timesteps: Annotated[
        list[float] | None, Field(min_length=1, description="of all steps, where nothing announces them")
    ] = None
    layers: LayersField | None = None
    steps: IndexField | None = None
    heads: IndexField | None = None
    representation: Literal["auto", "factors", "scores"] = "auto"
    value_norms: Annotated[
        bool, Field(description="keep norms of values and of what the reference adds; a run goes on as begun")
    ] = True
    text: Annotated[
        bool | None,
        AfterValidator(lambda wanted: wanted or None),  # runs from before this field have none either
        Field(description="keep the keys of words too, as layers NAME@text"),
    ] = None
    device: str = "cpu"
    dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    storage_options: Free = {}
    deadline: Annotated[
        float,
        Field(
            gt=0,
            description="seconds without a step or a sample, of this process or one that it waits for, "
            "after which i2am capture gives up",
        ),
    ] = 3600.0
    sweep: Annotated[Sweep, Field(description="used by i2am sweep alone")] = Sweep()

    @model_validator(mode="after")
    def _scenes_need_the_embedded_pipeline(self) -> CaptureConfig:
        if self.samples.scenes is not None and self.pipeline.kind == "pretrained":
            raise ValueError("images for a pretrained pipeline; scenes are the embedded model's")
        return self

    @model_validator(mode="after")
    def _memory_fits_the_device(self) -> CaptureConfig:
        if isinstance(self.pipeline, PretrainedSource):
            check_devices(self.pipeline.offload, self.pipeline.quantization, self.device)
        return self

    @model_validator(mode="after")
    def _gpus_need_a_device(self) -> CaptureConfig:
        offload = self.pipeline.offload if isinstance(self.pipeline, PretrainedSource) else None
        if self.sweep.gpus is not None and offload is not None and offload.device_map is not None:
            raise ValueError("no pipeline.offload.device_map where sweep.gpus names one GPU for each process")
        if self.sweep.gpus is not None and self.device.partition(":")[0] == "cpu":
            raise ValueError("device: cuda where sweep.gpus names GPUs; for the CPU, sweep.workers instead")
        return self

    @property
    def place(self) -> str:
        """``out`` without the credentials that its URL may have."""
        return redacted(self.out)


class Threads(Strict):
    """Threads of this process."""

    kind: Literal["threads"] = "threads"


class Processes(Strict):
    """Worker processes on this machine."""

    kind: Literal["processes"] = "processes"
    threads_per_worker: Annotated[int, Field(ge=1)] = 1


class Address(Strict):
    """A Dask cluster that runs already: exactly one of ``address`` and ``scheduler_file``."""

    kind: Literal["address"] = "address"
    address: Annotated[
        str | None, Field(pattern=r"^[a-z]+://\S+$", description="such as tcp://10.0.0.1:8786")
    ] = None
    scheduler_file: Annotated[Path | None, Field(description="what dask scheduler writes")] = None
    timeout: Annotated[
        float, Field(gt=0, description="seconds to wait for the scheduler, then for a worker")
    ] = 30

    @model_validator(mode="after")
    def _one_place(self) -> Address:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("exactly one of address and scheduler_file")
        return self


class ClusterClass(Strict):
    """A Dask cluster that is started for the analysis and closed after it, by its class."""

    kind: Literal["class"] = "class"
    class_name: Annotated[
        str,
        Field(
            alias="class",
            pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
            description="such as dask_jobqueue.SLURMCluster",
        ),
    ]
    arguments: Annotated[Free, Field(description="of the class")] = {}
    timeout: Annotated[float, Field(gt=0, description="seconds to wait for the first worker")] = 300


def _cluster_shorthand(value: Any) -> Any:
    """``processes``, ``slurm``, ``tcp://...``, ``file.json``, ``module.Class``; mappings without ``kind``."""
    if isinstance(value, str):
        shorthands = {
            "address": "://" in value,
            "scheduler_file": value.endswith(".json"),
            "class": "." in value,
        }
        value = {next((key for key, fits in shorthands.items() if fits), "kind"): value}
    if isinstance(value, dict):
        if value.get("kind") == "slurm":
            return {"class": SLURM, **value, "kind": "class"}
        for key, kind in (("address", "address"), ("scheduler_file", "address"), ("class", "class")):
            if key in value:
                return {"kind": kind, **value}
    return value


Cluster: TypeAlias = Annotated[
    Threads | Processes | Address | ClusterClass,
    Field(discriminator="kind"),
    BeforeValidator(_cluster_shorthand),
]


class Computing(Strict):
    """Where the work of an analysis is done. Relative paths are read from the working directory."""

    cluster: Cluster = Threads()
    workers: Annotated[
        int | None, Field(ge=1, description="threads or processes; None: one for each core, or the class's")
    ] = None
    report_dask: Annotated[Path | None, Field(description="where Dask's performance report goes")] = None

    @model_validator(mode="after")
    def _workers_are_ours(self) -> Computing:
        if self.workers is not None and self.cluster.kind == "address":
            raise ValueError("no workers together with an address: that cluster has its own")
        return self


class AnalysisConfig(Computing):
    """One analysis: what to draw from a run and how. ``time_groups`` and ``size`` are those of the maps."""

    layers: Annotated[list[str] | None, Field(min_length=1)] = None
    samples: Annotated[list[str] | None, Field(min_length=1)] = None
    reference: Annotated[
        str | None, Field(description="of several: reference, reference-1, ..., or text; None: the first")
    ] = None
    steps: IndexField | None = None
    heads: IndexField | None = None
    time_groups: Annotated[int, Field(ge=1)] = 5
    penalty: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="weight of attention outside the mask in IMACS")
    ] = 3.0
    protocol: Annotated[
        Literal["corrected", "official"], Field(description="official: the paper's own code")
    ] = "corrected"
    resize: Annotated[
        Literal["linear", "bicubic"],
        Field(description="bicubic as in the paper: densities may be negative"),
    ] = "linear"
    confidence: Annotated[float, Field(gt=0, lt=1, description="of intervals over samples")] = 0.95
    size: Size | None = None
    cache: Annotated[
        str | None, Field(min_length=1, description="folder or URL of marginals, instead of beside each run")
    ] = None
    label: Annotated[bool, Field(description="name samples RUN/SAMPLE, where several runs share ids")] = False
    aggregations: Annotated[list[str], Field(description="names, or module:name")] = []
    details: Annotated[int, Field(ge=0, description="samples shown in full in the report")] = 24
    figures: Annotated[int, Field(ge=0, description="samples that get figures of their own")] = 12
