"""Exports of compressed Keras models, whose files hold the pool as integers."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.export.export_utils import get_input_signature

from smh.backends.tensorflow.keras_model import Compressed, Frozen
from smh.backends.tensorflow.models import adapter
from smh.errors import ExportError
from smh.files.atomic import replacing_folder
from smh.files.integers import Integers, pack
from smh.models import poison
from smh.models.exported import WEIGHT, Exported


def saved_model(path: str | os.PathLike[str], model: Any, weights: bool) -> Exported:
    """Write a SavedModel; see :func:`smh.export.saved_model`."""
    frozen, integers = _frozen(model)
    source = frozen.smh_source
    signature = _signature(frozen)
    archive = keras.export.ExportArchive()  # without track, by which every variable would be stored twice
    archive.add_endpoint("serve", lambda *args: frozen(*args, training=False), signature)
    if weights:

        def build() -> dict[str, Any]:
            built = source.build(source.names, source.flat())
            return {f"{WEIGHT}{name}": w for name, w in zip(source.names, built, strict=True)}

        archive.add_endpoint("weights", build, input_signature=[])
    with replacing_folder(path, lambda old: (old / "saved_model.pb").is_file()) as temporary:
        archive.write_out(temporary, verbose=False)
        return _sizes(Path(temporary), frozen, integers).check()


def litert(path: str | os.PathLike[str], model: Any, weights: bool, batch: int | None) -> Exported:
    """Write a LiteRT file; see :func:`smh.export.litert`."""
    from smh.backends.tensorflow import litert as lite

    compression = adapter.compression(model)
    if compression is not None:
        lite.check_plan(compression.plan)
    frozen, integers = _frozen(model, residency="full")
    return lite.write(path, frozen, integers, _signature(frozen, batch), _kept_bytes(frozen, integers), weights)


def _frozen(model: Any, **changes: Any) -> tuple[Frozen, Integers]:
    """Return a frozen copy of a compressed model, and the integers of its pool."""
    if not isinstance(model, Compressed):
        raise adapter.not_compressed(model)
    source = model.smh_source
    variables = {name: adapter.backend.to_numpy(x) for name, x in source.values().items()}
    poison.check(source.plan, variables)
    integers = pack(source.plan, variables)
    frozen: Any = adapter.freeze(model, integers)
    frozen.smh_source.compression = dataclasses.replace(frozen.smh_source.compression, **changes)
    return frozen, integers


def _signature(model: keras.Model, batch: int | None = None) -> Any:
    """Return the inputs of a model, where an unknown batch size is that one."""
    try:
        found = get_input_signature(model)
    except ValueError as error:
        raise ExportError(f"the inputs of the model are not known, so call it once before: {error}") from error

    def described(spec: Any) -> tf.TensorSpec:
        shape = list(spec.shape)
        if shape and shape[0] is None:
            shape[0] = batch
        return tf.TensorSpec(shape, spec.dtype, spec.name)

    return keras.tree.map_structure(described, found)


def _sizes(folder: Path, frozen: Frozen, given: Integers) -> Exported:
    return Exported(
        file=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        integers=sum(x.nbytes for x in given.arrays.values()),
        kept=_kept_bytes(frozen, given),
        held=_bytes_of_variables(folder),
    )


def _kept_bytes(frozen: Any, given: Integers) -> int:
    """Return the bytes of all weights that are stored besides the integers."""
    stored = {id(x): math.prod(x.shape) * tf.as_dtype(x.dtype).size for x in frozen.weights}
    return int(sum(stored.values()) - sum(x.nbytes for x in given.arrays.values()))


def _bytes_of_variables(folder: Path) -> int:
    """Return the bytes of the variables in a SavedModel."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    sizes = {name: math.prod(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    return sum(int(size * types[name].size) for name, size in sizes.items() if types[name] != tf.string)
