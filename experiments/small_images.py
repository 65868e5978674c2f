"""Small images of one size in one folder per class, decoded once and kept in memory. This needs Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import folders
from experiments.errors import ExperimentError


def read(folder: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images and classes for training, then those for testing.

    Parameters
    ----------
    folder : Path
        Holds ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``.
    shape : tuple of int
        Channels, height and width of every image.

    Raises
    ------
    ExperimentError
        If a folder is missing or empty, or an image cannot be decoded or has another size.
    """
    training = folders.read(folder / "train")
    test = folders.read(folder / "test", training.classes)
    x, test_x = (np.stack([_decode(path, shape) for path in part.paths]) for part in (training, test))
    return x, np.asarray(training.labels), test_x, np.asarray(test.labels)


def _decode(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    pixels = np.asarray(folders.open_image(path, "L" if shape[0] == 1 else "RGB"))
    image = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
    if image.shape != shape:
        raise ExperimentError(f"images must have the shape {shape}, channels first; {path} has {image.shape}")
    return np.ascontiguousarray(image)
