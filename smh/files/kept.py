"""Kept tensors as integers on a grid (specification, section 12.2).

The tensor ``rounded/<name>`` has the integers of the kept tensor of that name, and the metadata say the rest of its
:class:`Rounding`. Which tensors are rounded is the choice of the writer; a reader accepts whatever a grid can give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from smh.core.grid import LARGEST, LEAST
from smh.core.kept import BITS, FEWEST_ROUNDED, WIDTHS, keeps, kept_grid, tried_bits
from smh.core.kernels import Kernels
from smh.core.views import MAX_AXES
from smh.errors import PlanError, VariableError
from smh.files.header import CODES, DTYPES, are_sizes, dtype_of
from smh.files.integers import Arrays, check_grid
from smh.strict_json import check, short
from smh.text import SURROGATE

ROUNDED = "rounded/"
"""The prefix of the integers of kept tensors in a file."""

_BLOCK = 1 << 18  # integers held in wider types at a time
_KERNELS = Kernels(np)


class Rounding(NamedTuple):
    """How a kept tensor is stored as integers."""

    bits: int
    """8 or 16: integers have magnitudes below ``2**(bits - 1)``."""
    dtype: str
    """The dtype of the tensor, as NumPy names it."""
    exponent: int | None
    """The exponent of the grid; None if all integers are 0."""
    shape: tuple[int, ...]
    """The shape of the tensor."""

    @property
    def code(self) -> str:
        """The dtype of the integers, as named by the format."""
        return f"I{self.bits}"

    @property
    def stored_bytes(self) -> int:
        """The bytes of the integers as they are."""
        return math.prod(self.shape) * self.bits // 8

    def to_list(self) -> list[Any]:
        """Return the list in the metadata of a file: bits, dtype, exponent and shape."""
        return [self.bits, CODES[self.dtype], self.exponent, list(self.shape)]


Roundings = dict[str, Rounding]


def check_bits(bits: Any) -> None:
    """Raise :class:`~smh.PlanError` unless kept tensors can be rounded to a number of bits, or None."""
    if bits is not None and not (type(bits) is int and bits in BITS):
        raise PlanError(f"kept_bits must be 8 or 16, or None to store kept tensors as they are; got {bits!r}")


def round_kept(kept: Mapping[str, np.ndarray], bits: int | Mapping[str, int] | None) -> tuple[Arrays, Roundings]:
    """Return the integers of the kept tensors that are rounded, and how they are rounded, by name.

    Parameters
    ----------
    kept : mapping of str to numpy.ndarray
        The kept tensors.
    bits : int or mapping of str to int, optional
        With a number, tensors are rounded as :func:`rounded` chooses. With bits by the names of tensors, those that
        are on the grid of these bits already become integers, without a loss. None rounds nothing.

    Returns
    -------
    integers : dict of str to numpy.ndarray
        int8 or int16, little-endian, in the shapes of the tensors.
    roundings : dict of str to Rounding
        Their grids.

    Raises
    ------
    VariableError
        If a tensor that would be rounded is not finite.

    Examples
    --------
    >>> x = {"bias": np.array([0.5, -3.0, 0.1], np.float32), "step": np.array(3)}
    >>> integers, roundings = round_kept(x, bits=8)
    >>> integers["bias"].tolist(), roundings["bias"].exponent, list(roundings)
    ([16, -96, 3], 2, ['bias'])
    """
    integers: Arrays = {}
    roundings: Roundings = {}
    for name, x in kept.items():
        if isinstance(bits, Mapping):
            found = _on_grid(x, bits[name]) if name in bits and x.size >= FEWEST_ROUNDED else None
            found = found if found and np.array_equal(values(name, *found), x) else None
        else:
            found = None if bits is None else rounded(name, x, bits)
        if found:
            integers[name], roundings[name] = found
    return integers, roundings


def rounded(name: str, x: np.ndarray, bits: int) -> tuple[np.ndarray, Rounding] | None:
    """Return the integers of a kept tensor and their grid, or None if it is to be stored as it is.

    Rounded are tensors of float16, bfloat16, float32 and float64 with two values or more, if the integers are smaller
    than the dtype and :func:`smh.core.kept.keeps` them. If ``bits`` do not, 16 are tried.

    Raises :class:`~smh.VariableError` if a value is NaN or infinite.
    """
    tried = tried_bits(x.dtype.name, x.size, bits)
    if not tried:
        return None
    finite = np.isfinite(x)
    if not finite.all():
        raise VariableError(
            f"kept tensor {name!r} cannot be rounded, because it is not finite: repair it, or save without kept_bits; "
            f"got {float(x[~finite][0])}"
        )
    row = x.reshape(1, -1)
    with np.errstate(all="ignore"):
        for each in tried:
            q, unit = kept_grid(_KERNELS, row, each)
            if keeps(_KERNELS, row, x.dtype.name, q, unit):
                return _stored(x, each, q, unit)
    return None


def values(name: str, q: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Return the values of integers, in the dtype of the tensor."""
    return _converted(name, q, rounding)[0]


def relative_error(x: np.ndarray, y: np.ndarray) -> float:
    """Return the norm of the difference of two tensors, divided by that of the first; 0 if they are equal.

    >>> relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    0.1
    """
    wide = x.astype(np.float64).reshape(-1)
    difference = float(np.linalg.norm(y.astype(np.float64).reshape(-1) - wide))
    return difference and difference / float(np.linalg.norm(wide))


def read_roundings(given: Any) -> Roundings:
    """Return the roundings in the metadata of a file, or raise :class:`~smh.CheckpointError`."""
    check(isinstance(given, dict) and len(given) > 0, "its rounded tensors must be an object that is not empty", given)
    found = {}
    for name, entry in given.items():
        what = f"the rounded tensor {short(name)} must"
        check(name != "" and not SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
        check(isinstance(entry, list) and len(entry) == 4, f"{what} have bits, dtype, exponent and shape", entry)
        bits, code, exponent, shape = entry
        check(type(bits) is int and bits in BITS, f"{what} have 8 or 16 bits", bits)
        dtype = DTYPES.get(code, "") if isinstance(code, str) else ""
        check(bits < WIDTHS.get(dtype, 0), f"{what} have a dtype of floats with more than {bits} bits", code)
        check(exponent is None or type(exponent) is int, f"{what} have a whole exponent or null", exponent)
        check(exponent is None or LEAST <= exponent <= LARGEST, f"{what} have one in {LEAST} to {LARGEST}", exponent)
        check(are_sizes(shape) and len(shape) <= MAX_AXES, f"{what} have a shape, of at most {MAX_AXES} axes", shape)
        check(math.prod(shape) >= FEWEST_ROUNDED, f"{what} have two values or more", shape)
        found[name] = Rounding(bits, dtype, exponent, tuple(shape))
    return found


def restored(name: str, q: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Return the values of integers from a file, or raise :class:`~smh.CheckpointError` if no grid gives them."""
    check_grid(f"integers of kept tensor {short(name)} must have", q, rounding.bits, rounding.exponent)
    x, fits = _converted(name, q, rounding)
    check(fits, f"integers of kept tensor {short(name)} must fit {rounding.dtype}", rounding)
    return x


def _on_grid(x: np.ndarray, bits: int) -> tuple[np.ndarray, Rounding] | None:
    """Return the integers of a tensor and their grid, or None if it has none."""
    with np.errstate(all="ignore"):
        q, unit = kept_grid(_KERNELS, x.reshape(1, -1), bits)
    return None if np.isnan(unit) else _stored(x, bits, q, unit)


def _stored(x: np.ndarray, bits: int, q: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, Rounding]:
    """Return the integers of a grid as they are stored, and how they are rounded."""
    exponent = math.frexp(unit.item())[1] + bits - 2 if q.any() else None
    return q.astype(f"<i{bits // 8}").reshape(x.shape), Rounding(bits, x.dtype.name, exponent, x.shape)


def _converted(name: str, q: np.ndarray, rounding: Rounding) -> tuple[np.ndarray, bool]:
    """Return the values of integers in the dtype of the tensor, and whether it holds all of them."""
    unit = np.float32(2.0 ** ((rounding.exponent or 0) - rounding.bits + 1))
    x: np.ndarray = np.empty(q.size, dtype_of(name, CODES[rounding.dtype]))
    flat, fits = q.reshape(-1), True
    for start in range(0, q.size, _BLOCK):
        exact = flat[start : start + _BLOCK].astype(np.float32) * unit
        part = x[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            part[:] = exact.astype(x.dtype)
        fits = fits and np.array_equal(part.astype(np.float32), exact)
    return x.reshape(rounding.shape), fits
