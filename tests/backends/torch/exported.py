"""What the tests of exports write: a small network of convolutions, with every kind of pool."""

import torch
from torch import nn

import smh
from smh import pools

POOLS = {
    "matmul": pools.Matmul(),
    "nibbles": pools.Matmul(bits=4),
    "wide": pools.Matmul(bits=16),
    "kronecker": pools.Kronecker(),
    "hash": pools.Hash(hashes=2),
    "sum": pools.Sum(pools.Matmul(), pools.Hash()),
}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def cnn(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )
    return smh.compress(model, ratio=0.1, **options).eval()
