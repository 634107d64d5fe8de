"""The codecs that an inner chunk may pass through: their names, and how to run them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import blosc

from i2am.storage.errors import UnknownName

_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


@dataclass(frozen=True, slots=True)
class Codec:
    """A Blosc compression between ``bytes`` and ``crc32c`` of the inner codec chain; none without `cname`."""

    name: str
    cname: str = ""
    level: int = 0
    shuffle: str = ""

    def encode(self, array: np.ndarray[Any, Any]) -> bytes | np.ndarray[Any, Any]:
        """Compress a C-contiguous, little-endian chunk; without compression, return the array itself."""
        if not self.cname:
            return array
        return bytes(blosc.compress(array, self.cname.encode(), self.level, _SHUFFLES[self.shuffle]))

    def decode(self, data: bytes | memoryview, nbytes: int) -> memoryview:
        """Decompress a chunk; ValueError, before memory is taken, if it does not state `nbytes` bytes."""
        if not self.cname:
            if len(data) != nbytes:
                raise ValueError(f"chunk holds {len(data)} bytes instead of {nbytes}")
            return memoryview(data)
        # Blosc's header states the plain and the compressed size, and its decompressor believes both.
        if bytes(data[4:8]) + bytes(data[12:16]) != struct.pack("<II", nbytes, len(data)):
            raise ValueError(f"compressed chunk does not hold {nbytes} bytes")
        try:
            return memoryview(blosc.decompress(data, np.empty(nbytes, np.uint8)))
        except RuntimeError as error:
            raise ValueError(str(error)) from error


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("none"),
        Codec("blosc-lz4-shuffle", "lz4", 5, "shuffle"),
        Codec("blosc-zstd-bitshuffle", "zstd", 1, "bitshuffle"),
    )
}
"""Every codec that format 1 knows, by name; benchmarks/codecs.py measures them."""

DEFAULT_CODEC = "none"

_RATIOS = {
    "none": {},
    "blosc-lz4-shuffle": {"float32": 0.936, "bfloat16": 0.438},
    "blosc-zstd-bitshuffle": {"float16": 0.950, "float32": 0.903, "bfloat16": 0.385},
}


def get_codec(name: str) -> Codec:
    """Return a codec by name, or raise `UnknownName`."""
    if name not in CODECS:
        raise UnknownName("codec", name, CODECS)
    return CODECS[name]


def expected_ratio(codec: str, dtype: str) -> float:
    """Return stored over plain bytes, as measured on random normal numbers; "bfloat16" is kept in float32."""
    return _RATIOS[codec].get(dtype, 1.0)


def shuffled(name: str) -> str:
    """Return the codec for bfloat16 values kept in float32: one behind which their zero bytes vanish."""
    return "blosc-lz4-shuffle" if name == "none" else name
