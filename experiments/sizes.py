"""Sizes of models, and the largest model of each method within a budget. All methods are counted alike.

*Stored variables* are all floating-point numbers in a file of the model: weights or the variables that generate them,
scales, biases, and the two parameters and two running statistics of batch norm. The positions of nonzero weights after
pruning are not counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from fractions import Fraction

import torch
from torch import nn

from experiments import models
from experiments.errors import CannotReachError
from experiments.models import Shape
from smh.core.pools import Pool

Matrices = Mapping[str, tuple[int, int]]


def count(model: nn.Module) -> int:
    """Return the number of floating-point numbers in the state of a model."""
    return sum(x.numel() for x in model.state_dict().values() if x.is_floating_point())


def skeleton(name: str, shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return a network on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return models.build(name, shape, classes, width)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with weights, in order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the weight shape of each layer as a matrix, outputs x (inputs x window)."""
    return {name: (layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers(model).items()}


def budget(ratio: float, dense: int) -> int:
    """Return the maximum number of stored variables. The ratio is read as its printed decimal."""
    return math.floor(Fraction(repr(ratio)) * dense)


def pool_ratio(pool: Pool, generated: int, kept: int, allowed: int) -> Fraction:
    """Return the largest ratio of a pool for ``generated`` weights that is within budget with ``kept`` other variables.

    Raises
    ------
    CannotReachError
        If the smallest pool exceeds the budget.
    """
    room = Fraction(allowed - kept, generated)
    smallest = pool.smallest_ratio(generated)
    if room < smallest:
        raise CannotReachError(kept + math.ceil(smallest * generated), allowed)
    return room


def widest(name: str, shape: Shape, classes: int, allowed: int) -> float:
    """Return the largest width within a budget."""
    widths = sorted(models.widths(name))

    def size(width: float) -> int:
        return count(skeleton(name, shape, classes, width))

    fitting = bisect_left(widths, True, key=lambda width: size(width) > allowed)
    if not fitting:
        raise CannotReachError(size(widths[0]), allowed)
    return widths[fitting - 1]


def ranks(shapes: Matrices, kept: int, allowed: int) -> dict[str, int | None]:
    """Return the rank of each layer, None for a layer that factors would not make smaller.

    All layers have the same rank, the largest within the budget. The rest of the budget raises the rank by one, layer
    by layer in order. Small layers, such as the first and the last, stay whole unless the budget is very small.
    """

    def chosen(rank: int, more: Collection[str] = ()) -> dict[str, int | None]:
        result: dict[str, int | None] = {}
        for name, (rows, columns) in shapes.items():
            own = rank + (name in more)
            result[name] = own if own * (rows + columns) < rows * columns else None
        return result

    def fits(rank: int, more: Collection[str] = ()) -> bool:
        return kept + factorised(shapes, chosen(rank, more)) <= allowed

    if not fits(1):
        raise CannotReachError(kept + factorised(shapes, chosen(1)), allowed)
    rank = bisect_left(range(1, max(map(min, shapes.values())) + 1), True, key=lambda rank: not fits(rank))
    more: list[str] = []
    for name in shapes:
        if fits(rank, [*more, name]):
            more.append(name)
    return chosen(rank, more)


def factorised(shapes: Matrices, rank_of: Mapping[str, int | None]) -> int:
    """Return the number of elements of all factors and whole layers."""
    total = 0
    for name, (rows, columns) in shapes.items():
        rank = rank_of[name]
        total += rows * columns if rank is None else rank * (rows + columns)
    return total
