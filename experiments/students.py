"""Changes to small networks, which are to make them more accurate."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from experiments import sizes
from experiments.method import Made
from experiments.settings import Settings

_SEGMENTS = 8
_WIDTH = 0.5  # of a segment, relative to the root mean square of the inputs
_MOMENTUM = 0.1


class Segments(nn.Module):
    """A continuous function of several linear segments with learned slopes, at first ReLU.

    After the light multi-segment activation of Xu et al. (2019, arXiv 1907.06870). Segments follow the root mean square
    of the inputs: that of the batch in training, a running one in tests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.cat([torch.zeros(_SEGMENTS // 2), torch.ones(_SEGMENTS // 2)]))
        self.register_buffer("rms", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to each element."""
        rms = self.rms
        if self.training:
            rms = x.detach().square().mean().sqrt()
            self.rms.lerp_(rms, _MOMENTUM)
        unit = _WIDTH * rms.clamp(min=1e-6)
        z, half, y = x / unit, _SEGMENTS // 2, torch.zeros_like(x)
        for k, slope in enumerate(self.slopes, -half):
            least, most = (k if k > -half else None), (k + 1 if k < half - 1 else None)
            y = y + slope * (z.clamp(least, most) - min(max(0, k), k + 1))
        return y * unit


def change(made: Made, settings: Settings) -> Made:
    """Return a made model with the activation and the scales of the settings. The model is changed in place."""
    added = 0
    if settings.activation == "segments":
        for parent in list(made.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(parent, name, Segments())
                    added += _SEGMENTS + 1
    if settings.channel_scale:
        for layer in _without_norm(made.model):
            outputs = layer.weight.shape[0]
            layer.register_parameter("channel_scale", nn.Parameter(torch.ones(outputs)))
            layer.register_forward_hook(lambda layer, _, y: y * layer.channel_scale)
            added += outputs
    return dataclasses.replace(made, stored=dataclasses.replace(made.stored, kept=made.stored.kept + added))


def _without_norm(model: nn.Module) -> list[nn.Module]:
    """Return the layers that no batch norm follows."""
    layers = list(sizes.layers(model).values())
    chain = [m for m in model.modules() if m in layers or isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [a for a, b in zip(chain, [*chain[1:], None], strict=True) if a in layers and (b is None or b in layers)]
