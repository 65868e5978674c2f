"""Images in one folder per class, decoded on demand with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.errors import ExperimentError

SIZE = 224
_RESIZED = 256
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # the usual moments of ImageNet
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Folder:
    """Paths and classes of images. Classes are numbered in the order of their names."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised images: the shorter side resized to 256, then the central 224 x 224 pixels."""
        numbers = indices.tolist()
        x = torch.stack([_decode(self.paths[i]) for i in numbers])
        return x, torch.tensor([self.labels[i] for i in numbers])

    def select(self, indices: np.ndarray) -> Folder:
        """Return the images of some indices."""
        numbers = indices.tolist()
        return replace(self, paths=tuple(self.paths[i] for i in numbers), labels=tuple(self.labels[i] for i in numbers))


def read(folder: Path, classes: Sequence[str] | None = None) -> Folder:
    """List the images of a folder of class folders.

    Parameters
    ----------
    folder : Path
        The folder.
    classes : sequence of str, optional
        The allowed classes; by default the names of the folders.

    Raises
    ------
    ExperimentError
        If the folder is missing, has no images, or has an unexpected class.
    """
    if not folder.is_dir():
        raise ExperimentError(f"{folder} is not a folder: it must contain one folder of images per class")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    names = tuple(classes) if classes is not None else tuple(path.name for path in subfolders)
    numbers = {name: number for number, name in enumerate(names)}
    paths, labels = [], []
    for subfolder in subfolders:
        if subfolder.name not in numbers:
            raise ExperimentError(f"{subfolder} is a class that the training images do not have")
        images = sorted(path for path in subfolder.iterdir() if path.suffix.lower() in _SUFFIXES)
        paths += images
        labels += [numbers[subfolder.name]] * len(images)
    if not paths:
        raise ExperimentError(f"{folder} has no images in class folders ({', '.join(sorted(_SUFFIXES))})")
    return Folder(tuple(paths), tuple(labels), names)


def open_image(path: Path, mode: str = "RGB") -> Any:
    """Return a decoded image of Pillow, in a mode such as ``RGB`` or ``L``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ExperimentError("folders of images need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read as an image: {error}") from error


def _decode(path: Path) -> torch.Tensor:
    image = open_image(path)
    width, height = image.size
    factor = _RESIZED / min(width, height)
    image = image.resize((max(SIZE, round(width * factor)), max(SIZE, round(height * factor))))
    left, top = (image.size[0] - SIZE) // 2, (image.size[1] - SIZE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    return (torch.from_numpy(pixels).permute(2, 0, 1) - _MEAN) / _DEVIATION
