"""How large models are, and the largest of each method within a budget. All counts are of the same things.

*Stored variables* are all floating-point numbers that a file of the model has to hold: weights or what they are
generated from, scales, biases, and of batch norm its two parameters and its two running statistics. Positions of
non-zero weights after pruning are not counted.
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
    """Return how many floating-point numbers the state of a model has."""
    return sum(x.numel() for x in model.state_dict().values() if x.is_floating_point())


def skeleton(name: str, shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return a network without memory for its weights."""
    with torch.device("meta"):
        return models.build(name, shape, classes, width)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have weights, in order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return for every layer the shape of its weights as a matrix, outputs x inputs (with the window)."""
    return {name: (layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers(model).items()}


def budget(ratio: float, dense: int) -> int:
    """Return the most variables that may be stored; the ratio is read as the decimal that it prints as."""
    return math.floor(Fraction(repr(ratio)) * dense)


def pool_ratio(pool: Pool, generated: int, kept: int, allowed: int) -> Fraction:
    """Return the largest ratio of a pool for ``generated`` weights that is within budget with ``kept`` other variables.

    Raises
    ------
    CannotReachError
        If the pool has no size as small as that.
    """
    room = Fraction(allowed - kept, generated)
    smallest = pool.smallest_ratio(generated)
    if room < smallest:
        raise CannotReachError(kept + math.ceil(smallest * generated), allowed)
    return room


def widest(name: str, shape: Shape, classes: int, allowed: int) -> float:
    """Return the largest width that is within a budget."""
    found = sorted(models.widths(name))

    def size(width: float) -> int:
        return count(skeleton(name, shape, classes, width))

    fitting = bisect_left(found, True, key=lambda width: size(width) > allowed)
    if not fitting:
        raise CannotReachError(size(found[0]), allowed)
    return found[fitting - 1]


def ranks(shapes: Matrices, kept: int, allowed: int) -> dict[str, int | None]:
    """Return the rank of every layer, None for one that is not factorised because that would not make it smaller.

    All layers get the same rank, the largest within the budget; what is left then goes to one more for layers in their
    order. So small layers, such as the first and the last, stay whole unless the budget is very small.
    """

    def chosen(rank: int, more: Collection[str] = ()) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, (rows, columns) in shapes.items():
            own = rank + (name in more)
            found[name] = own if own * (rows + columns) < rows * columns else None
        return found

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


def factorised(shapes: Matrices, chosen: Mapping[str, int | None]) -> int:
    """Return how many numbers all factors have."""
    total = 0
    for name, (rows, columns) in shapes.items():
        rank = chosen[name]
        total += rows * columns if rank is None else rank * (rows + columns)
    return total
