"""The methods under comparison. Each gives a model that stores at most a given share of the dense model.

==============  =====================================================================================================
method          description
==============  =====================================================================================================
dense           the plain network
matmul          Structured Multi-Hashing, one matrix product
kronecker       Structured Multi-Hashing, a sum of Kronecker products
hash1           HashedNets: every weight is a signed entry of one table for all layers
hash2           sums of two such entries
hash10          sums of ten such entries
sum             the sum of matmul and hash1, with half of the variables each
kronecker_hash  the sum of kronecker and hash1
product         the product of matmul and hash1: every weight is a sum of products of three variables
width           a narrower network, all hidden layers by the same factor
lowrank         every layer as a product of two factors, trained from the start; convolutions as matrices of outputs x
                (inputs x window)
pruned          dense at first, then with gradually fewer weights
fit             dense for half of the steps, then matmul, fitted to the dense model and trained for the remaining steps
random          matmul with a frozen initial pool; only scales, biases and norms are trained and stored
integers        the plain network with an integer for each weight and a learned scale for each layer, trained with the
                rate in the loss if the settings say so
fold            one table of integers for all weights, each used equally often (STABLE-RPS)
==============  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from experiments import models, sizes
from experiments.errors import CannotReachError, ExperimentError
from experiments.integers import OnTable, RoundedTensors
from experiments.lowrank import factorise_
from experiments.models import Shape
from experiments.pruning import Pruner
from experiments.settings import Settings
from smh.backends import torch as smh
from smh.backends.torch.narrow import KERNELS
from smh.core.generate import put_on_grids
from smh.core.pools import Hash, Kronecker, Matmul, Pool, Product, Sum

POOLS: dict[str, Pool] = {
    "matmul": Matmul(),
    "kronecker": Kronecker(),
    "hash1": Hash(hashes=1),
    "hash2": Hash(hashes=2),
    "hash10": Hash(hashes=10),
    "sum": Sum(Matmul(), Hash(hashes=1)),
    "kronecker_hash": Sum(Kronecker(), Hash(hashes=1)),
    "product": Product(Matmul(), Hash(hashes=1)),
    "fit": Matmul(),
    "random": Matmul(),
}
METHODS = ("dense", *POOLS, "width", "lowrank", "pruned", "integers", "fold")


@dataclass(frozen=True)
class Stored:
    """The number of stored variables of a model, by kind."""

    pool: int = 0
    scales: int = 0
    weights: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """The total number."""
        return self.pool + self.scales + self.weights + self.kept


@dataclass(frozen=True)
class Made:
    """A model to train.

    ``pruner`` acts after each step. ``integers`` returns the integers of the trained model, with ``bits`` bits, and
    ``rate`` the estimate of their bits; a model without them has float32 weights.
    """

    model: nn.Module
    stored: Stored
    about: dict[str, Any] = field(default_factory=dict)
    pruner: Pruner | None = None
    integers: Callable[[], list[torch.Tensor]] | None = None
    rate: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Size:
    """The size of a method within a budget. ``choice`` is a pool ratio, a width, ranks or a number of weights."""

    dense: int
    kept: int
    choice: Any


def size(settings: Settings, shape: Shape, classes: int) -> Size:
    """Return sizes for settings without building a model.

    Raises
    ------
    CannotReachError
        If the method has no model within the budget.
    ExperimentError
        For an unknown method or model.
    """
    if settings.method not in METHODS:
        raise ExperimentError(f"method must be one of {', '.join(METHODS)}; got {settings.method!r}")
    whole = sizes.skeleton(settings.model, shape, classes)
    dense = sizes.count(whole)
    shapes = sizes.matrices(whole)
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    kept = dense - sum(weights.values())
    if settings.ratio is None:
        return Size(dense, kept, None)
    if settings.method == "fold":
        room = sizes.budget(settings.ratio, dense) - kept - len(weights)
        if room < 1:
            raise CannotReachError(kept + len(weights) + 1, sizes.budget(settings.ratio, dense))
        return Size(dense, kept, room)
    allowed = sizes.budget(settings.ratio, dense)
    if settings.method in POOLS:
        names = included(settings.include, whole)
        generated = sum(weights[name] for name in names)
        scales = len(names) if settings.learn_scale else 0
        ratio = sizes.pool_ratio(POOLS[settings.method], generated, dense - generated + scales, allowed)
        return Size(dense, dense - generated, ratio)
    if settings.method == "width":
        return Size(dense, kept, sizes.widest(settings.model, shape, classes, allowed))
    if settings.method == "lowrank":
        return Size(dense, kept, sizes.ranks(shapes, kept, allowed))
    if allowed - kept < 1:
        raise CannotReachError(kept + 1, allowed)
    return Size(dense, kept, allowed - kept)


def included(what: str, model: nn.Module) -> list[str]:
    """Return the names of the layers with generated weights."""
    layers = sizes.layers(model)
    if what == "convolutions":
        return [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    return list(layers)[1:-1] if what == "inner" else list(layers)


def make(settings: Settings, shape: Shape, classes: int, dense: nn.Module | None = None) -> Made:
    """Return the model of a method, initialised from PyTorch's global generator and the seed of the settings.

    Parameters
    ----------
    settings : Settings
        The settings of the run.
    shape : tuple of int
        Channels, height and width of the images.
    classes : int
        The number of classes.
    dense : torch.nn.Module, optional
        The trained model, for method ``fit``.
    """
    sized = size(settings, shape, classes)
    if settings.method == "width":
        model = models.build(settings.model, shape, classes, sized.choice)
        weights = sum(layer.weight.numel() for layer in sizes.layers(model).values())
        return Made(model, Stored(weights=weights, kept=sizes.count(model) - weights), {"width": sized.choice})
    model = models.build(settings.model, shape, classes) if dense is None else dense
    if settings.method == "dense":
        return Made(model, Stored(weights=sized.dense - sized.kept, kept=sized.kept))
    if settings.method == "lowrank":
        shapes = sizes.matrices(model)
        factorise_(model, sized.choice)
        weights = sizes.factorised(shapes, sized.choice)
        return Made(model, Stored(weights=weights, kept=sized.kept), {"ranks": sized.choice})
    if settings.method == "pruned":
        pruner = Pruner([layer.weight for layer in sizes.layers(model).values()], sized.choice)
        return Made(model, Stored(weights=sized.choice, kept=sized.kept), pruner=pruner)
    if settings.method == "integers":
        tensors = RoundedTensors(list(sizes.layers(model).values()), ("weight",), settings.bits)
        stored = Stored(weights=sized.dense - sized.kept, scales=len(sizes.layers(model)), kept=sized.kept)
        return Made(model, stored, integers=tensors.integers, rate=tensors.rate)
    if settings.method == "fold":
        layers = list(sizes.layers(model).values())
        on_table = OnTable(model, layers, sized.choice, settings.bits, settings.seed)
        stored = Stored(pool=sized.choice, scales=len(layers), kept=sized.kept)
        return Made(on_table, stored, integers=on_table.integers, rate=on_table.rate)
    return _compressed(model, settings, sized.choice, sized.kept, dense is not None)


def _compressed(model: nn.Module, settings: Settings, ratio: Fraction, kept: int, fit: bool) -> Made:
    options: dict[str, Any] = {
        "ratio": ratio,
        "pool": POOLS[settings.method],
        "seed": settings.seed,
        "optimizer": "sgd" if settings.optimizer == "sgd" else "adam",
        "bits": settings.bits,
        "scale": settings.scale,
        "learn_scale": settings.learn_scale,
        "include": [f"{name}.weight" for name in included(settings.include, model)],
    }
    if settings.rate:
        options["exponents"] = "fixed"
    about: dict[str, Any] = {}
    if fit:
        compressed, errors = smh.fit(model, **options)
        about["fit_error"] = errors.error
    else:
        compressed = smh.compress(model, **options)
    plan = smh.plan_of(compressed)
    pool = pool_parameters(compressed)
    if not fit and settings.initial != "normal":
        drawn = smh.initialize(plan, settings.initial)
        with torch.no_grad():
            for name, parameter in pool.items():
                parameter.copy_(drawn[name])
    about |= {"pool": repr(plan.pool), "pool_ratio": plan.ratio, "file_bytes": plan.file_bytes + 4 * kept}
    frozen = settings.method == "random"
    for parameter in pool.values():
        parameter.requires_grad_(not frozen)
    scales = sum(tensor.learn_scale for tensor in plan.tensors)
    variables = 0 if frozen else sum(parameter.numel() for parameter in pool.values())
    return Made(
        compressed,
        Stored(pool=variables, scales=scales, kept=kept),
        about,
        integers=lambda: _integers(compressed),
        rate=lambda: smh.rate(compressed),
    )


def _integers(model: nn.Module) -> list[torch.Tensor]:
    """Return the integers of a compressed model that a file stores: none of a frozen initial pool."""
    plan = smh.plan_of(model)
    trained = {name: x.detach() for name, x in pool_parameters(model).items()}
    if not any(x.requires_grad for x in pool_parameters(model).values()):
        return []
    return [grid.integers for grid in put_on_grids(KERNELS, plan, trained).values()]


def pool_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the pool variables of a compressed model by their names in its plan; none for a plain model."""
    own = dict(model.named_parameters())
    if not any(name.startswith("pool_") for name in own):
        return {}
    names = [name for name in smh.plan_of(model).variable_shapes if name.startswith("pool/")]
    return {name: own[name.replace("/", "_")] for name in names}


def scale_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the learnable scales of a compressed model; none for a plain model."""
    return [parameter for name, parameter in model.named_parameters() if name.endswith("_scale")]
