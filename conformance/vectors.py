"""Golden vectors of SMH-2: what is stored beside this module in `vectors/`, decoded.

Each file holds the vectors of one subject. Arrays are stored as `{"shape": [...], "bits": "..."}`: the float32 bits of
each element as eight lower-case hexadecimal digits, row-major. A NaN in an expected result has the bits 0x7fc00000 and
stands for any NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
I64: TypeAlias = npt.NDArray[np.int64]

FOLDER = Path(__file__).with_name("vectors")
WORDS = "hash_words"
SIZES = "sizes"


@dataclass(frozen=True, eq=False)
class Vector:
    """One case: a plan, its inputs, and what every implementation must make of them.

    Attributes
    ----------
    name, about
        Name of the case, and what it pins down in one sentence.
    plan
        The plan as a dictionary; `json.dumps` with sorted keys and no spaces makes it canonical.
    variables, cotangents
        Inputs; cotangents have the viewed shapes, and a tensor may have none.
    weights, gradients, digest
        Expected results; weights are viewed.
    initial
        Expected initial variables by distribution; a case may have none.
    gains, kappas
        Expected gains of the leaf pools and kappas of the tensors by optimizer, whatever the plan has.
    cells, indices, signs
        Virtual weights, and the flat variable indices and hash signs of their terms, one row per cell.
    """

    name: str
    about: str
    plan: Mapping[str, Any]
    variables: Mapping[str, F32]
    cotangents: Mapping[str, F32]
    weights: Mapping[str, F32]
    gradients: Mapping[str, F32]
    digest: str
    initial: Mapping[str, Mapping[str, F32]]
    gains: Mapping[str, list[int]]
    kappas: Mapping[str, list[int]]
    cells: I64
    indices: Mapping[str, I64]
    signs: Mapping[str, I64]


@dataclass(frozen=True)
class WordVector:
    """Hash words of some indices in one stream of one seed."""

    seed: int
    stream: int
    key: int
    indices: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SizeVector:
    """Sizes of a pool for a number of weights and a ratio; `sized` is None where a size would be zero."""

    pool: Mapping[str, Any]
    weights: int
    ratio: float
    sized: Mapping[str, Any] | None


def encode(x: F32) -> dict[str, Any]:
    """Return an array as it is stored."""
    bits = np.ascontiguousarray(x, dtype=np.float32).reshape(-1).view(np.uint32)
    return {"shape": list(x.shape), "bits": bits.astype(">u4").tobytes().hex()}


def decode(stored: Mapping[str, Any]) -> F32:
    """Return the array that is stored."""
    bits = np.frombuffer(bytes.fromhex(stored["bits"]), dtype=">u4").astype(np.uint32)
    return bits.view(np.float32).reshape(tuple(stored["shape"]))


def _arrays(stored: Mapping[str, Any]) -> dict[str, F32]:
    return {name: decode(array) for name, array in stored.items()}


def _integers(stored: Mapping[str, Any]) -> dict[str, I64]:
    return {name: np.asarray(rows, dtype=np.int64) for name, rows in stored.items()}


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="ascii"))
    return found


def _vector(content: Mapping[str, Any]) -> Vector:
    arrays = {key: _arrays(content[key]) for key in ("variables", "cotangents", "weights", "gradients")}
    return Vector(
        name=content["name"],
        about=content["about"],
        plan=content["plan"],
        **arrays,
        digest=content["digest"],
        initial=dict.fromkeys(content["initial"], arrays["variables"]),
        gains=content["gains"],
        kappas=content["kappas"],
        cells=np.asarray(content["cells"], dtype=np.int64),
        indices=_integers(content["indices"]),
        signs=_integers(content["signs"]),
    )


def load_vectors(folder: Path = FOLDER) -> list[Vector]:
    """Return all cases, by subject."""
    paths = [path for path in sorted(folder.glob("*.json")) if path.stem not in (WORDS, SIZES)]
    return [_vector(content) for path in paths for content in _read(path)]


def load_words(folder: Path = FOLDER) -> list[WordVector]:
    """Return the hash words."""
    return [
        WordVector(w["seed"], w["stream"], w["key"], tuple(w["indices"]), tuple(w["words"]))
        for w in _read(folder / f"{WORDS}.json")
    ]


def load_sizes(folder: Path = FOLDER) -> list[SizeVector]:
    """Return the sizes of pools."""
    return [SizeVector(s["pool"], s["weights"], s["ratio"], s["sized"]) for s in _read(folder / f"{SIZES}.json")]
