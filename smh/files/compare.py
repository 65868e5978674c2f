"""Comparison of tensors by their bits, and by how far apart the numbers are.

The distance of two floats is counted in units in the last place: how many steps from one number to the next lie between
them. +0 and -0 are the same number, so they are 0 ulps apart, though one bit differs. Integers and booleans are the
same or not. A NaN has no distance; two of them are the same if they have the same bits, or wherever that is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_BLOCK = 1 << 20  # elements that are compared at a time
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


@dataclass(frozen=True)
class Difference:
    """How two tensors of one name differ.

    Attributes
    ----------
    name : str
        The tensor.
    why : str
        How shapes or dtypes differ; if they do, elements are not compared. Empty otherwise.
    elements : int
        How many elements were compared.
    different : int
        How many of them differ.
    bits : int
        How many bits differ.
    max_ulps : int or None
        The largest distance, of those elements that are numbers in both; None where there is none, as for integers.
    nans : int
        How many of those that differ are NaN on one side or on both.
    """

    name: str
    why: str = ""
    elements: int = 0
    different: int = 0
    bits: int = 0
    max_ulps: int | None = None
    nans: int = 0

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
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
    """How two sets of named tensors differ.

    Attributes
    ----------
    compared : int
        How many names are in both.
    bits : int
        How many bits were compared.
    only_first, only_second : list of str
        Names in one only.
    differences : list of Difference
        Of the tensors that differ.
    """

    compared: int = 0
    bits: int = 0
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether both have the same names, shapes, dtypes and bits."""
        return not (self.only_first or self.only_second or self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"same": self.same, **dataclasses.asdict(self)}


def compare(name: str, first: Any, second: Any, any_nan: bool = False) -> Difference:
    """Compare two tensors, element by element.

    Parameters
    ----------
    name : str
        Their name.
    first, second : numpy.ndarray
        The tensors.
    any_nan : bool
        Whether all NaNs count as one, as they do among generated weights.

    Returns
    -------
    Difference

    Examples
    --------
    >>> str(compare("w", np.float32([1, 2, 0]), np.float32([1, np.nextafter(np.float32(2), np.float32(3)), -0.0])))
    '2 of 3 elements, 2 bits, at most 1 ulps apart'
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype.name != b.dtype.name:
        return Difference(name, f"{a.dtype.name} against {b.dtype.name}")
    if a.shape != b.shape:
        return Difference(name, f"shape {_shape(a.shape)} against {_shape(b.shape)}")
    bits_a, bits_b = _bits(a), _bits(b)
    infinity = _INFINITY.get(a.dtype.name)
    different = bits = nans = 0
    most: int | None = None
    for start in range(0, a.size, _BLOCK):
        x, y = bits_a[start : start + _BLOCK], bits_b[start : start + _BLOCK]
        where = np.flatnonzero(x != y)
        x, y = x[where], y[where]
        if infinity is not None:
            magnitude = x.dtype.type(~x.dtype.type(0) >> x.dtype.type(1))
            nan_x, nan_y = (x & magnitude) > infinity, (y & magnitude) > infinity
            if any_nan:
                unlike = ~(nan_x & nan_y)
                x, y, nan_x, nan_y = x[unlike], y[unlike], nan_x[unlike], nan_y[unlike]
            nan = nan_x | nan_y
            nans += int(nan.sum())
            ulps = _ulps(x[~nan], y[~nan], magnitude)
            if ulps.size:
                most = max(most or 0, int(ulps.max()))
        different += x.size
        bits += int(np.bitwise_count(x ^ y).sum())
    return Difference(name, "", a.size, different, bits, most, nans)


def compare_all(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    any_nan: Container[str] = (),
    advance: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compare tensors by their names, one pair at a time.

    Parameters
    ----------
    first, second : mapping of str to numpy.ndarray
        The tensors, which may be read or built when they are asked for.
    any_nan : container of str
        Names of tensors in which all NaNs count as one.
    advance : callable
        Is called for every name in both.

    Returns
    -------
    Comparison
    """
    found = Comparison(
        only_first=[name for name in first if name not in second],
        only_second=[name for name in second if name not in first],
    )
    for name in first:
        if name in second:
            a = first[name]
            difference = compare(name, a, second[name], name in any_nan)
            found.compared += 1
            found.bits += 8 * a.dtype.itemsize * difference.elements
            if not difference.same:
                found.differences.append(difference)
            advance()
    return found


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a scalar"


def _bits(x: np.ndarray) -> np.ndarray:
    """Return the bits of all elements as unsigned integers of the machine's byte order, flat."""
    native = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")).reshape(-1)
    return native.view(f"u{x.dtype.itemsize}")


def _ulps(x: np.ndarray, y: np.ndarray, magnitude: Any) -> np.ndarray:
    """Return the distances of numbers, given as bits: of two signs they are as far apart as both are from zero."""
    a, b = x & magnitude, y & magnitude
    return np.asarray(np.where((x ^ y) > magnitude, a + b, np.maximum(a, b) - np.minimum(a, b)))
