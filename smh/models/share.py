"""Warn where a small share of a model is generated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from smh.core.plan import Plan
from smh.core.warning import warn
from smh.models.compression import ModelTensor

_FEW = 10_000  # models of fewer numbers are toys, which nobody compresses to save bytes


def warn_of_little(tensors: Iterable[ModelTensor], plan: Plan) -> None:
    """Warn if less than half of the numbers of a model are generated, and say why the others are kept."""
    generated = {tensor.name for tensor in plan.tensors}
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name not in generated:
            sizes[tensor.why_kept] += math.prod(tensor.shape)
    total = plan.num_weights + sizes.total()
    if 2 * plan.num_weights < total and total >= _FEW:
        reasons = "; ".join(f"{size:,} ({why})" for why, size in sizes.most_common(3))
        warn(
            f"only {plan.num_weights:,} of {total:,} numbers are generated, so the model barely "
            f"gets smaller. Kept: {reasons}; smh.report(model) lists them all"
        )
