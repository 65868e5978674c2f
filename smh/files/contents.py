"""The tensors of a file by name, built or read one at a time on demand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.generate import check_variables
from smh.core.tensors import TensorSpec
from smh.errors import CheckpointError
from smh.files.checkpoint import CARRIED, Checkpoint, read
from smh.files.dense import DenseTensors, Tensors, is_checkpoint
from smh.files.formats import is_safetensors, open_dense
from smh.files.limits import check_file

BLOCK = 1 << 23
"""The number of weights of a tensor built at a time, where possible."""

_KERNELS = NumpyKernels()


class Weights(Tensors):
    """The generated weights of a checkpoint in their viewed shapes. NumPy builds each on access.

    Raises :class:`~smh.VariableError` if the variables do not fit the plan.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.shapes = {tensor.name: tensor.viewed_shape for tensor in checkpoint.plan.tensors}
        self._plan, self._variables = checkpoint.plan, checkpoint.variables
        self._tensors = {tensor.name: tensor for tensor in checkpoint.plan.tensors}
        check_variables(_KERNELS, self._plan, self._variables)
        with np.errstate(all="ignore"):  # once, for all tensors
            self._grids = generate.put_on_grids(_KERNELS, self._plan, self._variables)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        w = self._build(tensor, tensor).reshape(tensor.shape)
        return np.asarray(tensor.view.apply(np, w), order="C") if tensor.view else w

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Iterate over blocks of a tensor in row-major order. A tensor with a view is a single block."""
        tensor = self._tensors[name]
        if tensor.view is not None:
            yield self[name]
            return
        for start in range(0, tensor.size, BLOCK):
            count = min(BLOCK, tensor.size - start)
            yield self._build(tensor, dataclasses.replace(tensor, shape=(count,), offset=tensor.offset + start))

    @np.errstate(all="ignore")
    def _build(self, tensor: TensorSpec, part: TensorSpec) -> np.ndarray:
        """Return the weights of a part of a tensor, in canonical order, shape (size,)."""
        scale = generate.scale_of(_KERNELS, tensor, self._variables)
        (found,) = generate.weights_of(_KERNELS, self._plan, self._grids, [generate.Part(part, scale)])
        return np.asarray(found)


class ModelTensors(Tensors):
    """The tensors of the model in a checkpoint: its ``weights``, and the kept tensors that are not only carried along.

    Raises :class:`~smh.CheckpointError` if a kept tensor has the name of a weight.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.weights = Weights(checkpoint)
        self._kept = {name: x for name, x in checkpoint.dense.items() if not name.startswith(CARRIED)}
        if clash := [name for name in self._kept if name in self.weights]:
            raise CheckpointError(f"a weight and a kept tensor have the same name: {clash[0]!r}")
        self.shapes = self.weights.shapes | {name: x.shape for name, x in self._kept.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._kept[name] if name in self._kept else self.weights[name]


class StoredTensors(Tensors):
    """Plain tensors, each in the dtype of the file, including bfloat16."""

    def __init__(self, file: DenseTensors) -> None:
        self.shapes, self._file = file.shapes, file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.stored(name)


@contextmanager
def opened(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[ModelTensors | StoredTensors]:
    """Open a checkpoint, if its weights take at most ``max_bytes``, or plain tensors of any kind."""
    if is_safetensors(path) and is_checkpoint(path):
        checkpoint = read(path)
        check_file(checkpoint, max_bytes)
        yield ModelTensors(checkpoint)
    else:
        with open_dense(path) as file:
            yield StoredTensors(file)
