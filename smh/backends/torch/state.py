"""What tells whether variables changed since weights were built from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

_SMALL = 1 << 12
"""Below this number of elements, arrays are compared together: scales are many."""


class State(NamedTuple):
    """The variables at one time.

    Only their values tell for sure: fused optimizers raise no version, nor does what writes through ``.data``.
    """

    backwards: int  # how many backward passes went through kept weights
    versions: tuple[tuple[Any, ...], ...]  # with the tensors themselves, so that nothing else can get their identity
    values: tuple[torch.Tensor, ...] | None  # the memory of the variables, or copies of it

    @classmethod
    def of(cls, variables: Sequence[torch.Tensor], backwards: int, values: bool) -> State:
        """Return the present state; its values change with the variables."""
        versions = tuple((x, x._version, x.data_ptr(), x.requires_grad) for x in variables)
        return cls(backwards, versions, _flat(variables) if values else None)

    def copied(self) -> State:
        """Return the state for later, when the variables may have changed."""
        return self._replace(values=None if self.values is None else tuple(x.clone() for x in self.values))


def same(before: State | None, now: State | None) -> bool:
    """Return whether variables did not change, as far as can be told."""
    if before is None or now is None or before.backwards != now.backwards:
        return False
    if not all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before.versions, now.versions, strict=True)):
        return False
    if now.values is None:
        return True
    return before.values is not None and all(map(_equal, before.values, now.values))


def _flat(variables: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return large variables as vectors of their memory, where they are contiguous, and a copy of all small ones."""
    with torch.no_grad():
        flat = [x.detach().reshape(-1) for x in variables]
        small = [x for x in flat if len(x) < _SMALL]
        return (*(x for x in flat if len(x) >= _SMALL), *([torch.cat(small)] if small else []))


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Compare two vectors, float32 by pairs of numbers, which takes half as long."""
    if x.dtype == y.dtype == torch.float32 and not (x.storage_offset() | y.storage_offset()) & 1:
        pairs = len(x) // 2 * 2
        parts = (x[:pairs].view(torch.int64), y[:pairs].view(torch.int64)), (x[pairs:], y[pairs:])
        return all(torch.equal(a, b) for a, b in parts)
    return bool(torch.equal(x, y))
