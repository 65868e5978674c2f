"""Pool arrays in files: integers and exponents (specification, section 12)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from smh.core.generate import put_on_grids
from smh.core.grid import LARGEST, LEAST
from smh.core.integers import BYTE_BITS, NIBBLE_BITS, Exponents, pool_arrays, stored_arrays, stored_as
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import CheckpointError, VariableError
from smh.strict_json import check, short

Arrays = dict[str, np.ndarray]
_DTYPES = {"uint8": "U8", "int8": "I8", "int16": "I16"}


class Integers(NamedTuple):
    """A pool as files and frozen models hold it."""

    arrays: dict[str, Any]
    """The integers by the names of variables, in the types and shapes of :func:`smh.core.integers.stored_arrays`."""
    exponents: Exponents
    """The exponents of their grids, by the names of arrays without ``pool/``."""


def stored(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype, as named by the format, and the shape of the integers of every array in a file."""
    return {name: (_DTYPES[dtype], shape) for name, (dtype, shape) in stored_arrays(plan).items()}


def stored_bytes(bits: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of the integers of an array in a file.

    >>> stored_bytes(8, (10, 3)), stored_bytes(4, (5, 3)), stored_bytes(9, (10, 3))
    (30, 8, 60)
    """
    dtype, kept = stored_as(bits, shape)
    return math.prod(kept) * np.dtype(dtype).itemsize


def pack(plan: Plan, variables: Mapping[str, np.ndarray]) -> Integers:
    """Return the integers of all pool arrays for a file, and the exponents of their grids.

    Raises :class:`~smh.VariableError` if an array is not finite or too large, and so has no grid.
    """
    with np.errstate(all="ignore"):
        grids = put_on_grids(Kernels(np), plan, variables)
    arrays: Arrays = {}
    exponents: Exponents = {}
    for name, bits, _, _ in pool_arrays(plan):
        one = grids[name.removeprefix("pool/")]
        if np.isnan(one.unit):
            raise VariableError(
                f"variable {name!r} cannot be stored, because it is not finite or reaches 2**{LARGEST}: "
                f"train with a lower learning rate; got a largest magnitude of {np.max(np.abs(variables[name]))}"
            )
        exponents[name.removeprefix("pool/")] = math.frexp(float(one.power))[1] - 1 if one.power else None
        q = np.asarray(one.integers).astype("<i2" if bits > BYTE_BITS else "i1")
        arrays[name] = to_stored(bits, q)
    return Integers(arrays, exponents)


def check_exponents(plan: Plan, exponents: Any) -> None:
    """Raise :class:`~smh.CheckpointError` unless the exponents of a file fit the pool arrays of the plan."""
    arrays = {name.removeprefix("pool/"): fixed for name, _, _, fixed in pool_arrays(plan)}
    keys = sorted(exponents) if isinstance(exponents, dict) else None
    got = exponents if keys is None else keys
    check(keys == sorted(arrays), f"its pool_exponents must be an object with the keys {short(sorted(arrays))}", got)
    for name, fixed in arrays.items():
        e, what = exponents[name], f"the exponent of {name!r}"
        check(e is None or type(e) is int, f"{what} must be a whole number or null", e)
        check(e is None or LEAST <= e <= LARGEST, f"{what} must be from {LEAST} to {LARGEST}", e)
        check(e is None or fixed is None or e == fixed, f"{what} must be {fixed}, as the plan fixes it", e)


def unpack(plan: Plan, arrays: Mapping[str, np.ndarray], exponents: Exponents) -> Arrays:
    """Return the float32 values of stored integers, which are checked as by :func:`check_integers`."""
    values = {}
    for (name, bits, _, _), q in zip(pool_arrays(plan), _checked(plan, arrays, exponents), strict=True):
        e = exponents[name.removeprefix("pool/")]
        values[name] = q.astype(np.float32)
        values[name] *= np.float32(2.0 ** ((e or 0) - bits + 1))
    return values


def check_integers(plan: Plan, arrays: Mapping[str, np.ndarray], exponents: Exponents) -> None:
    """Raise :class:`~smh.CheckpointError` if no grid with these exponents gives the integers.

    Dtypes and shapes must be those of :func:`stored`, and the exponents checked by :func:`check_exponents`.
    """
    for _ in _checked(plan, arrays, exponents):
        pass


def check_training(
    plan: Plan, training: Mapping[str, np.ndarray], packed: Mapping[str, np.ndarray], exponents: Exponents
) -> None:
    """Raise :class:`~smh.CheckpointError` unless the grid of the training values gives the stored integers."""
    try:
        again, others = pack(plan, training)
    except VariableError as error:
        raise CheckpointError(f"its training values must have a grid: {error}") from error
    for name, q in again.items():
        array = name.removeprefix("pool/")
        what = f"training values of {name!r} must have the exponent {exponents[array]} of its integers"
        check(others[array] == exponents[array], what, others[array])
        different = int(np.count_nonzero(q != packed[name]))
        check(not different, f"training values of {name!r} must round to its integers", f"{different} that do not")


def _checked(plan: Plan, arrays: Mapping[str, np.ndarray], exponents: Exponents) -> Iterator[np.ndarray]:
    """Iterate over the integers of all arrays in their shapes, each checked before it comes."""
    for name, bits, shape, fixed in pool_arrays(plan):
        e, what = exponents[name.removeprefix("pool/")], f"integers of {name!r} must have"
        q = from_stored(name, bits, shape, arrays[name])
        check_grid(what, q, bits, e, fixed is not None)
        yield q


def check_grid(what: str, q: np.ndarray, bits: int, e: int | None, fixed: bool = False) -> None:
    """Raise :class:`~smh.CheckpointError` if no grid with this exponent, fixed or not, gives the integers."""
    most, largest = 2 ** (bits - 1) - 1, max(-int(q.min()), int(q.max()))
    check(largest <= most, f"{what} magnitudes of at most {most} with {bits} bits", largest)
    check(e is not None or largest == 0, f"{what} an exponent, unless all are 0", e)
    check(e is None or largest > 0, f"{what} the exponent null if all are 0", e)
    if e is not None and not fixed:
        check(2 * largest > most, f"{what} a largest magnitude of at least {most // 2 + 1}", largest)


def to_stored(bits: int, q: np.ndarray) -> np.ndarray:
    """Return the integers of an array as :func:`stored` says: up to 4 bits two to a byte, that of even index low."""
    if bits > NIBBLE_BITS:
        return q
    flat = np.append(q.reshape(-1), np.zeros(q.size % 2, dtype=q.dtype)).view(np.uint8) & 15
    return np.asarray(flat[0::2] | flat[1::2] << 4)


def from_stored(name: str, bits: int, shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    """Return the integers of a stored array in the shape of the plan, or raise :class:`~smh.CheckpointError`."""
    if bits > NIBBLE_BITS:
        return array
    both = np.stack([array & 15, array >> 4], axis=1).reshape(-1).astype(np.int8)
    flat, rest = np.split((both ^ 8) - 8, [math.prod(shape)])  # sign extension of four bits
    check(not rest.any(), f"the last byte of {name!r} must be filled with 0", int(array[-1]))
    return np.asarray(flat.reshape(shape))
