"""CIFAR-10 from a folder, as Python or binary batches."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images and classes for training, then those for testing.

    Parameters
    ----------
    folder : Path
        The folder of ``data_batch_1`` to ``data_batch_5`` and ``test_batch`` (Python batches), or of the same names
        with ``.bin`` (binary batches); or its parent, if the folder has its usual name.

    Raises
    ------
    ExperimentError
        If files are missing or broken.
    """
    candidates = [folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"]
    for place in candidates:
        for suffix, reader in (("", _read_python), (".bin", _read_binary)):
            if (place / f"test_batch{suffix}").is_file():
                batches = [reader(place / f"{name}{suffix}") for name in (*_TRAINING, "test_batch")]
                x, y = (np.concatenate(parts) for parts in zip(*batches[:-1], strict=True))
                return x, y, *batches[-1]
    raise ExperimentError(
        f"no CIFAR-10 in {folder}: it must contain data_batch_1 to data_batch_5 and test_batch, the same names with "
        ".bin, or train/CLASS/IMAGE and test/CLASS/IMAGE"
    )


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(_bytes(path), np.uint8)
    if not content.size or content.size % _RECORD:
        raise ExperimentError(f"{path} is truncated: it must have whole records of {_RECORD} bytes; got {content.size}")
    records = content.reshape(-1, _RECORD)
    return _checked(path, records[:, 1:], records[:, 0])


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _Arrays(io.BytesIO(_bytes(path)), encoding="bytes").load()
        x, y = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ExperimentError(f"{path} is not a Python batch of CIFAR-10: {error!r}") from error
    return _checked(path, x, y)


def _checked(path: Path, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or x.shape[1] != _RECORD - 1 or y.shape != x.shape[:1]:
        raise ExperimentError(f"{path} is not a batch of CIFAR-10; got images {x.shape} and labels {y.shape}")
    if not len(y) or y.min() < 0 or y.max() > 9:
        raise ExperimentError(f"{path} must have labels from 0 to 9; some are outside this range, or the file is empty")
    return x.reshape(-1, *_SHAPE), y


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from error


class _Arrays(pickle.Unpickler):
    """Reads pickles of dictionaries and arrays and rejects everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few names that pickled arrays need."""
        allowed = {
            ("multiarray", "_reconstruct"): lambda *_: np.ndarray((0,), np.uint8),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
        try:
            return allowed[module.rpartition(".")[2], name]
        except KeyError:
            raise pickle.UnpicklingError(f"it imports {module}.{name}, which no batch of CIFAR-10 needs") from None
