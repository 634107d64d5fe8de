"""The part of a capture's configuration that says where its samples come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from i2am.storage.configuration.base import Name, Positive, Seed, Size, Strict


class Scenes(Strict):
    """Procedural scenes of the embedded model, one for each seed."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    first_seed: Seed = 0


class VitonHD(Strict):
    """The public VITON-HD layout: ``{split}_pairs.txt``, ``{split}/image``, ``cloth``, ``agnostic-mask``."""

    root: Path
    split: Literal["test", "train"] = "test"
    pairing: Annotated[
        Literal["paired", "unpaired"], Field(description="each person's own garment, or another")
    ] = "paired"


class Coco(Strict):
    """COCO annotations by the paper's rule: the first object whose box covers 10 to 30% of its image."""

    annotations: Path
    images: Annotated[Path, Field(description="folder of the images")]
    smallest: Annotated[float, Field(gt=0, le=1)] = 0.1
    largest: Annotated[float, Field(gt=0, le=1)] = 0.3


class LowResolution(Strict):
    """A folder of small images, upscaled as the input of super-resolution; ``NAME.txt`` may hold a prompt."""

    folder: Path
    scale: Annotated[int, Field(ge=1, le=16)] = 4
    multiple: Annotated[Positive, Field(description="sides become multiples of this")] = 8


Columns: TypeAlias = Annotated[
    dict[Name, str], Field(description="image or text of a sample -> what the data set calls it")
]


class Datasets(Strict):
    """A repository of the `datasets` library on disk: Parquet files, or what ``save_to_disk`` wrote."""

    folder: Path
    split: Name = "train"
    columns: Columns = {}


class WebDataset(Strict):
    """Tar shards of WebDataset: members ``KEY.EXTENSION``, one sample for each key."""

    shards: Annotated[Path, Field(description="a .tar file, or a pattern such as shards/*.tar")]
    columns: Columns = {}


class Samples(Strict):
    """Where the samples come from: exactly one layout."""

    scenes: Scenes | None = None
    manifest: Path | None = None
    viton_hd: VitonHD | None = None
    coco: Coco | None = None
    low_resolution: LowResolution | None = None
    datasets: Datasets | None = None
    webdataset: WebDataset | None = None
    limit: Annotated[int | None, Field(ge=1, description="the first N samples")] = None
    size: Annotated[Size | None, Field(description="rows and columns that all images are resized to")] = None

    @model_validator(mode="after")
    def _one_source(self) -> Samples:
        layouts = ("scenes", "manifest", "viton_hd", "coco", "low_resolution", "datasets", "webdataset")
        given = [name for name in layouts if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of " + ", ".join(layouts[:-1]) + " and " + layouts[-1])
        if self.scenes is not None and (self.limit is not None or self.size is not None):
            raise ValueError("limit and size together with images from files only")
        return self
