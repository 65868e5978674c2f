"""Products of 8-bit integers, where a processor has units for them (specification, section 3.7).

A cotangent on its grid is an integer of 22 bits: three signed bytes. Products of bytes, summed in int32, are exact for
up to 131,071 terms, so both factors' gradients are three such products each.
"""

from __future__ import annotations

import functools
import os

import torch

from smh.backends.switch import Switch
from smh.core.kernels import Array
from smh.errors import BackendError

VARIABLE = "SMH_INT8"
_BYTES = 3
_LEAST_TERMS, _LEAST_SIDE, _MOST = 2, 16, 2**31 // 128**2 - 1
"""PyTorch 2.13 errs if the left matrix has one row, small products gain nothing, and int32 has to hold the sums."""


ALLOWED = Switch()
"""Whether products of bytes may be used. No bit depends on it."""


def available() -> bool:
    """Return whether products of bytes are exact and fast on this processor; ``SMH_INT8=0`` turns them off.

    Units for bytes are needed. Without them, PyTorch's products are slower than those of float64, and may saturate.
    """
    return ALLOWED.on and _probed()


@functools.cache
def _probed() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise BackendError(f"{VARIABLE} must be 0 (no products of 8-bit integers) or 1; got {value!r}")
    # Neither name is public: without them, products are those of float64.
    has_units, product = getattr(torch.cpu, "_is_vnni_supported", None), getattr(torch, "_int_mm", None)
    return value == "1" and product is not None and has_units is not None and has_units() and exact(product)


def exact(product: object) -> bool:
    """Return whether a product of bytes is exact for extreme factors, which other units would saturate."""
    signs = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, 1, 1, 1]], dtype=torch.int8).repeat(11, 160)
    for left, right in ((127, -128), (-128, -128), (127, 127)):
        x, y = signs.clamp(0) * left - (signs < 0).to(torch.int8) * left, torch.full((640, 33), right, dtype=torch.int8)
        if not torch.equal(product(x, y).long(), x.long() @ y.long()):  # type: ignore[operator]
            return False
    return True


class ByteSums:
    """The sums of both factors' gradients, in the order of blocks of rows.

    Parameters
    ----------
    left, right : tensor, shapes (n, m) and (m, n)
        Integers from -127 to 127.
    """

    dtype = torch.int32
    """The type of cotangents on their grid."""
    blocks = 2
    """How many blocks of rows are computed at a time."""
    band = 2048
    """How many rows of cotangents one product with the left factor takes. Few large products are faster than many."""

    def __init__(self, left: Array, right: Array) -> None:
        self.left, self.right = left.to(torch.int8), right.to(torch.int8)
        self._of_right = self.right.T.contiguous()
        self._totals = [torch.zeros_like(right, dtype=torch.int32) for _ in range(_BYTES)]
        self._room = torch.empty_like(self._totals[0])
        self._bytes = self.right.new_empty((_BYTES, min(len(left), self.band), right.shape[1]))
        self._rows = slice(0, 0)  # of the bytes, which the totals do not contain yet

    @staticmethod
    def holds(left: Array) -> bool:
        """Return whether this class adds for a left factor of this shape."""
        side, terms = left.shape
        return bool(_LEAST_SIDE <= side <= _MOST and _LEAST_TERMS <= terms <= _MOST)

    def add(self, q: Array, rows: slice) -> Array:
        """Add a block of rows of cotangents, which are overwritten; return its rows of the left sums, float64."""
        if rows.stop - self._rows.start > self._bytes.shape[1]:
            self._flush()
        kept = self._bytes[:, self._rows.stop - self._rows.start :]
        self._rows = slice(self._rows.start, rows.stop)
        sums = None
        for k in range(_BYTES):
            if k:
                q.add_(128).bitwise_right_shift_(8)  # what the last byte leaves
            some = kept[k, : len(q)]
            some.copy_(q)
            here = torch._int_mm(some, self._of_right)
            sums = here.double() if sums is None else sums.add_(here, alpha=256.0**k)
        return sums

    def total(self) -> Array:
        """Return the right sums, float64."""
        self._flush()
        first, *others = self._totals
        sums = first.double()
        for k, total in enumerate(others, 1):
            sums.add_(total, alpha=256.0**k)
        return sums

    def _flush(self) -> None:
        """Add the products of all bytes of a band to the totals."""
        rows = self._rows
        for total, some in zip(self._totals, self._bytes, strict=True):
            total.add_(torch._int_mm(self.left[rows].T, some[: rows.stop - rows.start], out=self._room))
        self._rows = slice(rows.stop, rows.stop)


class WideSums:
    """The same sums by products of float64."""

    dtype, blocks = torch.float64, 1

    def __init__(self, left: Array, right: Array) -> None:
        self.left, self.right = left, right
        self._left, self._right = left.double(), right.double()
        self._total = torch.zeros_like(self._right)

    def add(self, q: Array, rows: slice) -> Array:
        """Add a block of rows of cotangents; return its rows of the left sums."""
        self._total.addmm_(self._left[rows].T, q)
        return torch.mm(q, self._right.T)

    def total(self) -> Array:
        """Return the right sums."""
        return self._total
