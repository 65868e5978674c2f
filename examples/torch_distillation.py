"""Train a compressed PyTorch network on handwritten digits with and without the advice of a dense one.

Distillation (Hinton, Vinyals and Dean 2015): half of the loss is the cross entropy, and half compares the outputs with
those of a trained dense model, the teacher. It helps small models most: docs/results/ideas.md has measurements.

pip install "structured-multi-hashing[torch,demo]"
python examples/torch_distillation.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

import smh

TEMPERATURE = 4.0


def make_model() -> nn.Module:
    """Return a network for images of 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def distilled(outputs: torch.Tensor, advice: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of the cross entropy and of the divergence from the outputs of the teacher."""
    student, teacher = ((x / TEMPERATURE).log_softmax(1) for x in (outputs, advice))
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (functional.cross_entropy(outputs, labels) + TEMPERATURE**2 * divergence) / 2


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, teacher: nn.Module | None = None) -> nn.Module:
    """Train a model for 10 epochs and return it."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(x)).split(64):
            outputs = model(x[batch])
            if teacher is None:
                loss = functional.cross_entropy(outputs, y[batch])
            else:
                with torch.no_grad():
                    advice = teacher(x[batch])
                loss = distilled(outputs, advice, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main() -> float:
    """Train a dense model and two compressed ones; return the accuracy of the distilled one on test images."""
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images, digits, test_size=360, random_state=0, stratify=digits)
    x, x_test = (torch.tensor(part / 16.0, dtype=torch.float32) for part in split[:2])
    y, y_test = (torch.tensor(part) for part in split[2:])

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(x_test).argmax(1) == y_test).float().mean().item()

    torch.manual_seed(0)
    teacher = train(make_model(), x, y)
    alone, advised = (
        train(smh.compress(make_model(), ratio=0.01, optimizer="adam"), x, y, advice) for advice in (None, teacher)
    )
    print(f"dense {accuracy(teacher):.1%}, compressed {accuracy(alone):.1%}, with a teacher {accuracy(advised):.1%}")
    report = smh.report(advised)
    print(f"{report.bytes_after:,} bytes instead of {report.bytes_before:,}")
    return accuracy(advised)


if __name__ == "__main__":
    main()
