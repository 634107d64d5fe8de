from __future__ import annotations

import numpy as np
import pytest
import torch

from i2am.pipeline.embedded.painter import ReferencePainter
from tests.pipeline import models


def call(pipe, count=2, **options):
    return pipe(
        [models.picture(i) for i in range(count)],
        [models.hole()] * count,
        [models.picture(9 + i) for i in range(count)],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(i) for i in range(count)],
        **{"output_type": "np", **options},
    ).images


def test_pixels_outside_the_mask_are_the_scenes_own():
    images = call(models.painter())
    outside = np.asarray(models.hole()) == 0
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image[outside], np.asarray(models.picture(i))[outside])
        assert (image[~outside] != np.asarray(models.picture(i))[~outside]).any()


def test_saved_and_loaded_it_paints_the_same(tmp_path):
    pipe = models.painter()
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    assert list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.bin"))
    loaded = ReferencePainter.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(call(loaded), call(pipe))


def test_an_image_does_not_depend_on_its_batch():
    pipe = models.painter()
    alone = call(pipe, 1)[0].astype(int)
    among = call(pipe, 3)[0].astype(int)
    assert np.abs(alone - among).max() <= 1  # summation order may differ in the last bit


def test_the_reference_reaches_the_image():
    pipe = models.painter()
    one, other = (
        pipe(
            models.picture(0),
            models.hole(),
            models.picture(seed),
            2,
            1.0,
            torch.Generator().manual_seed(0),
            "np",
        )
        for seed in (1, 2)
    )
    assert (one.images != other.images).any()


def test_masks_may_be_arrays_and_outputs_pictures():
    pipe = models.painter()
    mask = np.asarray(models.hole())
    wanted = call(pipe, 1)
    for form in (mask > 0, mask[..., None]):
        images = pipe(
            models.picture(0), form, models.picture(9), 2, generator=torch.Generator().manual_seed(0)
        ).images
        np.testing.assert_array_equal(np.asarray(images[0]), wanted[0])


def test_disagreeing_inputs_are_named():
    pipe = models.painter()
    with pytest.raises(ValueError, match="must agree"):
        pipe(models.picture(0), models.hole(24, 20), models.picture(9))
    with pytest.raises(ValueError, match="one for each of 1 images"):
        pipe(models.picture(0), models.hole(), models.picture(9), generator=[torch.Generator()] * 2)


def test_the_callback_sees_and_may_change_the_latents():
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((step, int(timestep), tuple(kwargs["latents"].shape)))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    images = call(models.painter(), 1, callback_on_step_end=callback)
    assert [s[0] for s in seen] == [0, 1]
    assert seen[0][2] == (1, 12, 10, 10)
    inside = np.asarray(models.hole()) > 0
    assert set(np.unique(images[0][inside])) <= {127, 128}
