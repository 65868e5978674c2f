"""The TensorFlow backend: weights as differentiable tensors, and Keras models, in graphs and compiled by XLA."""

from smh.errors import needs

try:
    import tensorflow  # noqa: F401
except ModuleNotFoundError as error:
    raise needs("tensorflow", "keras", error) from error

import keras

from smh.api import Api
from smh.backends.tensorflow.adapter import backend
from smh.backends.tensorflow.derivatives import as_written
from smh.backends.tensorflow.keras_model import Compressed
from smh.backends.tensorflow.models import adapter
from smh.core.plan import Plan

__all__ = [
    "Compressed",
    "Plan",
    "backend",
    "built",
    "compress",
    "digest",
    "fit",
    "freeze",
    "initialize",
    "load",
    "materialize",
    "plan_of",
    "rate",
    "report",
    "save",
    "sweep",
    "vjp",
]


class _KerasApi(Api[keras.Model, Compressed]):
    """What a ``tf.function`` may call, autograph leaves alone."""

    materialize = as_written(Api.materialize)
    vjp = as_written(Api.vjp)


_api = _KerasApi(lambda: backend, lambda model: adapter)
built = _api.built
compress = _api.compress
digest = _api.digest
fit = _api.fit
freeze = _api.freeze
initialize = _api.initialize
load = _api.load
materialize = _api.materialize
plan_of = _api.plan_of
rate = _api.rate
report = _api.report
save = _api.save
sweep = _api.sweep
vjp = _api.vjp
