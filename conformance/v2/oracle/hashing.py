"""Hash words."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Word = TypeVar("Word", int, npt.NDArray[Any])

MASK = 0xFFFFFFFF


def fmix32(h: Word) -> Word:
    """The 32-bit murmur3 finaliser, of an int or of a uint64 array of 32-bit values (section 5.1)."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & MASK
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & MASK
    return h ^ (h >> 16)


def key(seed: int, stream: int) -> int:
    """Key of a stream (section 5.1): fmix32(fmix32(seed) ^ (0x9e3779b9 * (stream + 1) mod 2^32))."""
    return fmix32(fmix32(seed) ^ ((0x9E3779B9 * (stream + 1)) & MASK))


def word(key: int, i: Word) -> Word:
    """Hash word of index i under a key (section 5.1): fmix32(i ^ key)."""
    return fmix32(i ^ key)


def words(seed: int, stream: int, i: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Hash words of an array of indices in one stream (section 5.1), as int64."""
    return word(key(seed, stream), np.asarray(i).astype(np.uint64)).astype(np.int64)
