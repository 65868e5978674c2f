"""The TensorFlow backend: weights as differentiable tensors, eagerly, in graphs, and compiled by XLA."""

from smh.backends.tensorflow.adapter import backend
from smh.backends.tensorflow.functions import digest, initialize, load, materialize, save, vjp
from smh.backends.tensorflow.models import compress, fit, plan_of, report
from smh.core.plan import Plan

__all__ = [
    "Plan",
    "backend",
    "compress",
    "digest",
    "fit",
    "initialize",
    "load",
    "materialize",
    "plan_of",
    "report",
    "save",
    "vjp",
]
