"""LiteRT files of compressed Keras models, whose converter would fold constant integers into dense weights.

So the integers are inputs of the graph that is converted. In the file they become constants.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from smh.backends.tensorflow.kernels import TensorflowKernels
from smh.core import generate
from smh.core.integers import NIBBLE_BITS, pool_arrays
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.core.pools import Kronecker, Matmul
from smh.errors import ExportError, needs
from smh.files.atomic import replacing
from smh.files.integers import Integers
from smh.models.exported import WEIGHT, Exported

_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"}
_ZERO = "smh_zero"
_MOST_BITS = 8
_TOLERANCE = 1e-3


class LiteKernels(TensorflowKernels):
    """Kernels of operations that LiteRT has: no float64, no test for NaN."""

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Add exact float32 products in int32. Integers of a frozen model are never NaN."""
        terms = left.shape[1]
        sums = [
            tf.matmul(left[:, k : k + exact_terms], right[k : k + exact_terms, :]) for k in range(0, terms, exact_terms)
        ]
        if len(sums) == 1:
            return sums[0] * unit
        return tf.cast(tf.add_n([tf.cast(x, tf.int32) for x in sums]), tf.float32) * unit

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Use products."""
        return Kernels.scaled_products(self, left, right, unit, exact_terms, parts)


_KERNELS = LiteKernels()


def check_plan(plan: Plan) -> None:
    """Raise :class:`~smh.ExportError` for pools whose weights LiteRT cannot build."""
    pool = plan.pool
    if not isinstance(pool, Matmul | Kronecker):
        raise ExportError(
            f"LiteRT cannot build weights of a {pool.kinds()} pool: it has no float64, and hashes would become tables; "
            "compress with pool='matmul' or 'kronecker', or use smh.export.saved_model"
        )
    if pool.grid_bits >= _MOST_BITS:
        raise ExportError(
            f"LiteRT adds products of integers of at most {_MOST_BITS} bits without rounding; got bits="
            f"{pool.grid_bits + 1}: compress with bits=8, or use smh.export.saved_model"
        )


def weights_of(plan: Plan, stored: Mapping[str, Array], given: Integers, scales: Mapping[str, Any]) -> dict[str, Array]:
    """Return the weights in a graph, from the stored integers as tensors, and the rest as constants."""
    integers = {}
    for name, bits, shape, _ in pool_arrays(plan):
        q = tf.cast(stored[name], tf.float32)
        if bits <= NIBBLE_BITS:  # LiteRT has no bitwise and
            high = tf.floor(q * (1 / 16))
            halves = tf.reshape(tf.stack([q - high * 16.0, high], axis=1), (-1,))[: math.prod(shape)]
            q = tf.reshape(tf.where(halves > 7.0, halves - 16.0, halves), shape)
        integers[name.removeprefix("pool/")] = q
    grids = generate.grids_of(_KERNELS, plan, integers, given.exponents)
    variables = {name: tf.constant(x) for name, x in scales.items()}
    return generate.build(_KERNELS, plan, grids, variables, plan.tensors)


class Traced(NamedTuple):
    """A function whose inputs are those of the model, the integers, and a zero."""

    function: Any
    inputs: list[str]
    outputs: list[str]
    constants: int


def traced(model: Any, given: Integers, signature: Any) -> Traced:
    """Return the graph of a frozen model, with weights as further outputs; changes the source of the model."""
    source: Any = model.smh_source
    names = list(given.arrays)
    scales = {name: x.numpy() for name, x in source.variables.items() if name not in given.arrays}
    specs = keras.tree.flatten(signature)
    inputs = [_name(spec, k) for k, spec in enumerate(specs)]
    outputs: list[str] = []

    def run(*tensors: Array) -> list[Array]:
        args = keras.tree.pack_sequence_as(signature, tensors[: len(specs)])
        stored = dict(zip(names, tensors[len(specs) :], strict=True))
        weights = weights_of(source.plan, stored, given, scales)
        with source.given(weights):
            found = keras.tree.flatten(model(*args, training=False))
        outputs[:] = [f"output_{k}" for k in range(len(found))] + [f"{WEIGHT}{name}" for name in weights]
        return [tf.identity(x) for x in [*found, *weights.values()]]

    kinds = [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(specs, inputs, strict=True)]
    pool = [tf.TensorSpec(x.shape, x.dtype, f"smh_pool_{k}") for k, x in enumerate(given.arrays.values())]
    concrete = tf.function(run, autograph=False).get_concrete_function(*kinds, *pool)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph = frozen.graph.as_graph_def()
    _unfused(graph)
    constants = sum(x.attr["value"].tensor.ByteSize() for x in graph.node if x.op == "Const")
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    ends = [[wrapped.graph.as_graph_element(x.name) for x in some] for some in (frozen.inputs, frozen.outputs)]
    ends[0].append(wrapped.graph.as_graph_element(f"{_ZERO}:0"))
    return Traced(wrapped.prune(*ends), inputs, outputs, constants)


def _name(spec: Any, k: int) -> str:
    """Return the name of an input, if Keras did not number it through the life of a process."""
    name = spec.name or ""
    return f"input_{k}" if name.startswith(("input_layer", "keras_tensor")) or not name else name


def _unfused(graph: Any) -> None:
    """Add an unknown zero to products.

    The converter fuses an activation into a product whose bias is missing or zero, and loses it if the weights are not
    constant.
    """
    zero = graph.node.add(name=_ZERO, op="Placeholder")
    zero.attr["dtype"].type = tf.float32.as_datatype_enum
    zero.attr["shape"].shape.SetInParent()
    for node in list(graph.node):
        if node.op in _PRODUCTS and node.attr["T"].type == zero.attr["dtype"].type:
            name = node.name
            node.name = f"{name}/product"
            added = graph.node.add(name=name, op="AddV2", input=[node.name, _ZERO])
            added.attr["T"].type = zero.attr["dtype"].type


def converted(function: Any) -> bytes:
    """Return what the converter makes, of LiteRT's own operations only."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bytes(converter.convert())
    except Exception as error:  # the converter raises its own kinds and RuntimeError
        first = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        raise ExportError(
            "the converter of LiteRT cannot convert the model without Flex operators: try batch=1, or use "
            f"smh.export.saved_model. It says: {first.rpartition('error:')[2].strip()[:400]}"
        ) from error


class File:
    """A LiteRT file in memory."""

    def __init__(self, data: bytes, found: Traced, given: Integers) -> None:
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        self.graph = self.model.subgraphs[0]
        self.outputs = found.outputs
        constants = [*given.arrays.values(), np.zeros((), np.float32)]
        inputs, pool = np.split(np.asarray(self.graph.inputs), [len(found.inputs)])
        for place, x in zip(pool, constants, strict=True):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            self.graph.tensors[place].buffer = len(self.model.buffers) - 1
        self.graph.inputs = inputs
        self._sign(found.inputs)

    def _sign(self, inputs: Sequence[str]) -> None:
        """Name inputs and outputs."""
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_mapped(*pair) for pair in zip(inputs, self.graph.inputs, strict=True)]
        signature.outputs = [_mapped(*pair) for pair in zip(self.outputs, self.graph.outputs, strict=True)]
        self.model.signatureDefs = [signature]

    def without_weights(self) -> None:
        """Leave out weights from the outputs."""
        (signature,) = self.model.signatureDefs
        count = sum(not name.startswith(WEIGHT) for name in self.outputs)
        self.graph.outputs, signature.outputs = self.graph.outputs[:count], signature.outputs[:count]

    def held(self) -> int:
        """Return the bytes of all constants."""
        return sum(len(buffer.data) for buffer in self.model.buffers if buffer.data is not None)

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _mapped(name: str, place: int) -> Any:
    pair = schema.TensorMapT()
    pair.name, pair.tensorIndex = name, int(place)
    return pair


def check(data: bytes, model: Any, signature: Any) -> None:
    """Run a file in LiteRT; raises :class:`~smh.ExportError` for other weights or outputs than those of the model."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise needs("ai_edge_litert", "litert", error) from error
    specs, rng = keras.tree.flatten(signature), np.random.default_rng(0)
    inputs = [_example(spec, rng) for spec in specs]
    try:
        run = Interpreter(model_content=data).get_signature_runner()
        found = run(**{_name(spec, k): x for k, (spec, x) in enumerate(zip(specs, inputs, strict=True))})
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT cannot run the model: {error}") from error
    expected = keras.tree.flatten(model(*keras.tree.pack_sequence_as(signature, inputs), training=False))
    for k, x in enumerate(expected):
        x, y = np.asarray(x), found[f"output_{k}"]
        if x.shape != y.shape or not np.allclose(y, x, _TOLERANCE, _TOLERANCE * np.max(np.abs(x)), equal_nan=True):
            raise ExportError(
                f"output {k} of the converted model is not that of the model, which its converter changed: export a "
                "part of the model, or use smh.export.saved_model"
            )
    source = model.smh_source
    for name, w in zip(source.names, source.build(source.names, source.flat()), strict=True):
        if not np.array_equal(np.asarray(w).view(np.uint32), found[f"{WEIGHT}{name}"].view(np.uint32)):
            raise ExportError(f"LiteRT builds different bits for the weights {name!r} here: use smh.export.saved_model")


def _example(spec: Any, rng: np.random.Generator) -> np.ndarray:
    shape, dtype = tuple(1 if size is None else size for size in spec.shape), tf.as_dtype(spec.dtype)
    return (rng.normal(size=shape) if dtype.is_floating else np.zeros(shape)).astype(dtype.as_numpy_dtype)


def write(
    path: str | os.PathLike[str], model: Any, given: Integers, signature: Any, kept: int, weights: bool
) -> Exported:
    """Write a frozen model, which keeps tensors of some bytes; its source changes meanwhile."""
    check_plan(model.smh_source.plan)
    found = traced(model, given, signature)
    file = File(converted(found.function), found, given)
    check(file.to_bytes(), model, signature)
    if not weights:
        file.without_weights()
    data = file.to_bytes()
    integers = sum(x.nbytes for x in given.arrays.values())
    sizes = Exported(file=len(data), integers=integers, kept=found.constants, held=file.held()).check()
    with replacing(path) as temporary, open(temporary, "wb") as opened:
        opened.write(data)
    return sizes._replace(kept=kept)
