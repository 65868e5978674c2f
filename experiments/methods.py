"""The methods under comparison. Each gives a model that stores at most a given share of the dense model.

==============  =====================================================================================================
method          description
==============  =====================================================================================================
dense           the plain network
matmul          Structured Multi-Hashing, one matrix product
kronecker       Structured Multi-Hashing, a sum of Kronecker products
hash1           HashedNets: every weight is a signed entry of one table for all layers
hash2           HashedNets with sums of two entries
hash10          HashedNets with sums of ten entries
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
rows            one matrix product, whose cells are weights row by row, with a scale for each layer
shuffled        the same in random order
diagonals       the same, diagonal by diagonal
tiles           the same, in strips of 16 columns
==============  =====================================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from experiments import integers, sizes, students
from experiments.errors import ExperimentError
from experiments.integers import OnProduct, OnTable, RoundedTensors
from experiments.lowrank import factorise_
from experiments.method import Made, Method, Network, Stored
from experiments.models import Shape
from experiments.pruning import Pruner
from experiments.settings import Settings
from smh.backends import torch as smh
from smh.backends.torch.narrow import KERNELS
from smh.core.generate import put_on_grids
from smh.core.pools import Hash, Kronecker, Matmul, Pool, Product, Sum


@dataclass(frozen=True)
class Size:
    """The number of stored variables of the dense model, and the size of a method within its budget."""

    dense: int
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
    return _size(settings, Network(settings.model, shape, classes))


def has_ratio(method: str) -> bool:
    """Say whether a method has a ratio. One that is not known does, so that its name is what an error is about."""
    return method not in METHODS or METHODS[method].size is not None


def check(settings: Settings) -> None:
    """Raise ExperimentError for an unknown method, or one whose ratio is missing or superfluous."""
    if settings.method not in METHODS:
        raise ExperimentError(f"method must be one of {', '.join(METHODS)}; got {settings.method!r}")
    if (settings.ratio is not None) != has_ratio(settings.method):
        others = " and ".join(method for method in METHODS if not has_ratio(method))
        raise ExperimentError(f"every method has a ratio, except {others}; got {settings}")


def _size(settings: Settings, network: Network) -> Size:
    check(settings)
    choose = METHODS[settings.method].size
    if choose is None or settings.ratio is None:
        return Size(network.dense, None)
    return Size(network.dense, choose(settings, network, sizes.budget(settings.ratio, network.dense)))


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

    Raises
    ------
    ExperimentError
        If a weight to store is not a parameter of the model, so that it could not be rounded.
    """
    network = Network(settings.model, shape, classes, dense)
    made = METHODS[settings.method].make(settings, network, _size(settings, network).choice)
    made = students.change(made, settings)
    return made if made.integers is not None else dataclasses.replace(made, weights=_rounded(made, settings.method))


def _rounded(made: Made, method: str) -> list[nn.Parameter]:
    """Return the weights to round after training: those that a method names, or those of all layers."""
    if made.weights is None:
        weights = [getattr(layer, "weight", None) for layer in sizes.layers(made.model).values()]
    else:
        weights = list(made.weights)
    own = {id(x) for x in made.model.parameters()}
    if not all(id(x) in own for x in weights):
        raise ExperimentError(
            f"method {method} stores a weight that is not a parameter of its model, so it cannot be rounded: name the "
            "trained parameters in Made.weights"
        )
    total, expected = sum(x.numel() for x in weights), made.stored.pool + made.stored.weights
    if total < expected:
        raise ExperimentError(
            f"method {method} stores {expected:,} weights, but only {total:,} are to be rounded: name all of them in "
            "Made.weights"
        )
    return weights


def included(what: str, model: nn.Module) -> list[str]:
    """Return the names of the layers with generated weights."""
    layers = sizes.layers(model)
    if what == "convolutions":
        return [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    return list(layers)[1:-1] if what == "inner" else list(layers)


def _dense(settings: Settings, network: Network, _: None) -> Made:
    return Made(network.build(), Stored(weights=network.dense - network.kept, kept=network.kept))


def _width(settings: Settings, network: Network, width: float) -> Made:
    model = network.build(width)
    weights = sum(layer.weight.numel() for layer in sizes.layers(model).values())
    return Made(model, Stored(weights=weights, kept=sizes.count(model) - weights), {"width": width})


def _lowrank(settings: Settings, network: Network, ranks: dict[str, int | None]) -> Made:
    model = network.build()
    weights = sizes.factorised(sizes.matrices(model), ranks)
    factorise_(model, ranks)
    return Made(model, Stored(weights=weights, kept=network.kept), {"ranks": ranks})


def _pruned(settings: Settings, network: Network, weights: int) -> Made:
    model = network.build()
    pruner = Pruner([layer.weight for layer in sizes.layers(model).values()], weights)
    return Made(model, Stored(weights=weights, kept=network.kept), hook=pruner)


def _with_integers(settings: Settings, network: Network, _: None) -> Made:
    model = network.build()
    layers = list(sizes.layers(model).values())
    stored = Stored(weights=network.dense - network.kept, scales=len(layers), kept=network.kept)
    tensors = RoundedTensors(layers, ("weight",), settings.bits)
    return Made(model, stored, integers=tensors.integers, rate=tensors.rate)


def _fold(settings: Settings, network: Network, variables: int) -> Made:
    model = network.build()
    layers = list(sizes.layers(model).values())
    on_table = OnTable(model, layers, variables, settings.bits, settings.seed)
    stored = Stored(pool=variables, scales=len(layers), kept=network.kept)
    return Made(on_table, stored, integers=on_table.integers, rate=on_table.rate)


def _ordered(order: Callable[[int, torch.Generator], torch.Tensor]) -> Method:
    """Return the method that generates weights from one matrix product in an order."""

    def make(settings: Settings, network: Network, variables: int) -> Made:
        model = network.build()
        layers = list(sizes.layers(model).values())
        product = OnProduct(model, layers, variables, settings.bits, settings.seed, order)
        stored = Stored(pool=product.left.numel() + product.right.numel(), scales=len(layers), kept=network.kept)
        return Made(product, stored, integers=product.integers)

    return Method(make, lambda _, network, allowed: network.room(allowed, scales=len(network.weights)))


def pooled(pool: Pool) -> Method:
    """Return the method that generates weights from a pool."""

    def size(settings: Settings, network: Network, allowed: int) -> Fraction:
        names = included(settings.include, network.skeleton)
        generated = sum(network.weights[name] for name in names)
        scales = len(names) if settings.learn_scale else 0
        return sizes.pool_ratio(pool, generated, network.dense - generated + scales, allowed)

    return Method(functools.partial(_compressed, pool), size)


def _compressed(base: Pool, settings: Settings, network: Network, ratio: Fraction) -> Made:
    fit = network.trained is not None
    model = network.build() if network.trained is None else network.trained
    names = included(settings.include, model)
    kept = network.dense - sum(network.weights[name] for name in names)
    options: dict[str, Any] = {
        "ratio": ratio,
        "pool": base,
        "seed": settings.seed,
        "optimizer": "sgd" if settings.optimizer == "sgd" else "adam",
        "bits": settings.bits,
        "scale": settings.scale,
        "learn_scale": settings.learn_scale,
        "include": [f"{name}.weight" for name in names],
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


METHODS: dict[str, Method] = {
    "dense": Method(_dense),
    "matmul": pooled(Matmul()),
    "kronecker": pooled(Kronecker()),
    "hash1": pooled(Hash(hashes=1)),
    "hash2": pooled(Hash(hashes=2)),
    "hash10": pooled(Hash(hashes=10)),
    "sum": pooled(Sum(Matmul(), Hash(hashes=1))),
    "kronecker_hash": pooled(Sum(Kronecker(), Hash(hashes=1))),
    "product": pooled(Product(Matmul(), Hash(hashes=1))),
    "fit": pooled(Matmul()),
    "random": pooled(Matmul()),
    "width": Method(_width, lambda s, net, allowed: sizes.widest(net.name, net.shape, net.classes, allowed)),
    "lowrank": Method(_lowrank, lambda _, net, allowed: sizes.ranks(sizes.matrices(net.skeleton), net.kept, allowed)),
    "pruned": Method(_pruned, lambda _, net, allowed: net.room(allowed)),
    "integers": Method(_with_integers),
    "fold": Method(_fold, lambda _, net, allowed: net.room(allowed, scales=len(net.weights))),
    "rows": _ordered(integers.rows),
    "shuffled": _ordered(integers.shuffled),
    "diagonals": _ordered(integers.diagonals),
    "tiles": _ordered(integers.tiles),
}
"""All methods, by name."""
