"""Supervised detectors from local weights: pictures in, COCO results out.

Of the paper's: torchvision's Faster-RCNN and Mask-RCNN, transformers' MaskFormer, and beside them RT-DETR and
YOLOS. YOLOv3 and RTMDet have no maintained package under a permissive licence: give their results files to
``i2am detect --detections``. ``scenes`` is the small detector of the embedded model's scenes. Nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from i2am.pipeline.foreign_errors import as_capture_error
from i2am.storage.errors import InputError, MissingDependency, NotFound, UnknownName

Picture = NDArray[np.uint8]
LOWEST = 0.05  # score of a box that is written, at least: COCO's average precision wants the weak ones too


class Boxes(NamedTuple):
    """What a detector found in one picture."""

    corners: NDArray[np.float64]  # [n, 4]: left, top, right, bottom, in pixels
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


Detector = Callable[[Picture], Boxes]


def torchvision_detector(name: str, weights: Path) -> Detector:
    """A detector of torchvision, of COCO's 91 classes, with the state of a .pth or .safetensors file."""
    try:
        from torchvision.models import detection
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch fails with RuntimeError
        got = str(error).partition("\n")[0][:300]
        remedy = "install the torchvision that belongs to your torch"
        raise MissingDependency(f"{name} needs torchvision", got=got, remedy=remedy) from error
    state = _state(weights)
    head = state.get("roi_heads.box_predictor.cls_score.weight")
    classes = 91 if head is None else len(head)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes).eval()
    model.load_state_dict(state)

    def detect(picture: Picture) -> Boxes:
        found = model([torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255])[0]
        return Boxes(*(found[key].numpy() for key in ("boxes", "scores", "labels")))

    return detect


def transformers_detector(name: str, weights: Path) -> Detector:
    """A detector of transformers, with the folder's own image processor."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(weights, local_files_only=True, backend="pil")
    model = _load(getattr(transformers, name), weights)

    def detect(picture: Picture) -> Boxes:
        outputs = model(**processor(images=picture, return_tensors="pt"))
        sizes = [picture.shape[:2]]
        if hasattr(outputs, "masks_queries_logits"):
            (found,) = processor.post_process_instance_segmentation(
                outputs, threshold=LOWEST, target_sizes=sizes, return_binary_maps=True
            )
            return _boxes_of_masks(found)
        (found,) = processor.post_process_object_detection(outputs, threshold=LOWEST, target_sizes=sizes)
        return Boxes(*(found[key].numpy() for key in ("boxes", "scores", "labels")))

    return detect


def scene_detector(name: str, weights: Path) -> Detector:
    """The small detector of the embedded model's scenes; it takes 64 by 64 pixels as they are."""
    import transformers

    from i2am.pipeline.detectors.scene_detector import to_input

    model = _load(getattr(transformers, name), weights)
    side = model.config.image_size[0]

    def detect(picture: Picture) -> Boxes:
        if picture.shape[:2] != (side, side):
            raise InputError(
                "a picture for the scenes' detector",
                expected=f"{side}×{side} pixels",
                got=f"{picture.shape[1]}×{picture.shape[0]}",
                remedy="use another detector: it knows the embedded model's scenes alone",
            )
        outputs = model(pixel_values=to_input(picture[None]))
        chance = outputs.logits[0].softmax(-1)[:, 0]
        x, y, width, height = (outputs.pred_boxes[0] * side).T
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        return Boxes(corners.clamp(0, side).numpy(), chance.numpy(), np.zeros(len(chance), dtype=np.int64))

    return detect


KINDS: Mapping[str, tuple[Callable[[str, Path], Detector], str]] = {
    "faster-rcnn": (torchvision_detector, "fasterrcnn_resnet50_fpn"),
    "mask-rcnn": (torchvision_detector, "maskrcnn_resnet50_fpn"),
    "maskformer": (transformers_detector, "MaskFormerForInstanceSegmentation"),
    "rt-detr": (transformers_detector, "RTDetrForObjectDetection"),
    "yolos": (transformers_detector, "YolosForObjectDetection"),
    "scenes": (scene_detector, "YolosForObjectDetection"),
}


def load_detector(kind: str, weights: Path) -> Detector:
    """The detector of a kind with weights from a local file (torchvision) or folder (transformers)."""
    if kind not in KINDS:
        raise UnknownName("detector", kind, KINDS)
    load, name = KINDS[kind]
    is_file = load is torchvision_detector
    if not (weights.is_file() if is_file else weights.is_dir()):
        raise NotFound(
            f"weights {weights} of {kind} do not exist",
            expected="a .pth or .safetensors file" if is_file else f"a folder of {name}",
            remedy=_TRAIN if kind == "scenes" else "name a local copy: nothing is downloaded",
        )
    with as_capture_error(
        f"weights {weights} of {kind} do not load", "give weights of that kind of detector"
    ):
        return load(name, weights)


_TRAIN = "train it: python -m i2am.pipeline.detectors.scene_detector --out FOLDER"


def detect_pictures(
    detector: Detector, pictures: Iterable[tuple[str, Picture]], image: str
) -> Iterator[list[dict[str, Any]]]:
    """COCO results of (sample, picture) pairs, picture by picture; `image` says what they show."""
    for sample, picture in pictures:
        with torch.inference_mode():
            found = detector(picture)
        rows, columns = picture.shape[:2]
        corners = np.clip(np.asarray(found.corners, dtype=np.float64), 0, (columns, rows) * 2)
        number = int(sample) if sample.isdecimal() and sample.isascii() else sample  # as COCO counts
        yield [
            {
                "image_id": number,
                "category_id": int(label),
                "bbox": [left, top, right - left, bottom - top],
                "score": float(score),
                "image": image,
                "image_size": [rows, columns],
            }
            for (left, top, right, bottom), score, label in zip(
                corners.tolist(), found.scores, found.labels, strict=True
            )
            if score >= LOWEST and right > left and bottom > top
        ]


def _load(cls: Any, weights: Path) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # libraries never print
    model = cls.from_pretrained(weights, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return model.eval()


def _state(weights: Path) -> dict[str, torch.Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(weights))
    return dict(torch.load(weights, map_location="cpu", weights_only=True))


def _boxes_of_masks(found: Mapping[str, Any]) -> Boxes:
    """Boxes of the masks of an instance segmentation that are not empty."""
    corners, scores, labels = [], [], []
    masks = found["segmentation"]
    for mask, info in zip([] if masks is None else masks, found["segments_info"], strict=False):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            corners.append([float(end) for end in ends])
            scores.append(info["score"])
            labels.append(info["label_id"])
    return Boxes(np.array(corners).reshape(-1, 4), np.array(scores), np.array(labels, dtype=np.int64))
