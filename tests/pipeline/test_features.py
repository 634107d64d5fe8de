"""Models of features: fingerprints, what is refused, and that they compute what their libraries do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from i2am.pipeline.features import inception, lpips
from i2am.pipeline.features.contract import BATCH, FeatureModel, take
from i2am.pipeline.features.load import load_features
from i2am.storage.errors import (
    CaptureError,
    ConfigError,
    InputError,
    MissingDependency,
    NotFound,
    UnknownName,
)
from tests.pipeline import feature_functions

FUNCTIONS = "tests.pipeline.feature_functions"


def pictures(count, size=(20, 16), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)


def taken(model, images):
    parts = list(take(model, [(str(n), image) for n, image in enumerate(images)]))
    return [key for keys, _ in parts for key in keys], np.concatenate([values for _, values in parts])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of weights, in place of the machine's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_function_sees_batches_of_one_size_and_keeps_the_order():
    model = load_features(f"{FUNCTIONS}:colours")
    images = [*pictures(BATCH + 3), *pictures(2, (8, 24)), *pictures(1)]
    feature_functions.CALLS.clear()
    keys, values = taken(model, images)
    assert feature_functions.CALLS == [BATCH, 3, 2, 1]
    assert keys == [str(n) for n in range(len(images))]
    assert values.dtype == np.float32
    want = np.concatenate([feature_functions.colours(image[None]) for image in images])
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_the_fingerprint_follows_what_a_function_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = set()
    for name, factor in (("first_of_two", 1.0), ("second_of_two", 1.0), ("first_of_two", 2.0)):
        Path(f"{name}.npy").write_bytes(b"")
        np.save(f"{name}.npy", factor)
        Path(f"{name}.py").write_text(
            "import numpy as np\n"
            f"def f(images): return images.reshape(len(images), -1)[:, :5] * np.load('{name}.npy')\n"
        )
        sys.modules.pop(name, None)
        found.add(load_features(f"{name}:f").fingerprint)
        assert load_features(f"{name}:f").fingerprint in found
    assert len(found) == 3


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("random", "the same numbers of an image whenever it comes"),
        ("of_the_batch", "the same numbers of an image whenever it comes, and in any batch; got differences"),
        ("one_number", r"expected shape \(4, features\) for 4 images; got shape \(4,\)"),
        ("by_size", r"expected shape \(2, 20\) for 2 images; got shape \(2, 8\)"),
        ("not_finite", "expected finite floats; got float64 with [1-9]"),
        ("whole_numbers", "expected finite floats; got uint8"),
        ("failing", r"RuntimeError: no such layer \(feature_functions.py, line"),
    ],
)
def test_wrong_functions_are_refused_in_one_line(function, words):
    images = [*pictures(4), *pictures(2, (8, 24))]
    images[0][0, 0] = 1
    with pytest.raises(CaptureError, match=words) as caught:
        taken(load_features(f"{FUNCTIONS}:{function}"), images)
    assert "\n" not in str(caught.value)


def test_names_that_do_not_exist():
    with pytest.raises(UnknownName, match="unknown features 'incepton'.*module:function"):
        load_features("incepton")
    with pytest.raises(
        UnknownName, match="unknown function in tests.pipeline.feature_functions 'colors'.*'colours'"
    ):
        load_features(f"{FUNCTIONS}:colors")
    with pytest.raises(UnknownName, match="'NUMBER'"):
        load_features(f"{FUNCTIONS}:NUMBER")
    with pytest.raises(NotFound, match="no module 'no_such_module'; it is looked for in"):
        load_features("no_such_module:f")
    with pytest.raises(InputError, match="weights; expected none with"):
        load_features(f"{FUNCTIONS}:colours", Path("w.pth"))


@pytest.mark.parametrize("name", ["inception", "clip", "dino"])
def test_missing_weights_are_named_with_the_place_to_get_them(name, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = {
        "inception": "download https://",
        "clip": "hf download openai/clip",
        "dino": "hf download facebook/",
    }
    with pytest.raises(NotFound, match=f"no weights of .*{words[name]}") as caught:
        load_features(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nowhere"):
        load_features(name, tmp_path / "nowhere")


def test_clip_and_dino_equal_transformers_own(tmp_path):
    from transformers import (
        BitImageProcessorPil,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    small = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    torch.manual_seed(0)
    made = {
        "clip": (
            CLIPVisionModelWithProjection(CLIPVisionConfig(**small, intermediate_size=16, projection_dim=6)),
            CLIPImageProcessorPil(**size),
        ),
        "dino": (Dinov2Model(Dinov2Config(**small)), BitImageProcessorPil(**size)),
    }
    images = pictures(3, (40, 30))
    for name, (network, processor) in made.items():
        folder = tmp_path / name
        network.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        model = load_features(name, folder)
        with torch.no_grad():
            out = network(pixel_values=processor(list(images), return_tensors="pt")["pixel_values"])
        want = out.image_embeds if name == "clip" else out.pooler_output
        np.testing.assert_allclose(taken(model, images)[1], want.numpy(), atol=1e-6)
        assert model.name == f"{name} ({name})"  # the folder's: these are not the published weights
        before = model.fingerprint
        next(network.parameters()).data.mul_(1.5)
        network.save_pretrained(folder)
        assert load_features(name, folder).fingerprint != before
        (folder / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match=f"weights of {name} .*safetensors"):
            load_features(name, folder)


class StandInInception(torch.nn.Module):
    """The interface of torch-fidelity's extractor, and a network of its own."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.fc = torch.nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (self.fc(images.float().mean((2, 3))),)


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandInInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_of_other_weights_is_not_called_inception(stand_in, cache, monkeypatch):
    layer = torch.nn.Linear(3, 5)
    torch.save({f"fc.{key}": value for key, value in layer.state_dict().items()}, cache / inception.FILE)
    images = pictures(4)
    model = load_features("inception")
    assert model.name == f"inception ({inception.FILE})"
    want = layer(torch.from_numpy(images).float().mean((1, 2))).detach().numpy()
    np.testing.assert_allclose(taken(model, images)[1], want, rtol=1e-5)
    import hashlib

    digest = hashlib.sha256((cache / inception.FILE).read_bytes()).hexdigest()[:8]
    official = cache / f"weights-{digest}.pth"
    (cache / inception.FILE).rename(official)
    monkeypatch.setattr(inception, "FILE", official.name)
    again = load_features("inception")
    assert (again.name, again.fingerprint) == ("inception", model.fingerprint)


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_weights_that_are_no_weights_are_refused_and_nothing_in_them_runs(stand_in, tmp_path, capsys):
    torch.save({"fc.weight": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("harmful", "text", "other"):
        with pytest.raises(ConfigError, match=f"weights of Inception .*{name}.pth; expected"):
            load_features("inception", tmp_path / f"{name}.pth")
    assert capsys.readouterr().out == ""


def test_inception_is_torch_fidelitys_network(tmp_path, monkeypatch):
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs a torchvision that fits torch"
    )
    torch.manual_seed(0)
    kind, load = module.FeatureExtractorInceptionV3, torch.nn.Module.load_state_dict
    with monkeypatch.context() as patch:  # made without weights, which only exist once it is made
        patch.setattr(module.torch, "load", lambda *_, **__: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: load(self, self.state_dict()))
        network = kind("x", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), tmp_path / "random.pth")
    images = pictures(2, (40, 30))
    model = load_features("inception", tmp_path / "random.pth")
    want = network(torch.from_numpy(images).permute(0, 3, 1, 2))[0].numpy()
    assert want.shape == (2, 2048)
    np.testing.assert_allclose(taken(model, images)[1], want, atol=1e-5)


def alexnet_features(net, pretrained=False):
    """What torchvision's AlexNet is made of, with random weights."""
    nn = torch.nn
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def test_lpips_equals_torchmetrics(cache, monkeypatch):
    from importlib import import_module, util

    functional = import_module("torchmetrics.functional.image.lpips")
    image = import_module("torchmetrics.image.lpip")
    with pytest.raises((NotFound, MissingDependency), match="torchvision|no AlexNet weights"):
        lpips.load_lpips("cpu")
    monkeypatch.setattr(functional, "_get_tv_model_features", alexnet_features)
    monkeypatch.setattr(image, "_TORCHVISION_AVAILABLE", True)
    found = util.find_spec
    monkeypatch.setattr(lpips, "find_spec", lambda name: True if name == "torchvision" else found(name))
    with pytest.raises(NotFound, match="no AlexNet weights for LPIPS at .*; download https://"):
        lpips.load_lpips("cpu")
    (cache / lpips.BACKBONE).touch()
    model = lpips.load_lpips("cpu")
    pairs = np.stack([pictures(3, (64, 48), 0), pictures(3, (64, 48), 1)], axis=1)
    pairs[2, 1] = pairs[2, 0]
    values = taken(model, pairs)[1]
    assert values.shape == (3, 1)
    assert values[2, 0] == 0 < values[:2].min()
    images = torch.from_numpy(pairs).permute(1, 0, 4, 2, 3).float() / 255
    for n in range(2):
        want = functional.learned_perceptual_image_patch_similarity(
            images[0, n : n + 1], images[1, n : n + 1], "alex", normalize=True
        )
        assert values[n, 0] == pytest.approx(float(want), abs=1e-5)
    assert taken(model, pairs[:, :, :20, :20])[1].shape == (
        3,
        1,
    )  # smaller than AlexNet's pools leave room for


def test_features_that_need_no_weights_from_outside():
    model = load_features("i2am.pipeline.features.embedded:features")
    images = pictures(3, (64, 64))
    values = taken(model, images)[1]
    assert values.shape == (3, 192)
    assert np.ptp(values, axis=0).max() > 0
    assert taken(model, pictures(2, (40, 80)))[1].shape == (2, 192)  # other sizes are resized


def test_a_model_has_one_id():
    assert FeatureModel("clip", "0123", lambda images: images).id == "clip@0123"
