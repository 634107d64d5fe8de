"""Choose the corrected rule of detection: ``python -m benchmarks.detection_rule``.

On scenes that no evaluation uses: the embedded model paints those of seeds 10000 to 10099, unless ``--run``
is there already. The best mean IoU is taken of a grid: all layers or those with the finest generated grid,
and a smoothing, for both directions; a quantile for each. R2G of the object's tokens against the box of the
mask, G2R of the painted patches against the box of the reference object. ``--write`` puts the choice into the
rule's file.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

from i2am.analysis.experiments import box_rules
from i2am.analysis.experiments.boxes import Box, iou, mask_box
from i2am.analysis.experiments.detection import finest_layers
from i2am.analysis.grids.regions import image_mask
from i2am.analysis.maps.attribution import attribution_maps
from i2am.flows.capture.job import run_capture
from i2am.flows.config.load_yaml import load_capture
from i2am.storage.reading.open import open_run

FIRST, COUNT = 10_000, 100
BLURS = (0.0, 0.016, 0.031, 0.047, 0.063)
QUANTILES = tuple(round(0.7 + 0.02 * n, 2) for n in range(13))
LAYERS = ("all", "finest")
QUESTIONS = {"r2g": ("reference_mask", "mask"), "g2r": ("mask", "reference_mask")}  # region, truth


def mean_iou(maps: np.ndarray, truths: list[Box], how: box_rules.Setting) -> float:
    """Mean IoU of the corrected rule's boxes; the maps lie on images of the truths' size."""
    found = []
    for values, (truth, size) in zip(maps, truths, strict=True):
        box, grid = box_rules.corrected_box(values, how)
        found.append(iou([box.scaled(grid, size)], truth)[0])
    return float(np.mean(found))


def choose(path: Path) -> dict:
    run = open_run(path)
    layers = {"all": None, "finest": finest_layers(run.layers)}
    maps, truths = {}, {}
    for direction, (region, truth) in QUESTIONS.items():
        masks = [image_mask(run.image(truth, sample)) for sample in run.samples]
        values = {
            which: attribution_maps(run, direction, at=region, layers=names).compute().values.astype(float)
            for which, names in layers.items()
        }
        kept = [n for n, mask in enumerate(masks) if mask.any() and np.isfinite(values["all"][n]).all()]
        maps |= {(direction, which): own[kept] for which, own in values.items()}
        truths[direction] = [(mask_box(masks[number]), masks[number].shape) for number in kept]
    table = {
        (way, which, blur, quantile): mean_iou(
            maps[way, which], truths[way], box_rules.Setting(blur, quantile)
        )
        for way, which, blur, quantile in product(QUESTIONS, LAYERS, BLURS, QUANTILES)
    }

    def best(way: str, which: str, blur: float) -> float:
        return max(QUANTILES, key=lambda quantile: table[way, which, blur, quantile])

    def total(choice: tuple[str, float]) -> float:
        return sum(table[way, *choice, best(way, *choice)] for way in QUESTIONS)

    which, blur = max(product(LAYERS, BLURS), key=total)
    quantiles = {way: best(way, which, blur) for way in QUESTIONS}
    return {
        "layers": which,
        "blur": blur,
        "quantile": quantiles,
        "chosen": {
            "by": "the best mIoU, misses as 0, of a grid: python -m benchmarks.detection_rule",
            "scenes": f"seeds {FIRST} to {FIRST + COUNT - 1} of the embedded model; evaluation uses "
            "0 to 199, training a million and on",
            "miou": {way: round(table[way, which, blur, quantiles[way]], 3) for way in QUESTIONS},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the corrected rule of detection.")
    parser.add_argument("--run", type=Path, default=Path("out/detection-rule.zarr"), help="made if not there")
    parser.add_argument("--write", action="store_true", help="put the choice into the rule's file")
    options = parser.parse_args()
    if not options.run.exists():
        scenes = {"scenes": {"count": COUNT, "first_seed": FIRST}}
        settings = {
            "out": str(options.run.absolute()),
            "pipeline": "embedded",
            "samples": scenes,
            "batch_size": 10,
        }
        options.run.parent.mkdir(parents=True, exist_ok=True)
        config = options.run.with_suffix(".yaml")
        config.write_text(json.dumps(settings))  # JSON is YAML
        run_capture(load_capture(config))
    chosen = choose(options.run)
    text = json.dumps(chosen, indent=1) + "\n"
    print(text, end="")
    if options.write:
        (Path(box_rules.__file__).parent / "detection_rule.json").write_text(text)


if __name__ == "__main__":
    main()
