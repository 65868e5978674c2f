"""What the core needs of PyTorch beyond the array API."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch

from smh.ops import Array, InPlaceOps, Ops


class TorchOps(InPlaceOps):
    """Tensors, with hash words in int64: the unsigned types of PyTorch have no arithmetic."""

    accelerator_elements = 1 << 24
    """Elements of a block away from the CPU, where every block costs the start of its kernels."""

    def __init__(self) -> None:
        super().__init__(xp)

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

    def sparing(self) -> Ops:
        """Return a copy that holds smaller strips; a compiler plans the memory itself."""
        return self if torch.compiler.is_compiling() else super().sparing()

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add with ``index_add``, in the type of ``x``: whatever the order, sums of such float64 integers are exact."""
        return torch.zeros((size,), dtype=x.dtype, device=x.device).index_add(0, segments, x)

    def _blocks(self, x: Array, width: int) -> list[Array]:
        """Return blocks of rows; a compiler gets one block, and plans the memory itself."""
        if torch.compiler.is_compiling():
            return [x]
        elements = self.block_elements if x.device.type == "cpu" else self.accelerator_elements
        return list(torch.split(x, max(1, elements // max(1, width))))


def _at_hand(x: Array) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) is torch.Tensor  # neither a fake tensor nor another subclass
        and x.device.type == "cpu"
        and torch._C._len_torch_dispatch_stack() == 0  # no tracer records the operations
        and torch._C._functorch.peek_interpreter_stack() is None  # no transform of torch.func wraps the value
        and not torch.jit.is_tracing()
    )
