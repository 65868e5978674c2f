"""PyTorch's kernels by device: without float64 on Metal, or on request."""

from __future__ import annotations

from smh.backends.float64 import float64_allowed
from smh.backends.torch.kernels import TorchKernels
from smh.core.kernels import Array
from smh.core.narrow import NarrowKernels


class NarrowTorchKernels(NarrowKernels, TorchKernels):
    """Kernels for tensors on any device."""


KERNELS, NARROW = TorchKernels(), NarrowTorchKernels()
_SMOOTH, SINGLE = TorchKernels(smooth=True), NarrowTorchKernels(smooth=True)


def kernels_for(x: Array, smooth: bool = False) -> TorchKernels:
    """Return the kernels for the device of a tensor."""
    if x.device.type == "mps" or not float64_allowed():
        return SINGLE if smooth else NARROW
    return _SMOOTH if smooth else KERNELS
