"""Weights of frozen Keras models: built from stored integers, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from smh.backends.tensorflow.keras_pool import EXPONENTS
from smh.backends.tensorflow.keras_weights import Source
from smh.backends.tensorflow.narrow import kernels
from smh.core import generate, integers
from smh.core.grid import LARGEST, LEAST, Grid
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.files.integers import Integers
from smh.models.compression import Compression

_MOST_BITS = 16
_FIRST = LEAST - _MOST_BITS
_POWERS = [2.0**e for e in range(_FIRST, LARGEST + 1)]


class FrozenSource(Source):
    """The integers of one model, and the weights that they generate."""

    def __init__(
        self, compression: Compression, variables: Sequence[keras.Variable], weights: Sequence[keras.Variable]
    ) -> None:
        *stored, self.exponents = variables
        super().__init__(compression, stored, weights)
        self._given: dict[str, Array] = {}

    def flat(self) -> list[Array]:
        """Return the present integers and scales in the order of the plan, and exponents."""
        return [*super().flat(), tf.convert_to_tensor(self.exponents.value)]

    def values(self) -> dict[str, Any]:
        """Return the values of the integers, and the scales."""
        found = _grids(self.plan, self.variables, self.exponents)
        return {**self.variables, **{f"pool/{name}": one.integers * one.unit + 0.0 for name, one in found.items()}}

    def build(self, names: tuple[str, ...], flat: Sequence[Array]) -> tuple[Array, ...]:
        """Return the named weights."""
        named = dict(zip([*self.variables, EXPONENTS], flat, strict=True))
        found = _grids(self.plan, named, named[EXPONENTS])
        weights = generate.build(kernels(), self.plan, found, named, self.plan.select(names))
        return tuple(tf.stop_gradient(w) for w in weights.values())

    @contextmanager
    def given(self, weights: Mapping[str, Array]) -> Iterator[None]:
        """Let passes use weights that were built elsewhere, for exports."""
        self._given = dict(weights)
        try:
            yield
        finally:
            self._given = {}

    def _weights(self, names: tuple[str, ...]) -> dict[str, Array]:
        return self._given or super()._weights(names)

    def anchors(self, flat: Sequence[Array]) -> dict[str, Array]:
        """Return tensors that connect weights to nothing."""
        return dict.fromkeys(self.names, tf.zeros(()))

    def assign(self, given: Integers, scales: Mapping[str, Any]) -> None:
        """Assign integers, exponents and scales."""
        for name, variable in self.variables.items():
            variable.assign(given.arrays[name] if name in given.arrays else scales[name])
        self.exponents.assign([given.exponents[_short(name)] or 0 for name, *_ in integers.pool_arrays(self.plan)])


def _grids(plan: Plan, stored: Mapping[str, Any], exponents: Any) -> dict[str, Grid]:
    """Return the grids of integers whose exponents are a tensor, so that no graph optimization can fold weights."""
    found = {}
    given = {name: tf.convert_to_tensor(stored[name]) for name, *_ in integers.pool_arrays(plan)}
    unpacked = integers.unpacked(kernels(), plan, given)
    for k, (name, bits, _, _) in enumerate(integers.pool_arrays(plan)):
        power = tf.gather(tf.constant(_POWERS, tf.float32), exponents[k] - _FIRST)
        q = tf.cast(unpacked[_short(name)], tf.float32)
        found[_short(name)] = Grid(q, power * 2.0 ** (1 - bits), power)
    return found


def _short(name: str) -> str:
    return name.removeprefix("pool/")
