"""Graphs of ONNX that build the weights of a plan: ndonnx records what the core computes on its arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ndonnx as ndx
import numpy as np
import onnx
import spox.opset.ai.onnx.v21 as op

from smh.core import generate, integers, scales
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.core.sizes import file_bytes
from smh.errors import ExportError
from smh.files.atomic import replacing
from smh.files.integers import pack
from smh.models.exported import Exported

_BYTE_TERMS = 2**10  # of which float32 holds every sum, if the integers have 8 bits or fewer
_INT32_TERMS = 2**17
_ZERO_POINT = 128
_LIMIT = 2**31  # bytes of a file


class _Namespace:
    """The functions of ndonnx, with ranges that are operators of the graph, not constants."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ndx, name)

    def arange(self, start: int, stop: int, *, dtype: Any, device: Any = None) -> Array:
        """Return the numbers from start to stop."""
        return ndx.arange(ndx.asarray(np.int64(start)), stop, dtype=dtype)


class NdonnxKernels(Kernels):
    """Kernels whose products of 8-bit integers are ``MatMulInteger``, which adds in int32, and float64 otherwise."""

    def device(self, x: Array) -> None:
        """Return None: graphs have no devices."""
        return None

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Multiply bytes with a zero point: on old processors ONNX Runtime would saturate sums of signed ones."""
        xp = self.xp
        if exact_terms >= _BYTE_TERMS and left.shape[1] <= _INT32_TERMS:
            zero = op.const(np.uint8(_ZERO_POINT))
            a, b = (xp.astype(x + float(_ZERO_POINT), xp.uint8).unwrap_spox() for x in (left, right))
            sums = op.matmul_integer(a, b, zero, zero)
        else:
            a, b = (xp.astype(x, xp.float64).unwrap_spox() for x in (left, right))
            sums = op.matmul(a, b)
        return xp.astype(ndx.asarray(sums), xp.float32) * unit

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Multiply once for all parts: the graph is smaller."""
        v = self.xp.reshape(self.product(left, right, unit, exact_terms), (-1,))
        return [self.scale(v[start:stop], scale) for scale, start, stop in parts]


def plan_onnx(path: str | os.PathLike[str], plan: Plan, variables: Mapping[str, np.ndarray]) -> Exported:
    """Write the graph of a plan; see :func:`smh.export.plan_onnx`."""
    if clash := sorted(plan.variable_shapes.keys() & {tensor.name for tensor in plan.tensors}):
        raise ExportError(f"a weight and a variable have the same name, which a graph cannot hold: rename {clash[0]!r}")
    if plan.file_bytes >= _LIMIT:
        raise ExportError(f"an ONNX file holds less than {_LIMIT:,} bytes; the plan stores {plan.file_bytes:,}")
    generate.check_variables(Kernels(np), plan, variables)
    model = plan_graph(plan, variables)
    pool, data = file_bytes(plan.pool), model.SerializeToString(deterministic=True)
    found = Exported(len(data), pool, plan.file_bytes - pool, _held(model)).check()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
    return found


def plan_graph(plan: Plan, variables: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return a model without inputs whose outputs are the weights. Its initialisers are integers and scales."""
    arrays, exponents = pack(plan, variables)
    rows = [tensor for tensor in plan.tensors if tensor.learn_scale]
    cleaned = {t.name: scales.cleaned(Kernels(np), variables[t.scale_variable], t.kappa) for t in rows}
    values = arrays | {t.scale_variable: np.asarray(cleaned[t.name], dtype=np.float32) for t in rows}
    inputs = {name: ndx.argument(shape=x.shape, dtype=ndx.from_numpy_dtype(x.dtype)) for name, x in values.items()}
    kernels, weights = NdonnxKernels(_Namespace()), {}
    grids = integers.grids(kernels, plan, inputs, exponents)
    parts = [generate.Part(t, inputs[t.scale_variable] if t.learn_scale else t.initial_scale) for t in plan.tensors]
    for tensor, w in zip(plan.tensors, generate.weights_of(kernels, plan, grids, parts), strict=True):
        w = ndx.reshape(w, tensor.shape)
        weights[tensor.name] = tensor.view.apply(kernels.xp, w) if tensor.view else w
    model = ndx.build(inputs, weights)
    del model.graph.input[:], model.metadata_props[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(x, name) for name, x in values.items())
    return model


def _held(model: onnx.ModelProto) -> int:
    """Return the bytes of all tensors in a model."""
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    return sum(onnx.numpy_helper.to_array(x).nbytes for x in (*model.graph.initializer, *constants))
