"""Golden vectors of SMH-1: what is stored beside this module in `vectors/`, decoded.

Arrays are stored as `{"shape": [...], "bits": "..."}`: the float32 bits of each element as eight lower-case
hexadecimal digits, row-major. A NaN in an expected result has the bits 0x7fc00000 and stands for any NaN.
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
        Inputs; cotangents have the viewed shapes, and a tensor without one counts as zeros.
    weights, gradients
        Expected results, viewed; weights and gradients are empty where the plan's arithmetic is `fast`.
    digest
        Expected digest, of the exact weights whatever the arithmetic.
    initial
        Expected initial variables by distribution; a case may have none.
    gains
        Expected gains of the leaf pools by rule, whatever gains the plan has.
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
    """Array as stored."""
    bits = np.ascontiguousarray(x, dtype=np.float32).reshape(-1).view(np.uint32)
    return {"shape": list(x.shape), "bits": bits.astype(">u4").tobytes().hex()}


def decode(stored: Mapping[str, Any]) -> F32:
    """Array from what is stored."""
    bits = np.frombuffer(bytes.fromhex(stored["bits"]), dtype=">u4").astype(np.uint32)
    return bits.view(np.float32).reshape(tuple(stored["shape"]))


def _arrays(stored: Mapping[str, Any]) -> dict[str, F32]:
    return {name: decode(array) for name, array in stored.items()}


def _integers(stored: Mapping[str, Any]) -> dict[str, I64]:
    return {name: np.asarray(rows, dtype=np.int64) for name, rows in stored.items()}


def _read(name: str, folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="ascii"))
    return content


def _vector(content: Mapping[str, Any]) -> Vector:
    variables = _arrays(content["variables"])
    initial = {
        distribution: variables if stored == "variables" else _arrays(stored)
        for distribution, stored in content["initial"].items()
    }
    return Vector(
        name=content["name"],
        about=content["about"],
        plan=content["plan"],
        variables=variables,
        cotangents=_arrays(content["cotangents"]),
        weights=_arrays(content["weights"]),
        gradients=_arrays(content["gradients"]),
        digest=content["digest"],
        initial=initial,
        gains=content["gains"],
        cells=np.asarray(content["indices"]["cells"], dtype=np.int64),
        indices=_integers(content["indices"]["reads"]),
        signs=_integers(content["indices"]["signs"]),
    )


def load_vectors(folder: Path = FOLDER) -> list[Vector]:
    """All cases, by name."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    return [_vector(_read(name, folder)) for name in names if name not in (WORDS, SIZES)]


def load_words(folder: Path = FOLDER) -> list[WordVector]:
    """The hash words."""
    return [
        WordVector(w["seed"], w["stream"], w["key"], tuple(w["indices"]), tuple(w["words"]))
        for w in _read(WORDS, folder)["cases"]
    ]


def load_sizes(folder: Path = FOLDER) -> list[SizeVector]:
    """The sizes of pools."""
    return [SizeVector(s["pool"], s["weights"], s["ratio"], s["sized"]) for s in _read(SIZES, folder)["cases"]]
