"""The TensorFlow backend: weights as differentiable tensors, eagerly, in graphs, and compiled by XLA."""

from smh.v2.backends.tensorflow.adapter import backend
from smh.v2.backends.tensorflow.functions import digest, initialize, load, materialize, save, vjp
from smh.v2.backends.tensorflow.models import compress, fit, plan_of, report
from smh.v2.core.plan import Plan

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
