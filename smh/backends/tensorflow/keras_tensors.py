"""The tensors of a Keras model: their names, the meaning of their axes, and how to copy the model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import string
import tempfile
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh.backends.tensorflow.keras_edits import serialized
from smh.errors import PlanError
from smh.models.compression import ModelTensor
from smh.models.roles import by_class

_ASSETS = "assets/"
_UNNAMED = re.compile(r"^variable_\d+$")
_DEPTHWISE = {3: "w o m", 4: "h w o m"}
_BY_VARIABLE = {
    keras.Layer,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
    keras.src.layers.convolutional.base_conv.BaseConv,
}
"""Classes that store their variables one by one, and no more: in their own order, which depends on quantization."""
_TYPES = ("float32", "bfloat16", "float16")
"""Of variables that can be generated: in float32, and rounded where they are of another type."""
_TRANSPOSED = {3: "w o i", 4: "h w o i", 5: "d h w o i"}


def names_of(model: keras.Layer) -> dict[str, tuple[str, ...]]:
    """Return the name of each weight in order, and its other names.

    Names are the layers on the way to a variable and its own name, as in Keras's ``path``, which however begins with
    the model's name or does not, depending on where the model was built. Variables without a name, which Keras numbers
    through the life of a process, are numbered by layer.
    """
    found: dict[int, list[str]] = {}
    taken: Counter[str] = Counter()
    for prefix, layer in _walk(model):
        for variable in own_weights(layer):
            path = f"{prefix}{_UNNAMED.sub('variable', variable.name)}"
            while taken[path]:
                path += f"_{taken[path]}"
            taken[path] += 1
            found.setdefault(id(variable), []).append(path)
    return {found[id(x)][0]: tuple(found[id(x)][1:]) for x in model.weights}


def _walk(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Yield a layer and all within it, each with the beginning of the names of its weights, once for each way there."""
    yield prefix, layer
    for sublayer in layer._layers:
        yield from _walk(sublayer, f"{prefix}{sublayer.name}/")


def without_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return names in which the numbers that Keras gave to layers are replaced by ranks.

    Keras numbers layers through the life of a process, so that a model made twice has ``dense`` and ``dense_1`` once,
    ``dense_2`` and ``dense_3`` the next time.

    >>> list(without_numbers(["dense_2/kernel", "dense_3/kernel"]).values())
    ['dense/kernel', 'dense_1/kernel']
    """
    parts = {name: name.split("/") for name in names}
    numbers: dict[str, set[int]] = defaultdict(set)
    for stem, number in (_stem(layer) for layers in parts.values() for layer in layers[:-1]):
        numbers[stem].add(number)

    def renamed(layer: str) -> str:
        stem, number = _stem(layer)
        rank = sum(other < number for other in numbers[stem])
        return f"{stem}_{rank}" if rank else stem

    return {name: "/".join([*map(renamed, layers[:-1]), layers[-1]]) for name, layers in parts.items()}


def tensors_of(model: keras.Model) -> tuple[ModelTensor, ...]:
    """Return the weights of a model in order, with the meaning of their axes and why some must be kept."""
    owners = {id(variable): layer for layer in model._flatten_layers() for variable in own_weights(layer)}
    changed = _changed_by_layers(model)
    return tuple(
        ModelTensor(
            name=name,
            shape=tuple(variable.shape),
            nbytes=math.prod(variable.shape) * tf.as_dtype(variable.dtype).size,
            axes=_axes(owners[id(variable)], variable),
            aliases=aliases,
            kept=_why_kept(owners[id(variable)], variable, id(variable) in changed),
            left=by_class(owners[id(variable)], variable.name),
            kind=type(owners[id(variable)]).__name__,
            trained=variable.trainable,
        )
        for (name, aliases), variable in zip(names_of(model).items(), model.weights, strict=True)
    )


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer itself tracks, without those of its layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def copy_of(
    model: keras.Model, weights: Mapping[str, keras.Variable], leave: Collection[str] = frozenset()
) -> keras.Model:
    """Return a model of the same configuration, not compiled, with the values of another one.

    These are weights, but for the names in ``leave``, states of random generators, and assets. ``weights`` are all of
    the model in order, generated ones included. Raises :class:`~smh.PlanError` if Keras cannot make the model from its
    configuration, or makes it with other variables.
    """
    copy = _rebuilt(model)
    before = [*weights.values(), *_random_states(model)]
    after = [*copy.weights, *_random_states(copy)]
    kinds = [[(tuple(v.shape), v.dtype, v.trainable) for v in variables] for variables in (before, after)]
    if kinds[0] != kinds[1]:
        advice = (
            "create all weights in __init__ and build, and tie weights by sharing layers, but not between sub-models, "
            "where Keras makes a layer for each"
        )
        raise PlanError(
            f"a model made from the configuration does not have the weights of the model: {advice}; "
            f"got {len(after)} variables for {len(before)}"
        )
    for old, new in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        if new.name != old.name:  # numbered by Keras, in a constructor
            new.name = old.name
        load_state(new, state_of(old))
    left = {id(weights[name]) for name in leave}
    for old, new in zip(before, after, strict=True):  # afterwards, because layers may store something else
        if id(old) not in left:
            new.assign(old.value)
    return copy


def state_of(layer: keras.Layer) -> dict[str, np.ndarray]:
    """Return what a layer stores by its own methods, besides or instead of its variables, as arrays by name."""
    state = {}
    if _stores_its_own_way(layer):
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        state = {name: keras.ops.convert_to_numpy(x) for name, x in store.items()}
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                name = f"{_ASSETS}{path.relative_to(folder).as_posix()}"
                state[name] = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    return state


def load_state(layer: keras.Layer, state: Mapping[str, np.ndarray]) -> None:
    """Let a layer load the result of :func:`state_of`, and derive its other attributes from it."""
    if _stores_its_own_way(layer):
        layer.load_own_variables({name: x for name, x in state.items() if not name.startswith(_ASSETS)})
    if hasattr(layer, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            for name, x in state.items():
                if name.startswith(_ASSETS):
                    path = Path(folder, name.removeprefix(_ASSETS))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(x.tobytes())
            layer.load_assets(folder)


def states_of(model: keras.Model) -> dict[str, tuple[keras.Layer, str, np.ndarray]]:
    """Return the state of layers besides their variables, by name, with the layer and the name within it."""
    found: dict[str, tuple[keras.Layer, str, np.ndarray]] = {}
    layers = {id(layer): (prefix, layer) for prefix, layer in reversed([*_walk(model)])}
    for prefix, layer in layers.values():
        variables = {str(place): x.numpy() for place, x in enumerate(own_weights(layer))}
        for name, x in state_of(layer).items():
            if name not in variables or not np.array_equal(x, variables[name]):
                found[f"{prefix}{name}"] = layer, name, x
    return found


def load_states(model: keras.Model, values: Mapping[str, np.ndarray]) -> None:
    """Let all layers load their state after a change of variables, with values for :func:`states_of`."""
    given: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for path, (layer, name, x) in states_of(model).items():
        given[id(layer)][name] = values.get(path, x)
    for layer in model._flatten_layers():
        load_state(layer, {**state_of(layer), **given[id(layer)]})


def _stores_its_own_way(layer: keras.Layer) -> bool:
    """Say whether a layer stores something else than its variables, or derives something when it loads them."""
    methods = ("save_own_variables", "load_own_variables")
    owners = {next(cls for cls in type(layer).__mro__ if method in vars(cls)) for method in methods}
    return not owners <= _BY_VARIABLE


def check_graphs(model: keras.Model) -> None:
    """Raise :class:`~smh.PlanError` if layers keep traced graphs, which use the variables that they saw."""
    for layer, name in _functions_of(model):
        if getattr(layer, name).experimental_get_tracing_count():
            raise PlanError(
                f"{name!r} of layer {layer.name!r} is a tf.function that was traced while the model was built, "
                "and would go on using the weights that it saw: trace the model, not its layers"
            )


def _functions_of(model: keras.Model) -> Iterator[tuple[keras.Layer, str]]:
    """Yield layers with the names of their attributes that are a ``tf.function``."""
    for layer in model._flatten_layers():
        for name in {*vars(layer), *dir(type(layer))} if _is_custom(type(layer)) else ():
            if isinstance(inspect.getattr_static(layer, name, None), tf.types.experimental.PolymorphicFunction):
                yield layer, name


def _changed_by_layers(model: keras.Model) -> set[int]:
    """Return the ids of variables to which layers assign when they are called in training, as far as can be seen.

    What layers of Keras do is known; custom ones run in a graph that is thrown away, in a scope that keeps assignments
    from the variables. If a layer cannot run like this, its generated variables refuse assignments later.
    """
    layers = model._flatten_layers()
    found = {id(x.kernel) for x in layers if isinstance(x, keras.layers.SpectralNormalization)}
    inputs = getattr(model, "_inputs_struct", getattr(getattr(model, "_functional", None), "_inputs_struct", None))
    custom = any(_is_custom(type(layer)) for layer in layers) and not any(_functions_of(model))
    if custom and inputs is not None:
        specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
        run = tf.function(lambda x: model(x, training=True), autograph=False)
        with contextlib.suppress(Exception), keras.StatelessScope() as scope:
            run.get_concrete_function(specs)
        found |= {id(x) for x in model.weights if scope.get_current_value(x) is not None}
    return found


def _rebuilt(model: keras.Model) -> keras.Model:
    """Return a model of the same configuration, uncompiled, with new variables and without their values."""
    custom = {
        keras.saving.get_registered_name(cls): SimpleNamespace(from_config=functools.partial(_revived, cls))
        for cls in {type(layer) for layer in model._flatten_layers()}
        if _is_custom(cls)
    }
    advice = "give every custom class a get_config (and a build) with which keras.saving can make it again"
    try:
        with keras.saving.custom_object_scope(custom):
            config = serialized(model)
            config.pop("compile_config", None)
            return keras.saving.deserialize_keras_object(config, safe_mode=False)
    except Exception as error:  # whatever the model's own code may raise
        got = textwrap.dedent(str(error)).strip()
        raise PlanError(f"the model cannot be copied from its configuration: {advice}. Keras says: {got}") from error


def _revived(cls: Any, config: dict[str, Any]) -> keras.Layer:
    """Return a layer of a custom class, whose constructor need not take name, trainable and dtype."""
    parameters = inspect.signature(cls.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    surplus = {"name", "trainable", "dtype"} - set(parameters) if not takes_all else set()
    layer = cls.from_config({key: value for key, value in config.items() if key not in surplus})
    if "trainable" in surplus and not config.get("trainable", True):
        layer.trainable = False
    return layer


def _is_custom(cls: type) -> bool:
    return cls.__module__.split(".")[0] != "keras"


def _random_states(model: keras.Model) -> list[keras.Variable]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _stem(layer: str) -> tuple[str, int]:
    stem = layer.rstrip(string.digits)
    number = layer[len(stem) :]
    stem = stem.removesuffix("_")
    return (stem, int(number or 0)) if stem and len(number) < 10 else (layer, 0)


def _why_kept(layer: keras.Layer, variable: keras.Variable, changed: bool) -> str:
    """Return why a variable cannot be generated, or nothing."""
    reasons = {
        "is not trainable": not variable.trainable,
        f"has the type {variable.dtype}": variable.dtype not in _TYPES,
        "belongs to a quantized layer": getattr(layer, "quantization_mode", None) is not None,
        "belongs to a layer with LoRA": getattr(layer, "lora_enabled", False),
        "belongs to a layer that stores it by its own method": _stores_its_own_way(layer),
        "is changed by its layer in training": changed,
        "is overwritten by its gradient": variable.overwrite_with_gradient,
        "has a constraint, which a generated weight would not keep": variable.constraint is not None,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _axes(layer: keras.Layer, variable: keras.Variable) -> str | None:
    """Return the meaning of the axes of a variable, if it is not the default by rank.

    Of the two channel axes of a depthwise kernel, ``o`` is that of the input's channels, for each has outputs of its
    own: fan_in is then the product of the spatial axes, times the multiplier. Of several axes of an einsum kernel that
    count outputs, ``o`` is the largest, and the others are stacks, such as heads.
    """
    layers = keras.layers
    rank = len(variable.shape)
    depthwise = isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D)
    separable = isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D)
    if depthwise or (separable and variable.name == "depthwise_kernel"):
        return _DEPTHWISE.get(rank)
    if isinstance(layer, layers.Conv1DTranspose | layers.Conv2DTranspose | layers.Conv3DTranspose):
        return _TRANSPOSED.get(rank)
    if isinstance(layer, layers.Embedding) and rank == 2:
        return "o i"
    if isinstance(layer, layers.EinsumDense) and variable.name == "kernel":
        return _einsum_axes(layer.equation, tuple(variable.shape))
    return None


def _einsum_axes(equation: str, shape: tuple[int, ...]) -> str | None:
    """Return axes of a kernel ``b`` in ``a,b->c``: outputs are the axes that ``c`` has, inputs the others.

    >>> _einsum_axes("abc,cde->abde", (64, 4, 16)), _einsum_axes("abcd,cde->abe", (4, 16, 64))
    ('i s o', 'a i o')
    """
    kernel = equation.replace(".", "").replace(" ", "").split("->")[0].split(",")[1]
    result = equation.split("->")[1]
    outputs = [axis for axis, letter in enumerate(kernel) if letter in result]
    inputs = [axis for axis, letter in enumerate(kernel) if letter not in result]
    if len(kernel) != len(shape) or not outputs or not inputs:
        return None
    roles = {max(outputs, key=lambda axis: shape[axis]): "o", max(inputs, key=lambda axis: shape[axis]): "i"}
    others = iter("abcdefgh")
    return " ".join(roles.get(axis) or ("s" if axis in outputs else next(others)) for axis in range(len(shape)))
