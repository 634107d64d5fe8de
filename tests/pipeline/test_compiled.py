"""Models given to `torch.compile`: captured with their compiled code left out, however they were compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from i2am.pipeline.capture import capture
from i2am.storage.errors import CaptureError
from i2am.storage.reading.open import open_run
from tests.pipeline import joint_models, unet_models
from tests.pipeline.test_joint import edit
from tests.pipeline.test_stable_diffusion import generate

pytestmark = pytest.mark.filterwarnings("ignore:the model is compiled")


class Backend:
    """A compiler that changes nothing and counts what it compiles, and the calls of its code."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def whole(pipe, part, **how):
    setattr(pipe, part, torch.compile(getattr(pipe, part), **how))


def in_place(pipe, part, **how):
    getattr(pipe, part).compile(**how)


def forward(pipe, part, **how):
    model = getattr(pipe, part)
    model.forward = torch.compile(model.forward, **how)


def repeated_blocks(pipe, part, **how):
    getattr(pipe, part).compile_repeated_blocks(**how)


def one_block(pipe, part, **how):
    model = getattr(pipe, part)
    if part == "unet":
        model.mid_block = torch.compile(model.mid_block, **how)
    else:
        model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], **how)


def attention(pipe, part, **how):
    for path, module in getattr(pipe, part).named_modules():
        if path.endswith(("attn2", ".attn")):
            module.compile(**how)


def projections(pipe, part, **how):
    for path, module in list(getattr(pipe, part).named_modules()):
        if path.endswith(("attn2", ".attn")):
            module.to_q = torch.compile(module.to_q, **how)


WAYS = (whole, in_place, forward, repeated_blocks, one_block, attention, projections)
FAMILIES = {
    "sd": (unet_models.stable_diffusion, generate, "unet"),
    "flux": (joint_models.flux_kontext, edit, "transformer"),
}


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory):
    """Image and run of each family, never compiled."""
    found = {}
    for family, (make, run, _) in FAMILIES.items():
        path = tmp_path_factory.mktemp(family) / "r.zarr"
        found[family] = captured(make(), path, run), open_run(path)
    return found


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def captured(pipe, path, run, inside=lambda: None):
    with capture(pipe, path, samples=["a", "b"]) as cap, cap.sample("a") as s:
        inside()
        image = run(pipe)
        s.generated = image[0]
    return image


def check(path, image, expected):
    """Image, layers and stored attention are those of the model that was never compiled."""
    run, (plain, known) = open_run(path), expected
    np.testing.assert_array_equal(image, plain)
    assert list(run.layers) == list(known.layers)
    for layer, seen in run.record("a")["witness"].items():
        assert seen["unwitnessed_steps"] == 0
        np.testing.assert_array_equal(run.scores(layer)[0], known.scores(layer)[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_model_is_captured_as_it_was_before(tmp_path, uncompiled, family, way):
    make, run, part = FAMILIES[family]
    pipe, backend = make(), Backend()
    way(pipe, part, backend=backend, fullgraph=True)
    check(tmp_path / "r.zarr", captured(pipe, tmp_path / "r.zarr", run), uncompiled[family])
    assert backend.graphs == 0


@pytest.mark.parametrize("way", [whole, in_place])
def test_a_model_compiled_while_a_sample_is_recorded(tmp_path, uncompiled, way):
    pipe, backend = unet_models.stable_diffusion(), Backend()
    path = tmp_path / "r.zarr"
    image = captured(pipe, path, generate, lambda: way(pipe, "unet", backend=backend))
    check(path, image, uncompiled["sd"])


def test_a_warm_compiled_model_keeps_its_compiled_code(tmp_path, uncompiled):
    pipe, backend = unet_models.stable_diffusion(), Backend()
    one_block(pipe, "unet", backend=backend)
    plain = generate(pipe)
    graphs, calls = backend.graphs, backend.calls
    assert graphs > 0 < calls
    image = captured(pipe, tmp_path / "r.zarr", generate)
    assert (backend.graphs, backend.calls) == (graphs, calls)
    check(tmp_path / "r.zarr", image, uncompiled["sd"])
    np.testing.assert_array_equal(generate(pipe), plain)
    assert (backend.graphs, backend.calls) == (graphs, 2 * calls)


def test_captures_in_any_order_give_compiled_code_back(tmp_path):
    backend = Backend()
    double = torch.compile(lambda x: x * 2, backend=backend, fullgraph=True)
    pipe = unet_models.stable_diffusion()
    one, two = (capture(pipe, tmp_path / f"{name}.zarr", samples=["x"]) for name in "ab")
    one.__enter__(), two.__enter__()
    one.__exit__(None, None, None)
    double(torch.ones(3))
    assert backend.calls == 0
    two.__exit__(None, None, None)
    with pytest.raises(ValueError, match="of the user's own"), capture(pipe, tmp_path / "c.zarr", ["x"]):
        raise ValueError("of the user's own")
    double(torch.ones(3))
    assert backend.calls == 1


def test_a_run_goes_on_with_the_model_compiled(tmp_path):
    pipe, path = unet_models.stable_diffusion(), tmp_path / "r.zarr"
    captured(pipe, path, generate)
    for way in (projections, one_block, whole):
        way(pipe, "unet", backend=Backend())
    with capture(pipe, path, samples=["a", "b"]) as cap, cap.sample("b") as s:
        s.generated = generate(pipe)[0]
    assert open_run(path).samples == ("a", "b")


def test_it_is_said_that_the_model_is_compiled(tmp_path):
    pipe = unet_models.stable_diffusion()
    attention(pipe, "unet", backend=Backend())
    with (
        pytest.warns(UserWarning, match="runs as it was before torch.compile"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a") as s,
    ):
        s.generated = generate(pipe)[0]


def test_a_denoiser_that_runs_without_its_modules_is_refused_in_one_line(tmp_path):
    """Exported, traced and ahead-of-time compiled code: nothing of capture can take it apart."""
    pipe = unet_models.stable_diffusion()
    pipe.unet.forward = lambda sample, timestep, **kwargs: (torch.zeros_like(sample),)
    with (
        pytest.raises(CaptureError, match=r"layers that the denoiser called.*exported or traced.*before$"),
        capture(pipe, tmp_path / "r.zarr", samples=["a"]) as cap,
        cap.sample("a"),
    ):
        generate(pipe)
