"""Random damage anywhere in a run, metadata included: `verify` finds it, and no number changes silently."""

from __future__ import annotations

import random
import sys
import uuid

import numpy as np
import pytest

import i2am
from i2am.storage.errors import DamageError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.locations.open import locate
from tests.storage.synthetic import LAYERS, TIMESTEPS, fill

SMALL = (LAYERS[1], LayerSpec("up", 2, 4, (3, 2), (2, 2), 1, dtype="float16", representation="factors"))
IMAGES = {"mask": (3, 4, 1)}
SAMPLES = ("a", "b")


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path):
    place = str(tmp_path / "r.zarr")
    if request.param == "s3":
        place = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/r.zarr"
    with i2am.create_run(place, SMALL, TIMESTEPS, SAMPLES, image_shapes=IMAGES) as writer:
        for sample in SAMPLES:
            with writer.sample(sample) as sink:
                fill(sink, SMALL, range(len(TIMESTEPS)), IMAGES)
    return place


def numbers(run, sample):
    """Every number of a sample."""
    found = {spec.name: run.read(spec.name, sample).logits() for spec in SMALL}
    found["lse"] = run.read_kind(run.spec("mid.attn2"), "lse", sample, range(5), range(2))
    return found | {name: run.image(name, sample) for name in IMAGES}


def look(url, truth):
    """Whether anything is refused or gone; what is read must be true."""
    try:
        run = i2am.open_run(url)
    except DamageError:
        return True
    refused = run.samples != SAMPLES
    for sample in run.samples:
        try:
            run.check(sample)
            found = numbers(run, sample)
        except DamageError:
            refused = True
            continue
        for name, values in truth[sample].items():
            assert np.array_equal(found[name], values), f"{name} of {sample} changed silently"
    return refused


def harm(kind, data, other, chance):
    """What two files hold after an accident; None: deleted."""
    if kind == "flip":
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :], other
    if kind == "truncate":
        return data[: chance.randrange(len(data))], other
    if kind == "extend":
        return data + chance.randbytes(chance.randint(1, 9)), other
    return (None, other) if kind == "delete" else (other, data)


def put(place, path, data):
    if data is None:
        place.remove(path)
    else:
        place.write(path, data)


def batter(url, times):
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    place = locate(url)
    undamaged = {path: place.read(path) for path, _ in place.files()}
    opened = i2am.open_run(url)
    truth = {sample: numbers(opened, sample) for sample in SAMPLES}
    for _ in range(times):
        kind = chance.choice(("flip", "flip", "truncate", "extend", "delete", "swap"))
        left, right = chance.sample(sorted(undamaged), 2)
        harmed = dict(zip((left, right), harm(kind, undamaged[left], undamaged[right], chance), strict=True))
        if all(harmed[path] == undamaged[path] for path in harmed):
            continue  # two files with one content
        for path, data in harmed.items():
            put(place, path, data)
        said = (seed, kind, left, right)
        refused = look(url, truth)
        report = i2am.verify(url)
        # White space at the end of a document harms nothing, and is told.
        assert refused or not report.ok or any("another program" in note for note in report.notes), said
        assert not report.ok, said
        for path in harmed:
            place.write(path, undamaged[path])
    assert i2am.verify(url).ok
    assert not look(url, truth)


def test_random_damage(url):
    batter(url, 40 if "://" in url else 300)


@pytest.mark.slow
def test_three_hundred_accidents(url):
    batter(url, 300)
