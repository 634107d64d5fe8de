"""Boxes from maps: the paper's chain by hand, our rule where the box is known, scores by literal loops."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xarray as xr

import i2am
from i2am.analysis.experiments.box_rules import DRAWN_ROWS, official_box, setting, shown_map
from i2am.analysis.experiments.boxes import Box, iou, mask_box, random_box
from i2am.analysis.experiments.detection_scores import Found, average_precision, score_boxes
from i2am.analysis.experiments.text_to_image import DIFFERENCE, text_to_image_rows
from i2am.storage.errors import InputError, ShapeMismatch, UnknownName

cv2 = pytest.importorskip("cv2")


def smooth(rng, shape=(64, 64), sigma=6.0):
    return cv2.GaussianBlur(rng.random(shape), (0, 0), sigma).astype(np.float32)


def literal_chain(values, direction):
    """The paper's chain, statement by statement; the box is in pixels of its drawing, 369 rows high."""
    values = values.astype(np.float64)
    shown = (values - values.min()) / (values.max() - values.min() + 1e-8)
    if direction == "r2g":
        shown = 1.0 - shown
    shown[shown <= 0.4] = 0
    rows, columns = shown.shape
    wide = round(columns * 369 / rows)
    drawn = np.empty((369, wide))
    for y in range(369):
        for x in range(wide):
            drawn[y, x] = shown[y * rows // 369, x * columns // wide]
    binary = (drawn > np.percentile(drawn, 65)).astype(np.uint8) * 255
    kernel = np.ones((5, 5), np.uint8)
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, kernel)
    binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, kernel)
    binary = cv2.dilate(binary, kernel, iterations=1)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    best, most = None, 0
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        overlap = np.sum(binary[y : y + h, x : x + w] == 255)
        if overlap > most:
            best, most = (x, y, w, h), overlap
    if best is None:
        return None
    return list(best)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_the_official_rule_is_the_papers_chain(direction):
    rng = np.random.default_rng(3)
    shapes = [(64, 64), (64, 48), (16, 16), (9, 31), (32, 32)]
    for number in range(25):
        shape = shapes[number % len(shapes)]
        values = smooth(rng, shape, sigma=shape[0] * rng.uniform(0.01, 0.2))[None]
        drawn = (DRAWN_ROWS, round(shape[1] * DRAWN_ROWS / shape[0]))
        found = i2am.detect(values, "official", direction, size=drawn)
        wanted = literal_chain(values[0], direction)
        assert (found.height == 0) == (wanted is None)
        if wanted is not None:
            assert list(found.row(0)[1:5]) == wanted
            image = i2am.detect(values, "official", direction, size=(512, 512))
            scale = np.array([512 / drawn[1], 512 / drawn[0]] * 2)
            np.testing.assert_allclose(image.row(0)[1:5], wanted * scale)


def test_the_official_rule_leaves_out_only_the_rendering_in_colours():
    """The paper draws with matplotlib, and reads the colours back: boxes differ by a pixel or two of 369."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    values = smooth(np.random.default_rng(5)).astype(np.float64)
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shown_map(values, "r2g"), cmap="jet")
    axes.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0)
    pixels = np.asarray(Image.open(file))[..., :3].astype(np.float64) / 255
    assert pixels.shape[0] == DRAWN_ROWS
    colours = colormaps["jet"](np.linspace(0, 1, 256))[:, :3]
    seen, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    read = (
        np.argmin(((seen[:, None] - colours) ** 2).sum(-1), axis=-1)[places].reshape(pixels.shape[:2]) / 255
    )
    theirs, _ = official_box(1 - read, "r2g")  # drawn already: neither inverted nor enlarged again
    ours, _ = official_box(values, "r2g")
    np.testing.assert_allclose(theirs, ours, atol=3)


def test_a_flat_map_gives_no_official_box_and_the_whole_image_else():
    flat = np.ones((1, 8, 6), np.float32)
    assert i2am.detect(flat, "official", "r2g").height == 0
    found = i2am.detect(flat, "corrected", "r2g", size=(80, 60))
    assert found.rows() == [("0", 0.0, 0.0, 60.0, 80.0, 0.5)]


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("grid", [(16, 16), (24, 32), (64, 48)])
def test_the_corrected_rule_finds_a_blob_wherever_it_is(direction, grid):
    rows, columns = grid
    for top, left in [(0, 0), (rows // 2, columns // 2), (rows // 4, columns // 3)]:
        values = np.full((1, *grid), 0.5)
        truth = Box(left, top, columns * 0.4, rows * 0.4)
        values[0, top : top + round(rows * 0.4), left : left + round(columns * 0.4)] = 3.0
        values[0, -1, -1] = values[0, 0, -1] = 4.0  # specks elsewhere
        found = i2am.detect(values, direction=direction)
        assert iou(found.select("x", "y", "width", "height").to_numpy(), truth)[0] > 0.6
        assert found["score"][0] > 0.7


def test_boxes_scale_with_the_image_and_not_with_the_unit():
    values = smooth(np.random.default_rng(0))[None]
    maps = xr.DataArray(
        values, dims=("sample", "y", "x"), coords={"sample": ["s"]}, attrs={"direction": "g2r"}
    )
    small, large = i2am.detect(maps, size=(64, 64)), i2am.detect(maps * 7, size=(128, 640), direction="g2r")
    assert small.columns == ["sample", "x", "y", "width", "height", "score"]
    scale = np.array([10, 2, 10, 2])
    np.testing.assert_allclose(np.array(small.row(0)[1:5]) * scale, large.row(0)[1:5])
    assert small["sample"].to_list() == ["s"]


def test_bad_maps_are_refused_in_one_line():
    values = np.ones((1, 4, 4))
    attrs = {"direction": "r2g"}
    levels = xr.DataArray(np.ones((1, 2, 4, 4)), dims=("sample", "head", "y", "x"), attrs=attrs)
    for kind, call in [
        (UnknownName, lambda: i2am.detect(values, "best", "r2g")),
        (InputError, lambda: i2am.detect(values)),
        (UnknownName, lambda: i2am.detect(values, direction="up")),
        (ShapeMismatch, lambda: i2am.detect(values[0], direction="r2g")),
        (ShapeMismatch, lambda: i2am.detect(levels)),
        (InputError, lambda: i2am.detect(values * np.nan, direction="r2g")),
        (InputError, lambda: i2am.detect(levels[:, 0], direction="g2r")),
    ]:
        with pytest.raises(kind) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_the_shipped_rule_says_how_it_was_chosen():
    import i2am.analysis.experiments.box_rules as rules

    chosen = json.loads(Path(rules.__file__).with_name("detection_rule.json").read_text())["chosen"]
    assert "10000" in chosen["scenes"]
    for direction in ("r2g", "g2r"):
        how = setting(direction)
        assert 0 <= how.blur < 0.2
        assert 0.5 < how.quantile < 1


def test_iou_counts_pixels():
    rng = np.random.default_rng(1)
    for _ in range(50):
        one, two = (
            (*rng.integers(0, 10, 2), *rng.integers(1, 10, 2)) for _ in range(2)
        )  # fmt: skip
        drawn = np.zeros((2, 20, 20), bool)
        for mask, (x, y, w, h) in zip(drawn, (one, two), strict=True):
            mask[y : y + h, x : x + w] = True
            assert mask_box(mask) == (x, y, w, h)
        assert iou([one], Box(*two))[0] == pytest.approx((drawn[0] & drawn[1]).sum() / drawn.any(0).sum())


def test_random_boxes_are_the_papers():
    chance = np.random.default_rng(0)
    for _ in range(200):
        x, y, width, height = random_box(chance, (375, 500), (0.1, 0.3))
        assert 0 <= x <= 500 - width
        assert 0 <= y <= 375 - height
        assert 0.09 < width * height / (375 * 500) <= 0.3
        assert 0.49 < width / height <= 2


def literal_ap(boxes, truths):
    """AP50 by a loop over boxes, then COCO's 101 recalls."""
    ranked = sorted(((box, name) for name, own in boxes.items() for box in own), key=lambda b: -b[0][4])
    seen, hits, curve = set(), 0, []
    for count, (box, name) in enumerate(ranked, start=1):
        if name not in seen and iou([box[:4]], truths[name])[0] >= 0.5:
            seen.add(name)
            hits += 1
        curve.append((hits / len(truths), hits / count))
    points = []
    for recall in np.linspace(0, 1, 101):
        points.append(max((p for r, p in curve if r >= recall - 1e-9), default=0.0))
    return np.mean(points)


def test_scores_by_hand():
    rng = np.random.default_rng(7)
    truths = {f"s{n}": Box(*rng.uniform(0, 30, 2), *rng.uniform(5, 30, 2)) for n in range(12)}
    boxes = {}
    for name, truth in list(truths.items())[:10]:
        near = np.array(truth) * rng.uniform(0.75, 1.25, (3, 4))
        own = np.column_stack([near, rng.permutation(1000)[:3] / 1000])
        boxes[name] = own[np.argsort(-own[:, 4])]
    found = Found("net", "", "", "r2g", boxes, least=0.3)
    table, best = score_boxes([found], {("r2g", "mask"): truths, ("g2r", "other"): truths})
    value = {row["score"]: row for row in table.iter_rows(named=True)}
    firsts = {name: own[0] for name, own in boxes.items() if own[0, 4] >= 0.3}
    overlaps = {name: iou([own[:4]], truths[name])[0] for name, own in firsts.items()}
    assert set(table["direction"]) == {"r2g"}
    assert value["miou"]["value"] == pytest.approx(sum(overlaps.values()) / 12)
    assert value["miou_found"]["value"] == pytest.approx(np.mean(list(overlaps.values())))
    assert value["miou_found"]["count"] == len(overlaps)
    assert value["found"]["value"] == pytest.approx(len(overlaps) / 12)
    assert value["ap50"]["value"] == pytest.approx(literal_ap(boxes, truths))
    middles = {n: (b[0] + b[2] / 2, b[1] + b[3] / 2) for n, b in firsts.items()}
    assert value["pointing"]["value"] == pytest.approx(
        sum(truths[n].holds(*p) for n, p in middles.items()) / 12
    )
    for row in value.values():
        assert row["low"] <= row["value"] <= row["high"]
    assert best.height == 12
    assert best.filter(pl.col("x").is_null())["iou"].to_list() == [0.0] * (12 - len(overlaps))


def test_precision_of_a_resample_is_that_of_its_copies():
    owner, match = np.array([0, 0, 1, 2]), np.array([True, False, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.6])
    twice = average_precision(owner, score, match, np.array([[2.0, 1.0, 0.0]]))
    copies = average_precision(
        np.array([0, 1, 0, 1, 2]), np.array([0.9, 0.9, 0.8, 0.8, 0.7]),
        np.array([True, True, False, False, True]), np.ones((1, 3)),
    )  # fmt: skip
    np.testing.assert_allclose(twice, copies)
    assert average_precision(owner[:0], score[:0], match[:0], np.ones((1, 3)))[0] == 0


def test_daam_and_ours_are_compared_sample_by_sample():
    truths = {f"s{n}": Box(0, 0, 10, 10) for n in range(4)}
    ours = Found("i2am", "all", "corrected", "r2g", {n: np.array([[0, 0, 10, 10, 1.0]]) for n in truths})
    theirs = Found("daam", "all", "corrected", "r2g", {n: np.array([[0, 0, 20, 10, 1.0]]) for n in truths})
    other = Found("i2am", "all", "official", "r2g", ours.boxes)
    rows = text_to_image_rows(*score_boxes([ours, theirs, other], {("r2g", "mask"): truths}))
    assert set(rows["rule"]) == {"corrected"}
    difference = rows.filter((pl.col("method") == DIFFERENCE) & (pl.col("score") == "miou")).row(
        0, named=True
    )
    assert (difference["value"], difference["low"], difference["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert difference["count"] == 4
    alone = text_to_image_rows(*score_boxes([ours], {("r2g", "mask"): truths}))
    assert alone.height == 0
