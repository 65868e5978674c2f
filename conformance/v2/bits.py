"""The comparison of bits, and a count of what was compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


def canonical_bits(x: Any) -> np.ndarray:
    """Return the bits of an array's elements as unsigned integers, every NaN as one."""
    x = np.asarray(x)
    nan = np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, dtype=bool)
    return np.where(nan, raw_bits(np.asarray(np.nan).astype(x.dtype)) if nan.any() else np.uint8(0), raw_bits(x))


def raw_bits(x: np.ndarray) -> np.ndarray:
    """Return the bits of an array's elements as unsigned integers."""
    return np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")


def assert_same_bits(actual: Any, expected: Any, what: str = "") -> None:
    """Fail unless two float32 arrays have the same bits; all NaNs count as one."""
    assert np.asarray(expected).dtype == np.float32, f"{what}: {np.asarray(expected).dtype} is no float32"
    Tally().same(actual, expected, what)


@dataclass
class Tally:
    """How much was checked, compared and found to be different."""

    checks: int = 0
    bits: int = 0
    different: int = 0

    def same(self, actual: Any, expected: Any, what: str, payloads: bool = False) -> None:
        """Fail unless two arrays have the same dtype, shape and bits; NaNs count as one unless ``payloads`` matter."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        self.true(actual.dtype == expected.dtype, f"{what}: {actual.dtype} against {expected.dtype}")
        self.true(actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}")
        as_bits = raw_bits if payloads else canonical_bits
        a, e = as_bits(actual), as_bits(expected)
        self.bits += 8 * expected.nbytes
        if np.array_equal(a, e):
            return
        self.different += int(np.bitwise_count(a ^ e).sum())
        where = np.argwhere(a != e)
        at = tuple(where[0])
        raise AssertionError(
            f"{what}: {len(where)} of {a.size} differ, first at {tuple(map(int, at))}: "
            f"{actual[at]!r} ({a[at]:#010x}) against {expected[at]!r} ({e[at]:#010x})"
        )

    def all_same(self, actual: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
        """Fail unless two dicts of arrays have the same names and bits."""
        self.true(set(actual) == set(expected), f"{what}: {sorted(actual)} against {sorted(expected)}")
        for name in expected:
            self.same(actual[name], expected[name], f"{what} {name!r}")

    def true(self, holds: Any, what: str) -> None:
        """Fail unless something holds."""
        self.checks += 1
        if not holds:
            raise AssertionError(what)
