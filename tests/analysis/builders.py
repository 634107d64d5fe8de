"""Synthetic runs, made through the store's own writer."""

from __future__ import annotations

import numpy as np

from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.writing.create import create_run


def layer(name="a", heads=2, head_dim=4, gen=(4, 3), ref=(3, 2), **more):
    return LayerSpec(name, heads, head_dim, gen, ref, **more)


def factors(spec, steps, rng, strength=1.5):
    keys = 1 if spec.static_key else steps
    query = rng.normal(size=(steps, spec.heads, spec.gen, spec.head_dim)) * strength
    key = rng.normal(size=(keys, spec.heads, spec.ref, spec.head_dim)) * strength
    return as_stored(query, spec.dtype), as_stored(key, spec.dtype)


def as_stored(values, dtype):
    """Values that a dtype holds exactly, in a NumPy dtype."""
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    return values.astype(dtype)


def disc(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def pictures(rng, size=(24, 18)):
    """Images of a sample, [y, x, channel]."""
    found = {
        name: rng.integers(0, 255, (*size, 3)).astype(np.uint8)
        for name in ("source", "reference", "generated")
    }
    found["mask"] = (disc(size, (8, 8), 5) * 255).astype(np.uint8)[..., None]
    found["reference_mask"] = (disc(size, (14, 9), 6) * 255).astype(np.uint8)[..., None]
    return found


def build(path, layers, steps=3, samples=("one",), seed=0, images=False, data=None, attrs=None, witness=None):
    """Write a run; returns it opened, and what was put: {(sample, layer): (query, key)}.

    `witness` maps a sample to what its commit record says of it.
    """
    rng = np.random.default_rng(seed)
    shapes = {name: image.shape for name, image in pictures(rng).items()} if images else None
    put = {}
    with create_run(
        path,
        layers,
        [900 - 10 * step for step in range(steps)],
        list(samples),
        attrs=attrs or {},
        image_shapes=shapes,
    ) as writer:
        for sample in samples:
            with writer.sample(sample) as sink:
                sink.witness((witness or {}).get(sample, {}))
                for name, image in (pictures(rng) if images else {}).items():
                    sink.put_image(name, image)
                for spec in layers:
                    query, key = data(spec, sample) if data else factors(spec, steps, rng)
                    put[sample, spec.name] = query, key
                    for step in range(steps):
                        own = key[0] if spec.static_key else key[step]
                        rows = joint(query[step], own, spec) if spec.lse else None
                        more = norms(spec, sample, step)
                        sink.put(spec.name, step, query=query[step], key=own, lse=rows, **more)
    return open_run(path), put


def norms(spec, sample, step):
    """Value norms (once where the key is static) and contributions of one step, if the layer has them."""
    rng = np.random.default_rng([step, len(spec.name), *sample.encode()])
    found = {"value_norm": rng.gamma(1.0, size=(spec.heads, spec.ref)), "contribution": rng.random(spec.gen)}
    if spec.static_key and step:
        del found["value_norm"]
    return {kind: values.astype(np.float32) for kind, values in found.items() if getattr(spec, kind)}


def joint(query, key, spec):
    """Log-sum-exp over the reference and as much attention again elsewhere."""
    logits = np.einsum("hgd,hrd->hgr", query.astype(np.float64), key.astype(np.float64)) * spec.logit_scale
    return (np.log(np.exp(logits).sum(-1)) + np.log(2)).astype(np.float32)


def uniform(steps):
    """Data whose attention is uniform: every query is 0."""

    def make(spec, sample):
        keys = np.random.default_rng(1).normal(
            size=(1 if spec.static_key else steps, spec.heads, spec.ref, spec.head_dim)
        )
        return np.zeros((steps, spec.heads, spec.gen, spec.head_dim), spec.dtype), keys.astype(spec.dtype)

    return make


def damage(run, index=0):
    """Flip bytes in every attention file of one sample; returns how many files."""
    files = [path for path in (run / "attention").rglob(f"c.{index}.*") if path.is_file()]
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    assert files
    return len(files)
