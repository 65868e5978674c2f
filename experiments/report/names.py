"""Titles and descriptions of methods, networks and data sets. What has none here is shown by its own name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from experiments.pruning import START, STOP
from experiments.report.markdown import percent


class Name(NamedTuple):
    """How a page calls something, and how it describes it."""

    title: str
    description: str = ""


METHODS = {
    "dense": Name("dense", "the plain network"),
    "matmul": Name("smh, matrix product", "Structured Multi-Hashing: all weights are one matrix product"),
    "kronecker": Name(
        "smh, Kronecker products", "Structured Multi-Hashing: all weights are one sum of Kronecker products"
    ),
    "hash1": Name(
        "smh, 1 hash",
        "every weight is an entry of a table, with a sign, as in HashedNets (Chen et al. 2015), but all layers share "
        "one table",
    ),
    "hash2": Name("smh, 2 hashes", "every weight is the sum of two entries of one table, each with a sign"),
    "hash10": Name("smh, 10 hashes", "every weight is the sum of ten entries of one table, each with a sign"),
    "sum": Name(
        "smh, matrix product + 1 hash", "the sum of a matrix product and one hash, with half of the variables each"
    ),
    "kronecker_hash": Name(
        "smh, Kronecker products + 1 hash",
        "the sum of Kronecker products and one hash, with half of the variables each",
    ),
    "product": Name(
        "smh, matrix product x 1 hash",
        "every weight is an entry of a matrix product times one of a table, with half of the variables each",
    ),
    "width": Name("width multiplier", "a narrower network, all hidden layers by the same factor"),
    "lowrank": Name(
        "low rank",
        "every layer is a product of two factors, trained from the start; all layers have the same rank, and a layer "
        "that would not become smaller stays whole; convolutions are matrices of outputs x (inputs x window)",
    ),
    "pruned": Name(
        "pruning",
        f"the smallest weights over all layers are set to zero, gradually from {percent(START)} to {percent(STOP)} of "
        "the steps (Zhu and Gupta 2017); the positions of the remaining weights are not counted",
    ),
    "random": Name(
        "random pool",
        "a matrix product with a frozen initial pool: only scales, biases and batch norm are trained and counted",
    ),
    "fit": Name(
        "smh, fitted to a trained model", "dense at first, then a matrix product that is fitted to the dense model"
    ),
    "integers": Name("an integer for each weight", "every weight is an integer, with a learned scale for each layer"),
    "fold": Name(
        "one table, used evenly (STABLE-RPS)",
        "every weight is an entry of one table, and all entries are used equally often (Desai and Shrivastava 2024)",
    ),
    "rows": Name("matrix product by rows", "the cells of the matrix product are weights row by row, with fixed units"),
    "shuffled": Name("matrix product, shuffled", "the cells of the matrix product are weights in random order"),
    "diagonals": Name(
        "matrix product by diagonals", "the cells of the matrix product are weights diagonal by diagonal"
    ),
    "tiles": Name("matrix product by tiles", "the cells of the matrix product are weights in strips of 16 columns"),
}
NETWORKS = {
    "mlp": Name("MLP", "784-1000-1000-10, ReLU"),
    "shallow": Name("MLP with one hidden layer", "784-1000-10, ReLU"),
    "cnn": Name(
        "CNN",
        "three convolutions of stride 2 with batch norm, 32-64-64 channels, two dense layers of 216 and 10 units",
    ),
    "convnet": Name(
        "network of convolutions",
        "four convolutions of stride 2 with batch norm, 32-64-128-160 channels, average pooling, a dense layer",
    ),
    "resnet32": Name("ResNet-32", "ResNet-32 for CIFAR-10 (He et al. 2016)"),
    "resnet20": Name("ResNet-20", "ResNet-20 for CIFAR-10 (He et al. 2016)"),
    "resnet34": Name("ResNet-34", "ResNet-34 for ImageNet (He et al. 2016)"),
    "efficientnet_b0": Name("EfficientNet-B0", "EfficientNet-B0 for ImageNet (Tan and Le 2019)"),
    "lenet300": Name("LeNet-300-100", "784-300-100-10, ReLU"),
    "lenet5": Name("LeNet-5", "two convolutions with max pooling and two dense layers, as in Caffe"),
    "tiny": Name("tiny network", "one hidden layer of 40 units"),
}
DATA = {
    "fashion-mnist": Name(
        "Fashion-MNIST",
        "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, [arXiv 1708.07747](https://arxiv.org/abs/1708.07747), MIT "
        "licence)",
    ),
    "digits": Name("digits", "scikit-learn's handwritten digits"),
    "cifar10": Name("CIFAR-10", "CIFAR-10 (Krizhevsky 2009)"),
    "mnist": Name("MNIST", "MNIST (LeCun et al. 1998)"),
    "images": Name("images", "a folder of images"),
}


def title(names: Mapping[str, Name], name: str) -> str:
    """Return the title of a name. The label of a table keeps what follows the method, such as ``rate=1e-06``."""
    first, comma, rest = name.partition(", ")
    return names[first].title + comma + rest if first in names else name


def description(names: Mapping[str, Name], name: str) -> str:
    """Return the description of a name, or nothing."""
    return names[name].description if name in names else ""


def ordered(names: Mapping[str, Name], some: Iterable[str]) -> list[str]:
    """Return each of some names once, in the order of this module, then the others in their own order."""
    own = list(dict.fromkeys(some))
    return [*(name for name in names if name in own), *(name for name in own if name not in names)]
