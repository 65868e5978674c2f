"""Images in a folder for each class, decoded as they are needed. This alone needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from experiments.errors import ExperimentError

SIZE = 224
_RESIZED = 256
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet, as is usual
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Folder:
    """Paths and classes of images; the classes are numbered in the order of their names."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.paths)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some of them: the shorter side resized to 256, the middle 224 x 224 cut out, normalised."""
        chosen = indices.tolist()
        x = torch.stack([_decode(self.paths[i]) for i in chosen])
        return x, torch.tensor([self.labels[i] for i in chosen])

    def select(self, indices: np.ndarray) -> Folder:
        """Return some of the images."""
        chosen = indices.tolist()
        return replace(self, paths=tuple(self.paths[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))


def read(folder: Path, classes: Sequence[str] | None = None) -> Folder:
    """List the images of a folder of class folders.

    Parameters
    ----------
    folder : Path
        The folder.
    classes : sequence of str, optional
        The classes that there have to be; by default those that there are.

    Raises
    ------
    ExperimentError
        If it is absent, has no images, or has a class that is not known.
    """
    if not folder.is_dir():
        raise ExperimentError(f"{folder} is no folder: it has to hold one folder of images for each class")
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    known = tuple(classes) if classes is not None else tuple(path.name for path in found)
    numbers = {name: number for number, name in enumerate(known)}
    paths, labels = [], []
    for place in found:
        if place.name not in numbers:
            raise ExperimentError(f"{place} is a class that the training images do not have")
        images = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES)
        paths += images
        labels += [numbers[place.name]] * len(images)
    if not paths:
        raise ExperimentError(f"{folder} has no images in class folders ({', '.join(sorted(_SUFFIXES))})")
    return Folder(tuple(paths), tuple(labels), known)


def _decode(path: Path) -> torch.Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ExperimentError("folders of images need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ExperimentError(f"{path} cannot be read as an image: {error}") from error
    width, height = image.size
    factor = _RESIZED / min(width, height)
    image = image.resize((max(SIZE, round(width * factor)), max(SIZE, round(height * factor))))
    left, top = (image.size[0] - SIZE) // 2, (image.size[1] - SIZE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    return (torch.from_numpy(pixels).permute(2, 0, 1) - _MEAN) / _DEVIATION
