"""Backends that are broken on purpose; `BROKEN` says which laws of the conformance suite find each, and no other.

The law `large` takes long, and is tried only where the table names it.
"""

import dataclasses
import os

import numpy as np

from smh import errors
from smh.backends.numpy import NumpyBackend
from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.kernels import Kernels
from smh.core.pools import Matmul


def with_tensors(plan, change):
    """Return a plan with every tensor changed."""
    return dataclasses.replace(plan, tensors=tuple(change(tensor) for tensor in plan.tensors))


def without_order(tensor):
    """Return a tensor whose view leaves axes in their order."""
    return dataclasses.replace(tensor, view=dataclasses.replace(tensor.view, order=())) if tensor.view else tensor


def upwards(x):
    """Return the next larger float32 numbers."""
    return np.nextafter(x, np.float32(np.inf))


class OrdinaryNumpy(NumpyBackend):
    """Nothing is wrong with this one."""


class IndicesOfAnotherSeed(NumpyBackend):
    def indices(self, plan, start, stop):
        return super().indices(dataclasses.replace(plan, seed=plan.seed ^ 1), start, stop)


class FlipsForgotten(NumpyBackend):
    """Views put axes of kernels in their old order."""

    def materialize(self, plan, variables, names=None):
        forget = with_tensors(plan, lambda tensor: without_order(tensor) if len(tensor.shape) == 4 else tensor)
        return super().materialize(forget, variables, names)


class OrderOfVectorsForgotten(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        forget = with_tensors(plan, lambda tensor: without_order(tensor) if len(tensor.shape) == 1 else tensor)
        return super().materialize(forget, variables, names)


class GradientsThatPassRelu(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        linear = with_tensors(plan, lambda tensor: dataclasses.replace(tensor, modifiers=()))
        return super().vjp(linear, variables, cotangents)


class NamesInTheOrderOfThePlan(NumpyBackend):
    """Weights are built in the plan's order, and given the names in the order in which they were asked for."""

    def materialize(self, plan, variables, names=None):
        if names is None:
            return super().materialize(plan, variables)
        names = [tensor.name for tensor in plan.select(names)]
        in_order = [tensor.name for tensor in plan.tensors if tensor.name in names]
        return dict(zip(names, super().materialize(plan, variables, in_order).values(), strict=True))


class BatchesThatShow(NumpyBackend):
    """A tensor that is built by itself comes out one unit larger."""

    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        if names is not None and len(weights) == 1 and len(plan.tensors) > 1:
            weights = {name: upwards(w) for name, w in weights.items()}
        return weights


class ResultsInAnotherOrder(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        return dict(reversed(super().vjp(plan, variables, cotangents).items()))


class VariablesFlushedInPlace(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        for x in variables.values():
            x[abs(x) < 2.0**-40] = 0
        return weights


class GradientsThatAccumulate(NumpyBackend):
    """The same call again adds to what it gave before."""

    def __init__(self):
        self.calls = {}

    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        key = plan, *(x.tobytes() for x in (*variables.values(), *cotangents.values()))
        self.calls[key] = self.calls.get(key, 0) + 1
        return {name: np.asarray(g * np.float32(self.calls[key])) for name, g in gradients.items()}


class GradientsByDirection(NumpyBackend):
    """Cotangents of the same direction have one cached result, whatever their length."""

    def __init__(self):
        self.known = {}

    @np.errstate(all="ignore")
    def vjp(self, plan, variables, cotangents):
        length = max((np.abs(g).max() for g in cotangents.values()), default=1)
        if not 2.0**-20 < length < 2.0**20:
            return super().vjp(plan, variables, cotangents)
        parts = [(g / length).tobytes() for g in cotangents.values()]
        key = plan, *(x.tobytes() for x in variables.values()), *parts
        if key not in self.known:
            self.known[key] = super().vjp(plan, variables, cotangents)
        return {name: g.copy() for name, g in self.known[key].items()}


class WeightsByDirection(NumpyBackend):
    """The same for weights and the arrays of a pool."""

    def __init__(self):
        self.known = {}

    @np.errstate(all="ignore")
    def materialize(self, plan, variables, names=None):
        for name, x in variables.items():
            if not hasattr(x, "shape") or name.startswith("pool/") and not 2.0**-20 < np.abs(x).max() < 2.0**20:
                return super().materialize(plan, variables, names)
        plain = {name: x / np.abs(x).max() if name.startswith("pool/") else x for name, x in variables.items()}
        names = None if names is None else tuple(names)
        key = plan, names, *(x.tobytes() for x in plain.values())
        if key not in self.known:
            self.known[key] = super().materialize(plan, variables, names)
        return {name: w.copy() for name, w in self.known[key].items()}


class NanPayloadsLost(NumpyBackend):
    def asarray(self, x, device=None):
        x = super().asarray(x, device)
        return np.where(np.isnan(x), np.asarray(np.nan, dtype=x.dtype), x) if x.dtype.kind == "f" else x


class UnknownVariablesIgnored(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        return super().materialize(plan, {n: variables[n] for n in plan.variable_shapes if n in variables}, names)


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
            weights = {name: upwards(w) for name, w in weights.items()}
        return weights


class _OneUnitOff(NumpyKernels):
    def scaled_products(self, *args):
        return [upwards(w) for w in super().scaled_products(*args)]


class KernelOneUnitOff(NumpyBackend):
    """A kernel that this backend itself does not need."""

    def on_kernels(self, fn, *args):
        return fn(_OneUnitOff(), *args)


class _Truncating(NumpyKernels):
    def rounded(self, x, factor, bits, clip=False):
        return super().rounded(np.trunc(x * factor) / factor, factor, bits, clip)


class KernelThatTruncates(NumpyBackend):
    """Integers are cut off, in a kernel that this backend itself does not need."""

    def on_kernels(self, fn, *args):
        return fn(_Truncating(), *args)


class _FirstHalf(NumpyKernels):
    def largest(self, x):
        return super().largest(x.reshape(-1)[: max(1, x.size // 2)])


class KernelOfHalfAnArray(NumpyBackend):
    """The largest magnitude is that of half an array, in a kernel that this backend itself does not need."""

    def on_kernels(self, fn, *args):
        return fn(_FirstHalf(), *args)


class _Float32Sums(Kernels):
    def product(self, left, right, unit, exact_terms):
        # One term after the other: on some processors a BLAS adds parts so short that float32 holds each of them.
        total = np.zeros((left.shape[0], right.shape[1]), dtype=np.float32)
        for k in range(left.shape[1]):
            total += np.outer(left[:, k], right[k]).astype(np.float32)
        return total * unit


class Float32SumsOfManyTerms(NumpyBackend):
    def materialize(self, plan, variables, names=None):
        if isinstance(plan.pool, Matmul) and plan.pool.m > 1000:
            return generate.materialize(_Float32Sums(np), plan, variables, names)
        return super().materialize(plan, variables, names)


class TensorsSorted(NumpyBackend):
    """Weights are kept sorted by their names, as pytrees keep them, and read in the plan's order."""

    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        return weights if names is not None else dict(zip(weights, (weights[n] for n in sorted(weights)), strict=True))


class MissingCotangentsAreOnes(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        ones = {t.name: np.ones(t.viewed_shape, dtype=np.float32) for t in plan.tensors}
        return super().vjp(plan, variables, ones | dict(cotangents))


class SwappedScaleGradients(NumpyBackend):
    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        scales = [name for name in gradients if name.startswith("scale/")]
        return gradients | dict(zip(scales, [gradients[name] for name in reversed(scales)], strict=True))


class GradientDropped(NumpyBackend):
    """The last tensor's cotangent does not reach the pool."""

    def vjp(self, plan, variables, cotangents):
        gradients = super().vjp(plan, variables, cotangents)
        others = {name: g for name, g in cotangents.items() if name != plan.tensors[-1].name}
        without = super().vjp(plan, variables, others)
        return {name: without[name] if name.startswith("pool/") else g for name, g in gradients.items()}


class ScalesFlushed(NumpyBackend):
    """Scales below 2**-26 count as zero."""

    def materialize(self, plan, variables, names=None):
        cleaned = dict(variables)
        for tensor in plan.tensors:
            if tensor.learn_scale and abs(variables[tensor.scale_variable]) < 2.0 ** (tensor.kappa - 26):
                cleaned[tensor.scale_variable] = np.zeros((), dtype=np.float32)
        return super().materialize(plan, cleaned, names)


class HalfAwayFromZero(NumpyBackend):
    kernels = Kernels(type("np", (), {**vars(np), "round": staticmethod(lambda x: np.trunc(x + np.copysign(0.5, x)))}))


class _Bfloat16Products(NumpyKernels):
    def scaled_products(self, left, right, *args):
        return super().scaled_products(_bfloat16(left), _bfloat16(right), *args)


def _bfloat16(x):
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


class Bfloat16Products(NumpyBackend):
    """Factors lose what bfloat16 does not hold."""

    kernels = _Bfloat16Products()


BROKEN = {
    OrdinaryNumpy: set(),
    IndicesOfAnotherSeed: {"indices"},
    FlipsForgotten: {"weights", "memory"},
    GradientsThatPassRelu: {"gradients"},
    SwappedScaleGradients: {"gradients", "zeros"},
    GradientDropped: {"gradients", "precision"},
    NamesInTheOrderOfThePlan: {"by_name"},
    ResultsInAnotherOrder: {"form"},
    VariablesFlushedInPlace: {"purity"},
    GradientsThatAccumulate: {"memory"},
    GradientsByDirection: {"linearity"},
    WeightsByDirection: {"powers"},
    KernelOneUnitOff: {"kernels"},
    KernelThatTruncates: {"kernels", "on_grid"},
    KernelOfHalfAnArray: {"kernels", "on_grid"},
    Float32SumsOfManyTerms: {"precision"},
    TensorsSorted: {"names"},
    OrderOfVectorsForgotten: {"views"},
    MissingCotangentsAreOnes: {"gradients", "linearity", "zeros"},
    NanPayloadsLost: {"round_trip"},
    UnknownVariablesIgnored: {"refusals"},
    SilentCast: {"refusals"},
    WordsInsteadOfErrors: {"refusals"},
    LastBlockForgotten: {"large"},
    ThreadsThatShow: {"environment"},
    BatchesThatShow: {"by_name", "large"},
    ScalesFlushed: {"weights", "digest"},
    HalfAwayFromZero: {"weights", "gradients", "digest", "kernels", "precision"},
    Bfloat16Products: {"weights", "digest", "memory", "kernels", "precision"},
}
