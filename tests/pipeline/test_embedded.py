"""The embedded model: training resumes, evaluation measures, the shipped weights use their reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from i2am.pipeline.embedded.card import write_card
from i2am.pipeline.embedded.evaluate import _cells, _correlation, evaluate
from i2am.pipeline.embedded.painter import place_in_box
from i2am.pipeline.embedded.pattern_classifier import told_patterns, train_classifier
from i2am.pipeline.embedded.reading import Reader, reading_truth
from i2am.pipeline.embedded.refine import refine
from i2am.pipeline.embedded.scenes import make_scene
from i2am.pipeline.embedded.shapes import PATTERNS
from i2am.pipeline.embedded.train import Recipe, SceneStream, Training, train
from i2am.pipeline.embedded.weights import FOLDER, load_pipeline
from i2am.storage.errors import InputError
from i2am.storage.reading.open import open_run


def test_the_shipped_weights_paint_what_the_reference_shows():
    figures = evaluate(load_pipeline(), count=6, steps=6, guidance=1.3, batch_size=6, patterns=False)
    assert figures["colour_correlation"] > 0.8
    assert figures["attention_on_object"] > 2
    assert figures["pointing_game"] >= 5 / 6


def test_the_card_says_what_was_measured(tmp_path):
    measured = json.loads((FOLDER / "evaluation.json").read_text())
    assert measured["scenes"] == 200
    card = (FOLDER / "README.md").read_text()
    for key in ("colour_correlation", "colour_correlation_chance"):
        assert f"{measured[key]:.3f}" in card
    assert f"{100 * measured['pointing_game']:.1f}%" in card
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("evaluation.json", "training.json"):
        (copy / name).write_bytes((FOLDER / name).read_bytes())
    (copy / "w.safetensors").write_bytes(b"12")
    write_card(copy)
    assert "w.safetensors" in (copy / "README.md").read_text()


def test_weights_are_small_and_safe():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 12e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    with pytest.raises(InputError, match="dtype.*float32 or float16 or bfloat16"):
        load_pipeline(dtype="int8")


def test_the_classifier_tells_patterns_of_true_objects():
    """A short training is far above chance already; what is painted at random is not told."""
    with torch.random.fork_rng():
        classifier = train_classifier(steps=60, batch_size=16)
    scenes = [make_scene(seed) for seed in range(60)]
    objects = [s.target_object for s in scenes]
    told = told_patterns(classifier, [s.target for s in scenes], objects)
    assert np.mean([t == s.object.pattern for t, s in zip(told, scenes, strict=True)]) > 0.4
    grey = told_patterns(classifier, [np.full((64, 64, 3), 127, np.uint8)] * 60, objects)
    assert np.mean([t == s.object.pattern for t, s in zip(grey, scenes, strict=True)]) < 0.4


def test_figures_are_computed_right():
    a = np.random.default_rng(0).normal(size=(50, 3))
    assert _correlation(a, 2 * a + 1) == pytest.approx(1)
    assert _correlation(a, -a) == pytest.approx(-1)
    mask = np.zeros((8, 8), bool)
    mask[:2, :4] = True
    np.testing.assert_array_equal(_cells(mask, (2, 2)), [0.5, 0, 0, 0])


def test_a_resumed_stream_sees_the_scenes_that_follow():
    whole, later = iter(SceneStream(2, first=0)), iter(SceneStream(2, first=1))
    first, second, resumed = next(whole), next(whole), next(later)
    for name, value in resumed.items():
        assert torch.equal(value, second[name])
    assert not torch.equal(first["target"], second["target"])


def recipe(steps, **more):
    return Recipe(steps=steps, **{"reading_steps": 0, "batch_size": 1, "widths": (16, 16, 32)} | more)


@pytest.mark.parametrize("kind", ["score_variance", "centre_variation"])
def test_training_with_an_attention_loss_adds_it(tmp_path, kind):
    batch = next(iter(SceneStream(1, 0)))
    plain = Training(tmp_path, recipe(2), torch.device("cpu")).learn(batch)
    more = Training(tmp_path, recipe(2, attention=kind, attention_weight=1.0), torch.device("cpu"))
    assert more.learn(batch) > plain


def test_the_encoder_alone_learns_at_first(tmp_path):
    training = Training(tmp_path, recipe(3, reading_steps=2), torch.device("cpu"))
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    batches, changed = iter(SceneStream(2, 0)), []
    for _ in range(3):
        training.learn(next(batches))
        now = training.model.state_dict()
        changed.append(
            {name.split(".")[0] for name, value in now.items() if not torch.equal(value, before[name])}
        )
    assert changed == [{"encoder", "reader"}, {"encoder", "reader"}, {"encoder", "reader", "unet"}]


def test_the_truth_of_a_token_is_that_of_its_place():
    scenes = [make_scene(seed) for seed in range(3)]
    truth = reading_truth(scenes)
    place = place_in_box(truth["object"], 4)
    for number, scene in enumerate(scenes):
        top, left, bottom, right = scene.reference_box
        half = max(bottom - top, right - left) / 2
        for row, column in ((0, 0), (7, 9), (15, 3)):
            y, x = (4 * row + 1.5 - (top + bottom - 1) / 2), (4 * column + 1.5 - (left + right - 1) / 2)
            found = place[number, :2, row, column].tolist()
            if max(abs(y), abs(x)) < 2 * half - 4:
                assert found == pytest.approx([y / half, x / half], rel=0.1, abs=0.05)
        assert list(PATTERNS)[truth["pattern"][number]] == scene.object.pattern
    read = torch.zeros(3, 256, 96)
    losses = Reader(96)(read, **truth), Reader(96)(read + 1, **truth)
    assert all(torch.isfinite(loss) for loss in losses)


def test_a_refinement_trains_and_captures_both_models_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{refine.__module__}.READING_STEPS", 2)
    arguments = {"seeds": 1, "scenes": 1, "kind": "score_variance", "weight": 0.1, "steps": 2}
    first = refine(tmp_path, **arguments, checkpoints=1)
    assert [run.name for run in first] == ["custom-0-4.zarr", "refined-0-4.zarr"]
    weights = tmp_path / "custom-0" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    written = weights.stat().st_mtime_ns
    assert refine(tmp_path, **arguments, checkpoints=1) == first
    assert weights.stat().st_mtime_ns == written
    assert [len(open_run(run).samples) for run in first] == [1, 1]


def test_training_goes_on_from_its_checkpoint_after_a_crash(tmp_path, monkeypatch):
    first = Training(tmp_path, recipe(2), torch.device("cpu"))
    first.learn(next(iter(SceneStream(1, 0))))
    first.save()

    def crash(state, path):
        path.write_bytes(b"half of a checkpoint")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", crash)
        train(tmp_path, recipe(2))
    again = Training(tmp_path, recipe(2), torch.device("cpu"))
    assert again.step == 1
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    train(tmp_path, recipe(3))
    assert Training(tmp_path, recipe(3), torch.device("cpu")).step == 3
    assert sorted(p.suffix for p in (tmp_path / "model" / "unet").iterdir()) == [".json", ".safetensors"]
    assert json.loads((tmp_path / "model" / "training.json").read_text())["steps"] == 3
