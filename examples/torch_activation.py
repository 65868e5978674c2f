"""Train a compressed PyTorch network on handwritten digits with ReLU and with a learned activation.

The learned activation has eight linear segments with trained slopes (after Xu and others 2019, arXiv 1907.06870). It
helps small models, also with a teacher: docs/results/ideas.md has measurements.

pip install "structured-multi-hashing[torch,demo]"
python examples/torch_activation.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

import smh


class Segments(nn.Module):
    """A continuous function of linear segments, each half of the root mean square of the inputs wide; at first ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.0] * 4 + [1.0] * 4))
        self.register_buffer("rms", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to each element."""
        rms = self.rms
        if self.training:
            rms = x.detach().square().mean().sqrt()
            self.rms.lerp_(rms, 0.1)
        z = 2 * x / rms
        inner = (z.clamp(k, k + 1) - (k + 1 if k < 0 else k) for k in range(-3, 3))
        parts = torch.stack([z.clamp(max=-3) + 3, *inner, z.clamp(min=3) - 3], -1)
        return parts @ self.slopes * rms / 2


def make_model(activation: type[nn.Module]) -> nn.Module:
    """Return a network for images of 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, 256), activation(), nn.Linear(256, 256), activation(), nn.Linear(256, 10))


def main() -> float:
    """Train a compressed model with each activation; return the accuracy of the last one on test images."""
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images, digits, test_size=360, random_state=0, stratify=digits)
    x, x_test = (torch.tensor(part / 16.0, dtype=torch.float32) for part in split[:2])
    y, y_test = (torch.tensor(part) for part in split[2:])
    for activation in (nn.ReLU, Segments):
        torch.manual_seed(0)
        model = smh.compress(make_model(activation), ratio=0.01, optimizer="adam").train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(10):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            accuracy = (model.eval()(x_test).argmax(1) == y_test).float().mean().item()
        print(f"{activation.__name__}: {accuracy:.1%}, {smh.report(model).bytes_after:,} bytes")
    return accuracy


if __name__ == "__main__":
    main()
