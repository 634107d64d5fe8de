"""Supervised detectors of real classes with small random weights, from local folders to COCO results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from i2am.pipeline.detectors import runners, scene_detector
from i2am.pipeline.detectors.scene_detector import (
    NOTHING,
    OBJECT,
    build_detector,
    detection_loss,
    scene_batch,
)
from i2am.pipeline.embedded.scenes import make_scene
from i2am.storage.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
SIDES = {"height": 64, "width": 64}


def tiny_yolos():
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, num_labels=3, use_mid_position_embeddings=False,
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 96}
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil(size=size)


def tiny_rt_detr():
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, num_queries=7, num_labels=3, feat_strides=[8, 16, 32],
        num_denoising=0,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessorPil(size=SIDES)


def tiny_maskformer():
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = transformers.DetrConfig(
        d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        num_queries=5,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
    )
    processor = transformers.MaskFormerImageProcessorPil(size=SIDES, size_divisor=32)
    return transformers.MaskFormerForInstanceSegmentation(config), processor


@pytest.mark.parametrize(
    ("kind", "build"), [("yolos", tiny_yolos), ("rt-detr", tiny_rt_detr), ("maskformer", tiny_maskformer)]
)
def test_transformers_detectors_run_from_a_folder(kind, build, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, processor = build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(runners, "LOWEST", 0.0)
    detector = runners.load_detector(kind, tmp_path)
    first, second = runners.detect_pictures(detector, [("000042", PICTURE), ("b", PICTURE)], "generated")
    assert first
    for entry in json.loads(json.dumps(first)):
        x, y, width, height = entry["bbox"]
        assert 0 <= x < x + width <= 56
        assert 0 <= y < y + height <= 40
        assert 0 <= entry["score"] <= 1
        assert (entry["image"], entry["image_size"], entry["image_id"]) == ("generated", [40, 56], 42)
    assert [entry["bbox"] for entry in second] == [entry["bbox"] for entry in first]
    assert {entry["image_id"] for entry in second} == {"b"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_torchvision_detectors_run_from_a_file(kind, tmp_path, monkeypatch):
    detection = pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    name = runners.KINDS[kind][1]
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(runners, "LOWEST", 0.0)
    detector = runners.load_detector(kind, tmp_path / "w.pth")
    (found,) = runners.detect_pictures(detector, [("a", PICTURE)], "source")
    for entry in found:
        assert 0 <= entry["bbox"][0] <= 56


def test_boxes_of_masks_are_their_bounds():
    masks = torch.zeros(2, 10, 12)
    masks[0, 2:5, 3:9] = 1
    info = [{"score": 0.7, "label_id": 4}, {"score": 0.9, "label_id": 1}]
    found = runners._boxes_of_masks({"segmentation": masks, "segments_info": info})
    assert found.corners.tolist() == [[3, 2, 9, 5]]  # the second mask is empty
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.7], [4])
    assert len(runners._boxes_of_masks({"segmentation": None, "segments_info": []}).corners) == 0


def test_the_loss_of_the_scenes_detector_is_that_of_the_true_box():
    scenes = [make_scene(seed) for seed in range(3)]
    pictures, boxes, classes = scene_batch(scenes)
    assert pictures.shape == (9, 3, 64, 64)
    assert classes.tolist() == [OBJECT, OBJECT, NOTHING] * 3
    top, left, bottom, right = scenes[0].target_box
    np.testing.assert_allclose(
        boxes[0] * 64, [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], rtol=1e-6
    )
    sure = torch.full((9, 1, 2), -20.0).scatter_(2, classes[:, None, None], 20.0)

    class Outputs:
        logits, pred_boxes = sure, boxes[:, None]

    assert detection_loss(Outputs, boxes, classes) == pytest.approx(0, abs=1e-5)
    Outputs.pred_boxes = boxes[:, None] + torch.tensor([0.05, 0, 0, 0])
    assert detection_loss(Outputs, boxes, classes) > 0.1


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_detector, "BATCH", 1)
    whole = scene_detector.train(tmp_path / "whole", steps=4, every=2)

    class Stopped(Exception):
        pass

    def replace_and_stop(*arguments):
        os_replace(*arguments)
        raise Stopped

    os_replace = scene_detector.os.replace
    with monkeypatch.context() as patch:
        patch.setattr(scene_detector.os, "replace", replace_and_stop)
        with pytest.raises(Stopped):
            scene_detector.train(tmp_path / "parts", steps=4, every=2)
    parts = scene_detector.train(tmp_path / "parts", steps=4, every=2)
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    detector = runners.load_detector("scenes", tmp_path / "parts")
    (found,) = runners.detect_pictures(detector, [("a", make_scene(5).target)], "generated")
    assert len(found) <= 1
    with pytest.raises(InputError, match="64×64 pixels"):
        detector(PICTURE)


def test_the_shipped_detector_finds_objects_of_held_out_scenes(capfd):
    detector = runners.load_detector("scenes", scene_detector.FOLDER)
    scenes = [make_scene(seed) for seed in range(300, 312)]
    overlaps = []
    results = runners.detect_pictures(detector, [("a", scene.target) for scene in scenes], "x")
    for found, scene in zip(results, scenes, strict=True):
        top, left, bottom, right = scene.target_box
        truth = (left, top, right - left, bottom - top)
        overlaps.append(_iou(found[0]["bbox"], truth) if found else 0.0)
    assert np.mean(overlaps) > 0.3  # a random box: 0.2
    assert capfd.readouterr().err == ""
    for entries in runners.detect_pictures(detector, [("a", scenes[0].source)], "x"):
        assert all(entry["score"] < 0.5 for entry in entries)


def _iou(one, two):
    masks = np.zeros((2, 256, 256), bool)
    for mask, box in zip(masks, (one, two), strict=True):
        x, y, width, height = (round(4 * number) for number in box)
        mask[y : y + height, x : x + width] = True
    return (masks[0] & masks[1]).sum() / masks.any(0).sum()


def test_the_small_detector_stays_small():
    assert sum(p.numel() for p in build_detector().parameters()) * 2 < 1e6  # bytes in float16
