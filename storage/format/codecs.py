"""The codecs that an inner chunk may pass through: their names, their Zarr metadata, and how to run them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numcodecs import blosc, zstd

from i2am.storage.errors import UnknownName

_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


@dataclass(frozen=True, slots=True)
class Codec:
    """One compression, as a step between ``bytes`` and ``crc32c`` of the inner codec chain.

    Parameters
    ----------
    name : str
        Name in the run's metadata and in `create_run`.
    kind : {"none", "zstd", "blosc"}
        What runs.
    cname : str
        Blosc's inner compressor.
    level : int
        Compression level.
    shuffle : {"noshuffle", "shuffle", "bitshuffle"}
        Blosc's filter.
    """

    name: str
    kind: Literal["none", "zstd", "blosc"]
    cname: str = ""
    level: int = 0
    shuffle: str = "noshuffle"

    def encode(self, array: np.ndarray[Any, Any]) -> bytes | np.ndarray[Any, Any]:
        """Compress one inner chunk.

        Parameters
        ----------
        array : ndarray
            C-contiguous, little-endian.

        Returns
        -------
        bytes-like
            Without checksum. The array itself where nothing is compressed.
        """
        if self.kind == "blosc":
            return bytes(blosc.compress(array, self.cname.encode(), self.level, _SHUFFLES[self.shuffle]))
        if self.kind == "zstd":
            return bytes(zstd.compress(array, self.level))
        return array

    def decode(self, data: bytes | memoryview, nbytes: int) -> memoryview:
        """Decompress one inner chunk.

        Parameters
        ----------
        data : bytes-like
            Without checksum.
        nbytes : int
            Bytes that must come out; checked before memory is taken.

        Returns
        -------
        memoryview
            `nbytes` bytes.

        Raises
        ------
        ValueError
            If the data are not what `encode` made, or of another size.
        """
        if self.kind == "none":
            out = memoryview(data)
        else:
            # What the chunk says of itself first: the decompressors believe it, and read or leave out bytes.
            wrong = _zstd_bytes(data) != nbytes
            if self.kind == "blosc":
                wrong = bytes(data[4:8]) + bytes(data[12:16]) != struct.pack("<II", nbytes, len(data))
            if wrong:
                raise ValueError(f"compressed chunk does not hold {nbytes} bytes")
            module = blosc if self.kind == "blosc" else zstd
            try:
                out = memoryview(module.decompress(data, np.empty(nbytes, np.uint8)))
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        if len(out) != nbytes:
            raise ValueError(f"chunk holds {len(out)} bytes instead of {nbytes}")
        return out


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("none", "none"),
        Codec("zstd", "zstd", level=1),
        Codec("blosc-lz4-shuffle", "blosc", "lz4", 5, "shuffle"),
        Codec("blosc-lz4-bitshuffle", "blosc", "lz4", 5, "bitshuffle"),
        Codec("blosc-zstd-shuffle", "blosc", "zstd", 1, "shuffle"),
        Codec("blosc-zstd-bitshuffle", "blosc", "zstd", 1, "bitshuffle"),
    )
}
"""Every codec that format 1 knows, by name."""

DEFAULT_CODEC = "none"
"""Chosen by benchmarks/codecs.py; FORMAT.md gives the reason."""

_RATIOS = {
    "none": {"float16": 1.0, "float32": 1.0, "bfloat16": 1.0},
    "zstd": {"float16": 0.919, "float32": 0.924, "bfloat16": 0.476},
    "blosc-lz4-shuffle": {"float16": 1.0, "float32": 0.936, "bfloat16": 0.438},
    "blosc-lz4-bitshuffle": {"float16": 0.961, "float32": 0.900, "bfloat16": 0.402},
    "blosc-zstd-shuffle": {"float16": 0.921, "float32": 0.923, "bfloat16": 0.390},
    "blosc-zstd-bitshuffle": {"float16": 0.950, "float32": 0.903, "bfloat16": 0.385},
}

_SHUFFLED = {"none": "blosc-lz4-shuffle", "zstd": "blosc-zstd-shuffle"}


def _zstd_bytes(data: bytes | memoryview) -> int | None:
    """Return the size that a Zstandard frame states (RFC 8878, 3.1.1.1), None where it states none."""
    head = bytes(data[:18])
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    single, width = head[4] >> 5 & 1, (head[4] >> 5 & 1, 2, 4, 8)[head[4] >> 6]
    start = 6 - single + (0, 1, 2, 4)[head[4] & 3]
    field = head[start : start + width]
    if width == 0 or len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


def get_codec(name: str) -> Codec:
    """Return a codec by name.

    Parameters
    ----------
    name : str
        A key of `CODECS`.

    Returns
    -------
    Codec
        The codec.

    Raises
    ------
    UnknownName
        If there is none of that name.
    """
    if name not in CODECS:
        raise UnknownName("codec", name, CODECS)
    return CODECS[name]


def expected_ratio(codec: str, dtype: str) -> float:
    """Return how far a codec is expected to shrink attention factors.

    Parameters
    ----------
    codec : str
        A key of `CODECS`.
    dtype : str
        "float16", "float32", "bfloat16" (kept in float32), or anything else, which is taken not to shrink.

    Returns
    -------
    float
        Stored over plain bytes, measured on random normal numbers by benchmarks/codecs.py. Exactly 1 for
        "none".
    """
    return _RATIOS[codec].get(dtype, 1.0)


def shuffled(name: str) -> str:
    """Return the codec for bfloat16 values kept in float32, whose two low bytes are zero.

    Parameters
    ----------
    name : str
        The run's codec.

    Returns
    -------
    str
        The same codec if it shuffles bytes or bits, else its nearest relative that does, so that the zero
        bytes cost next to nothing.
    """
    return _SHUFFLED.get(name, name)
