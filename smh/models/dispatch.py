"""From a model to the adapter of its framework."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from smh.errors import PlanError
from smh.models.adapter import ModelAdapter


def adapter_of(model: Any) -> ModelAdapter:
    """Return the adapter for models such as a given one, compressed or not.

    No framework is imported for the question: whoever has a model has imported its framework. What is neither a
    ``torch.nn.Module`` nor a ``keras.Model`` counts as a pytree, once JAX is imported.

    Raises
    ------
    PlanError
        If no framework that is imported has such models.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is not None and isinstance(model, torch.nn.Module):
        name = "torch"
    elif keras is not None and isinstance(model, keras.Layer):
        name = "tensorflow"
    elif "jax" in sys.modules:
        name = "jax"
    else:
        raise PlanError(
            "a model is a torch.nn.Module, a keras.Model or a pytree of JAX arrays; "
            f"got {type(model).__name__}: for a pytree of other arrays, use smh.jax"
        )
    adapter: ModelAdapter = importlib.import_module(f"smh.backends.{name}.models").adapter
    return adapter
