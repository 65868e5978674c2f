"""Models of Keras that are edited or copied, layer by layer, after their compression."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import keras

from smh.core.warning import warn
from smh.errors import PlanError
from smh.text import some

if TYPE_CHECKING:
    from smh.backends.tensorflow.keras_model import Compressed

_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)
"""Whether a whole model is being serialized, which then adds the plan."""


def check_layers(model: Compressed) -> None:
    """Raise :class:`~smh.PlanError` if layers with weights were replaced, removed or added since compression."""
    source = model.smh_source
    pool = {id(x) for x in model.smh_pool.weights}
    now = {id(x): x for x in model.weights if id(x) not in pool}
    layers = {id(layer) for layer in model._flatten_layers()}
    places = source.places.items()
    there = {id(source.weights[name]) for name, owners in places if not layers.isdisjoint(map(id, owners))} | set(now)
    gone = [name for name, x in source.weights.items() if id(x) not in there]
    known = {id(x) for x in source.weights.values()}
    new = [x.path for key, x in now.items() if key not in known]
    if gone or new:
        changes = [f"layers of {some(gone)} were replaced or removed"] if gone else []
        changes += [f"{some(new)} came with other layers"] if new else []
        raise PlanError(
            f"since compression {' and '.join(changes)}, so a file or a copy of this model would be of the old one. "
            "Edit a model before smh.compress; or undo the edit, and edit the result of smh.materialize(model)"
        )


def serialized(model: keras.Model) -> dict[str, Any]:
    """Return the configuration of a model, its class and its layers, as Keras stores it."""
    token = _WHOLE.set(True)
    try:
        config: dict[str, Any] = keras.saving.serialize_keras_object(model)
        return config
    finally:
        _WHOLE.reset(token)


def config_of(layer: keras.Layer) -> dict[str, Any]:
    """Return the configuration of a layer with generated weights; warns if it is asked for by itself."""
    if not _WHOLE.get():
        warn(
            "a layer made from this configuration has its own weights instead of generated ones, so "
            "keras.models.clone_model returns a plain model. Copy a compressed model with "
            "type(model).from_config(model.get_config()) and set_weights(model.get_weights())"
        )
    config: dict[str, Any] = type(layer).get_config(layer)
    return config
