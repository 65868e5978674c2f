"""Gradual magnitude pruning over all layers during training (Zhu and Gupta 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

START, STOP = 0.2, 0.6
_TIMES = 10


class Pruner:
    """Sets the smallest weights of all layers to zero and keeps them there.

    Ten prunings take place between 20 % and 60 % of the steps. The number of remaining weights falls from all weights
    to the final count as (1 - t)**3. A pruned weight stays zero.

    Parameters
    ----------
    weights : sequence of torch.nn.Parameter
        The weights of all layers.
    final : int
        The number of weights to keep.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter], final: int) -> None:
        self.weights = weights
        self.final = final
        self.masks: list[torch.Tensor] = []
        self._done = 0

    @property
    def state(self) -> dict[str, Any]:
        """The masks and the number of prunings so far, for :meth:`restore`."""
        return {"masks": self.masks, "done": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.masks, self._done = state["masks"], state["done"]

    def after_step(self, step: int, steps: int) -> None:
        """Prune if a pruning is due, and set pruned weights to zero again."""
        progress = (step / steps - START) / (STOP - START)
        times = _TIMES if step == steps else min(_TIMES, int(progress * _TIMES))
        if times > self._done:
            self._done = times
            total = sum(weight.numel() for weight in self.weights)
            self._prune(self.final + round((total - self.final) * (1 - times / _TIMES) ** 3))
        if self.masks:
            with torch.no_grad():
                for weight, mask in zip(self.weights, self.masks, strict=True):
                    weight.mul_(mask)

    def _prune(self, left: int) -> None:
        magnitudes = torch.cat([weight.detach().abs().flatten() for weight in self.weights])
        if self.masks:
            gone = torch.cat([mask.flatten() for mask in self.masks]) == 0
            magnitudes[gone] = -1.0
        mask = torch.zeros_like(magnitudes)
        mask[torch.topk(magnitudes, left).indices] = 1.0
        parts = mask.split([weight.numel() for weight in self.weights])
        self.masks = [part.view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]
