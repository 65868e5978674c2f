"""Networks in PyTorch: plain definitions of ResNet-34, EfficientNet-B0 and a small language model."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.shapes import EFFICIENTNET_B0, RESNET34
from experiments import models


def network(name: str) -> nn.Module:
    """Return a network with fresh weights, of this module or, for images of 28 x 28, of :mod:`experiments.models`."""
    torch.manual_seed(0)
    own = {"resnet34": resnet34, "efficientnet_b0": efficientnet_b0, "language model": language_model}
    return own[name]() if name in own else models.build(name, (1, 28, 28), 10)


def resnet34() -> nn.Module:
    """ResNet-34 for ImageNet (He et al. 2016)."""
    layers: list[nn.Module] = [_Convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for channels, blocks in RESNET34:
        for _ in range(blocks):
            layers.append(_Basic(before, channels))
            before = channels
    return nn.Sequential(*layers, *_classifier(before))


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019), without stochastic depth."""
    layers: list[nn.Module] = [_Convolution(3, 32, 3, 2, act=nn.SiLU())]
    before = 32
    for expansion, window, stride, channels, blocks in EFFICIENTNET_B0:
        for block in range(blocks):
            layers.append(_Inverted(before, channels, expansion, window, 1 if block else stride))
            before = channels
    return nn.Sequential(*layers, _Convolution(before, 1280, 1, act=nn.SiLU()), *_classifier(1280))


def language_model() -> nn.Module:
    """Return a small GPT-2 of transformers if installed, else a similar decoder."""
    if importlib.util.find_spec("transformers"):
        transformers: Any = importlib.import_module("transformers")
        sizes = {"vocab_size": 8000, "n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6}
        model: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=None))
        return model
    return Decoder()


class Decoder(nn.Module):
    """A decoder whose ``generate`` calls it once for every token."""

    def __init__(self, vocabulary: int = 8000, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        block = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Any) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.blocks(self.tokens(tokens), mask, is_causal=True)[:, -1:])

    @torch.no_grad()
    def generate(self, tokens: Any, max_new_tokens: int, **ignored: Any) -> Any:
        for _ in range(max_new_tokens):
            tokens = torch.cat([tokens, self(tokens).argmax(-1)], 1)
        return tokens


class _Convolution(nn.Sequential):
    """A convolution with batch norm and, unless told otherwise, ReLU."""

    def __init__(self, before: int, after: int, window: int, stride: int = 1, groups: int = 1, act: Any = None) -> None:
        conv = nn.Conv2d(before, after, window, stride, window // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(after), nn.ReLU() if act is None else act)


class _Basic(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        last = _Convolution(after, after, 3, act=nn.Identity())
        self.layers = nn.Sequential(_Convolution(before, after, 3, stride), last)
        self.shortcut = _Convolution(before, after, 1, stride, act=nn.Identity()) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        return functional.relu(self.layers(x) + self.shortcut(x))


class _Inverted(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self, before: int, after: int, expansion: int, window: int, stride: int) -> None:
        super().__init__()
        inner, squeezed = expansion * before, before // 4
        self.expand = _Convolution(before, inner, 1, act=nn.SiLU()) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(inner, inner, window, stride, inner, nn.SiLU())
        narrow, wide = nn.Conv2d(inner, squeezed, 1), nn.Conv2d(squeezed, inner, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), narrow, nn.SiLU(), wide, nn.Sigmoid())
        self.project = _Convolution(inner, after, 1, act=nn.Identity())
        self.skips = stride == 1 and before == after

    def forward(self, x: Any) -> Any:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.gate(y))
        return x + y if self.skips else y


def _classifier(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
