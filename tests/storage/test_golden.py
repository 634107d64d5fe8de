"""The store that was written when format 1 was laid down is readable for ever."""

from __future__ import annotations

import numpy as np
import zarr

import i2am
from tests.storage.golden.make import (
    LAYERS,
    NORMS,
    SAMPLES,
    SHARED,
    STORE,
    TIMESTEPS,
    expected,
    expected_image,
    main,
    with_norms,
    with_shared_queries,
)


def read_all(path, layers=LAYERS):
    run = i2am.open_run(path)
    assert (run.samples, run.timesteps) == (SAMPLES, TIMESTEPS)
    for s, sample in enumerate(SAMPLES):
        names = [spec.name for spec in layers]
        for i, spec in enumerate(layers):
            assert run.layers[spec.name] == spec.resolve(3)
            owner = names.index(spec.query_of or spec.name)
            block = run.read(spec.name, sample)
            for step in range(len(TIMESTEPS)):
                if block.scores is not None:
                    assert np.array_equal(
                        block.scores[step], expected(i, "scores", s, step, block.scores[step].shape)
                    )
                    continue
                at = 0 if spec.static_key else step
                assert np.array_equal(
                    block.query[step], expected(owner, "query", s, step, block.query[step].shape)
                )
                assert np.array_equal(block.key[at], expected(i, "key", s, at, block.key[at].shape))
        rows = run.lse("unet.mid.attn2").compute()
        assert np.array_equal(rows[s, 2], expected(1, "lse", s, 2, rows[s, 2].shape))
        assert np.array_equal(run.image("generated", sample), expected_image(s))
        assert run.record(sample)["annotations"] == {"seed": s}
    return run


def test_the_golden_store_reads_back():
    run = read_all(STORE)
    assert (run.attrs["format"], run.attrs["model"]) == (1, "golden")
    assert i2am.verify(STORE).ok


def test_the_golden_store_is_plain_zarr():
    group = zarr.open_group(STORE, mode="r")
    assert np.array_equal(
        group["attention/unet.mid.attn2/query"][1, 2], expected(1, "query", 1, 2, (2, 2, 4))
    )


def test_its_generator_still_writes_the_same_numbers(tmp_path):
    main(str(tmp_path))
    read_all(tmp_path / STORE.name)


def test_the_golden_store_with_norms_reads_back():
    run = read_all(NORMS, with_norms())
    for i, spec in enumerate(with_norms()):
        norms = run.value_norm(spec.name).compute()
        assert norms.shape == (2, 1 if spec.static_key else 3, spec.heads, spec.ref)
        for s, step in np.ndindex(norms.shape[:2]):
            assert np.array_equal(norms[s, step], expected(i, "value_norm", s, step, norms.shape[2:]))
        if spec.contribution:
            added = run.contribution(spec.name).compute()
            assert np.array_equal(added[1, 2], expected(i, "contribution", 1, 2, (spec.gen,)))
    assert i2am.verify(NORMS).ok


def test_the_golden_store_with_shared_queries_reads_back():
    run = read_all(SHARED, with_shared_queries())
    assert i2am.verify(SHARED).ok
    assert [spec.reference for spec in run.layers.values()][-2:] == ["text", "reference-1"]
    assert not (SHARED / "attention" / "unet.mid.attn2@text" / "query").exists()
