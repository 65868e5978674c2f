"""Tell the framework of a model, and explain values that are often mistaken for models."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from smh.errors import BackendError, PlanError
from smh.files.checkpoint import Checkpoint

_TAKES = {"torch": "a torch.nn.Module", "tensorflow": "a keras.Model", "jax": "a pytree of arrays"}
_MODULES = {"torch": "smh.torch", "tensorflow": "smh.keras", "jax": "smh.jax"}
_EXPORTS = {
    "torch": "smh.export.onnx, torch_export, aot_inductor or executorch",
    "tensorflow": "smh.export.saved_model or litert",
    "jax": "smh.export.stablehlo",
}


def check_model(model: Any) -> None:
    """Raise :class:`~smh.PlanError` for what is no model of any framework, with what to give instead."""
    if advice := _advice(model):
        raise PlanError(f"{advice}; got {type(model).__name__}")


def _advice(model: Any) -> str:
    torch = sys.modules.get("torch")
    if model is None or hasattr(type(model), "__next__"):
        return "a model is needed"
    if isinstance(model, type):
        return f"a model is needed, not its class: make one, as in {model.__name__}()"
    if isinstance(model, str | bytes | os.PathLike):
        return "a model is needed, not a file: smh.load(path, model) reads a file into one"
    if isinstance(model, Checkpoint):
        return (
            "a model is needed, not a checkpoint: smh.load(checkpoint, model) puts it into one; its parts are "
            "checkpoint.plan and checkpoint.variables"
        )
    if torch is not None and isinstance(model, Mapping) and any(isinstance(x, torch.Tensor) for x in model.values()):
        return "a model is needed, not a state_dict: pass the torch.nn.Module it belongs to"
    return ""


def no_model(model: Any) -> PlanError:
    """Return the error for a value that belongs to no imported framework."""
    hint = ": for a pytree of other arrays, use smh.jax" if _has_arrays(model) else ""
    return PlanError(
        f"a model is a torch.nn.Module, a keras.Model or a pytree of JAX arrays; got {type(model).__name__}{hint}"
    )


def _has_arrays(model: Any) -> bool:
    """Say whether dictionaries, lists and tuples hold an array of NumPy."""
    if isinstance(model, Mapping | list | tuple):
        return any(map(_has_arrays, model.values() if isinstance(model, Mapping) else model))
    return isinstance(model, np.ndarray)


def _other_framework(model: Any, name: str) -> str:
    """Return the name of the backend that has models such as a given one, or nothing if it is this one or none."""
    torch, keras, jax = (sys.modules.get(package) for package in ("torch", "keras", "jax"))
    found = ""
    if keras is not None and isinstance(model, keras.Layer):  # with Keras on PyTorch it is a Module, too
        found = "tensorflow"
    elif torch is not None and isinstance(model, torch.nn.Module):
        found = "torch"
    elif name != "jax" and jax is not None:
        try:
            found = "jax" if any(isinstance(x, jax.Array) for x in jax.tree.leaves(model)) else ""
        except (TypeError, ValueError):  # a dictionary whose keys have no order
            found = ""
    return "" if found == name or name not in _TAKES else found


def check_framework(model: Any, name: str, exports: bool = False) -> None:
    """Raise :class:`~smh.PlanError` for a model of another framework than that of a backend.

    The advice is another module, or for ``exports`` the functions that export such a model.
    """
    if not exports:
        check_keras(model, name)
    if found := _other_framework(model, name):
        what = f"{'this export' if exports else _MODULES[name]} takes {_TAKES[name]}; got {_TAKES[found]}"
        instead = _EXPORTS[found] if exports else _MODULES[found]
        raise PlanError(f"{what}, {type(model).__name__}: use {instead} instead")


def check_keras(model: Any, name: str) -> None:
    """Raise :class:`~smh.BackendError` for Keras models, or modules with Keras layers, that a backend cannot take.

    Keras layers read weights from Keras variables, whose arrays belong to the Keras backend.
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is None:
        return
    parts = model.modules() if torch is not None and isinstance(model, torch.nn.Module) else [model]
    layer = next((part for part in parts if isinstance(part, keras.Layer)), None)
    if layer is None:
        return
    if (runs := keras.backend.backend()) != "tensorflow":
        raise BackendError(
            f"{layer.name!r} is a {type(layer).__name__} of Keras, which runs on {runs} here and must run on "
            "TensorFlow: set KERAS_BACKEND=tensorflow before Keras is imported, make the model again, load its weights"
        )
    if name != "tensorflow":
        raise BackendError(f"{layer.name!r} is a {type(layer).__name__} of Keras: use smh.keras, not smh.{name}")
