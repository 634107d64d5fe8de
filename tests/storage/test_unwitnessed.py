"""What commit records say of the witness, as `verify` and `inspect` pass it on."""

from __future__ import annotations

import pytest

from i2am.flows.console.describe_run import describe
from i2am.storage.reading.open import open_run
from i2am.storage.tools.prune import prune
from i2am.storage.tools.verify import verify
from tests.analysis.builders import build, layer

SEEN = {"kernel": "softmax", "steps": 3, "rows": 8, "largest_difference": 2e-7, "unwitnessed_steps": 0}
PARTLY = {**SEEN, "steps": 2, "unwitnessed_steps": 1}
BOTH = {"a": SEEN, "b": SEEN}
NEVER = {"kernel": None, "steps": 0, "rows": 0, "largest_difference": 0.0, "unwitnessed_steps": 3}


@pytest.mark.parametrize(
    ("attrs", "witness", "layers", "samples"),
    [
        ({}, {"one": BOTH, "two": BOTH}, "", ""),
        ({}, {}, "", ""),  # a program's own, which docs/trust.md speaks of
        ({"adapter": "x"}, {}, "2 layers (a, b)", "2 samples (one, two)"),
        ({}, {"one": {"a": SEEN, "b": PARTLY}, "two": BOTH}, "1 layer (b)", "1 sample (one)"),
        ({}, {"one": {"a": SEEN}, "two": {"a": NEVER, "b": SEEN}}, "2 layers (a, b)", "2 samples (one, two)"),
    ],
)  # fmt: skip
def test_verify_names_samples_and_layers(tmp_path, attrs, witness, layers, samples):
    build(tmp_path / "r.zarr", [layer("a"), layer("b")], samples=("one", "two"), attrs=attrs, witness=witness)
    found = verify(tmp_path / "r.zarr")
    notes = [note for note in found.notes if note.startswith("unwitnessed")]
    assert found.ok
    assert [note.endswith(f"of {samples} in {layers}") for note in notes] == ([True] if layers else [])


def test_a_layer_that_was_pruned_is_no_longer_named(tmp_path):
    witness = {"one": {"a": SEEN, "b": NEVER}}
    run, _ = build(tmp_path / "r.zarr", [layer("a"), layer("b")], attrs={"adapter": "x"}, witness=witness)
    assert describe(run)["witness"]["unwitnessed_layers"] == ["b"]
    prune(tmp_path / "r.zarr", tmp_path / "p.zarr", layers=["a"])
    assert describe(open_run(tmp_path / "p.zarr"))["witness"]["summary"] == (
        "8 rows equal those of softmax within 2.0e-07"
    )
    assert not [note for note in verify(tmp_path / "p.zarr").notes if "unwitnessed" in note]
    prune(tmp_path / "p.zarr", tmp_path / "rounded.zarr", bits=3)
    assert describe(open_run(tmp_path / "rounded.zarr"))["witness"]["unwitnessed_layers"] == ["a"]
