"""The architectures in PyTorch."""

import copy

import numpy as np
import torch
from torch import nn

from smh.backends import torch as smh
from tests.porting.models import IMAGES, RATE, STILL_FROM, batches

F = nn.functional


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 80)
        self.fc2 = nn.Linear(80, 80)
        self.fc3 = nn.Linear(80, 80)
        self.head = nn.Linear(80, 10)

    def forward(self, x):
        return self.head(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 4 * 4, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(F.relu(self.fc(x.flatten(1))))


class SeparableBlock(nn.Module):
    def __init__(self, channels, outputs, multiplier=1, stride=1):
        super().__init__()
        middle = channels * multiplier
        self.depthwise = nn.Conv2d(channels, middle, 3, stride, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.pointwise = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = SeparableBlock(16, 64, multiplier=2, stride=2)
        self.block2 = SeparableBlock(64, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = self.block2(self.block1(F.relu(self.bn(self.conv(x)))))
        return self.head(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, channels, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != outputs:
            projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.layer1 = ResidualBlock(8, 8)
        self.layer2 = ResidualBlock(8, 16, stride=2)
        self.layer3 = ResidualBlock(16, 32, stride=2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn(self.conv(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer of class ``kind``; its last output is classified."""

    def __init__(self, kind, units):
        super().__init__()
        self.rnn = kind(8, units, batch_first=True)
        self.fc = nn.Linear(units, 10)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp1 = nn.Linear(width, 2 * width)
        self.mlp2 = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(torch.randn(1, 8, 32) * 0.1)
        self.layers = nn.ModuleList([EncoderLayer(32, 4), EncoderLayer(32, 4)])
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


_MODELS = {
    "mlp": Mlp,
    "cnn": Cnn,
    "separable": Separable,
    "resnet": ResNet,
    "gru": lambda: Recurrent(nn.GRU, 56),
    "lstm": lambda: Recurrent(nn.LSTM, 48),
    "transformer": Transformer,
}


def make(architecture):
    """Return a plain model in training mode, with fresh weights that are the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _MODELS[architecture]()
    model.architecture = architecture
    return model


def compress(model, ratio):
    """Return a compressed copy."""
    return smh.compress(model, ratio=ratio, optimizer="adam")


def train(model, images, labels, steps):
    """Train a model in place, and return it."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STILL_FROM], gamma=0)
    for x, y in batches(images, labels, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(_inputs(model, x)), torch.from_numpy(y).long()).backward()
        optimizer.step()
        schedule.step()
    return model


def logits(model, images):
    """Return what a model, compressed or not, computes in inference mode."""
    model.eval()
    with torch.no_grad():
        return model(_inputs(model, images)).numpy()


def materialize(model):
    """Return a plain model with the weights that a compressed one generates."""
    return smh.materialize_(copy.deepcopy(model))


def tensors(model):
    """Return all tensors of a plain model by name."""
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def put(model, values):
    """Set all tensors of a plain model, and return it."""
    model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in values.items()})
    return model


def save(path, model):
    """Write a checkpoint, and return the digest."""
    return smh.save(path, model)


def load(path, model):
    """Return a compressed model with what a file holds, given a plain one."""
    return smh.load(path, model)


def digest(model):
    """Return the digest of the weights that a compressed model generates."""
    return smh.digest(model)


def module_of(model):
    """Return what :func:`smh.porting.match` is told of a model."""
    return model


def _inputs(model, images):
    if model.architecture == "mlp":
        return torch.from_numpy(images.reshape(len(images), 64))
    return torch.from_numpy(images[:, None] if model.architecture in IMAGES else images)
