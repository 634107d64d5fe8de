"""VITON-HD (Choi et al., 2021): people and garments, in the folders that try-on code expects.

``ROOT/{split}_pairs.txt`` has lines "person.jpg garment.jpg"; ``ROOT/{split}/`` has ``image``, ``cloth``,
``cloth-mask``, ``agnostic-v3.2``, ``agnostic-mask`` (NAME_mask.png) and ``image-densepose``. DCI-VTON adds
``cloth-warp``, ``cloth-warp-mask`` and the same with ``unpaired-`` before them, named after the person.
"""

from __future__ import annotations

from pathlib import Path

from i2am.flows.config.samples import VitonHD
from i2am.flows.datasets.common import (
    Entry,
    SampleSet,
    check_ids,
    existing_folder,
    file_inside,
    from_files,
    path_inside,
    read_text,
)
from i2am.storage.errors import ConfigError


def open_viton_hd(config: VitonHD, seed: int, limit: int | None, size: tuple[int, int] | None) -> SampleSet:
    """Pairs of a person (``source``) and a garment (``reference``).

    ``mask`` is where the garment goes, ``reference_mask`` the garment's own; ``agnostic``, ``densepose``,
    ``warped`` and ``warped_mask`` are there where their folders exist.
    """
    root = existing_folder(config.root, "VITON-HD folder")
    listing = path_inside(root, f"{config.split}_pairs.txt", "list of pairs")
    pairs = [line.split() for line in read_text(listing, "list of pairs").splitlines() if line.strip()]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ConfigError(
                f"{listing}, line {number}", expected="a person and a garment", got=" ".join(pair)[:60]
            )
    chosen = [(person, person if config.pairing == "paired" else cloth) for person, cloth in pairs][:limit]
    ids = [f"{Path(person).stem}_{Path(cloth).stem}" for person, cloth in chosen]
    check_ids(ids, str(listing))
    folder = existing_folder(path_inside(root, config.split, "split"), "split")
    warps = "cloth-warp" if config.pairing == "paired" else "unpaired-cloth-warp"
    return from_files(
        {id: Entry(_files(folder, id, *pair, warps)) for id, pair in zip(ids, chosen, strict=True)},
        seed,
        size,
    )


def _files(folder: Path, sample: str, person: str, cloth: str, warps: str) -> dict[str, Path]:
    masked = f"{person.rpartition('.')[0]}_mask.png"
    wanted = {"source": f"image/{person}", "reference": f"cloth/{cloth}", "mask": f"agnostic-mask/{masked}"}
    extra = {
        "reference_mask": f"cloth-mask/{cloth}",
        "agnostic": f"agnostic-v3.2/{person}",
        "densepose": f"image-densepose/{person}",
        "warped": f"{warps}/{person}",
        "warped_mask": f"{warps}-mask/{person}",
    }
    wanted |= {name: path for name, path in extra.items() if (folder / path.partition("/")[0]).is_dir()}
    return {name: file_inside(folder, path, sample) for name, path in wanted.items()}
