"""For the commands of docs/experiments.md: the examples with small models, and data sets of two images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.flows.conftest import ROOT

SIZES = {"stableviton": [32, 16]}


def _commands() -> dict[str, dict[str, list[str]]]:
    """Words of each command of the section on real systems, by the name of its run or configuration."""
    page = (ROOT / "docs" / "experiments.md").read_text()
    section = page.partition("\n## Real systems\n")[2].partition("\n## ")[0]
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.findall(r"^\$ i2am (.*)$", section, flags=re.MULTILINE):
        command, subject, *words = line.split()
        name = Path(subject).stem.removeprefix("capture-")
        found.setdefault(name, {})[command] = [command, subject, *words]
    return found


COMMANDS = _commands()


def small_example(folder: Path, system: str, **changes: Any) -> None:
    """An example as it is, but for the model, its device, the number of steps and the images' size."""
    name = f"examples/capture-{system}.yaml"
    settings = yaml.safe_load((ROOT / name).read_text())
    settings["pipeline"] = {
        "kind": "factory",
        "function": "tests.flows.tiny_systems:of_example",
        "arguments": {"system": system},
    }
    rows, columns = SIZES.get(system, [32, 32])
    if "low_resolution" not in settings["samples"]:
        settings["samples"]["size"] = [rows, columns]
    settings["call"] |= {"num_inference_steps": 2}
    settings["call"] |= {
        side: n for side, n in (("height", rows), ("width", columns)) if side in settings["call"]
    }
    settings["call"] |= changes.pop("call", {})
    settings |= {"device": "cpu", "dtype": "float32"} | changes
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(settings))


def picture(path: Path, seed: int, rows: int = 64, columns: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def hole(path: Path, rows: int = 64, columns: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((rows, columns), np.uint8)
    pixels[rows // 4 : rows // 2, columns // 4 : -columns // 4] = 255
    Image.fromarray(pixels).save(path)


def coco(data: Path, numbers: tuple[int, ...] = (139, 285)) -> None:
    """Images with one object each that covers a fifth of them; the same, small, for restoration."""
    for number in numbers:
        picture(data / "val2017" / f"{number:012d}.png", number)
        with Image.open(data / "val2017" / f"{number:012d}.png") as image:
            (data / "low-resolution").mkdir(exist_ok=True)
            image.resize((8, 16)).save(data / "low-resolution" / f"{number:012d}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.png", "width": 32, "height": 64} for n in numbers],
        "annotations": [{"image_id": n, "bbox": [8, 10, 16, 24]} for n in numbers],
    }
    (data / "annotations").mkdir()
    (data / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def viton_hd(root: Path) -> None:
    people = ("00001_00", "00002_00")
    for number, person in enumerate(people):
        for kind in ("image", "cloth", "agnostic-v3.2", "image-densepose"):
            picture(root / "test" / kind / f"{person}.jpg", 10 * number + len(kind))
        for pair in ("", "unpaired-"):
            picture(root / "test" / f"{pair}cloth-warp" / f"{person}.jpg", number)
            hole(root / "test" / f"{pair}cloth-warp-mask" / f"{person}.jpg")
        hole(root / "test" / "cloth-mask" / f"{person}.jpg")
        hole(root / "test" / "agnostic-mask" / f"{person}_mask.png")
    first, second = people
    (root / "test_pairs.txt").write_text(f"{first}.jpg {second}.jpg\n{second}.jpg {first}.jpg\n")
