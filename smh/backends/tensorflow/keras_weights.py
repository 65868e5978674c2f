"""Generated weights of a Keras model: variables without memory, and the forward pass that gives them values.

A pass builds weights by one differentiable function of all variables, so that their gradients have the bits of
:func:`smh.vjp` whatever the residency: one vector-Jacobian product gets the cotangents of all weights.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state

from smh.backends.tensorflow import derivatives
from smh.backends.tensorflow.derivatives import as_written
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import ExportError, VariableError
from smh.models import poison
from smh.models.compression import Compression

_RUNS: ContextVar[Any] = ContextVar("smh_keras_runs", default=MappingProxyType({}))
"""The passes that are under way, by the id of their sources."""
_BUILT: ContextVar[Any] = ContextVar("smh_keras_built", default=MappingProxyType({}))
"""Whose weights eager code shares, by the id of their sources."""
_SERVED: ContextVar[Any] = ContextVar("smh_keras_served", default=MappingProxyType({}))
"""The kept weights that graphs may read, by the id of their sources."""


class Source:
    """The variables of one model, and the weights that they generate.

    ``variables`` are in the plan's order. ``weights`` are those of the model as it was, in the order of
    ``compression.tensors``; the plan's among them become generated ones.
    """

    def __init__(
        self, compression: Compression, variables: Sequence[keras.Variable], weights: Sequence[keras.Variable]
    ) -> None:
        self.compression = compression
        self.plan = compression.plan
        self.names = tuple(tensor.name for tensor in self.plan.tensors)
        self.variables = dict(zip(self.plan.variable_shapes, variables, strict=True))
        self.weights = {tensor.name: x for tensor, x in zip(compression.tensors, weights, strict=True)}
        self.owners: list[keras.Layer] = []  # the layers whose own weights are generated
        self.places: dict[str, list[keras.Layer]] = {name: [] for name in self.names}  # the owners of each weight
        self.layers: set[int] = set()  # the ids of all layers of the model
        self._cache: _Cache | None = None
        self._served: tuple[tf.Variable, ...] = ()
        self._served_weights: tuple[Array, ...] = ()
        self._lock = threading.Lock()
        self._read = tf.function(self.flat, autograph=False)  # faster than one by one

    def flat(self) -> list[Array]:
        """Return the present values of all variables, as tensors."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables.values()]

    def values(self) -> dict[str, Any]:
        """Return all variables, float32, by name."""
        return self.variables

    def build(self, names: tuple[str, ...], flat: Sequence[Array]) -> tuple[Array, ...]:
        """Return the named weights from the values of all variables, through which gradients flow."""
        return _built(self.plan, names, flat, self.compression.fast)

    def penalties(self) -> list[Array]:
        """Return the losses of the regularizers of generated weights."""
        variables = (self.weights[name] for name in self.names)
        return [variable.regularizer(variable) for variable in variables if variable.regularizer is not None]

    @as_written
    def weight(self, name: str) -> Array:
        """Return a weight: that of the present pass, or else one that is built for this use."""
        run = self.running
        if run is None:
            return self._weights((name,))[name]
        return run.weights[name] if name in run.weights else run.build((name,))[0]

    @property
    def running(self) -> Any:
        """Return the pass that is under way, or None: a graph may outlive an eager one."""
        run = _RUNS.get().get(id(self))
        return None if run is None or (run.eager and not tf.executing_eagerly()) else run

    @contextmanager
    def passing(self, names: tuple[str, ...] | None = None) -> Iterator[None]:
        """Hold the weights, all or some, of one forward pass."""
        by_layer = self.compression.residency == "layer" and not self._shares()
        with _within(_RUNS, self, _LayerRun(self) if by_layer else _Run(self._weights(names or self.names))):
            yield

    def watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a training step that raises :class:`~smh.VariableError` if it leaves poisoned variables.

        A number in its logs that is not finite, such as the loss, makes it look at the variables. Reading logs waits
        for a device other than the CPU, so there every hundredth step is watched.
        """
        steps = itertools.count(1)

        @functools.wraps(step)
        def run(*args: Any) -> Any:
            logs, place = step(*args), next(steps)
            numbers = [x for x in keras.tree.flatten(logs) if tf.is_tensor(x) and x.dtype.is_floating]
            if not all(np.isfinite(x.numpy()).all() for x in numbers if _on_cpu(x) or place % 100 == 0):
                _check(self.plan, self.flat())
            return logs

        return run

    def part(self, names: tuple[str, ...]) -> AbstractContextManager[None]:
        """Return a context that holds the named weights, unless a pass is already running."""
        return self.passing(names) if self.running is None else nullcontext()

    def check_trainer(self, layer: keras.Layer) -> None:
        """Raise :class:`~smh.VariableError` if a layer runs in training within a model that does not train the pool."""
        context = global_state.get_global_attribute("current_call_ctx")
        if context is None or not context.get_value("training") or not layer.trainable:
            return
        model, pool = context.entry_layer, next(iter(self.variables.values()))
        if id(model) in self.layers:
            return
        if not any(x is pool for x in model.variables):
            raise VariableError(
                f"layer {layer.name!r} has weights that a pool generates, and model {model.name!r} uses it without "
                "the pool, so it would not train them: use the whole compressed model in it, or parts of "
                "smh.materialize(model), or freeze the layer by trainable = False"
            )

    def anchors(self, flat: Sequence[Array]) -> dict[str, Array]:
        """Return one small tensor per weight, a function of all variables, whose gradient is the weight's cotangent."""
        return dict(zip(self.names, _anchors(self, flat), strict=True))

    @contextmanager
    def built(self) -> Iterator[None]:
        """Keep weights for eager code, as ``cached`` does, until the end."""
        self._kept(self._read())
        try:
            with _within(_BUILT, self, True):
                yield
        finally:
            if self.compression.residency != "cached":
                self.forget()

    def _shares(self) -> bool:
        """Say whether weights that are kept may be used here."""
        if not tf.executing_eagerly():
            return self.compression.residency == "cached" and id(self) in _SERVED.get()
        return self.compression.residency == "cached" or id(self) in _BUILT.get()

    def layer(self, names: Sequence[str], after: Sequence[Array]) -> AbstractContextManager[None]:
        """Return a context that holds the named weights while a layer runs, if weights are built layer by layer."""
        run = self.running
        by_layer = names and isinstance(run, _LayerRun) and run.eager == tf.executing_eagerly()
        return run.holding(names, after) if by_layer else nullcontext()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Let graphs read kept weights, which are those of the present variables: as captured ``tf.Variable`` objects.

        Graphs that are traced meanwhile may run later only within this context.
        """
        weights = self._kept(self._read())
        with self._lock:  # graphs of all threads read the same variables, which share the memory of the tensors
            self._served = self._served or tuple(tf.Variable(weight, trainable=False) for weight in weights)
            if self._served_weights is not weights:
                for variable, weight in zip(self._served, weights, strict=True):
                    variable.assign(weight)
                self._served_weights = weights
            served = self._served
        with _within(_SERVED, self, served):
            yield

    def forget(self) -> None:
        """Free the weights that were kept. Graphs that were traced while serving must not run again."""
        self._cache = None
        self._served = self._served_weights = ()

    @as_written
    def _weights(self, names: tuple[str, ...]) -> dict[str, Array]:
        """Return the named weights, or all that are kept."""
        flat, served, fast = self.flat(), _SERVED.get().get(id(self)), self.compression.fast
        if not self._shares():
            return dict(zip(names, self.build(names, flat), strict=True))
        kept = self._kept(flat) if tf.executing_eagerly() else ()

        @tf.custom_gradient
        def smh_linked(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
            weights = kept or tuple(x.value() for x in served)

            def pull(*cotangents: Array) -> Any:
                return derivatives.gradients(self.plan, self.names, *variables, *cotangents, fast=fast)

            return weights, pull

        return dict(zip(self.names, smh_linked(*flat), strict=True))

    def _kept(self, flat: Sequence[Array]) -> tuple[Array, ...]:
        """Return all weights, built anew only if a variable was changed."""
        kept = self._cache  # once: another thread may forget it, or keep what it built for other variables
        places = tuple(map(_place, flat))
        if kept is not None and places == kept.places:
            return kept.weights
        if kept is not None and all(map(_same, flat, kept.variables)):
            weights = kept.weights
        else:
            weights = self.build(self.names, [tf.stop_gradient(x) for x in flat])
        self._cache = _Cache(tuple(flat), places, weights)
        return weights


class GeneratedVariable(keras.Variable):
    """A weight that is generated when it is read. It stores nothing, and nothing can be assigned to it."""

    smh_source: Source
    smh_name: str

    @property
    def value(self) -> Array:
        """The weight, in the type that the layer computes in."""
        return self._maybe_autocast(tf.cast(self.smh_source.weight(self.smh_name), self.dtype))

    def assign(self, value: Any) -> Any:
        """Refuse with a :class:`~smh.VariableError`: the weight is generated."""
        raise VariableError(
            f"{self.smh_name!r} is generated from a pool and cannot be assigned to: make a plain model by "
            "smh.materialize(model) first, or change the variables of model.smh_pool; if its layer assigns to it, keep "
            f"it by smh.compress(..., exclude=[{self.smh_name!r}])"
        )

    _direct_assign = assign

    @property
    def handle(self) -> Any:
        """Refuse with a :class:`~smh.VariableError`: tapes ask for it, and a generated weight is not a variable."""
        raise VariableError(
            f"{self.smh_name!r} is generated, and no variable: take gradients with respect to "
            "model.trainable_variables, or of a plain model, smh.materialize(model)"
        )

    def _export_to_saved_model_graph(self, *args: Any, **kwargs: Any) -> Any:
        raise ExportError(
            "tf.saved_model.save cannot store generated weights: export the model by model.export(path), or make a "
            "plain model by smh.materialize(model) first"
        )

    def _serialize_to_tensors(self) -> dict[str, Array]:
        return {}  # to tf.train.Checkpoint

    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        return None


def held_while_running(layer: keras.Layer, source: Source, names: tuple[str, ...]) -> None:
    """Make a layer hold the weights that it and its layers use, while it runs; a model leaves that to its layers.

    What runs by itself, outside of a pass of the whole model, builds them at once. It is not trained by a model that
    lacks the pool.
    """
    held = () if isinstance(layer, keras.Model) else names
    call = layer.call

    @functools.wraps(call)
    def holding(*args: Any, **kwargs: Any) -> Any:
        if source.running is None:
            source.check_trainer(layer)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x) and not isinstance(x, tf.Variable)]
        with source.part(names), source.layer(held, tensors):
            return call(*args, **kwargs)

    layer.call = holding


def _built(plan: Plan, names: tuple[str, ...], flat: Sequence[Array], fast: bool = False) -> tuple[Array, ...]:
    """Build weights; eager code on a CPU, which does not wait for a device, refuses poisoned variables.

    A poisoned variable makes whole weights NaN, so one number of each tells.
    """
    weights = derivatives.build(plan, names, *flat, fast=fast)
    if tf.executing_eagerly() and all(map(_on_cpu, weights)):
        if any(math.isnan(np.asarray(memoryview(x)).item(0)) for x in weights):
            _check(plan, flat)
    return weights


def _check(plan: Plan, flat: Sequence[Array]) -> None:
    """Raise :class:`~smh.VariableError` if variables are poisoned."""
    poison.check(plan, dict(zip(plan.variable_shapes, (x.numpy() for x in flat), strict=True)))


def _on_cpu(x: Array) -> bool:
    return bool(x.device.endswith("CPU:0"))


class _Cache(NamedTuple):
    """Weights, the variables that they were built from, and where these are."""

    variables: tuple[Array, ...]
    places: tuple[Any, ...]
    weights: tuple[Array, ...]


def _place(x: Array) -> Any:
    """Return where an eager tensor is in memory: nothing writes there as long as it lives, so its bits are there too.

    An array outside the memory of the CPU gets a new object, which equals no other place.
    """
    return np.asarray(memoryview(x)).ctypes.data if _on_cpu(x) else object()


def _same(x: Array, y: Array) -> bool:
    """Return whether two tensors have the same bits."""
    if x.dtype == tf.float32:
        x, y = tf.bitcast(x, tf.int32), tf.bitcast(y, tf.int32)
    return bool(tf.reduce_all(x == y))


class _Run:
    """The weights of a forward pass, all at once."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.eager = tf.executing_eagerly()


class _LayerRun(_Run):
    """The weights of the layer that runs.

    Each weight is a function of an anchor, whose gradient is the weight's cotangent; the anchors are functions of the
    variables, and turn all cotangents into gradients at once.
    """

    def __init__(self, source: Source) -> None:
        super().__init__({})
        self.source = source
        self.flat = source.flat()
        self.anchors = source.anchors(self.flat)

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
        if not names:
            return ()

        @tf.custom_gradient
        def smh_anchored(*anchors: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
            weights = self.source.build(names, [tf.stop_gradient(x) for x in self.flat])
            return weights, lambda *cotangents: cotangents

        return tuple(smh_anchored(*(self.anchors[name] for name in names)))


def _anchors(source: Source, flat: Sequence[Array]) -> tuple[Array, ...]:
    """Return one small tensor per weight, a function of all variables, whose gradient has the weight's shape."""
    shapes = [tensor.viewed_shape for tensor in source.plan.tensors]

    @tf.custom_gradient
    def smh_anchors(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
        def pull(*cotangents: Array) -> Any:
            full = map(tf.broadcast_to, cotangents, shapes)  # that of a weight without use is a zero
            return derivatives.gradients(source.plan, source.names, *variables, *full, fast=source.compression.fast)

        zeros = [tf.zeros(()) for _ in shapes]
        if not tf.executing_eagerly():  # a graph that knew their shape would hold their gradients to it
            zeros = [tf.raw_ops.PlaceholderWithDefault(input=zero, shape=None) for zero in zeros]
        return tuple(zeros), pull

    return tuple(smh_anchors(*flat))


@contextmanager
def _within(variable: ContextVar[Any], source: Source, value: Any) -> Iterator[None]:
    """Set the value of a context variable for a source."""
    token = variable.set(MappingProxyType({**variable.get(), id(source): value}))
    try:
        yield
    finally:
        variable.reset(token)
