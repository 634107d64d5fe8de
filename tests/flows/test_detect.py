"""`i2am detect` and `i2am detector`: tables, pictures, files of boxes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from i2am.storage.reading.open import open_run
from tests.flows.conftest import SAMPLES, Outcome, write_run

pytest.importorskip("cv2")
I2am = Callable[..., Outcome]
SIZE = 16


def truth_file(path: Path, boxes: dict[str, tuple[float, ...]], **more) -> Path:
    rows = [
        dict(zip(("sample", "x", "y", "width", "height"), (name, *box), strict=True))
        for name, box in boxes.items()
    ]
    pl.DataFrame([row | more for row in rows]).write_parquet(path)
    return path


def results(path: Path, entries: list) -> Path:
    path.write_text(json.dumps(entries))
    return path


def entry(image_id, bbox=(4, 4, 8, 8), score=0.9, **more):
    return {"image_id": image_id, "category_id": 1, "bbox": list(bbox), "score": score, **more}


def coco_file(path: Path, images: dict[int, tuple[str, list]], width=32, height=8) -> Path:
    document = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, _) in images.items()
        ],
        "annotations": [
            {"image_id": number, "bbox": box} for number, (_, boxes) in images.items() for box in boxes
        ],
    }
    path.write_text(json.dumps(document))
    return path


def test_a_run_becomes_tables_and_pictures(i2am: I2am, run: Path, tmp_path: Path) -> None:
    found = results(tmp_path / "net.json", [entry("a"), entry("b", score=0.2), entry("elsewhere")])
    out = tmp_path / "out"
    outcome = i2am(
        "detect", run, "--out", out, "--detections", f"net={found}", "--pictures", 1, "-q", "--json"
    )
    assert outcome.status == 0, outcome.err
    table = pl.read_parquet(out / "tables" / "detection.parquet")
    assert outcome.json["scores"] == table.to_dicts()
    assert set(table["method"]) == {"i2am", "daam", "overall", "random 10-30%", "random 30-50%", "net"}
    assert set(table.filter(pl.col("method") == "i2am")["rule"]) == {"corrected", "official"}
    assert set(table["truth"]) == {"mask", "generated"}  # this run has no reference mask
    net = table.filter((pl.col("method") == "net") & (pl.col("truth") == "mask"))
    value = dict(net.select("score", "value").iter_rows())
    assert value["miou"] == pytest.approx(1 / 3)  # "a" exactly, "b" too unsure, nothing in "c"
    assert value["miou_found"] == pytest.approx(1)
    assert value["ap50"] == pytest.approx(67 / 101)  # both boxes match, two of three recalls
    overall = table.filter((pl.col("method") == "overall") & (pl.col("truth") == "mask"))
    assert overall.filter(pl.col("score") == "miou")["value"][0] == pytest.approx(64 / 256)
    daam = table.filter(
        (pl.col("method") == "daam") & (pl.col("truth") == "mask") & (pl.col("score") == "miou")
    )
    assert daam["value"][0] == pytest.approx(64 / 256)  # over all tokens: the whole image
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == ["boxes-0001.png", "text_to_image.png"]
    compared = pl.read_parquet(out / "tables" / "text_to_image.parquet")
    assert set(compared["method"]) == {"i2am", "daam", "i2am - daam"}
    again = i2am("detect", run, "--out", out, "--pictures", 0, "-q")
    assert again.status == 0
    assert not list((out / "pictures").glob("boxes-*"))


def test_true_boxes_of_a_table_and_of_both_directions(i2am: I2am, run: Path, tmp_path: Path) -> None:
    boxes = dict.fromkeys(SAMPLES, (0, 0, 6, 6))
    file = truth_file(tmp_path / "boxes.parquet", boxes | {"unknown": (900, 0, 1, 1)}, direction="g2r")
    outcome = i2am("detect", run, "--out", tmp_path / "o", "--truth", file, "--pictures", 0, "-q", "--json")
    assert outcome.status == 0, outcome.err
    overall = [row for row in outcome.json["scores"] if row["method"] == "overall" and row["score"] == "miou"]
    assert [(row["direction"], row["truth"]) for row in overall] == [("g2r", "boxes.parquet")]
    assert overall[0]["value"] == pytest.approx(36 / 144)  # the reference has 12 × 12 pixels


def test_coco_annotations_and_results_are_brought_to_the_runs_size(i2am: I2am, tmp_path: Path) -> None:
    names = ("000000000007", "holiday", "12")
    run = write_run(tmp_path / "coco.zarr", samples=names)
    box = [8, 2, 16, 4]  # of 32 × 8 pixels: the middle quarter, as the run's mask is of 16 × 16
    images = {
        7: ("x.jpg", [[0, 0, 32, 8], box]),
        9: ("holiday.jpg", [box]),
        12: ("y.jpg", [[0, 0, 1, 1], box, [0, 0, 16, 4]]),
    }
    file = coco_file(tmp_path / "instances.json", images)
    own = results(
        tmp_path / "own.json",
        [entry(7, box), entry("holiday", box), entry(12, (4, 4, 8, 8), image_size=[16, 16])],
    )
    files = ("--truth", file, "--detections", f"net={own}")
    outcome = i2am("detect", run, "--out", tmp_path / "o", *files, "--pictures", 1, "-q", "--json")
    assert outcome.status == 0, outcome.err
    miou = {row["method"]: row["value"] for row in outcome.json["scores"] if row["score"] == "miou"}
    assert miou["net"] == pytest.approx(1)
    assert miou["overall"] == pytest.approx(1 / 4)


def test_what_does_not_fit_is_refused(i2am: I2am, run: Path, tmp_path: Path) -> None:
    good = dict.fromkeys(SAMPLES, (1, 1, 4, 4))
    (tmp_path / "broken.json").write_text("{")
    nan = float("nan")
    truths = {
        "box of sample 'b'.*inside 16×16": truth_file(tmp_path / "1.parquet", good | {"b": (10, 1, 9, 4)}),
        "box of sample 'a'.*inside 16×16": truth_file(tmp_path / "2.parquet", good | {"a": (1, 1, nan, 4)}),
        "box of sample 'c'": truth_file(tmp_path / "3.parquet", good | {"c": (1, 1, 0, 4)}),
        "true box of sample 'c'.*row": truth_file(
            tmp_path / "4.parquet", {"a": (1, 1, 4, 4), "b": (1, 1, 4, 4)}
        ),
        "true box of sample 'a'.*row": truth_file(tmp_path / "5.parquet", {"q": (1, 1, 4, 4)}),
        "expected r2g or g2r": truth_file(tmp_path / "6.parquet", good, direction="left"),
        "columns sample": _other_table(tmp_path / "7.parquet"),
        "true box of sample 'a'.*no image": coco_file(tmp_path / "8.json", {1: ("z.jpg", [])}),
        "true box of sample 'b'.*0 of other sizes": coco_file(
            tmp_path / "9.json", {1: ("a.jpg", [[0, 0, 16, 4]]), 2: ("b.jpg", [])}
        ),
        "does not exist": tmp_path / "none.json",
        "COCO's images": tmp_path / "broken.json",
        "reference_mask.*expected an image": "reference_mask",
        "mask, reference_mask, a COCO": "nonsense",
    }
    for words, truth in truths.items():
        i2am("detect", run, "--out", tmp_path / "o", "--truth", truth, "-q").refused(words)
    detections = {
        "of another image set": results(tmp_path / "a.json", [entry("x"), entry(5)]),
        "box of image 'a'.*inside 16×16": results(tmp_path / "b.json", [entry("a", (10, 4, 8, 8))]),
        "COCO results": tmp_path / "broken.json",
        "COCO results.*four": results(tmp_path / "c.json", [entry("a", (1, 2, 3))]),
        "COCO results.*finite": results(tmp_path / "d.json", [entry("a", score=nan)]),
        "COCO results.*dict": results(tmp_path / "e.json", {"a": 1}),
        "detections: file .* does not exist": tmp_path / "nowhere.json",
    }
    for words, file in detections.items():
        i2am("detect", run, "--out", tmp_path / "o", "--detections", f"net={file}", "-q").refused(words)
    for text in ("net", "=x.json", "net="):
        i2am("detect", run, "--out", tmp_path / "o", "--detections", text, "-q").refused("NAME=FILE")
    assert not (tmp_path / "o").exists()


def _other_table(path: Path) -> Path:
    pl.DataFrame({"sample": ["a"], "left": [1]}).write_parquet(path)
    return path


def test_nothing_of_others_is_replaced(i2am: I2am, run: Path, tmp_path: Path) -> None:
    (tmp_path / "o" / "tables").mkdir(parents=True)
    i2am("detect", run, "--out", tmp_path / "o", "-q").refused("not written by a detection")
    i2am("detect", run, "--out", run / "inside", "-q").refused("inside the run")


def test_a_damaged_sample_is_left_out_and_named(i2am: I2am, run: Path, tmp_path: Path) -> None:
    for file in (run / "attention").rglob("c.1.*"):
        file.write_bytes(bytes(len(file.read_bytes())))
    outcome = i2am("detect", run, "--out", tmp_path / "o", "--pictures", 0, "-q", "--json")
    assert outcome.status == 1
    assert "refused: sample 'b'" in outcome.err
    assert outcome.json["samples"] == ["a", "c"]
    assert {row["count"] for row in outcome.json["scores"] if row["score"] == "miou"} == {2}


def test_the_painted_box_is_that_of_what_changed(tmp_path: Path) -> None:
    from i2am.flows.experiments.run_boxes import painted_box
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.writing.create import create_run

    spec = LayerSpec("one", 1, 2, (2, 2), (2, 2), dtype="float32")
    source = np.full((SIZE, SIZE, 3), 90, np.uint8)
    mask = np.zeros((SIZE, SIZE, 1), np.uint8)
    mask[2:14, 2:14] = 255
    generated = source.copy()
    generated[4:9, 5:11, 1] = 200  # the object
    generated[12, 12] = 0  # a speck
    generated[0, :, :] = 250  # outside the mask
    images = {"source": source, "mask": mask, "generated": generated}
    shapes = {name: image.shape for name, image in images.items()}
    factor = np.zeros((1, 4, 2), np.float32)
    run = create_run(tmp_path / "r.zarr", [spec], [1], ["a"], image_shapes=shapes)
    with run as writer, writer.sample("a") as sink:
        sink.put("one", 0, query=factor, key=factor)
        for name, image in images.items():
            sink.put_image(name, image)
    assert painted_box(open_run(tmp_path / "r.zarr"), "a") == (5, 4, 6, 5)


def test_an_interrupted_detector_goes_on(
    i2am: I2am, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a line broke off; what other weights found, or other pictures, does not serve."""
    pytest.importorskip("transformers")
    from i2am.pipeline.detectors.runners import Boxes

    looked: list[np.ndarray] = []
    stop_at = 2

    def detect(picture: np.ndarray) -> Boxes:
        if len(looked) == stop_at:
            raise KeyboardInterrupt
        looked.append(picture)
        left = float(picture[0, 0, 0] % 8)
        return Boxes(np.array([[left, 1, left + 4, 9]]), np.array([0.5]), np.array([1]))

    monkeypatch.setattr("i2am.pipeline.detectors.runners.load_detector", lambda kind, weights: detect)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"one")
    out, kept = tmp_path / "d.json", tmp_path / ".d.json.kept"
    words = ["detector", run, "--kind", "yolos", "--weights", weights, "--out", out, "-q"]
    assert i2am(*words).status == 130
    assert not out.exists()
    assert kept.is_file()
    kept.write_bytes(kept.read_bytes()[:-5])  # as a crash in the middle of the second would leave it
    stop_at = 3
    assert i2am(*words).status == 130
    stop_at = 99
    assert i2am(*words).status == 0
    assert len(looked) == 2 + 1 + 1  # the second was looked at again
    found = json.loads(out.read_text())
    images = [open_run(run).image("generated", name) for name in SAMPLES]
    assert [entry["image_id"] for entry in found] == list(SAMPLES)
    assert [entry["bbox"][0] for entry in found] == [image[0, 0, 0] % 8 for image in images]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json", "run.zarr", "weights"]
    looked.clear()
    stop_at = 2
    assert i2am(*words, "--overwrite").status == 130
    assert json.loads(out.read_text()) == found
    (weights / "model.safetensors").write_bytes(b"two")
    stop_at = 99
    assert i2am(*words, "--overwrite").status == 0
    assert len(looked) == 2 + 3


def test_a_detectors_weights_must_be_there(i2am: I2am, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "d.json"
    for kind, words in [
        ("yolos", "folder of Yolos"),
        ("faster-rcnn", "pth or .safetensors"),
        ("scenes", "train it"),
    ]:
        i2am("detector", run, "--kind", kind, "--weights", tmp_path / "no", "--out", out, "-q").refused(words)
    i2am("detector", run, "--kind", "yolos", "--out", out, "-q").refused("--weights")
    i2am("detector", run, "--kind", "yolov3", "--out", out, "-q").refused("unknown detector")
    i2am("detector", run, "--kind", "scenes", "--image", "depth", "--out", out, "-q").refused("unknown image")
    (tmp_path / "empty").mkdir()
    i2am("detector", run, "--kind", "yolos", "--weights", tmp_path / "empty", "--out", out, "-q").refused(
        "do not load"
    )
    (tmp_path / "bad.pth").write_bytes(b"no weights")  # refused, with or without torchvision
    bad = ("--weights", tmp_path / "bad.pth")
    i2am("detector", run, "--kind", "mask-rcnn", *bad, "--out", out, "-q").refused("torchvision|mask-rcnn")
    assert not out.exists()
