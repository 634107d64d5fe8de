"""FLUX with references in its sequence in research code: stand-ins of DreamO and UNO."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from i2am.pipeline.capture import capture
from i2am.storage.errors import CaptureError
from i2am.storage.reading.open import open_run
from tests.pipeline.norm_oracle import joint_norms
from tests.standins.flux_references import CHANNELS, WIDTH, DreamOPipeline, UNOPipeline

STEPS, TEXT = 2, 5
SYSTEMS = {"dreamo": DreamOPipeline, "uno": UNOPipeline}


def generate(pipe, grids, count=1):
    draw = torch.Generator().manual_seed(1)
    width = WIDTH if isinstance(pipe, UNOPipeline) else 32
    text = torch.randn(count, TEXT, width, generator=draw)
    pictures = [torch.randn(count, rows * columns, CHANNELS, generator=draw) for rows, columns in grids]
    return np.stack(pipe(text, pictures, grids, STEPS).images)


def record(pipe, path, grids, count=1):
    times = {"timesteps": [1.0, 0.5]} if isinstance(pipe, UNOPipeline) else {}
    ids = [f"s{i}" for i in range(count)]
    with capture(pipe, path, ids, **times) as cap, cap.samples(ids) as handles:
        images = generate(pipe, grids, count)
        for handle, image in zip(handles, images, strict=True):
            handle.generated = image
    return images, open_run(path)


def kernel_calls(monkeypatch, run):
    found, kernel = [], F.scaled_dot_product_attention

    def spy(query, key, value, *rest, **named):
        found.append((query, key, value))
        return kernel(query, key, value, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        run()
    return found


@pytest.mark.parametrize(("count", "grids"), [(1, [(3, 4), (4, 3)]), (3, [(4, 4), (2, 5), (5, 2), (1, 1)])])
@pytest.mark.parametrize("system", SYSTEMS)
def test_images_are_equal_and_scores_are_the_models_own(tmp_path, monkeypatch, system, count, grids):
    pipe = SYSTEMS[system]()
    plain = generate(pipe, grids, count)
    images, run = record(pipe, tmp_path / "r.zarr", grids, count)
    np.testing.assert_array_equal(images, plain)
    assert run.attrs["adapter"] == system
    calls = kernel_calls(monkeypatch, lambda: generate(pipe, grids, count))
    names = {
        "dreamo": [
            f"transformer.{kind}transformer_blocks.{n}.attn" for kind in ("", "single_") for n in (0, 1)
        ],
        "uno": [f"model.{kind}_blocks.{n}" for kind in ("double", "single") for n in (0, 1)],
    }[system]
    assert len(calls) == len(names) * STEPS
    sizes = [rows * columns for rows, columns in grids]
    starts = TEXT + np.cumsum([0, *sizes])
    for number, name in enumerate(names):
        for reference in range(len(grids) - 1):
            layer = name + f"@reference-{reference}" * (reference > 0)
            spec = run.layers[layer]
            assert (spec.gen_grid, spec.ref_grid, spec.static_key) == (grids[0], grids[1 + reference], False)
            scores, lse = run.scores(layer).compute(), run.lse(layer).compute()
            for step in range(STEPS):
                q, k, _ = (x.double() for x in calls[step * len(names) + number])
                logits = (q[:, :, TEXT : starts[1]] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).numpy()
                own = slice(starts[1 + reference], starts[2 + reference])
                np.testing.assert_allclose(scores[:, step], logits[..., own], rtol=1e-5, atol=1e-5)
                expected = np.logaddexp.reduce(logits, -1)
                np.testing.assert_allclose(lse[:, step], expected, rtol=1e-5, atol=1e-5)
            for sample in range(count):
                agreement = run.record(f"s{sample}")["witness"][layer]
                assert (agreement["steps"], agreement["unwitnessed_steps"]) == (STEPS, 0)
    assert len(run.layers) == len(names) * (len(grids) - 1)


def test_norms_of_blocks_that_call_attention_themselves(tmp_path, monkeypatch):
    pipe, grids, streams = UNOPipeline(), [(3, 4), (4, 3)], []
    _, run = record(pipe, tmp_path / "r.zarr", grids)
    blocks = [*pipe.model.double_blocks, *pipe.model.single_blocks]
    hooks = [
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0].clone())) for block in blocks
    ]
    calls = kernel_calls(monkeypatch, lambda: generate(pipe, grids))
    for hook in hooks:
        hook.remove()
    for number, (name, block) in enumerate(zip(run.layers, blocks, strict=True)):
        output = block.img_attn.proj if hasattr(block, "img_attn") else block.linear2
        attn = SimpleNamespace(attn=SimpleNamespace(to_out=output))
        for step in range(STEPS):
            place = step * len(blocks) + number
            call = attn, *calls[place], None, streams[place]
            norms, added = joint_norms(call, 0, np.arange(TEXT, TEXT + 12), np.arange(TEXT + 12, TEXT + 24))
            np.testing.assert_allclose(run.value_norm(name).compute()[0, step], norms, rtol=1e-5)
            np.testing.assert_allclose(run.contribution(name).compute()[0, step], added, rtol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_a_reference_there_is_nothing_to_capture(tmp_path, system):
    with pytest.raises(CaptureError, match="generated ones alone; give the pipeline a reference"):
        record(SYSTEMS[system](), tmp_path / "r.zarr", [(3, 4)])


def test_inference_mode_is_captured_too(tmp_path):
    pipe, grids = UNOPipeline(), [(3, 4), (4, 3), (2, 2)]
    with torch.inference_mode():
        plain = generate(pipe, grids)
        images, run = record(pipe, tmp_path / "i.zarr", grids)
    _, other = record(pipe, tmp_path / "n.zarr", grids)
    np.testing.assert_array_equal(images, plain)
    assert run.layers == other.layers
    for layer in run.layers:
        np.testing.assert_array_equal(run.scores(layer), other.scores(layer))
