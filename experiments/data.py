"""Images to train on, read from local files. Nothing is downloaded.

==============  ==================================================================================================
name            source and format
==============  ==================================================================================================
fashion-mnist   Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017), MIT licence; four IDX files, as Debian's package
                ``dataset-fashion-mnist`` installs them
digits          scikit-learn's handwritten digits, part of the package: 1,797 images of 8 x 8, for quick checks
cifar10         Krizhevsky (2009), the Python or binary batches, or ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``, in
                the folder given by ``--data``
mnist           LeCun et al. (1998), ``train/DIGIT/IMAGE`` and ``test/DIGIT/IMAGE``, in the folder given by ``--data``
images          ``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``, the usual layout of ImageNet, in the folder given by
                ``--data``
==============  ==================================================================================================
"""

from __future__ import annotations

import functools
import gzip
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from experiments import cifar, folders, small_images
from experiments.errors import ExperimentError

FASHION = Path("/usr/share/datasets/fashion-mnist")
_SHUFFLE = 20171025  # fixed seed: the split into training and validation images never changes
_IDX_HEADER = {1: 8, 3: 16}


class Images(Protocol):
    """Images and their classes, by index."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images [k, channels, height, width], float32, and classes [k], int64."""


@dataclass(frozen=True)
class InMemory:
    """Normalised images in memory."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.y)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of some indices, and their classes."""
        return self.x[indices], self.y[indices]


@dataclass(frozen=True)
class Data:
    """A split data set. Validation images are held out from the training set."""

    training: Images
    validation: Images
    test: Images
    shape: tuple[int, int, int]
    classes: int


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set that fits into memory.

    ``read`` takes the folder of ``--data``, or None, and returns training images [n, channels, height, width], their
    classes [n], test images and their classes.
    """

    shape: tuple[int, int, int]
    classes: int
    read: Callable[[Path | None], Arrays]


@functools.lru_cache(maxsize=2)
def load(name: str, folder: Path | None, training: int, validation: int) -> Data:
    """Return a data set.

    Parameters
    ----------
    name : str
        A name of the table above.
    folder : Path, optional
        The folder of the data; Fashion-MNIST and the digits have a default.
    training, validation : int
        The number of images of the training set to train on, and the number to hold out for validation.

    Raises
    ------
    ExperimentError
        If the data is missing, broken, or too small.
    """
    if name == "images":
        return _split_folders(_needed(name, folder), training, validation)
    shape, classes = describe(name, folder)
    x, y, test_x, test_y = SOURCES[name].read(folder)
    first, second = split(len(y), training, validation)
    mean, deviation = _moments(x[first])

    def images(x: np.ndarray, y: np.ndarray) -> InMemory:
        scaled = (x.astype(np.float32) - mean) / deviation
        return InMemory(torch.from_numpy(scaled), torch.from_numpy(y.astype(np.int64)))

    return Data(
        training=images(x[first], y[first]),
        validation=images(x[second], y[second]),
        test=images(test_x, test_y),
        shape=shape,
        classes=classes,
    )


def describe(name: str, folder: Path | None) -> tuple[tuple[int, int, int], int]:
    """Return the shape of the images and the number of classes, without reading images."""
    if name == "images":
        return (3, folders.SIZE, folders.SIZE), len(folders.read(_needed(name, folder) / "train").classes)
    if name not in SOURCES:
        raise ExperimentError(f"data must be one of {', '.join((*SOURCES, 'images'))}; got {name!r}")
    return SOURCES[name].shape, SOURCES[name].classes


def split(count: int, training: int, validation: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and validation images, which depend only on the counts."""
    if training + validation > count:
        raise ExperimentError(
            f"the training set has {count:,} images; got training = {training:,} and validation = {validation:,}, "
            "which need more: lower them in [run]"
        )
    order = np.random.default_rng(_SHUFFLE).permutation(count)
    return order[:training], order[training : training + validation]


def read_idx(path: Path) -> np.ndarray:
    """Return the array of a gzip-compressed IDX file of bytes.

    Raises
    ------
    ExperimentError
        If the file is missing, truncated or of another format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ExperimentError(f"{path} cannot be read as a gzip file: {error}") from error
    header = content[:4]
    if len(header) < 4 or header[:3] != b"\0\0\x08" or header[3] not in _IDX_HEADER:
        raise ExperimentError(f"{path} must be an IDX file of bytes with 1 or 3 axes; it starts with {header.hex()!r}")
    start = _IDX_HEADER[header[3]]
    if len(content) < start:
        raise ExperimentError(f"{path} is truncated: its header needs {start} bytes; got {len(content)}")
    shape = struct.unpack(f">{header[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ExperimentError(
            f"{path} has the wrong length: its header gives {math.prod(shape):,} bytes for the shape {shape}; "
            f"got {len(content) - start:,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _fashion(folder: Path) -> Arrays:
    if not folder.is_dir():
        raise ExperimentError(
            f"Fashion-MNIST is not in {folder}: install the Debian package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or give the folder of its four IDX files with --data"
        )
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    x, y, test_x, test_y = (read_idx(folder / f"{name}-ubyte.gz") for name in names)
    for images, labels in ((x, y), (test_x, test_y)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise ExperimentError(
                f"{folder} does not contain Fashion-MNIST, images of 28 x 28 and one label from 0 to 9 for each; got "
                f"the shapes {images.shape} and {labels.shape}"
            )
    return x[:, None], y, test_x[:, None], test_y


def _cifar(folder: Path) -> Arrays:
    return small_images.read(folder, (3, 32, 32)) if (folder / "train").is_dir() else cifar.read(folder)


def _digits() -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ExperimentError("digits need scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    x, y = digits.images[:, None].astype(np.float32), digits.target
    order = np.random.default_rng(_SHUFFLE).permutation(len(y))
    test, training = order[:360], order[360:]
    return x[training], y[training], x[test], y[test]


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, shaped for broadcasting, float32."""
    if not len(x):
        raise ExperimentError("the training set is empty: set training to at least 1")
    mean = x.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)[0]
    deviation = x.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)[0]
    if not (deviation > 0).all():
        raise ExperimentError("the images have a constant channel, which cannot be normalised")
    return mean.astype(np.float32), deviation.astype(np.float32)


def _needed(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise ExperimentError(
            f"{name} has no default folder: give the folder of {name} with --data; nothing is downloaded"
        )
    return folder


def _split_folders(folder: Path, training: int, validation: int) -> Data:
    images = folders.read(folder / "train")
    test = folders.read(folder / "val", images.classes)
    first, second = split(len(images), training, validation)
    return Data(
        training=images.select(first),
        validation=images.select(second),
        test=test,
        shape=(3, folders.SIZE, folders.SIZE),
        classes=len(images.classes),
    )


SOURCES = {
    "fashion-mnist": Source((1, 28, 28), 10, lambda folder: _fashion(folder or FASHION)),
    "digits": Source((1, 8, 8), 10, lambda _: _digits()),
    "cifar10": Source((3, 32, 32), 10, lambda folder: _cifar(_needed("cifar10", folder))),
    "mnist": Source((1, 28, 28), 10, lambda folder: small_images.read(_needed("mnist", folder), (1, 28, 28))),
}
"""Data sets that fit into memory, by name."""
