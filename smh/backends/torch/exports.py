"""Exports of compressed modules to other runtimes, whose files hold the pool as integers."""

from __future__ import annotations

import inspect
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from smh.backends.torch import packed
from smh.backends.torch.checks import not_compressed
from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.models import adapter
from smh.backends.torch.store import Exporting, Store, find_store
from smh.core.checks import whole_number
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import ExportError, PlanError, needs
from smh.files.atomic import replacing
from smh.files.integers import Integers, pack
from smh.models import poison
from smh.models.exported import WEIGHT, Exported

Module = nn.Module
"""The type of models, for signatures outside of the backends."""

_ZERO_POINT = 128
_INT32_TERMS = (2**31 - 1) // 127**2
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")
"""What nodes say of the code that they came from, which is most of a file."""
_ONNX_LIMIT = 2**31
_FIRST_OPSET = 18  # of what PyTorch writes


class OnnxKernels(TorchKernels):
    """Kernels whose products of 8-bit integers are ``MatMulInteger`` of ONNX, which adds in int32."""

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Use products."""
        return Kernels.scaled_products(self, left, right, unit, exact_terms, parts)

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Multiply bytes with a zero point: on old processors ONNX Runtime would saturate sums of signed ones."""
        if left.dtype != torch.uint8:
            return super().product(left, right, unit, exact_terms)
        zero, shape = torch.full((), _ZERO_POINT, dtype=torch.uint8), (left.shape[0], right.shape[1])
        sums = torch.onnx.ops.symbolic(
            "MatMulInteger", (left, right, zero, zero), dtype=torch.int32, shape=shape, version=10
        )
        return sums.to(torch.float32) * unit


_ONNX = OnnxKernels()


def onnx_grids(plan: Plan, grids: packed.Packed) -> packed.Packed:
    """Return grids with what the kernels multiply as bytes, and float32 for the rest."""
    found = {}
    for leaf in plan.pool.leaves(plan.seed):
        pool: Any = leaf.pool
        as_bytes = pool.kind in ("matmul", "kronecker") and pool.grid_bits <= 7 and pool.terms <= _INT32_TERMS
        for name in (leaf.path + local for local in pool.local_shapes()):
            q = grids[name].integers
            q = (q.to(torch.int16) + _ZERO_POINT).to(torch.uint8) if as_bytes else q.to(torch.float32)
            found[name] = grids[name]._replace(integers=q)
    return found


class Whole(nn.Module):
    """A frozen model whose call builds the weights once; they come with the outputs if asked for."""

    def __init__(self, model: nn.Module, store: Store, weights: bool) -> None:
        super().__init__()
        self.model, self.store, self.weights = model, (store,), weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs, or a pair of outputs and weights by name."""
        (store,) = self.store
        with store.built():
            outputs = self.model(*args, **kwargs)
            (scopes,) = store.scopes.values()
            return (outputs, dict(scopes[-1].weights)) if self.weights else outputs


def onnx(
    path: str,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    opset: int,
    weights: bool,
) -> Exported:
    """Write an ONNX file; see :func:`smh.export.onnx`."""
    try:
        import onnxscript.optimizer
        import onnxscript.version_converter
        from onnx.defs import onnx_opset_version
    except ModuleNotFoundError as error:
        raise needs(str(error.name).partition(".")[0], "onnx", error) from error
    whole_number("opset", opset, _FIRST_OPSET, onnx_opset_version())
    frozen, store, integers = _frozen(model)
    program = _traced(frozen, store, args, kwargs, dynamic_shapes, weights, (onnx_grids, _ONNX))
    with quiet():
        try:
            found: Any = torch.onnx.export(
                program, dynamo=True, opset_version=opset, optimize=False, verbose=False, input_names=input_names
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"ONNX cannot hold this model with its {store.compression.plan.pool.in_words()}: {error}"
            ) from error
    if found.model.opset_imports[""] != opset:  # it only warns
        raise ExportError(f"this version of onnxscript cannot convert to opset {opset}: give a lower one")
    # Folding more than scalars would put weights into the file.
    onnxscript.optimizer.optimize(found.model, onnx_shape_inference=False, input_size_limit=64, output_size_limit=64)
    graph = found.model.graph
    outputs = list(graph.outputs)
    if weights:
        for value, name in zip(outputs[len(outputs) - len(store.weights) :], store.weights, strict=True):
            value.name = f"{WEIGHT}{name}"
        outputs = outputs[: -len(store.weights)]
    if output_names is not None:
        if len(output_names) != len(outputs):
            raise ExportError(f"the model has {len(outputs)} outputs; got {len(output_names)} output_names")
        for value, name in zip(outputs, output_names, strict=True):
            value.name = name
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    held = sum(x.const_value.nbytes for x in graph.initializers.values())
    exported = _checked(store, integers, held)
    proto = found.model_proto
    if (size := proto.ByteSize()) >= _ONNX_LIMIT:
        raise ExportError(f"a file of ONNX has fewer than {_ONNX_LIMIT:,} bytes; this one would have {size:,}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
    return exported._replace(file=os.path.getsize(path))


def torch_export(path: str, *given: Any) -> Exported:
    """Write a ``.pt2`` file; see :func:`smh.export.torch_export`."""
    program, exported = _program(*given)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file)
    return exported._replace(file=os.path.getsize(path))


def aot_inductor(path: str, *given: Any) -> Exported:
    """Write a package of compiled code; see :func:`smh.export.aot_inductor`."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, InductorError) as error:
        raise ExportError(f"AOTInductor needs a C++ compiler, and none was found: {error}") from error
    program, exported = _program(*given)
    with replacing(path) as temporary:
        package = f"{temporary}.pt2"
        with quiet():
            aoti_compile_and_package(program, package_path=package)
        shutil.move(package, temporary)
    return exported._replace(file=os.path.getsize(path))


def executorch(path: str, *given: Any) -> Exported:
    """Write a ``.pte`` file; see :func:`smh.export.executorch`."""
    try:
        with quiet():
            from executorch.exir import EdgeCompileConfig, to_edge
            from executorch.runtime import Runtime
    except ModuleNotFoundError as error:
        raise needs(str(error.name).partition(".")[0], "executorch", error) from error
    program, exported = _program(*given)
    if any(float(sizes.upper) == math.inf for sizes in program.range_constraints.values()):
        raise ExportError(
            "ExecuTorch reserves memory for the largest inputs: name their sizes as torch.export.Dim(name, max=...); "
            "sizes that depend on values are not possible"
        )
    aten = torch.ops.aten
    shifts = [aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor_Scalar]  # of hash pools
    with quiet():
        try:
            made: Any = to_edge(program, compile_config=EdgeCompileConfig(preserve_ops=shifts)).to_executorch()
        except Exception as error:  # of many types
            what = str(error).strip().partition("\n")[0]
            raise ExportError(f"ExecuTorch cannot hold this model: {what or type(error).__name__}") from error
    (plan,) = made.executorch_program.execution_plan
    names = {f"{x.name}.{x.overload}" if x.overload else x.name for x in plan.operators}
    if unknown := sorted(names - Runtime.get().operator_registry.operator_names):
        raise ExportError(f"the runtime of ExecuTorch has no {', '.join(unknown)}, which this model uses")
    held = sum(len(x.storage) for x in made.executorch_program.constant_buffer)
    exported = exported._replace(held=held).check()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(made.buffer)
    return exported._replace(file=os.path.getsize(path))


def _program(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, weights: bool
) -> tuple[Any, Exported]:
    frozen, store, integers = _frozen(model)
    program = _traced(frozen, store, args, kwargs, dynamic_shapes, weights, None)
    held = {id(x): x.nbytes for x in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(x)}
    return program, _checked(store, integers, sum(held.values()))


def _frozen(model: nn.Module) -> tuple[nn.Module, Store, Integers]:
    """Return the frozen form of a compressed model, its store and its integers."""
    store = find_store(model)
    if store is None or store.root is not model:
        raise not_compressed(model)
    plan = store.compression.plan
    variables = {name: adapter.backend.to_numpy(x) for name, x in adapter.variables(model).items()}
    poison.check(plan, variables)
    integers = pack(plan, variables)
    frozen = adapter.freeze(model, integers) if store.exponents is None else model
    found: Any = find_store(frozen)
    return frozen, found, integers


def _traced(
    model: nn.Module,
    store: Store,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    weights: bool,
    exporting: Exporting | None,
) -> Any:
    """Return the exported program of a frozen model."""
    if not isinstance(args, tuple | list):
        raise PlanError(f"args must be a tuple of the inputs of the model; got {type(args).__name__}")
    store.exporting = exporting
    try:
        with torch.no_grad(), quiet():
            whole, kwargs = Whole(model, store, weights).eval(), dict(kwargs or {})
            shapes = _of_arguments(model, args, kwargs, dynamic_shapes)
            try:
                program = torch.export.export(whole, tuple(args), kwargs, dynamic_shapes=shapes, strict=False)
            except RuntimeError as error:
                what = str(error).strip().partition("\n")[0]
                raise ExportError(
                    f"torch.export cannot trace {type(model).__name__}: change the code it names; got {what}"
                ) from error
            for node in program.graph.nodes:
                for name in _TRACES:
                    node.meta.pop(name, None)
            return program
    finally:
        store.exporting = None


def _of_arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> Any:
    """Return dynamic shapes, given for the arguments of a model, for a function of ``*args`` and ``**kwargs``."""
    if dynamic_shapes is None:
        return None
    if not isinstance(dynamic_shapes, Mapping):
        return {"args": tuple(dynamic_shapes), **({"kwargs": dict.fromkeys(kwargs)} if kwargs else {})}
    names = list(inspect.signature(model.forward).bind(*args, **kwargs).arguments)[: len(args)]
    given = {"args": tuple(dynamic_shapes.get(name) for name in names)} if args else {}
    return given | ({"kwargs": {name: dynamic_shapes.get(name) for name in kwargs}} if kwargs else {})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters of PyTorch, which warn of themselves; what fails raises."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)


def _checked(store: Store, integers: Integers, held: int) -> Exported:
    """Return the sizes of an export that holds some bytes of tensors, or raise if it holds weights."""
    pool = sum(x.nbytes for x in integers.arrays.values())
    variables = {id(x) for x in store.parameters().values()}
    state = [*store.root.state_dict(keep_vars=True).items(), *store.root.named_buffers()]  # persistent or not
    tensors = {id(x): x for name, x in state if isinstance(x, torch.Tensor) and not name.endswith("_extra_state")}
    scales = sum(x.nbytes for name, x in store.parameters().items() if name.startswith("scale/"))
    kept = sum(x.nbytes for key, x in tensors.items() if key not in variables) + scales
    return Exported(file=0, integers=pool, kept=kept, held=held).check()
