"""What a Keras model consists of: its weights, their names, what their axes mean, and how to copy it all."""

from __future__ import annotations

import functools
import inspect
import math
import string
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from smh.errors import PlanError
from smh.models.compression import ModelTensor
from smh.models.roles import by_class

_DEPTHWISE = {3: "w o m", 4: "h w o m"}
_TRANSPOSED = {3: "w o i", 4: "h w o i", 5: "d h w o i"}


def names_of(model: keras.Layer) -> dict[str, tuple[str, ...]]:
    """Return the name of each weight in order, and its other names.

    Names are the layers on the way to a variable and its own name, as in Keras's ``path``, which however begins with
    the model's name or does not, depending on where the model was built.
    """
    found: dict[int, list[str]] = {}
    taken: Counter[str] = Counter()

    def walk(layer: keras.Layer, prefix: str) -> None:
        for variable in own_weights(layer):
            path = f"{prefix}{variable.name}"
            while taken[path]:
                path += f"_{taken[path]}"
            taken[path] += 1
            found.setdefault(id(variable), []).append(path)
        for sublayer in layer._layers:
            walk(sublayer, f"{prefix}{sublayer.name}/")

    walk(model, "")
    return {found[id(x)][0]: tuple(found[id(x)][1:]) for x in model.weights}


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
    """Return the weights of a model in order, with what is known of their axes and why some must be kept."""
    owners = {id(variable): layer for layer in model._flatten_layers() for variable in own_weights(layer)}
    return tuple(
        ModelTensor(
            name=name,
            shape=tuple(variable.shape),
            nbytes=math.prod(variable.shape) * tf.as_dtype(variable.dtype).size,
            axes=_axes(owners[id(variable)], variable),
            aliases=aliases,
            kept=_why_kept(owners[id(variable)], variable),
            left=by_class(owners[id(variable)], variable.name),
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
        advice = "create all weights in __init__ and build, and tie weights by sharing layers"
        raise PlanError(
            f"a model made from the configuration does not have the weights of the model: {advice}; "
            f"got {len(after)} variables for {len(before)}"
        )
    left = {id(weights[name]) for name in leave}
    for old, new in zip(before, after, strict=True):
        if id(old) not in left:
            new.assign(old.value)
    for old, new in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        if new.name != old.name:  # numbered by Keras, in a constructor
            new.name = old.name
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
    return copy


def check_graphs(model: keras.Model) -> None:
    """Raise :class:`~smh.PlanError` if layers keep graphs of their own, which use the variables that they saw."""
    for layer in model._flatten_layers():
        if not _is_custom(type(layer)):
            continue
        for name in {*vars(layer), *dir(type(layer))}:
            if isinstance(inspect.getattr_static(layer, name, None), tf.types.experimental.PolymorphicFunction):
                if getattr(layer, name).experimental_get_tracing_count():
                    raise PlanError(
                        f"{name!r} of layer {layer.name!r} is a tf.function that was traced while the model was built, "
                        "and would go on using the weights that it saw: trace the model, not its layers"
                    )


def _rebuilt(model: keras.Model) -> keras.Model:
    """Return a model of the same configuration, uncompiled, with variables of its own and without their values."""
    custom = {
        keras.saving.get_registered_name(cls): SimpleNamespace(from_config=functools.partial(_revived, cls))
        for cls in {type(layer) for layer in model._flatten_layers()}
        if _is_custom(cls)
    }
    advice = "give every custom class a get_config (and a build) with which keras.saving can make it again"
    try:
        with keras.saving.custom_object_scope(custom):
            config = keras.saving.serialize_keras_object(model)
            config.pop("compile_config", None)
            return keras.saving.deserialize_keras_object(config, safe_mode=False)
    except Exception as error:  # whatever the model's own code may raise
        raise PlanError(f"the model cannot be copied from its configuration: {advice}; got {error!r}") from error


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


def _why_kept(layer: keras.Layer, variable: keras.Variable) -> str:
    """Return why a variable cannot be generated, or nothing."""
    reasons = {
        "is not trainable": not variable.trainable,
        f"is {variable.dtype}, not float32": variable.dtype != "float32",
        "belongs to a quantized layer": getattr(layer, "quantization_mode", None) is not None,
        "is overwritten by its gradient": variable.overwrite_with_gradient,
        "has a constraint, which a generated weight would not keep": variable.constraint is not None,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _axes(layer: keras.Layer, variable: keras.Variable) -> str | None:
    """Return what the axes of a variable mean where the default by rank does not hold.

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
