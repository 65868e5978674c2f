"""Pool arrays in files: integers and exponents (specification, section 12)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from smh.core.generate import put_on_grids
from smh.core.grid import LARGEST, LEAST
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import CheckpointError, VariableError
from smh.strict_json import check, short

Arrays = dict[str, np.ndarray]
Exponents = dict[str, int | None]  # by names without "pool/"; None if all integers are 0
_NIBBLE_BITS, _BYTE_BITS = 4, 8


def stored(bits: int, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the dtype, as named by the format, and the shape of the integers of an array in a file.

    >>> stored(8, (10, 3)), stored(4, (5, 3)), stored(9, (10, 3))
    (('I8', (10, 3)), ('U8', (8,)), ('I16', (10, 3)))
    """
    if bits <= _NIBBLE_BITS:
        return "U8", (-(-math.prod(shape) // 2),)
    return ("I8" if bits <= _BYTE_BITS else "I16"), shape


def stored_bytes(bits: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of the integers of an array in a file.

    >>> stored_bytes(8, (10, 3)), stored_bytes(4, (5, 3)), stored_bytes(9, (10, 3))
    (30, 8, 60)
    """
    code, kept = stored(bits, shape)
    return math.prod(kept) * (2 if code == "I16" else 1)


def pack(plan: Plan, variables: Mapping[str, np.ndarray]) -> tuple[Arrays, Exponents]:
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
        q = np.asarray(one.integers).astype("<i2" if bits > _BYTE_BITS else "i1")
        arrays[name] = to_stored(bits, q)
    return arrays, exponents


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
    """Return the float32 values of stored integers.

    Dtypes and shapes must be those of :func:`stored`, and the exponents checked by :func:`check_exponents`. Raises
    :class:`~smh.CheckpointError` if no grid with these exponents gives the integers.
    """
    values = {}
    for name, bits, shape, fixed in pool_arrays(plan):
        e, what = exponents[name.removeprefix("pool/")], f"integers of {name!r} must have"
        q = from_stored(name, bits, shape, arrays[name])
        most, largest = 2 ** (bits - 1) - 1, max(-int(q.min()), int(q.max()))
        check(largest <= most, f"{what} magnitudes of at most {most} with {bits} bits", largest)
        check(e is not None or largest == 0, f"{what} an exponent, unless all are 0", e)
        check(e is None or largest > 0, f"{what} the exponent null if all are 0", e)
        if e is not None and fixed is None:
            check(2 * largest > most, f"{what} a largest magnitude of at least {most // 2 + 1}", largest)
        values[name] = q.astype(np.float32)
        values[name] *= np.float32(2.0 ** ((e or 0) - bits + 1))
    return values


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


def pool_arrays(plan: Plan) -> Iterator[tuple[str, int, tuple[int, ...], int | None]]:
    """Iterate over the arrays of a pool: variable, bits, shape and fixed exponent or None."""
    for leaf in plan.pool.leaves(plan.seed):
        for number, (name, shape) in enumerate(leaf.pool.local_shapes().items()):
            yield f"pool/{leaf.path}{name}", leaf.pool.grid_bits + 1, shape, leaf.pool.exponent(number)


def to_stored(bits: int, q: np.ndarray) -> np.ndarray:
    """Return the integers of an array as :func:`stored` says: up to 4 bits two to a byte, that of even index low."""
    if bits > _NIBBLE_BITS:
        return q
    flat = np.append(q.reshape(-1), np.zeros(q.size % 2, dtype=q.dtype)).view(np.uint8) & 15
    return np.asarray(flat[0::2] | flat[1::2] << 4)


def from_stored(name: str, bits: int, shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    """Return the integers of a stored array in the shape of the plan, or raise :class:`~smh.CheckpointError`."""
    if bits > _NIBBLE_BITS:
        return array
    both = np.stack([array & 15, array >> 4], axis=1).reshape(-1).astype(np.int8)
    flat, rest = np.split((both ^ 8) - 8, [math.prod(shape)])  # sign extension of four bits
    check(not rest.any(), f"the last byte of {name!r} must be filled with 0", int(array[-1]))
    return np.asarray(flat.reshape(shape))
