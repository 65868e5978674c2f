"""What smh asks of a framework's models. The functions for users are those of :class:`smh.api.Api`, once for all."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from smh.backends.protocol import Backend
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.files.checkpoint import Checkpoint
from smh.files.integers import Integers
from smh.models.compression import Compression, ModelTensor, not_compressed
from smh.models.frameworks import check_keras, check_model, no_model


class Values(Mapping[str, np.ndarray]):
    """The values of tensors by name, each read when it is asked for; those that can be read are in it."""

    def __init__(
        self,
        given: Mapping[str, Any],
        read: Callable[[Any], np.ndarray],
        readable: Callable[[Any], bool] = lambda x: True,
    ) -> None:
        self._given, self._read, self._readable = given, read, readable

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(self._given[name])

    def __contains__(self, name: Any) -> bool:
        return name in self._given and self._readable(self._given[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class ModelAdapter(ABC):
    """A framework's models, plain and compressed."""

    backend: ClassVar[Backend]
    """Of the framework: it takes the variables of these models."""

    @abstractmethod
    def compression(self, model: Any) -> Compression | None:
        """Return how a model was compressed, or None if it is not."""

    def not_compressed(self, model: Any) -> PlanError:
        """Return the error for a model that has no compression."""
        return not_compressed(model)

    @abstractmethod
    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all tensors of a plain model, in order, with the names of a plan if there is one.

        Raises
        ------
        PlanError
            If it is not a model of the framework, is already compressed, or cannot be compressed.
        """

    @abstractmethod
    def values(self, model: Any, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return the values of tensors that may be generated of a plain model, by name, those that are known."""

    def layers(self, model: Any) -> Mapping[str, Collection[type]]:
        """Return the classes of the layers that contain each tensor of a plain model, by name."""
        return {}

    def place_of(self, model: Any, part: Any) -> str | None:
        """Return the name of a layer, or of a tensor, given itself, in a plain model; None for anything else."""
        return None

    def restored_on_error(self, model: Any, values: bool = True) -> AbstractContextManager[Any]:
        """Return a context in which a model may change, and which leaves it as it was if it ends in an error.

        Without ``values`` no numbers change that the model has before.
        """
        return nullcontext()

    @abstractmethod
    def install(self, model: Any, compression: Compression) -> Any:
        """Return a plain model made into a compressed one, with whatever values of variables.

        If the compression is frozen, the model gets integers instead of the pool, and never has float32 ones.
        """

    def copy(self, model: Any) -> Any:
        """Return a model that :meth:`install` may change."""
        return model

    @abstractmethod
    def variables(self, model: Any) -> dict[str, Array]:
        """Return the variables of a compressed model, float32, by name: for a frozen one the values of its integers."""

    @abstractmethod
    def rate(self, model: Any, kept_bits: int | None) -> Array:
        """Return the rate of a compressed model, with kept tensors if they are rounded; see :mod:`smh.core.rate`."""

    @abstractmethod
    def kept(self, model: Any, plan: Plan) -> dict[str, Array]:
        """Return the tensors that a model stores besides those that the plan generates, by name."""

    @abstractmethod
    def assign(self, model: Any, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> Any:
        """Return a compressed model with other values of all variables, and of some tensors that it keeps."""

    def fill(self, model: Any, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> Any:
        """Return a compressed model with the values of a file, also where it had only shapes."""
        return self.assign(model, variables, kept)

    def freeze(self, model: Any, integers: Integers) -> Any:
        """Return a frozen copy of a compressed model, given the integers of its pool as NumPy arrays."""
        raise PlanError(f"models of the {self.backend.name} backend cannot be frozen; got {type(model).__name__}")

    def fill_frozen(self, model: Any, checkpoint: Checkpoint) -> Any:
        """Return a frozen model with the values of a file: ``checkpoint.integers``, scales and kept tensors."""
        raise PlanError(f"models of the {self.backend.name} backend cannot be frozen; got {type(model).__name__}")

    @abstractmethod
    def materialize(self, model: Any) -> Any:
        """Return a plain model with the weights of a compressed one."""

    def in_place(self, model: Any) -> ModelAdapter:
        """Return the adapter that compresses and materializes the given model, not a copy."""
        raise PlanError(
            f"only a torch.nn.Module changes in place; got {type(model).__name__}: use smh.compress and "
            "smh.materialize, which return another model"
        )

    @abstractmethod
    def built(self, model: Any) -> AbstractContextManager[None]:
        """Return a context in which the weights of a compressed model are built once."""

    def renamed(self, checkpoint: Checkpoint, model: Any) -> Checkpoint:
        """Return a checkpoint with the names that a model has for the same tensors."""
        return checkpoint


def adapter_of(model: Any) -> ModelAdapter:
    """Return the adapter for models such as a given one, compressed or not.

    This imports no framework: a caller with a model has imported its framework. Anything that is neither a
    ``torch.nn.Module`` nor a ``keras.Model`` counts as a pytree, once JAX is imported.

    Raises
    ------
    PlanError
        If no framework that is imported has such models.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    check_model(model)
    if keras is not None and isinstance(model, keras.Layer):  # with Keras on PyTorch it is a Module, too
        name = "tensorflow"
        check_keras(model, name)
    elif torch is not None and isinstance(model, torch.nn.Module):
        name = "torch"
    elif "jax" in sys.modules:
        name = "jax"
    else:
        raise no_model(model)
    adapter: ModelAdapter = importlib.import_module(f"smh.backends.{name}.models").adapter
    return adapter
