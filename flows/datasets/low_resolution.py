"""A folder of small images, as PASD and SeeSR take them: upscaled first, then made sharp by the model."""

from __future__ import annotations

from pathlib import Path

from i2am.flows.config.samples import LowResolution
from i2am.flows.datasets.common import (
    SampleInput,
    SampleSet,
    check_ids,
    existing_folder,
    file_inside,
    read_text,
)
from i2am.flows.datasets.images import check_pixels, read_image

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

MAX_PROMPT_BYTES = 1 << 16


def open_low_resolution(
    config: LowResolution, seed: int, limit: int | None, size: tuple[int, int] | None
) -> SampleSet:
    """One sample for each picture of the folder, in the order of their names.

    The upscaled picture is ``source`` and ``reference``; ``prompt`` is the text of NAME.txt, or empty.
    """
    folder = existing_folder(config.folder, "image folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)[:limit]
    check_ids([path.stem for path in found], f"pictures in {folder}")
    files = {path.stem: file_inside(folder, path.name, path.stem) for path in found}
    seeds = {id: seed + number for number, id in enumerate(files)}

    def load(id: str) -> SampleInput:
        from PIL import Image

        image = read_image(files[id], "source")
        columns, rows = _sides(image.size, config) if size is None else size[::-1]
        check_pixels(f"sample {id!r}: upscaled image", columns, rows)
        large = image.resize((columns, rows), Image.Resampling.BICUBIC)
        return SampleInput(
            id, seeds[id], {"source": large, "reference": large}, {"prompt": _prompt(folder, files[id])}
        )

    return SampleSet(seeds, load)


def _sides(size: tuple[int, int], config: LowResolution) -> tuple[int, int]:
    """Columns and rows, at least one multiple each."""
    columns, rows = (max(1, side * config.scale // config.multiple) * config.multiple for side in size)
    return columns, rows


def _prompt(folder: Path, image: Path) -> str:
    text = image.with_suffix(".txt")
    if not text.is_file():
        return ""
    return read_text(file_inside(folder, str(text), image.stem), "prompt", MAX_PROMPT_BYTES).strip()
