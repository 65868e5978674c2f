"""Groups of parameters for optimisers, each with its learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from smh.v2.backends.torch.models import store_of
from smh.v2.models.rates import rate_multipliers


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Return the parameters of a compressed model in groups for an optimiser such as Adam, with scales slower.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model.
    lr : float
        The learning rate of all parameters but scales. That of a scale is this times what the scale starts with
        (:func:`smh.rates.rate_multipliers`), so that a step of Adam changes it by a share ``lr`` of that.

    Returns
    -------
    list of dict
        What optimisers of PyTorch take in place of parameters: the others first, then each scale by itself. Scales do
        not decay: what they multiply does already.

    Raises
    ------
    PlanError
        If the model is not compressed.

    Examples
    --------
    >>> import torch
    >>> from smh.v2.backends import torch as smh
    >>> model = smh.compress(torch.nn.Linear(300, 30), ratio=0.1, gain="adam")
    >>> optimizer = torch.optim.AdamW(smh.parameter_groups(model, lr=1e-2), weight_decay=0.01)
    >>> [(len(group["params"]), round(group["lr"], 6), group["weight_decay"]) for group in optimizer.param_groups]
    [(3, 0.01, 0.01), (1, 0.000333, 0.0)]
    """
    store = store_of(model)
    variables, multipliers = store.parameters(), rate_multipliers(store.plan)
    learned = [tensor.scale_variable for tensor in store.plan.tensors if tensor.learn_scale]
    scales = {id(variables[name]) for name in learned}
    others = [parameter for parameter in model.parameters() if id(parameter) not in scales]
    groups = [{"params": [variables[name]], "lr": lr * multipliers[name], "weight_decay": 0.0} for name in learned]
    return [{"params": others, "lr": lr}, *groups]
