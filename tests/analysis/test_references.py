"""Several references and words in one run: questions to one of them at a time, its own pictures and masks."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import i2am
from i2am.analysis.drawing.save_maps import save_references
from i2am.analysis.options import StudyOptions
from i2am.analysis.study.study import analyze
from i2am.storage.errors import AlreadyExists, InputError, NoAnswer, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.one_reference import one_reference, references_of
from i2am.storage.reading.open import open_any

FIRST = LayerSpec("joint", 2, 8, (4, 4), (4, 4), lse=True, static_key=False, representation="factors")
SECOND = replace(FIRST, name="joint@reference-1", ref_grid=(2, 6), reference="reference-1", query_of="joint")
WORDS = replace(FIRST, name="joint@text", ref_grid=(0, 0), ref_prefix=5, reference="text", query_of="joint")
LAYERS = (FIRST, SECOND, WORDS)
SAMPLES, STEPS = ("a", "b"), 3
IMAGES = {
    "generated": (16, 16, 3), "mask": (16, 16, 1),
    "reference": (16, 16, 3), "reference_mask": (16, 16, 1),
    "reference-1": (8, 24, 3), "reference-1_mask": (8, 24, 1),
}  # fmt: skip


def draw(*seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


def logits(number, sample, step):
    query = draw(0, sample, step, shape=(2, 16, 8)).astype(np.float64)
    key = draw(1, number, sample, step, shape=(2, LAYERS[number].ref, 8)).astype(np.float64)
    return query @ key.transpose(0, 2, 1) * 8**-0.5


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run whose joint softmax has keys of two references, of words, and of the image itself."""
    made = tmp_path_factory.mktemp("references") / "r.zarr"
    with i2am.create_run(made, LAYERS, [9, 5, 1], SAMPLES, image_shapes=IMAGES) as writer:
        for s, name in enumerate(SAMPLES):
            with writer.sample(name) as sink:
                for image, shape in IMAGES.items():
                    pixels = np.random.default_rng([s, len(image)]).integers(0, 256, shape, np.uint8)
                    if "mask" in image:
                        pixels[:] = 0
                        pixels[: shape[0] // 2, : shape[1] // 2] = 255
                    sink.put_image(image, pixels)
                for step in range(STEPS):
                    every = np.concatenate([logits(n, s, step) for n in range(3)], -1)
                    lse = np.logaddexp.reduce(np.concatenate([every, np.zeros((2, 16, 1))], -1), -1)
                    for number, spec in enumerate(LAYERS):
                        key = draw(1, number, s, step, shape=(2, spec.ref, 8))
                        query = {} if number else {"query": draw(0, s, step, shape=(2, 16, 8))}
                        sink.put(spec.name, step, key=key, lse=lse.astype(np.float32), **query)
    return made


def share(number, sample):
    """Probability of a reference's tokens in the joint softmax, mean over steps and heads, by hand."""
    found = []
    for step in range(STEPS):
        each = [np.exp(logits(n, sample, step)).sum(-1) for n in range(3)]
        found.append(each[number] / (1 + sum(each)))
    return np.mean(found, axis=(0, 1)).reshape(4, 4)


def test_references_come_in_their_order_and_words_last(path):
    run = i2am.open_run(path)
    assert references_of(run) == ["reference", "reference-1", "text"]
    many = [replace(FIRST, name=f"l{n}", reference=f"reference-{n}" if n else "reference") for n in range(12)]
    assert references_of(type("Run", (), {"layers": {s.name: s for s in many}})()) == [
        s.reference for s in many
    ]


@pytest.mark.parametrize("name", [None, "reference", "reference-1", "text"])
def test_maps_are_of_one_reference(path, name):
    number = ["reference", "reference-1", "text"].index(name or "reference")
    maps = i2am.attribution_maps(path, "r2g", reference=name, method="joint")
    assert (maps.attrs["layers"], maps.attrs["reference"]) == ([LAYERS[number].name], name or "reference")
    for s in range(2):
        np.testing.assert_allclose(maps[s], share(number, s), rtol=1e-3)


def test_the_mask_of_each_reference_is_its_own(path):
    for name, number, grid in (("reference", 0, (4, 4)), ("reference-1", 1, (2, 6))):
        found = i2am.attribution_maps(path, "r2g", reference=name, at="reference_mask")
        inside = np.zeros(grid)
        inside[: grid[0] // 2, : grid[1] // 2] = 1
        own = np.stack([logits(number, 0, step) for step in range(STEPS)])
        weights = np.exp(own) / np.exp(own).sum(-2, keepdims=True)  # R2G: over the generated patches
        wanted = (weights[..., inside.ravel() > 0].mean(-1) * 16).mean((0, 1)).reshape(4, 4)
        np.testing.assert_allclose(found[0], wanted, rtol=2e-3)


def test_a_layer_of_another_reference_has_to_be_asked_for(path):
    for layers in ("joint@reference-1", "*reference-1", ["joint", "joint@text"]):
        with pytest.raises(NoAnswer, match="one reference, here 'reference'.*ask with reference='"):
            i2am.attribution_maps(path, "r2g", layers=layers)
    maps = i2am.attribution_maps(path, "g2r", reference="reference-1", layers="*reference-1")
    assert maps.sizes["x"] == 6
    with pytest.raises(UnknownName, match="reference-2.*'reference-1', 'text'"):
        i2am.attribution_maps(path, "r2g", reference="reference-2")
    with pytest.raises(NoAnswer, match="place"):
        i2am.attribution_maps(path, "g2r", reference="text")
    assert i2am.attribution_maps(path, "r2g", layers="joint*").attrs["left_out"] == [
        s.name for s in LAYERS[1:]
    ]


def test_a_run_of_one_reference_shows_its_pictures_and_is_pickled(path):
    whole = i2am.open_run(path)
    run = pickle.loads(pickle.dumps(one_reference(whole, "reference-1")))
    assert (list(run.layers), run.samples) == (["joint@reference-1"], SAMPLES)
    assert set(run.images) == set(IMAGES)
    np.testing.assert_array_equal(run.image("reference", "a"), whole.image("reference-1", "a"))
    np.testing.assert_array_equal(run.scores("joint@reference-1"), whole.scores("joint@reference-1"))
    with pytest.raises(UnknownName, match="layer 'joint'"):
        run.scores("joint")
    words = one_reference(whole, "text")
    assert "reference" not in words.images
    with pytest.raises(UnknownName, match="image 'reference'"):
        words.image("reference", "a")


def test_a_study_is_of_one_reference(path, tmp_path):
    tables = {}
    for name in (None, "reference-1"):
        result = analyze(path, tmp_path / f"{name}", StudyOptions(reference=name, details=1, figures=1))
        others = [line for line in result.absent if "ask for it" in line]
        assert [line.partition(":")[0] for line in others] == [
            each for each in ("reference", "reference-1", "text") if each != (name or "reference")
        ]
        tables[name] = result.tables["unified"].filter(direction="g2r")["imacs"].to_list()
    maps = i2am.attribution_maps(path, "g2r", reference="reference-1")
    mask = i2am.open_run(path).image("reference-1_mask", "a")[..., 0] > 127
    np.testing.assert_allclose(tables["reference-1"], i2am.imacs(maps, mask), rtol=1e-5)
    assert tables[None] != tables["reference-1"]


def test_shares_of_a_joint_softmax_sum_to_one(path):
    table = i2am.reference_shares(path)
    assert table["reference"].to_list() == ["reference", "reference-1", "text", "rest"] * 2
    for s, name in enumerate(SAMPLES):
        own = dict(table.filter(sample=name).select("reference", "share").iter_rows())
        assert sum(own.values()) == pytest.approx(1)
        for number, spec in enumerate(LAYERS):
            assert own[spec.reference] == pytest.approx(share(number, s).mean(), rel=1e-3)


def test_every_reference_in_one_figure(path, tmp_path):
    save_references(i2am.open_run(path), tmp_path / "all.png", samples=["b"])
    picture = np.asarray(Image.open(tmp_path / "all.png"))
    assert picture.shape[1] > picture.shape[0] / 2
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with pytest.raises(AlreadyExists):
        save_references(i2am.open_run(path), tmp_path / "all.png")
    with pytest.raises(InputError, match=r"ends in \.png"):
        save_references(i2am.open_run(path), tmp_path / "all.npz")


def test_a_reference_with_a_softmax_of_its_own_has_no_share(tmp_path):
    spec = LayerSpec("cross", 2, 8, (4, 4), (4, 4))
    with i2am.create_run(tmp_path / "r.zarr", [spec], [1], ["a"]) as writer, writer.sample("a") as sink:
        sink.put("cross", 0, query=draw(0, shape=(2, 16, 8)), key=draw(1, shape=(2, 16, 8)))
    with pytest.raises(NoAnswer, match="softmax of its own"):
        i2am.reference_shares(tmp_path / "r.zarr")
    save_references(i2am.open_run(tmp_path / "r.zarr"), tmp_path / "one.png")


@pytest.mark.parametrize(("at", "tokens"), [("token 3", [3]), ("tokens 0,4", [0, 4])])
def test_words_are_asked_for_by_their_numbers(path, at, tokens):
    chosen = {name: [] for name in ("i2am", "joint", "daam")}
    for step in range(STEPS):
        each = [np.exp(logits(n, 1, step)) for n in range(3)]
        words = each[2][..., tokens]
        columns = each[2] / each[2].sum(-2, keepdims=True)
        chosen["i2am"].append(columns[..., tokens].mean(-1) * 16)
        chosen["joint"].append(words.sum(-1) / (1 + sum(e.sum(-1) for e in each)))
        chosen["daam"].append(words.mean(-1) / each[2].sum(-1) * 5)
    for method, values in chosen.items():
        maps = i2am.attribution_maps(path, "r2g", reference="text", at=at, method=method)
        assert (maps.attrs["level"], maps.attrs["at"]) == ("specific", at)
        wanted = np.mean(values, axis=(0, 1)).reshape(4, 4)
        np.testing.assert_allclose(maps.sel(sample="b"), wanted, rtol=2e-3)


def test_tokens_with_a_place_are_asked_for_by_it(path):
    with pytest.raises(NoAnswer, match=r"tokens on a grid of 4 x 4; ask at patches"):
        i2am.attribution_maps(path, "r2g", at="tokens 3")
    with pytest.raises(InputError, match="token 5 of layer.*0 to 4"):
        i2am.attribution_maps(path, "r2g", reference="text", at="tokens 1,5")


def test_labels_and_references_go_together(path, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(path, other)
    runs = open_any([path, other], label=True)
    maps = i2am.attribution_maps(runs, "g2r", reference="reference-1")
    assert [str(name) for name in maps["sample"].values] == ["r/a", "r/b", "other/a", "other/b"]
    np.testing.assert_array_equal(maps[0], maps[2])
    view = pickle.loads(pickle.dumps(one_reference(runs, "text")))
    assert view.fingerprint("other/a") == runs.fingerprint("other/a")
    found = i2am.compare(open_any([path], label=True), open_any([path], label=True))
    assert found.to_json()["samples"] == ["r/a", "r/b"]


def test_a_run_of_a_further_reference_alone_has_that_ones_pictures(path, tmp_path):
    i2am.prune(path, tmp_path / "one.zarr", layers=["*reference-1"])
    maps = i2am.attribution_maps(tmp_path / "one.zarr", "r2g", at="reference_mask")
    whole = i2am.attribution_maps(path, "r2g", at="reference_mask", reference="reference-1")
    np.testing.assert_array_equal(maps, whole)
    result = analyze(tmp_path / "one.zarr", tmp_path / "out", StudyOptions(details=1, figures=1))
    scored = result.tables["unified"].filter(direction="g2r")["imacs"].to_list()
    mask = i2am.open_run(path).image("reference-1_mask", "a")[..., 0] > 127
    own = i2am.attribution_maps(path, "g2r", reference="reference-1")
    np.testing.assert_allclose(scored, i2am.imacs(own, mask), rtol=1e-5)


@pytest.mark.parametrize("layers", ["joint", "jo*t", ["joint", "joint@reference-1"]])
def test_layers_of_every_reference_are_named_by_what_they_share(path, tmp_path, layers):
    assert i2am.reference_shares(path, layers=layers).equals(i2am.reference_shares(path))
    save_references(i2am.open_run(path), tmp_path / "all.png", layers=layers)
    with pytest.raises(UnknownName, match="layer 'other'"):
        save_references(i2am.open_run(path), tmp_path / "none.png", layers="other")
