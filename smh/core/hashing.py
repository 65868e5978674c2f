"""Hash words: 32-bit murmur3 finalizers (specification, section 5.1).

Words are computed from a key and an index on demand, on any device, so no index array as large as the weights is ever
stored. Arrays of words are uint32 if arithmetic of the namespace wraps, else int64 with a mask (PyTorch). Both give the
same 32 bits.
"""

from __future__ import annotations

from typing import Any

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_C1, _C2 = 0x85EBCA6B, 0xC2B2AE35

HASH_STREAMS = 1000
"""Streams below this number belong to hash functions, all further streams to initial values."""
PART_STREAM = 65536
"""Part p of a sum or product of pools has the seed ``key(seed, PART_STREAM + p)``."""


def fmix32(xp: Any, h: Any) -> Any:
    """Mix the bits of 32-bit words with murmur3's finalizer.

    ``h`` holds words in uint32, or in int64 with every element in ``[0, 2**32)``; the result has its shape and dtype.

    >>> import numpy as np
    >>> hex(fmix32(np, np.asarray([2], dtype=np.uint32)).item())
    '0x30f4c306'
    """
    h = _xor_shift(xp, h, 16)
    h = _multiply(xp, h, _C1)
    h = _xor_shift(xp, h, 13)
    h = _multiply(xp, h, _C2)
    return _xor_shift(xp, h, 16)


def _xor_shift(xp: Any, h: Any, bits: int) -> Any:
    # Functions, not operators: TensorFlow's tensors have no shift operator.
    return xp.bitwise_xor(h, xp.bitwise_right_shift(h, bits))


def _multiply(xp: Any, h: Any, constant: int) -> Any:
    """Return ``h * constant`` modulo 2**32."""
    if h.dtype == xp.uint32:
        return h * _word(xp, h, constant)
    # In int64, within its 63 bits: the upper half of the constant matters only through the
    # lower 16 bits of its product.
    low = h * (constant & 0xFFFF)
    high = xp.bitwise_left_shift(xp.bitwise_and(h * (constant >> 16), 0xFFFF), 16)
    return xp.bitwise_and(low + high, _MASK)


def _word(xp: Any, h: Any, constant: int) -> Any:
    """Return a word in the dtype of ``h``. JAX would convert the number to int32."""
    return xp.asarray(constant, dtype=h.dtype) if h.dtype == xp.uint32 else constant


def fmix32_int(h: int) -> int:
    """Mix one 32-bit word, in Python integers.

    >>> hex(fmix32_int(1))
    '0x514e28b7'
    """
    h &= _MASK
    h ^= h >> 16
    h = h * _C1 & _MASK
    h ^= h >> 13
    h = h * _C2 & _MASK
    return h ^ (h >> 16)


def key(seed: int, stream: int) -> int:
    """Return the key of a stream of a seed: ``fmix32(fmix32(seed) ^ 0x9e3779b9 * (stream + 1))``.

    >>> key(0, 0) != key(0, 1)
    True
    """
    return fmix32_int(fmix32_int(seed) ^ (_GOLDEN * (stream + 1) & _MASK))


def words(xp: Any, key: int, i: Any) -> Any:
    """Return the hash words of indices in ``[0, 2**32)``, uint32 or int64: ``word(key, i) = fmix32(i ^ key)``.

    >>> import numpy as np
    >>> bool(np.all(words(np, 7, np.arange(4)) == words(np, 7, np.arange(4, dtype=np.uint32))))
    True
    """
    return fmix32(xp, xp.bitwise_xor(i, _word(xp, i, key)))


def buckets(xp: Any, seed: int, function: int, i: Any, size: int) -> Any:
    """Return ``h_m(i) = word(key(seed, 2m), i) mod size`` for hash function m, in the dtype of ``i``.

    >>> import numpy as np
    >>> int(np.max(buckets(np, 0, 0, np.arange(1000), 7)))
    6
    """
    return words(xp, key(seed, 2 * function), i) % size


def signs(xp: Any, seed: int, function: int, i: Any, dtype: Any) -> Any:
    """Return ``sigma_m(i)`` in ``dtype``: -1 where ``word(key(seed, 2m + 1), i)`` is odd, else 1.

    >>> import numpy as np
    >>> signs(np, 0, 0, np.arange(4), np.int64).tolist()
    [1, -1, 1, -1]
    """
    return 1 - 2 * xp.astype(xp.bitwise_and(words(xp, key(seed, 2 * function + 1), i), 1), dtype)
