"""Backends that are broken on purpose, each in a way that one law of the conformance suite finds and no other does."""

import dataclasses
import os

import numpy as np

from smh import errors, generate
from smh.backends.numpy import NumpyBackend


class IndicesOfAnotherSeed(NumpyBackend):
    def indices(self, plan, start, stop):
        return super().indices(dataclasses.replace(plan, seed=plan.seed ^ 1), start, stop)


class WeightsThatAreNotFlushed(NumpyBackend):
    """The last flush is missing: the smallest weights stay, which no gradient shows."""

    @np.errstate(all="ignore")
    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        double = {
            tensor.name: dataclasses.replace(tensor, modifiers=())
            for tensor in plan.tensors
            if tensor.learn_scale and not tensor.modifiers
        }
        raw = dataclasses.replace(plan, tensors=tuple(double.get(t.name, t) for t in plan.tensors))
        ones = {name: np.ones_like(x) if name.startswith("scale/") else x for name, x in variables.items()}
        virtual = super().materialize(raw, ones, list(weights))
        for name, w in weights.items():
            if name in double and plan.arithmetic == "exact":
                unflushed = virtual[name] * variables[f"scale/{name}"]
                weights[name] = np.where((w == 0) & (abs(unflushed) > 0), unflushed, w)
        return weights


class GradientsThatPassRelu(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        tensors = tuple(
            dataclasses.replace(t, modifiers=tuple(m for m in t.modifiers if m != "relu")) for t in plan.tensors
        )
        return super().vjp(dataclasses.replace(plan, tensors=tensors), variables, cotangents)


class NamesInTheOrderOfThePlan(NumpyBackend):
    """Weights are built in the plan's order, and given the names in the order in which they were asked for."""

    def materialize(self, plan, variables, names=None):
        if names is None:
            return super().materialize(plan, variables)
        names = [tensor.name for tensor in plan.select(names)]
        in_order = [tensor.name for tensor in plan.tensors if tensor.name in names]
        return dict(zip(names, super().materialize(plan, variables, in_order).values(), strict=True))


class ResultsInAnotherOrder(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        return dict(reversed(super().vjp(plan, variables, cotangents).items()))


class VariablesFlushedInPlace(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        for x in variables.values():
            x[abs(x) < 2.0**-120] = 0
        return weights


class GradientsThatAccumulate(NumpyBackend):
    """The same call again adds to what it gave before."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        key = plan, *(x.tobytes() for x in (*variables.values(), *cotangents.values()))
        self.calls[key] = self.calls.get(key, 0) + 1
        return {name: np.asarray(g * np.float32(self.calls[key])) for name, g in gradients.items()}


class WeightDecayInFastGradients(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        if plan.arithmetic == "exact":
            return gradients
        return {name: np.asarray(g + np.float32(1e-9) * variables[name]) for name, g in gradients.items()}


class FastInHalfPrecision(NumpyBackend):
    @np.errstate(all="ignore")
    def materialize(self, plan, variables, names=None):
        if plan.arithmetic == "fast":
            variables = {name: x.astype(np.float16).astype(np.float32) for name, x in variables.items()}
        return super().materialize(plan, variables, names)


class NanPayloadsLost(NumpyBackend):
    def asarray(self, x, device=None):
        x = super().asarray(x, device)
        return np.where(np.isnan(x), np.asarray(np.nan, dtype=x.dtype), x) if x.dtype.kind == "f" else x


class UnknownVariablesIgnored(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        return super().materialize(plan, {n: variables[n] for n in plan.variable_shapes if n in variables}, names)


class LastBlockForgotten(NumpyBackend):
    """Virtual weights beyond the first 2**18 come out wrong when many are built at once."""

    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        if names is None and plan.num_weights > 2**18:
            weights[plan.tensors[-1].name] = np.zeros_like(weights[plan.tensors[-1].name])
        return weights


class ThreadsThatShow(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        if os.environ.get("OMP_NUM_THREADS") == "2":
            weights = {name: np.nextafter(w, np.float32(np.inf)) for name, w in weights.items()}
        return weights


class SwappedScaleGradients(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        scales = [name for name in gradients if name.startswith("scale/")]
        return gradients | dict(zip(scales, [gradients[name] for name in reversed(scales)], strict=True))


class FusedMultiplyAdd(NumpyBackend):
    """Cells that share a virtual weight are added before their products with the scale are rounded."""

    @np.errstate(all="ignore")
    def vjp(self, plan, variables, cotangents):
        capacity = plan.capacity
        if plan.layout != "cyclic" or plan.num_weights <= capacity or any(t.modifiers for t in plan.tensors):
            return super().vjp(plan, variables, cotangents)
        total = np.zeros(capacity)
        for tensor in plan.tensors:
            scale = variables[tensor.scale_variable] if tensor.learn_scale else tensor.initial_scale
            g = cotangents.get(tensor.name, np.zeros(tensor.viewed_shape, dtype=np.float32))
            g = tensor.view.invert(np, g, tensor.shape) if tensor.view else g
            cells = (tensor.offset + np.arange(tensor.size)) % capacity
            np.add.at(total, cells, np.float64(scale) * g.reshape(-1))
        own = {name.removeprefix("pool/"): x for name, x in variables.items() if name.startswith("pool/")}
        pool = plan.pool.bind(self._ops, generate.exact, own, plan.seed)
        found = {f"pool/{name}": g for name, g in pool.pull(total.astype(np.float32)).items()}
        return super().vjp(plan, variables, cotangents) | found


class SilentCast(NumpyBackend):
    """Variables of another type are converted without a word."""

    def materialize(self, plan, variables, names=None):
        variables = {name: x.astype(np.float32) if hasattr(x, "dtype") else x for name, x in variables.items()}
        return super().materialize(plan, variables, names)


class WordsInsteadOfErrors(NumpyBackend):
    def asarray(self, x, device=None):
        try:
            return super().asarray(x, device)
        except errors.BackendError as error:
            raise RuntimeError(str(error)) from error


class OrdinaryNumpy(NumpyBackend):
    """Nothing is wrong with this one."""
