"""Networks in PyTorch: those of the experiments, and a small language model."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn

from experiments import models


def network(name: str) -> nn.Module:
    """Return a network with fresh weights, for the images of ImageNet or, if small, of Fashion-MNIST."""
    torch.manual_seed(0)
    if name == "language model":
        return language_model()
    return models.build(name, *(((3, 224, 224), 1000) if name in models.IMAGENET else ((1, 28, 28), 10)))


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
