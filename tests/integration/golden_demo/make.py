"""Golden figures of a demo run: ``python -m tests.integration.golden_demo.make FOLDER [RUN]``.

``inputs.npz`` holds a part of the attention of a demo run, ``maps.npz`` and ``tables/`` what was computed
from it. The inputs, and the figures of the official protocol, were made by the code before the packages were
rearranged (commit f52d135), so that the numbers cannot move unseen. The corrected figures, and the tables,
were made anew when the corrected protocol's resize became linear; the official ones were unchanged, to the
bit. Figures are made anew only when the mathematics changes on purpose: without RUN, from the inputs that are
kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import i2am

SAMPLES = 2
STEPS = (0, 7, 16)
LAYERS = (
    "unet.down_blocks.1*",
    "unet.down_blocks.2*",
    "unet.up_blocks.0.attentions.0*",
    "unet.up_blocks.1.attentions.1*",
)
LEVELS = ("unified", "time", "head", "layer", "specific")
FOCUS = {"r2g": "reference_mask", "g2r": "mask"}


def machine() -> str:
    """What decides the last bits of a sum: the processor's features and the library of matrix products."""
    from numpy._core._multiarray_umath import __cpu_features__
    from threadpoolctl import threadpool_info

    blas = [(each["internal_api"], each.get("architecture"), each["version"]) for each in threadpool_info()]
    features = [name for name, there in __cpu_features__.items() if there]
    return json.dumps([np.__version__, sorted(features), sorted(map(str, blas))])


def take(run: i2am.Run, folder: Path) -> None:
    """Keep a part of a run's attention and its images."""
    from fnmatch import fnmatch

    samples = run.samples[:SAMPLES]
    kept = {"timesteps": np.array([run.timesteps[step] for step in STEPS]), "samples": np.array(samples)}
    for name, spec in run.layers.items():
        if not any(fnmatch(name, pattern) for pattern in LAYERS):
            continue
        facts = [spec.heads, spec.head_dim, *spec.gen_grid, *spec.ref_grid, spec.ref_prefix]
        blocks = [run.read(name, sample, list(STEPS)) for sample in samples]
        kept[f"{name}|facts"] = np.array(facts)
        kept[f"{name}|query"] = np.stack([block.query for block in blocks])
        kept[f"{name}|key"] = np.stack([block.key for block in blocks])
    for image in run.images:
        kept[f"{image}|image"] = np.stack([run.image(image, sample) for sample in samples])
    np.savez_compressed(folder / "inputs.npz", **kept)


def build(inputs: Path, path: Path) -> i2am.Run:
    """Make a run of the kept attention."""
    held = np.load(inputs)
    layers = []
    for key in held.files:
        name, _, kind = key.partition("|")
        if kind == "facts":
            heads, dim, rows, columns, ref_rows, ref_columns, prefix = map(int, held[key])
            grids = {"gen_grid": (rows, columns), "ref_grid": (ref_rows, ref_columns), "ref_prefix": prefix}
            layers.append(
                i2am.LayerSpec(
                    name, heads, dim, **grids, representation="factors", static_key=True, dtype="float32"
                )
            )
    images = {key.partition("|")[0]: held[key] for key in held.files if key.endswith("|image")}
    samples = [str(sample) for sample in held["samples"]]
    shapes = {name: pixels.shape[1:] for name, pixels in images.items()}
    with i2am.create_run(path, layers, held["timesteps"].tolist(), samples, image_shapes=shapes) as writer:
        for number, sample in enumerate(samples):
            with writer.sample(sample) as sink:
                for spec in layers:
                    for step in range(len(held["timesteps"])):
                        query = held[f"{spec.name}|query"][number, step]
                        sink.put(spec.name, step, query=query, key=held[f"{spec.name}|key"][number, 0])
                for name, pixels in images.items():
                    sink.put_image(name, pixels[number])
    return i2am.open_run(path)


def maps_of(run: i2am.Run) -> dict[str, np.ndarray]:
    """Every level in both directions and protocols."""
    found = {}
    for protocol in ("corrected", "official"):
        for direction in ("r2g", "g2r"):
            for level in LEVELS:
                more = (
                    {"at": FOCUS[direction]}
                    if level == "specific"
                    else {"time_groups": 3}
                    if level == "time"
                    else {}
                )
                try:
                    maps = i2am.attribution_maps(
                        run, direction, level, protocol=protocol, store=False, **more
                    )
                except i2am.InputError:
                    continue
                found[f"{protocol}|{direction}|{level}"] = maps.values
                if level == "unified":
                    masks = [
                        run.image(FOCUS["g2r" if direction == "r2g" else "r2g"], s)[..., 0] > 127
                        for s in run.samples
                    ]
                    found[f"{protocol}|{direction}|imacs"] = np.asarray(
                        i2am.imacs(maps, masks, protocol=protocol)
                    )
    return found


def tables_of(run: i2am.Run, out: Path) -> None:
    """The tables and the maps of a study."""
    command = [sys.executable, "-m", "i2am", "analyze", run.path, "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    if sys.argv[2:]:
        take(i2am.open_run(sys.argv[2]), folder)
    with tempfile.TemporaryDirectory() as place:
        run = build(folder / "inputs.npz", Path(place, "demo.zarr"))
        found = maps_of(run)
        tables_of(run, Path(place, "out"))
        for direction in ("r2g", "g2r"):
            stored = xr.open_zarr(Path(place, "out", "maps.zarr"), group=direction, consolidated=False)
            found |= {f"study|{direction}|{name}": values.values for name, values in stored.data_vars.items()}
        np.savez_compressed(folder / "maps.npz", machine=np.array(machine()), **found)
        shutil.copytree(Path(place, "out", "tables"), folder / "tables", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
