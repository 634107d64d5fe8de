"""``i2am probe``: what it shows of a stranger's pipeline, and the file that a capture takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2am.flows.capture.load_pipeline import load_pipeline
from i2am.flows.config.load_yaml import load_capture
from i2am.pipeline.adapters.registry import find_adapter
from i2am.storage.reading.open import open_run
from tests.flows.conftest import Outcome

I2am = Callable[..., Outcome]
INPUTS = {"image": "source", "mask_image": "mask", "reference_image": "reference"}
EXAMPLES = Path(__file__).parents[2] / "examples"
STRANGERS = "tests.standins.strangers"


def test_every_attention_call_is_shown_and_a_capture_takes_the_draft(
    i2am: I2am, tmp_path: Path, config: Callable[..., Path]
) -> None:
    file = tmp_path / "painter.yaml"
    capture = config(inputs=INPUTS)
    shown = i2am("probe", capture, "--write", file)
    assert shown.status == 0, shown.err
    assert "go through its lines with CHECK, then capture with adapter: painter.yaml" in shown.err
    assert yaml.safe_load(file.read_text())["denoiser"] == "unet"
    runs = []
    for name, adapter in (("built-in.zarr", None), ("described.zarr", "painter.yaml")):
        done = i2am("capture", config(adapter=adapter, out=name, inputs=INPUTS), "--quiet", "--direct")
        assert done.status == 0, done.err
        runs.append(open_run(tmp_path / name))
    own, described = runs
    assert described.attrs["adapter_description"]["denoiser"] == "unet"
    for layer, spec in own.layers.items():
        found = described.layers[layer]
        assert (found.gen_grid, found.ref_grid, found.ref) == (spec.gen_grid, spec.ref_grid, spec.ref)
        assert abs(described.scores(layer) - own.scores(layer)).max().compute() < 1e-5
    assert i2am("probe", capture, "--write", file).status == 2


def test_the_example_describes_what_the_built_in_adapter_knows() -> None:
    example = load_capture(EXAMPLES / "capture-described.yaml")
    pipe = load_pipeline(example)
    described = find_adapter(pipe, example.adapter)
    own, found = (
        {site.name: site for site in adapter.sites(pipe)} for adapter in (find_adapter(pipe), described)
    )
    assert own.keys() == found.keys()
    for name, site in own.items():
        told = found[name]
        assert (told.attention, told.output) == (site.attention, site.output)
    assert described.inputs(pipe) == find_adapter(pipe).inputs(pipe)


def test_the_calls_of_every_layer(i2am: I2am) -> None:
    facts = i2am("probe", f"{STRANGERS}:weaver", "--json").json
    rows = {(each["layers"], each["key"]): each for each in facts["attention"]}
    woven = rows["engine.loom.rows.*.weave", 59]
    assert (woven["class"], woven["count"], woven["calls"]) == ("Weave", 2, 2)
    assert [woven[key] for key in ("row", "head", "query", "dim", "mask", "scale")] == [
        2,
        2,
        26,
        8,
        None,
        0.2,
    ]
    assert "references" in facts["draft"]
    shown = i2am("probe", f"{STRANGERS}:tailor", "--call", f"{STRANGERS}:try_on", "--steps", "3").out
    assert "core.look.*" in shown
    assert "guidance: [[uncond], [cond]]" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:make"], "nowhere"),
        ([f"{STRANGERS}:wever"], "wever.*weaver"),
        (["not a name"], "MODULE:FACTORY"),
        ([f"{STRANGERS}:tailor"], "--call MODULE:FUNCTION, or a factory that returns"),
        ([f"{STRANGERS}:tailor", "--call", f"{STRANGERS}:sew"], "function in tests.standins.strangers"),
        ([f"{STRANGERS}:broken"], "the call of the pipeline of 'tests.standins.strangers:broken' failed"),
        ([f"{STRANGERS}:weaver", "--device", "gpu"], "device"),
        ([f"{STRANGERS}:weaver", "--steps", "1"], "steps"),
        (["missing.yaml"], "missing.yaml"),
        ([f"{STRANGERS}:words"], "attention of net to a reference.*words alone"),
        (
            [f"{STRANGERS}:once"],
            "the denoiser, called again with its own arguments, failed; got RuntimeError: once",
        ),
        ([f"{STRANGERS}:silent"], "calls of scaled_dot_product_attention.*none"),
    ],
)
def test_what_cannot_be_probed_is_one_line(i2am: I2am, arguments: list[Any], words: str) -> None:
    outcome = i2am("probe", *arguments)
    outcome.refused(words)
