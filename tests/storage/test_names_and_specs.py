"""Names from outside, and the declaration of a layer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.storage.errors import InputError
from i2am.storage.format.file_names import MAX_FILE_NAME, check_segment, sample_file, sample_of_file
from i2am.storage.format.layer_spec import LayerSpec

PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@given(PRINTABLE)
def test_sample_ids_become_file_names_one_to_one(sample):
    name = sample_file(sample)
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", name)
    assert not name.startswith(".")
    assert sample_of_file(name) == sample


@pytest.mark.parametrize(
    "sample", ["../x", "a/b", "<script>", "é", ".", "..", "CON", "nul.txt", "a b", "%41", "a."]
)
def test_hostile_ids_stay_inside_the_folder(sample, tmp_path):
    name = sample_file(sample)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert sample_of_file(name) == sample
    assert name.upper().split(".")[0] not in {"CON", "NUL"}
    assert not name.endswith(".")


@pytest.mark.parametrize("sample", ["", "a\nb", "\x00", "a\x7f", "\ud800", None, 3])
def test_impossible_ids_are_refused(sample):
    with pytest.raises(InputError, match="sample id; expected"):
        sample_file(sample)


def test_long_ids_are_refused_by_their_encoded_length():
    assert len(sample_file("é" * (MAX_FILE_NAME // 6))) <= MAX_FILE_NAME
    with pytest.raises(InputError, match="at most 200 bytes once encoded; got 204"):
        sample_file("é" * 34)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "__x", "a\n", "x" * 201, None])
def test_layer_names_are_one_path_segment(name):
    with pytest.raises(InputError, match="layer name; expected one path segment"):
        check_segment("layer", name)


def spec(**changes):
    return LayerSpec(
        **{"name": "l", "heads": 2, "head_dim": 4, "gen_grid": (3, 4), "ref_grid": (2, 2), **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "layer 'l': heads; expected an integer of at least 1; got 0"),
        ({"heads": 2.0}, "layer 'l': heads; expected an integer"),
        ({"heads": True}, "layer 'l': heads; expected an integer"),
        ({"gen_grid": (0, 4)}, "layer 'l': gen_grid; expected an integer of at least 1; got 0"),
        ({"gen_grid": 16}, r"layer 'l': gen_grid; expected \(rows, columns\); got 16"),
        ({"ref_grid": (0, 0)}, "layer 'l': ref_grid; expected at least one reference token"),
        ({"ref_grid": (0, 3), "ref_prefix": 1}, "layer 'l': ref_grid; expected at least one reference token"),
        (
            {"dtype": "float64"},
            "layer 'l': dtype; expected one of 'float16', 'bfloat16', 'float32'; got 'float64'",
        ),
        ({"representation": "all"}, "layer 'l': representation; expected one of 'auto', 'factors', 'scores'"),
        ({"scale": 0}, "layer 'l': scale; expected a finite number other than 0"),
        ({"static_key": 1}, "layer 'l': static_key; expected True or False"),
        ({"role": None}, "layer 'l': role; expected a text"),
    ],
)
def test_impossible_layers_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        spec(**changes)


def test_counts_and_scale():
    assert (spec().gen, spec().ref, spec(ref_prefix=3).ref) == (12, 4, 7)
    assert spec(ref_grid=(0, 0), ref_prefix=1).ref == 1
    assert spec().logit_scale == 0.5
    assert spec(scale=0.1).resolve(3).scale == 0.1


@given(
    st.integers(1, 20),
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_automatic_representation_takes_fewer_bytes(heads, dim, gen, ref, steps, static, dtype):
    layer = spec(
        heads=heads, head_dim=dim, gen_grid=(gen, 1), ref_grid=(1, ref), static_key=static, dtype=dtype
    )
    width = {"float16": (2, 2), "bfloat16": (2, 4), "float32": (4, 4)}[dtype]
    factors = heads * dim * (gen * steps + ref * (1 if static else steps)) * width[0]
    scores = heads * gen * ref * steps * width[1]
    assert layer.resolve(steps).representation == ("factors" if factors <= scores else "scores")
    assert LayerSpec.from_json(layer.to_json()) == layer


def test_the_paper_s_geometries_choose_as_expected():
    pooled = LayerSpec("attn2", 8, 40, (64, 64), (0, 0), 1)
    warp = LayerSpec("warp.8", 8, 40, (64, 48), (64, 48))
    assert pooled.resolve(50).representation == "scores"
    assert warp.resolve(50).representation == "factors"
