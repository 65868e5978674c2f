"""What files give to a model: tensors by name, built or read one at a time when they are asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.inputs import check_variables
from smh.core.tensors import TensorSpec
from smh.errors import CheckpointError
from smh.files.checkpoint import CARRIED, Checkpoint, read
from smh.files.dense import DenseFile, is_checkpoint
from smh.files.limits import check_file

BLOCK = 1 << 23
"""How many weights of a tensor are built at a time, where that is possible."""

_KERNELS = NumpyKernels()


class _Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, of which shapes are known before they are made."""

    shapes: dict[str, tuple[int, ...]]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Weights(_Tensors):
    """The generated weights of a checkpoint in their viewed shapes; NumPy builds each when it is read.

    The pool is put on its grid once, for all tensors.

    Parameters
    ----------
    found : Checkpoint
        With NumPy arrays.

    Raises
    ------
    VariableError
        If the variables do not fit the plan.
    """

    def __init__(self, found: Checkpoint) -> None:
        self.shapes = {tensor.name: tensor.viewed_shape for tensor in found.plan.tensors}
        self._plan, self._variables = found.plan, found.variables
        self._tensors = {tensor.name: tensor for tensor in found.plan.tensors}
        check_variables(_KERNELS, self._plan, self._variables)
        with np.errstate(all="ignore"):
            self._grids = generate.put_on_grids(_KERNELS, self._plan, self._variables)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        w = self._build(tensor, tensor).reshape(tensor.shape)
        return np.asarray(tensor.view.apply(np, w), order="C") if tensor.view else w

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Iterate over the elements of a tensor in row-major order; a tensor with a view comes as a whole.

        Parameters
        ----------
        name : str
            A tensor of the plan.

        Yields
        ------
        numpy.ndarray, float32
            At most ``BLOCK`` elements at a time, unless the tensor has a view.
        """
        tensor = self._tensors[name]
        if tensor.view is not None:
            yield self[name]
            return
        for start in range(0, tensor.size, BLOCK):
            count = min(BLOCK, tensor.size - start)
            yield self._build(tensor, dataclasses.replace(tensor, shape=(count,), offset=tensor.offset + start))

    @np.errstate(all="ignore")
    def _build(self, tensor: TensorSpec, part: TensorSpec) -> np.ndarray:
        """Return a range of the elements of a tensor, shape (size,), in canonical order."""
        scale = generate.scale_of(_KERNELS, tensor, self._variables)
        return np.asarray(generate.weights_of(_KERNELS, self._plan, self._grids, part, scale))


class ModelTensors(_Tensors):
    """What a checkpoint gives to a model: its weights, and the tensors that it keeps, but for those only carried along.

    Parameters
    ----------
    found : Checkpoint
        With NumPy arrays.

    Attributes
    ----------
    weights : Weights
        Those that are generated.
    shapes : dict of str to tuple of int
        The shapes of all tensors.

    Raises
    ------
    CheckpointError
        If a kept tensor has the name of a weight.
    """

    def __init__(self, found: Checkpoint) -> None:
        self.weights = Weights(found)
        self._kept = {name: x for name, x in found.dense.items() if not name.startswith(CARRIED)}
        if clash := [name for name in self._kept if name in self.weights]:
            raise CheckpointError(f"a weight and a kept tensor have the same name, which no model has: {clash[0]!r}")
        self.shapes: dict[str, tuple[int, ...]] = {tensor.name: tensor.viewed_shape for tensor in found.plan.tensors}
        self.shapes |= {name: x.shape for name, x in self._kept.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._kept[name] if name in self._kept else self.weights[name]


class StoredTensors(_Tensors):
    """The tensors of a plain file, each in the dtype of the file, also bfloat16.

    Parameters
    ----------
    file : DenseFile
        The file, open.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        The shapes of all tensors.
    """

    def __init__(self, file: DenseFile) -> None:
        self._file = file
        self.shapes = file.shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.stored(name)


@contextmanager
def opened(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[ModelTensors | StoredTensors]:
    """Open what a model can be loaded from: a checkpoint, or a plain safetensors file.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    max_bytes : int, optional
        The most bytes of weights that a checkpoint may ask for; see :func:`smh.files.limits.default`.

    Yields
    ------
    ModelTensors or StoredTensors
        Its tensors by name, which are built or read when they are asked for.

    Raises
    ------
    SmhError
        If the file is damaged, or neither, or asks for more than the limit.
    OSError
        If it cannot be read.
    """
    if is_checkpoint(path):
        found = read(path)
        check_file(found, max_bytes)
        yield ModelTensors(found)
    else:
        with DenseFile(path) as file:
            yield StoredTensors(file)
