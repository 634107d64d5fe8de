"""Offloaded and quantised models: scores, norms and fingerprints are those of the weights in use."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from i2am.pipeline.adapters.contract import Site
from i2am.pipeline.adapters.registry import find_adapter
from i2am.pipeline.capture import capture
from i2am.pipeline.recording.weights import attention_fingerprint
from i2am.pipeline.taps.held_weights import held, offload_groups
from i2am.pipeline.taps.value_flow import FlowTap
from i2am.storage.errors import ShapeMismatch
from i2am.storage.reading.open import open_run
from tests.pipeline.situation_changes import CHANGES, NEEDS, every_linear
from tests.pipeline.situation_models import FAMILIES
from tests.pipeline.situations import Situation, check, play

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of their own

PACKAGED = ("model offload", "sequential offload")
QUANTISED = {
    "torchao": "is quantised: its weight is a",
    "gguf": "a GGUFLinear, has no plain",
    "quanto": "a QLinear, has no plain",
    "4 bits": "a Linear4bit, has no plain",
    "8 bits": "a Linear8bitLt, has no plain",
    "codes": "is quantised: its weight is a Codes",
}


class Codes(torch.Tensor):
    """A weight as torchao has them: a class of its own, with codes and a scale inside."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = [each.codes * each.scale if isinstance(each, cls) else each for each in args]
        return function(*plain, **(kwargs or {}))


def _of_codes(layer):
    scale = layer.weight.detach().abs().max() / 127
    layer.weight = nn.Parameter(Codes((layer.weight / scale).round().char(), scale), False)
    return layer


CHANGES["codes"] = every_linear(_of_codes)


def changes(names, families=("kontext",)):
    """Each family and change, skipped where a package is absent."""

    def absent(name):
        try:
            return name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
        except ModuleNotFoundError:  # of the parent
            return True

    return [
        pytest.param(
            family, name, marks=[pytest.mark.skipif(absent(name), reason=f"needs {NEEDS.get(name)}")]
        )
        for family in families
        for name in names
    ]


def record(family, change, path):
    facts = FAMILIES[family]
    pipe = facts.make()
    if change:
        CHANGES[change](pipe, facts)
    with (
        capture(pipe, path, samples=["s", "t"], adapter=facts.adapter) as cap,
        cap.sample(cap.missing[0]) as sample,
    ):
        sample.generated = facts.run(pipe, 1, 1, 2.0, torch.float32)[0]
    return open_run(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs of models that fit, by family."""
    folder = tmp_path_factory.mktemp("plain")
    return {family: record(family, "", folder / f"{family}.zarr") for family in ("kontext", "sd")}


def norms(run, layer):
    return run.value_norm(layer).compute(), run.contribution(layer).compute()


@pytest.mark.parametrize(
    ("family", "change"),
    [
        *changes(["offloaded leaves", "blocks on disk", *PACKAGED]),
        *changes(["offloaded blocks", *PACKAGED], ["sd"]),
    ],
)
def test_offload_changes_neither_norms_nor_what_weights_are_known_by(plain, family, change, tmp_path):
    whole, run = plain[family], record(family, change, tmp_path / "r.zarr")
    for layer in run.layers:
        for ours, theirs in zip(norms(run, layer), norms(whole, layer), strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    weights = whole.attrs["attention_weights"]
    assert len(set(weights.values())) == len(weights) == len(run.layers)
    assert run.attrs["attention_weights"] == (dict.fromkeys(weights) if "disk" in change else weights)


def test_weights_on_disk_are_not_read_from_memory_that_nobody_has_written(plain, tmp_path):
    path = tmp_path / "r.zarr"
    run = record("kontext", "leaves on disk", path)
    lacking = run.record("s")["annotations"]["without_norms"]
    assert set(lacking) == set(run.layers)
    assert all("is offloaded to where it cannot be read" in why for why in lacking.values())
    assert run.attrs["attention_weights"] == dict.fromkeys(plain["kontext"].attrs["attention_weights"])
    assert len(record("kontext", "offloaded leaves", path).samples) == 2  # nobody knows that they differ


def test_a_run_does_not_go_on_with_weights_that_were_rounded_since(plain):
    with pytest.raises(ShapeMismatch, match="other weights"):
        record("sd", "layerwise casting to float8", plain["sd"].path)


def test_float8_weights_have_norms_of_the_numbers_that_they_are(tmp_path):
    """Casting changes the weights: their norms are those of a model that has the rounded ones."""
    facts = FAMILIES["kontext"]
    pipe = facts.make()
    CHANGES["layerwise casting to float8"](pipe, facts)
    rounded = facts.make()
    kept = dict(pipe.transformer.named_parameters())
    for name, weight in rounded.transformer.named_parameters():
        weight.data = kept[name].data.float()
    run = record("kontext", "layerwise casting to float8", tmp_path / "r.zarr")
    with capture(rounded, tmp_path / "o.zarr", samples=["s"]) as cap, cap.sample("s") as sample:
        sample.generated = facts.run(rounded, 1, 1, 2.0, torch.float32)[0]
    other = open_run(tmp_path / "o.zarr")
    for layer in run.layers:
        for ours, theirs in zip(norms(run, layer), norms(other, layer), strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "change"),
    [*changes([*QUANTISED, *PACKAGED]), *changes([*list(QUANTISED)[:-1], *PACKAGED], ["sd"])],
)
def test_scores_are_those_of_the_kernel(family, change, tmp_path):
    situation = Situation(family, change=change)
    check(situation, play(situation, tmp_path))


@pytest.mark.parametrize(("family", "change"), changes(QUANTISED))
def test_quantised_weights_have_a_fingerprint_and_no_norms(family, change, tmp_path):
    run = record(family, change, tmp_path / "r.zarr")
    lacking = run.record("s")["annotations"]["without_norms"]
    assert set(lacking) == set(run.layers)
    assert all(QUANTISED[change] in why for why in lacking.values()), lacking
    assert len(set(run.attrs["attention_weights"].values()) - {None}) == len(run.layers)


def test_the_scale_of_quantised_weights_counts():
    facts = FAMILIES["kontext"]
    found = []
    for factor in (1, 1, 2):
        pipe = facts.make()
        CHANGES["codes"](pipe, facts)
        weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
        weight.scale = weight.scale * factor
        adapter = find_adapter(pipe)
        names = [site.name for site in adapter.sites(pipe)]
        found.append(attention_fingerprint(pipe, adapter, names))
    assert found[0] == found[1]
    assert [name for name in found[0] if found[0][name] != found[2][name]] == names[:1]


def test_a_weight_that_comes_only_as_its_layer_runs_is_read_where_the_values_are():
    value, output = nn.Linear(4, 4, device="meta"), nn.Linear(4, 4)
    site = Site(
        "a",
        nn.Identity(),
        nn.Identity(),
        nn.Identity(),
        nn.Identity(),
        2,
        1.0,
        "A",
        value=value,
        output=output,
    )
    received = []
    tap = FlowTap([site], received.append, lambda *why: None, lambda: True, lambda callback: callback)
    with tap.attached():
        output.register_forward_pre_hook(lambda module, args: module.to("meta") and None)
        output(value(torch.ones(1, 3, 4, device="meta")))
    assert received[0].weight.device.type == "meta"


def test_while_a_stream_brings_a_weight_its_copy_in_memory_is_read():
    layer = nn.Linear(2, 2)
    copy = torch.ones(2, 2)
    group = SimpleNamespace(
        modules=[layer], parameters=[], offload_to_disk_path=None, cpu_param_dict={layer.weight: copy}
    )
    hook = SimpleNamespace(group=group)
    layer._diffusers_hook = SimpleNamespace(get_hook={"group_offloading": hook}.get)
    groups = offload_groups([layer])
    assert held(layer, "weight", groups) is copy
    assert held(layer, "bias", groups) is layer.bias
    assert held(layer.to("meta"), "weight", groups) is None
