"""What the core needs of PyTorch beyond the array API."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch

from smh.v2.core.kernels import Array, InPlaceOps, Ops


class TorchOps(InPlaceOps):
    """Tensors, with hash words in int64: the unsigned types of PyTorch have no arithmetic."""

    accelerator_elements = 1 << 24
    """Elements of a block away from the CPU, where every block costs the start of its kernels."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__(xp)
        self.in_place = in_place

    @property
    def word_dtype(self) -> Any:
        """int64."""
        return torch.int64

    @property
    def fuses(self) -> bool:
        """Say whether what is done here is compiled, or traced for a compiler."""
        if torch.compiler.is_compiling():  # first: the compiler cannot follow the other questions
            return True
        return bool(torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0)

    def device(self, x: Array) -> torch.device:
        """Return the device of a tensor."""
        return x.device

    def is_false(self, flag: Array) -> bool:
        """Look at the flag where that costs nothing: at a plain tensor on the CPU, outside of any tracing."""
        return _at_hand(flag) and not flag

    def none_below(self, x: Array, bound: Array | float) -> bool:
        """Look at the least magnitude: comparisons of all elements take several times as long."""
        return self.is_false(~(torch.amin(torch.abs(x)) >= bound))  # NaN is not above anything

    def sparing(self) -> Ops:
        """Return a copy that holds smaller strips; a compiler plans the memory itself."""
        return self if torch.compiler.is_compiling() else super().sparing()

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """Add inside of the product."""
        return total.addmm_(a, b) if self.in_place else torch.addmm(total, a, b)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in the type of ``x``: whatever the order, sums of such float64 integers are exact."""
        return torch.zeros((size,), dtype=x.dtype, device=x.device).scatter_add(0, segments, x)

    def add_segments(self, total: Array, x: Array, segments: Array) -> Array:
        """Add the same to what is there."""
        return total.scatter_add_(0, segments, x)

    def row_blocks(self, x: Array, width: int, elements: int | None = None) -> list[Array]:
        """Return blocks of rows; a compiler gets one block, and plans the memory itself."""
        if torch.compiler.is_compiling():
            return [x]
        if x.device.type != "cpu":
            elements = self.accelerator_elements
        return list(torch.split(x, self.block_rows(x.shape[0], width, elements)))


def _at_hand(x: Array) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) is torch.Tensor  # neither a fake tensor nor another subclass
        and x.device.type == "cpu"
        and torch._C._len_torch_dispatch_stack() == 0  # no tracer records the operations
        and torch._C._functorch.peek_interpreter_stack() is None  # no transform of torch.func wraps the value
        and not torch.jit.is_tracing()
    )
