"""Comparison of tensors by bits, and by the distance of numbers.

The distance of two floats is counted in units in the last place (ulps), the steps between adjacent numbers. +0 and -0
are equal numbers, so they are 0 ulps apart, although one bit differs. Integers and booleans are equal or not. A NaN has
no distance. Two NaNs are equal if their bits are equal, or, on request, always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_BLOCK = 1 << 20  # elements compared at a time
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


@dataclass(frozen=True)
class Difference:
    """The difference of two tensors of one name."""

    name: str
    why: str = ""  # the difference of shapes or dtypes; elements are then not compared
    elements: int = 0  # compared
    different: int = 0  # elements that differ
    bits: int = 0  # bits that differ
    max_ulps: int | None = None  # the largest distance of two numbers; None without one, as for integers
    nans: int = 0  # differing elements with NaN on one or both sides

    @property
    def same(self) -> bool:
        """Whether the tensors are equal."""
        return not self.why and not self.different

    def __str__(self) -> str:
        """Return one line without the name."""
        if self.why or not self.different:
            return self.why or f"{self.elements:,} elements are the same"
        ulps = "" if self.max_ulps is None else f", at most {self.max_ulps:,} ulps apart"
        nans = f", {self.nans:,} NaN" if self.nans else ""
        return f"{self.different:,} of {self.elements:,} elements, {self.bits:,} bits{ulps}{nans}"


@dataclass
class Comparison:
    """The difference of two sets of named tensors."""

    compared: int = 0  # names in both
    bits: int = 0  # compared
    only_first: list[str] = field(default_factory=list)  # names
    only_second: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)  # of tensors that differ

    @property
    def same(self) -> bool:
        """Whether names, shapes, dtypes and bits are equal."""
        return not (self.only_first or self.only_second or self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"same": self.same, **dataclasses.asdict(self)}


def compare(name: str, first: Any, second: Any, any_nan: bool = False) -> Difference:
    """Compare two tensors, element by element. With ``any_nan`` all NaNs are equal, as for generated weights.

    >>> str(compare("w", np.float32([1, 2, 0]), np.float32([1, np.nextafter(np.float32(2), np.float32(3)), -0.0])))
    '2 of 3 elements, 2 bits, at most 1 ulps apart'
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype.name != b.dtype.name:
        return Difference(name, f"{a.dtype.name} against {b.dtype.name}")
    if a.shape != b.shape:
        shapes = (" x ".join(map(str, shape)) or "of a scalar" for shape in (a.shape, b.shape))
        return Difference(name, f"shape {' against '.join(shapes)}")
    bits_a, bits_b = _bits(a), _bits(b)
    magnitude = np.iinfo(bits_a.dtype).max >> 1
    infinity = _INFINITY.get(a.dtype.name)
    different = bits = nans = 0
    most: int | None = None
    for start in range(0, a.size, _BLOCK):
        x, y = bits_a[start : start + _BLOCK], bits_b[start : start + _BLOCK]
        unlike = x != y
        x, y = x[unlike], y[unlike]
        if infinity is not None:
            from_zero = x & magnitude, y & magnitude
            low, high = np.minimum(*from_zero), np.maximum(*from_zero)
            number = high <= infinity
            if number.any():
                opposite = (x ^ y) > magnitude  # numbers of opposite sign: the sum of their distances from zero
                most = max(most or 0, int(np.where(opposite, high + low, high - low)[number].max()))
            if any_nan:
                unlike = low <= infinity
                x, y, number = x[unlike], y[unlike], number[unlike]
            nans += x.size - int(number.sum())
        different += x.size
        bits += int(np.bitwise_count(x ^ y).sum())
    return Difference(name, "", a.size, different, bits, most, nans)


def compare_all(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    any_nan: Container[str] = (),
    advance: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compare tensors by name, one pair at a time, so mappings may read or build them on demand.

    All NaNs are equal in the tensors named in ``any_nan``. ``advance`` is called for every common name.
    """
    comparison = Comparison(
        only_first=[name for name in first if name not in second],
        only_second=[name for name in second if name not in first],
    )
    for name in first:
        if name in second:
            a = first[name]
            difference = compare(name, a, second[name], name in any_nan)
            comparison.compared += 1
            comparison.bits += 8 * a.dtype.itemsize * difference.elements
            if not difference.same:
                comparison.differences.append(difference)
            advance()
    return comparison


def _bits(x: np.ndarray) -> np.ndarray:
    """Return the bits of all elements as a flat array of unsigned integers in native byte order."""
    native = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")).reshape(-1)
    return native.view(f"u{x.dtype.itemsize}")
