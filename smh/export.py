"""Compressed models in the formats of other runtimes, as small as their pool.

The files hold the integers of the pool, and the graph that builds weights from them: the runtime gets the trained
weights, bit for bit. Each function names its format.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from smh.models.exported import Exported

if TYPE_CHECKING:
    from smh.backends.tensorflow import Compressed

__all__ = ["Exported", "litert", "saved_model"]


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
        Whether there is a second signature ``weights`` that returns the weights. Their names are ``weight:`` and the
        name of the weight. For proofs: a runtime then shows the weights that it built.

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
    >>> tensorflow.saved_model.load(path).serve(tensorflow.ones((1, 40))).shape
    TensorShape([1, 30])
    """
    from smh.backends.tensorflow import exports

    return exports.saved_model(path, model, weights)


def litert(
    path: str | os.PathLike[str], model: Compressed, *, batch: int | None = None, weights: bool = False
) -> Exported:
    """Write a compressed Keras model as a LiteRT file (``.tflite``) that holds its pool as integers.

    The file needs no Flex operators. Before it is written it runs in LiteRT once, for one example of random numbers:
    its weights must have the bits of the model's, and its outputs must be close.

    Parameters
    ----------
    path : str or path-like
        The file to write. It is replaced when the new one is complete.
    model : smh.keras.Compressed
        The compressed model, frozen or not, which does not change. Its pool is ``matmul`` or ``kronecker`` with at
        most 8 bits. A subclassed model must have been called once.
    batch : int, optional
        The size of the first axis of inputs where the model leaves it open. Recurrent layers need one.
    weights : bool
        Whether the weights are outputs, too, with names of ``weight:`` and the name of the weight.

    Returns
    -------
    Exported
        Sizes of the file and of what is in it.

    Raises
    ------
    PlanError
        If the model is not compressed.
    ExportError
        If LiteRT cannot hold the model or its pool, or would run it differently. Nothing is written then.
    VariableError
        If training has diverged.
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
    from smh.backends.tensorflow import exports

    return exports.litert(path, model, weights, batch)
