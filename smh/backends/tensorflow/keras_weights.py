"""Generated weights of a Keras model: variables without memory, and the forward pass that gives them values.

A pass builds weights by one differentiable function of all variables, so that their gradients have the bits of
:func:`smh.vjp` whatever the residency: one vector-Jacobian product gets the cotangents of all weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh.backends.tensorflow import derivatives
from smh.backends.tensorflow.derivatives import as_written
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import VariableError
from smh.models.compression import Compression


class Source:
    """The variables of one model, and the weights that they generate.

    Parameters
    ----------
    compression : Compression
        What is generated, and all weights of the model as it was.
    variables : sequence of keras.Variable
        The variables, in the plan's order.
    weights : sequence of keras.Variable
        Those of the model, in the order of ``compression.tensors``; some become generated ones.
    """

    def __init__(
        self, compression: Compression, variables: Sequence[keras.Variable], weights: Sequence[keras.Variable]
    ) -> None:
        self.compression = compression
        self.plan = compression.plan
        self.variables = dict(zip(self.plan.variable_shapes, variables, strict=True))
        self.weights = {tensor.name: x for tensor, x in zip(compression.tensors, weights, strict=True)}
        self.names = tuple(tensor.name for tensor in self.plan.tensors)
        self._cache: _Cache | None = None
        self._served: dict[str, _Served] = {}
        self._read = tf.function(self.flat, autograph=False)  # faster than one by one

    @property
    def kept(self) -> dict[str, keras.Variable]:
        """The weights that are not generated, by name."""
        return {name: x for name, x in self.weights.items() if not isinstance(x, GeneratedVariable)}

    def flat(self) -> list[Array]:
        """Return the present values of all variables, as tensors."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables.values()]

    @as_written
    def weight(self, name: str) -> Array:
        """Return a weight: that of the present pass, or else one that is built for this use."""
        run = _RUNS.get().get(id(self))
        return derivatives.build(self.plan, (name,), *self.flat())[0] if run is None else run.weight(name)

    @contextmanager
    def passing(self, residency: str) -> Iterator[None]:
        """Hold the weights of one forward pass."""
        runs = dict(_RUNS.get())
        runs[id(self)] = _LayerRun(self) if residency == "layer" else _Run(self, self._weights(residency))
        token = _RUNS.set(MappingProxyType(runs))
        try:
            yield
        finally:
            _RUNS.reset(token)

    @contextmanager
    def layer(self, names: Sequence[str], after: Sequence[Array]) -> Iterator[None]:
        """Hold the named weights while a layer runs, if weights are built layer by layer."""
        run = _RUNS.get().get(id(self))
        if not isinstance(run, _LayerRun) or run.eager != tf.executing_eagerly():
            yield
            return
        with run.holding(names, after):
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Let graphs read kept weights, which are those of the present variables: as captured ``tf.Variable`` objects.

        Graphs that are traced meanwhile may run later only within this context.
        """
        weights = self._kept(self._read())
        served = self._served.get("now") or self._served.setdefault("now", _Served(weights))  # by one thread only
        served.hold(weights)
        token = _SERVED.set(MappingProxyType({**_SERVED.get(), id(self): served.variables}))
        try:
            yield
        finally:
            _SERVED.reset(token)

    def forget(self) -> None:
        """Free the weights that were kept. Graphs that were traced while serving must not run again."""
        self._cache = None
        self._served = {}

    @as_written
    def _weights(self, residency: str) -> dict[str, Array]:
        flat, served = self.flat(), _SERVED.get().get(id(self))
        if residency == "cached" and tf.executing_eagerly():
            found = self._kept(flat)
            weights = _linked(self.plan, self.names, lambda: found)(*flat)
        elif residency == "cached" and served is not None:
            weights = _linked(self.plan, self.names, lambda: tuple(x.value() for x in served))(*flat)
        else:
            weights = derivatives.build(self.plan, self.names, *flat)
        return dict(zip(self.names, weights, strict=True))

    def _kept(self, flat: Sequence[Array]) -> tuple[Array, ...]:
        """Return all weights, built anew only if a variable was changed."""
        kept = self._cache  # once: another thread may forget it, or keep what it built for other variables
        places = tuple(map(_place, flat))
        if kept is not None and places == kept.places:
            return kept.weights
        if kept is not None and all(map(_same, flat, kept.variables)):
            weights = kept.weights
        else:
            weights = derivatives.build(self.plan, self.names, *map(tf.stop_gradient, flat))
        self._cache = _Cache(tuple(flat), places, weights)
        return weights


class GeneratedVariable(keras.Variable):
    """A weight that is generated when it is read. It stores nothing, and nothing can be assigned to it."""

    smh_source: Source
    smh_name: str

    @property
    def value(self) -> Array:
        """The weight, in the type that the layer computes in."""
        return self._maybe_autocast(self.smh_source.weight(self.smh_name))

    def assign(self, value: Any) -> Any:
        """Refuse: the weight is generated.

        Raises
        ------
        VariableError
            Always.
        """
        raise VariableError(
            f"{self.smh_name!r} is generated from a pool and cannot be assigned to: "
            "make a plain model by smh.materialize(model) first, or change the variables of model.pool"
        )

    def _direct_assign(self, value: Any) -> None:
        self.assign(value)

    def _serialize_to_tensors(self) -> dict[str, Array]:
        return {}  # to tf.train.Checkpoint

    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        return None

    @classmethod
    def take(cls, variable: keras.Variable, source: Source, name: str) -> None:
        """Turn a variable of a model into a generated one, in its place, and free its memory."""
        variable.__class__ = cls
        variable.smh_source = source
        variable.smh_name = name
        variable._value = None


@dataclass(frozen=True, eq=False)
class _Cache:
    """Weights, the variables that they were built from, and where these are."""

    variables: tuple[Array, ...]
    places: tuple[Any, ...]
    weights: tuple[Array, ...]


def _place(x: Array) -> Any:
    """Return where an eager tensor is in memory: nothing writes there as long as it lives, so its bits are there too.

    What is not in the memory of the CPU is nowhere else, and in no place twice.
    """
    return np.asarray(memoryview(x)).ctypes.data if x.device.endswith("CPU:0") else object()


def _same(x: Array, y: Array) -> bool:
    """Return whether two tensors have the same bits."""
    return bool(tf.reduce_all(tf.bitcast(x, tf.int32) == tf.bitcast(y, tf.int32)))


class _Served:
    """Kept weights, as graphs can read them."""

    def __init__(self, weights: tuple[Array, ...]) -> None:
        self.weights = weights
        self.variables = tuple(tf.Variable(w, trainable=False) for w in weights)

    def hold(self, weights: tuple[Array, ...]) -> None:
        """Give the variables other values; they share the memory of the tensors."""
        if self.weights is not weights:
            for variable, weight in zip(self.variables, weights, strict=True):
                variable.assign(weight)
            self.weights = weights


class _Run:
    """The weights of a forward pass, all at once."""

    def __init__(self, source: Source, weights: dict[str, Array]) -> None:
        self.source = source
        self.weights = weights
        self.eager = tf.executing_eagerly()

    def weight(self, name: str) -> Array:
        """Return a weight; a graph that is traced in an eager pass may outlive it, so it builds its own."""
        if self.eager and not tf.executing_eagerly():
            return _Run.build(self, (name,))[0]
        return self.weights[name] if name in self.weights else self.build((name,))[0]

    def build(self, names: tuple[str, ...]) -> tuple[Array, ...]:
        """Build weights that the pass does not hold."""
        weights: tuple[Array, ...] = derivatives.build(self.source.plan, names, *self.source.flat())
        return weights


class _LayerRun(_Run):
    """The weights of the layer that runs.

    Each weight is a function of an anchor, whose gradient is the weight's cotangent; the anchors are functions of the
    variables, and turn all cotangents into gradients at once.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source, {})
        self.flat = source.flat()
        self.anchors = dict(zip(source.names, _anchors(source.plan, source.names)(*self.flat), strict=True))

    @contextmanager
    def holding(self, names: Sequence[str], after: Sequence[Array]) -> Iterator[None]:
        """Hold weights, which graphs build no sooner than they have some other tensors."""
        new = tuple(name for name in names if name not in self.weights)
        with tf.control_dependencies(list(after)):
            self.weights |= dict(zip(new, self.build(new), strict=True))
        try:
            yield
        finally:
            for name in new:
                del self.weights[name]

    @as_written
    def build(self, names: tuple[str, ...]) -> tuple[Array, ...]:
        """Build weights, connected to the variables by their anchors."""
        plan = self.source.plan

        def make() -> tuple[Array, ...]:
            return derivatives.build(plan, names, *map(tf.stop_gradient, self.flat)) if names else ()

        @tf.custom_gradient
        def smh_anchored(*anchors: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
            return make(), lambda *cotangents: cotangents

        results: tuple[Array, ...] = smh_anchored(*(self.anchors[name] for name in names)) if names else ()
        return results


def _linked(plan: Plan, names: tuple[str, ...], make: Callable[[], tuple[Array, ...]]) -> Callable[..., Any]:
    """Return the function from all variables to weights that are made elsewhere."""

    @tf.custom_gradient
    def smh_linked(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
        return make(), lambda *cotangents: derivatives.gradients(plan, names, *variables, *cotangents)

    return smh_linked  # type: ignore[no-any-return]


def _anchors(plan: Plan, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function from all variables to one small tensor per weight, whose gradient has the weight's shape."""
    shapes = [tensor.viewed_shape for tensor in plan.tensors]

    @tf.custom_gradient
    def smh_anchors(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
        def pull(*cotangents: Array) -> Any:
            return derivatives.gradients(plan, names, *variables, *map(_full, cotangents, shapes))

        return tuple(_anchor() for _ in names), pull

    return smh_anchors  # type: ignore[no-any-return]


def _anchor() -> Array:
    """Return a zero; graphs do not know its shape, which they would hold its gradient to."""
    zero = tf.zeros(())
    return zero if tf.executing_eagerly() else tf.raw_ops.PlaceholderWithDefault(input=zero, shape=None)


def _full(cotangent: Array, shape: tuple[int, ...]) -> Array:
    """Return a cotangent in the shape of its weight; that of a weight without use is a zero."""
    return tf.broadcast_to(cotangent, shape)


_RUNS: ContextVar[Any] = ContextVar("smh_keras_runs", default=MappingProxyType({}))
"""The passes that are under way, by the id of their sources."""
_SERVED: ContextVar[Any] = ContextVar("smh_keras_served", default=MappingProxyType({}))
"""The kept weights that graphs may read, by the id of their sources."""


def held_while_running(layer: keras.Layer, source: Source, names: tuple[str, ...]) -> None:
    """Make a layer hold the weights that it and its layers use, while it runs."""
    call = layer.call

    @functools.wraps(call)
    def holding(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x) and not isinstance(x, tf.Variable)]
        with source.layer(names, tensors):
            return call(*args, **kwargs)

    layer.call = holding
