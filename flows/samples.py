"""The samples of a capture: scenes, or the rows of a manifest. Checked first, loaded one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.config import CaptureConfig
from storage.errors import ConfigError, NoPermission, NotFound, ShapeMismatch, UnknownName

_IMAGES = ("source", "reference", "mask")


@dataclass(frozen=True, slots=True)
class SampleInput:
    """What one generation starts from.

    Attributes
    ----------
    id
        Name of the sample in the run.
    seed
        Of its noise.
    images
        Name (``source``, ``reference``, ``mask``, and ``reference_mask`` where it is known) to a PIL image.
    texts
        Name (``prompt``, ``negative_prompt``) to text.
    """

    id: str
    seed: int
    images: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples by id: ids and seeds are known at once, images are read by ``load``."""

    seeds: Mapping[str, int]
    load: Callable[[str], SampleInput]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(self.seeds)


def open_samples(config: CaptureConfig) -> SampleSet:
    """Find the samples of a configuration, and check all that can be checked without reading pixels.

    Parameters
    ----------
    config
        The capture.

    Returns
    -------
    SampleSet
        Ids in order, and how to load one.

    Raises
    ------
    NotFound, NoPermission, ConfigError, UnknownName, ShapeMismatch
        The manifest or an image is missing or unreadable, a column is absent, an id stands twice, a path
        leaves the manifest's folder, or a mask has another size than its source.
    """
    if config.samples.scenes is not None:
        return _scenes(config.samples.scenes.count, config.samples.scenes.first_seed)
    if config.samples.manifest is None:
        raise ConfigError("samples", expected="exactly one of scenes and manifest", got="none")
    return _manifest(config.samples.manifest, config)


def _scenes(count: int, first: int) -> SampleSet:
    def load(id: str) -> SampleInput:
        """Make the images of one sample."""
        from PIL import Image

        from pipeline.embedded.scenes import make_scene

        arrays = make_scene(seeds[id]).images
        images = {
            name: Image.fromarray(a).convert("L" if a.ndim == 2 else "RGB") for name, a in arrays.items()
        }
        return SampleInput(id, seeds[id], images)

    seeds = {f"scene-{seed:07d}": seed for seed in range(first, first + count)}
    return SampleSet(seeds, load)


def _manifest(path: Path, config: CaptureConfig) -> SampleSet:
    rows = _read_table(path)[: config.samples.limit]
    if not rows:
        raise ConfigError(f"manifest {path}", expected="at least one row", got="none")
    for column in ("id", *sorted(set((config.inputs or {}).values()) or {"reference"})):
        if column not in rows[0]:
            raise UnknownName(f"column in {path}", column, rows[0], remedy=f"add a column {column!r}")
    ids = [str(row["id"]) for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(f"manifest {path}", expected="each id once", got=f"{twice!r} more than once")
    folder = path.parent.resolve()
    needed = {str(image) for image in (config.inputs or {}).values()}
    files = {id: _files(folder, id, row, needed) for id, row in zip(ids, rows, strict=True)}
    seeds = {
        id: _seed(row.get("seed"), config.seed + i, id)
        for i, (id, row) in enumerate(zip(ids, rows, strict=True))
    }

    def load(id: str) -> SampleInput:
        """Make the images of one sample."""
        return SampleInput(id, seeds[id], {name: _read(file, name) for name, file in files[id].items()})

    return SampleSet(seeds, load)


def _files(folder: Path, sample: str, row: Mapping[str, Any], needed: set[str]) -> dict[str, Path]:
    """Paths of a row's images: all that are needed, inside the folder, mask and source of one size."""
    files = {name: _inside(folder, str(row[name]), sample) for name in _IMAGES if row.get(name)}
    if missing := sorted(needed - set(files)):
        raise ConfigError(
            f"sample {sample!r}", expected=f"an image in column {missing[0]!r}", got="an empty cell"
        )
    _check_sizes(sample, files)
    return files


def _read_table(path: Path) -> list[dict[str, Any]]:
    import polars

    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(
            f"manifest {path}", expected="a .csv or .parquet file", got=path.suffix or "no ending"
        )
    try:
        if path.suffix == ".csv":
            # Text throughout: an id such as 007 keeps its zeros.
            return polars.read_csv(path, infer_schema=False).to_dicts()
        return polars.read_parquet(path).to_dicts()
    except FileNotFoundError:
        raise NotFound(
            f"manifest {path} does not exist", remedy="paths are read from the configuration's folder"
        ) from None
    except PermissionError:
        raise NoPermission(f"manifest {path} may not be read", remedy="change its permissions") from None
    except (polars.exceptions.PolarsError, OSError) as error:
        raise ConfigError(
            f"manifest {path}", expected="a table with a heading", got=_first_line(error)
        ) from None


def _inside(folder: Path, name: str, sample: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(
            f"sample {sample!r}: path {name!r}",
            expected=f"a path inside {folder}",
            got="one outside",
            remedy="move the image or the manifest",
        )
    if not path.is_file():
        raise NotFound(f"sample {sample!r}: image {path} does not exist", remedy="correct the manifest")
    return path


def _seed(value: Any, default: int, sample: str) -> int:
    if value is None or value == "":
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"sample {sample!r}: seed", expected="an integer", got=repr(value)) from None


def _check_sizes(sample: str, images: dict[str, Path]) -> None:
    """Compare the sizes of source and mask from their headers alone."""
    if not {"source", "mask"} <= set(images):
        return
    source, mask = (_open(images[name]).size for name in ("source", "mask"))
    if source != mask:
        raise ShapeMismatch(
            f"sample {sample!r}: mask {images['mask'].name}",
            expected=f"the source's size, {source[0]}×{source[1]} pixels",
            got=f"{mask[0]}×{mask[1]}",
            remedy="resize the mask",
        )


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"image {path}", expected="a picture that PIL reads", got=_first_line(error)
        ) from None
    except PermissionError:
        raise NoPermission(f"image {path} may not be read", remedy="change its permissions") from None


def _read(path: Path, name: str) -> Any:
    from PIL import Image

    _open(path)
    try:
        with Image.open(path) as image:
            return image.convert("L" if name == "mask" else "RGB")
    except OSError as error:
        raise ConfigError(f"image {path}", expected="a whole picture", got=_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
