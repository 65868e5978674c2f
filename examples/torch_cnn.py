"""Train a small PyTorch network on handwritten digits with a tenth of the variables, save it and load it.

pip install "structured-multi-hashing[torch,demo]"
python examples/torch_cnn.py
"""

import pathlib
import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import smh


def make_model() -> nn.Module:
    """Return a network for images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def main() -> float:
    """Train, save and load the model; return its accuracy on test images."""
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images, digits, test_size=360, random_state=0, stratify=digits)
    x, x_test = (torch.tensor(part / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    y, y_test = (torch.tensor(part) for part in split[2:])

    model = smh.compress(make_model(), ratio=0.1, optimizer="adam")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()

    smh.torch.set_residency(model.eval(), "cached")
    with torch.no_grad():
        answers = model(x_test).argmax(1)
    accuracy = (answers == y_test).float().mean().item()
    print(smh.report(model))

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "digits.safetensors"
        digest = smh.save(path, model)
        print(f"{path.stat().st_size:,} bytes, digest {digest[:16]}...")
        loaded = smh.load(path, make_model())
    if smh.digest(loaded) != digest:
        raise SystemExit("the loaded model has other weights")
    with torch.no_grad():
        agree = (smh.torch.materialize_(loaded).eval()(x_test).argmax(1) == answers).float().mean().item()
    print(f"accuracy {accuracy:.1%}; the loaded model has the same weights and gives {agree:.1%} of the same answers")
    return accuracy


if __name__ == "__main__":
    main()
