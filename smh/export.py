"""Compressed models in the formats of other runtimes, as small as their pool.

The files hold the integers of the pool, and the graph that builds weights from them: the runtime gets the trained
weights, bit for bit. Each function names its format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smh.backends.registry import get_backend
from smh.core.arguments import explained_in
from smh.core.checks import check_flag
from smh.core.plan import Plan
from smh.errors import PlanError, needs
from smh.models.exported import Exported
from smh.models.frameworks import check_framework

if TYPE_CHECKING:
    from smh.backends.tensorflow import Compressed
    from smh.backends.torch.exports import Module

__all__ = [
    "Exported",
    "aot_inductor",
    "executorch",
    "litert",
    "onnx",
    "plan_onnx",
    "saved_model",
    "stablehlo",
    "torch_export",
]


@explained_in("smh.export")
def onnx(
    path: str | os.PathLike[str],
    model: Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = 20,
    weights: bool = False,
) -> Exported:
    """Write a compressed model of PyTorch as an ONNX file that holds its pool as integers.

    Weights are products of integers by ``MatMulInteger`` if the pool has at most 8 bits, otherwise exact floating-point
    products.

    Parameters
    ----------
    path : str or path-like
        The file to write. It is replaced when the new one is complete.
    model : torch.nn.Module
        The compressed model, frozen or not, which does not change. It is exported in evaluation mode.
    args : sequence
        Inputs for which the model is traced.
    kwargs : mapping, optional
        Inputs by name.
    dynamic_shapes : optional
        As for ``torch.export.export``: in the order of ``args``, or by the names of the arguments of ``model.forward``.
    input_names, output_names : sequence of str, optional
        Names in the graph; by default those that ``torch.onnx.export`` gives.
    opset : int
        The version of ONNX's operators, at least 18.
    weights : bool
        Whether the weights are outputs, too, after those of the model. Their names are ``weight:`` and the name of the
        parameter. For proofs: a runtime then shows the weights that it built.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError
        If the model is not compressed, or arguments are mistaken.
    ExportError
        If ONNX or the tools cannot hold the model or its pool. Nothing is written then.
    VariableError
        If training has diverged.
    ModuleNotFoundError
        Without onnxscript.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> import smh
    >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.onnx")
    >>> sizes = smh.export.onnx(path, model, (torch.ones(1, 40),))
    >>> sizes.integers, sizes.kept
    (70, 124)
    """
    check_framework(model, "torch", exports=True)
    check_flag("weights", weights)
    from smh.backends.torch import exports

    return exports.onnx(os.fspath(path), model, args, kwargs, dynamic_shapes, input_names, output_names, opset, weights)


@explained_in("smh.export")
def torch_export(
    path: str | os.PathLike[str],
    model: Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    weights: bool = False,
) -> Exported:
    """Write a compressed model as a file of ``torch.export`` (``.pt2``) that holds its pool as integers.

    ``torch.export.load(path).module()`` is the model, without smh.

    Parameters
    ----------
    path, model, args, kwargs, dynamic_shapes
        As for :func:`onnx`.
    weights : bool
        Whether a call returns a pair: the outputs of the model, and the weights in a dict.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError, ExportError, VariableError
        As for :func:`onnx`.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> import smh
    >>> model = smh.freeze(smh.compress(torch.nn.Linear(40, 30), ratio=0.1))
    >>> path = os.path.join(tempfile.mkdtemp(), "model.pt2")
    >>> sizes = smh.export.torch_export(path, model, (torch.ones(1, 40),))
    >>> torch.export.load(path).module()(torch.ones(1, 40)).shape
    torch.Size([1, 30])
    """
    check_framework(model, "torch", exports=True)
    check_flag("weights", weights)
    from smh.backends.torch import exports

    return exports.torch_export(os.fspath(path), model, args, kwargs, dynamic_shapes, weights)


@explained_in("smh.export")
def aot_inductor(
    path: str | os.PathLike[str],
    model: Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    weights: bool = False,
) -> Exported:
    """Write a compressed model as a package of AOTInductor: compiled code that holds the pool as integers.

    ``torch._inductor.aoti_load_package(path)`` is the model, without smh, for the device and the kind of machine on
    which the package was made. C++ loads it without Python. A C++ compiler is needed here.

    Parameters
    ----------
    path, model, args, kwargs, dynamic_shapes, weights
        As for :func:`torch_export`.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError, ExportError, VariableError
        As for :func:`onnx`; ExportError also without a C++ compiler.
    """
    check_framework(model, "torch", exports=True)
    check_flag("weights", weights)
    from smh.backends.torch import exports

    return exports.aot_inductor(os.fspath(path), model, args, kwargs, dynamic_shapes, weights)


@explained_in("smh.export")
def executorch(
    path: str | os.PathLike[str],
    model: Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    weights: bool = False,
) -> Exported:
    """Write a compressed model as a file of ExecuTorch (``.pte``) that holds its pool as integers.

    The program has a method ``forward`` of operators on the CPU, without delegates. It builds the weights in each call.
    All pools are possible.

    Parameters
    ----------
    path, model, args, kwargs
        As for :func:`onnx`. The runtime takes all values in them, one after the other, numbers and flags included.
    dynamic_shapes : optional
        As for :func:`onnx`. ``torch.export.Dim`` needs ``max``.
    weights : bool
        Whether the weights are outputs, too, after those of the model, in the order of its parameters.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError, VariableError
        As for :func:`onnx`.
    ExportError
        If ExecuTorch cannot hold the model, or its runtime lacks an operator. Nothing is written then.
    ModuleNotFoundError
        Without executorch.
    """
    check_framework(model, "torch", exports=True)
    check_flag("weights", weights)
    from smh.backends.torch import exports

    return exports.executorch(os.fspath(path), model, args, kwargs, dynamic_shapes, weights)


@explained_in("smh.export")
def stablehlo(
    path: str | os.PathLike[str],
    function: Callable[..., Any],
    params: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    platforms: Sequence[str] | None = None,
    weights: bool = False,
) -> Exported:
    """Write a function of a compressed pytree as a program of StableHLO that holds its pool as integers.

    ``jax.export.deserialize(bytearray(data)).call`` is the function, without smh. It builds the weights in each call.

    Parameters
    ----------
    path : str or path-like
        As for :func:`onnx`.
    function : callable
        A function of the plain parameters, as :func:`smh.materialize` returns them, and of ``args`` and ``kwargs``:
        ``model.apply`` of Flax, for example.
    params : smh.jax.Compressed
        The compressed parameters, frozen or not.
    args : sequence
        The remaining arguments, or ``jax.ShapeDtypeStruct`` of them, also with the dimensions of
        ``jax.export.symbolic_shape``.
    kwargs : mapping, optional
        Arguments by name.
    platforms : sequence of str, optional
        ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``: where the program can run; by default on the platform of JAX
        here. None of the devices is needed here.
    weights : bool
        Whether a call returns a pair: the outputs of the function, and the weights in a dict.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError
        If the parameters are not compressed, or platforms are mistaken.
    ExportError
        If the program would hold much more than the parameters, for example because the function contains other
        arrays. Nothing is written then.
    VariableError
        If training has diverged.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import jax, jax.export, jax.numpy as jnp
    >>> import smh
    >>> params = smh.compress({"w": jnp.ones((40, 30)), "b": jnp.zeros(30)}, ratio=0.1)
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.stablehlo")
    >>> sizes = smh.export.stablehlo(path, lambda p, x: x @ p["w"] + p["b"], params, [jnp.ones((1, 40))])
    >>> program = jax.export.deserialize(bytearray(path.read_bytes()))
    >>> program.call(jnp.ones((1, 40))).shape
    (1, 30)
    """
    check_framework(params, "jax", exports=True)
    check_flag("weights", weights)
    from smh.backends.jax import exports

    return exports.stablehlo(path, function, params, args, kwargs, platforms, weights)


@explained_in("smh.export")
def plan_onnx(path: str | os.PathLike[str], plan: Plan, variables: Mapping[str, Any]) -> Exported:
    """Write the weights of a plan as an ONNX file that holds the pool as integers, without a model.

    The graph has no inputs. Its outputs are the weights, with the names of the tensors. Opset 21.

    Parameters
    ----------
    path : str or path-like
        As for :func:`onnx`.
    plan : Plan
        The plan, of any pool and layout.
    variables : mapping of str to array, float32
        All its variables, of the backend that ``SMH_BACKEND`` names.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    ExportError
        If the file would be too large for ONNX, or a weight has the name of a variable.
    VariableError
        If a variable is missing, unknown, of the wrong shape or dtype, or not finite.
    ModuleNotFoundError
        Without ndonnx.

    Examples
    --------
    >>> import os, tempfile
    >>> import smh
    >>> plan = smh.Plan.build({"fc": (200, 50)}, ratio=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.onnx")
    >>> smh.export.plan_onnx(path, plan, smh.initialize(plan)).integers
    1000
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be a smh.Plan; got {type(plan).__name__}: smh.export.onnx takes models")
    try:
        from smh.backends import ndonnx
    except ModuleNotFoundError as error:
        raise needs("ndonnx", "onnx", error) from error
    to_numpy = get_backend().to_numpy
    return ndonnx.plan_onnx(path, plan, {name: to_numpy(x) for name, x in variables.items()})


@explained_in("smh.export")
def saved_model(path: str | os.PathLike[str], model: Compressed, *, weights: bool = False) -> Exported:
    """Write a compressed Keras model as a SavedModel that holds its pool as integers.

    ``tf.saved_model.load(path).serve(inputs)`` runs the model, without smh and Keras. All pools are possible.

    Parameters
    ----------
    path : str or path-like
        The folder to write. A SavedModel in its place is replaced when the new one is complete.
    model : smh.keras.Compressed
        The compressed model, frozen or not, which does not change. A subclassed model must have been called once.
    weights : bool
        Whether there is a second signature ``weights`` that returns the weights, with the names as for :func:`onnx`.

    Returns
    -------
    Exported
        Sizes of the folder and of what is in it.

    Raises
    ------
    PlanError
        If the model is not compressed.
    ExportError
        If the inputs of the model are not known, or the path has something else. Nothing is written then.
    VariableError
        If training has diverged.

    Examples
    --------
    >>> import os, tempfile
    >>> import keras, tensorflow
    >>> import smh
    >>> model = smh.compress(keras.Sequential([keras.Input((40,)), keras.layers.Dense(30)]), ratio=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "model")
    >>> smh.export.saved_model(path, model).integers
    70
    >>> loaded = tensorflow.saved_model.load(path)
    >>> loaded.serve(tensorflow.ones((1, 40))).shape
    TensorShape([1, 30])
    """
    check_framework(model, "tensorflow", exports=True)
    check_flag("weights", weights)
    from smh.backends.tensorflow import exports

    return exports.saved_model(path, model, weights)


@explained_in("smh.export")
def litert(
    path: str | os.PathLike[str], model: Compressed, *, batch: int | None = None, weights: bool = False
) -> Exported:
    """Write a compressed Keras model as a LiteRT file (``.tflite``) that holds its pool as integers.

    The file needs no Flex operators. Before it is written it runs in LiteRT once, for one example of random numbers:
    its weights must have the bits of the model's, and its outputs must be close.

    Parameters
    ----------
    path : str or path-like
        As for :func:`onnx`.
    model : smh.keras.Compressed
        As for :func:`saved_model`, with a pool ``matmul`` or ``kronecker`` of at most 8 bits.
    batch : int, optional
        The size of the first axis of inputs where the model leaves it open. Recurrent layers need one, or ``unroll``.
    weights : bool
        As for :func:`onnx`.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError, VariableError
        As for :func:`saved_model`.
    ExportError
        If LiteRT cannot hold the model or its pool, or would run it differently. Nothing is written then.
    ModuleNotFoundError
        Without ai-edge-litert.

    Examples
    --------
    >>> import os, tempfile
    >>> import keras
    >>> import smh
    >>> model = smh.compress(keras.Sequential([keras.Input((40,)), keras.layers.Dense(30)]), ratio=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.tflite")
    >>> sizes = smh.export.litert(path, model)
    >>> from ai_edge_litert.interpreter import Interpreter
    >>> Interpreter(path).get_signature_list()
    {'serving_default': {'inputs': ['input_0'], 'outputs': ['output_0']}}
    """
    check_framework(model, "tensorflow", exports=True)
    check_flag("weights", weights)
    from smh.backends.tensorflow import exports

    return exports.litert(path, model, weights, batch)
