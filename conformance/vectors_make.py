"""Write the golden vectors from the oracle, or check those on disk.

`python -m conformance.vectors_make` writes `vectors/*.json`, the same bytes every time; with `--check` it writes
nothing and says what differs. A difference to what is stored is a new version of the specification.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conformance import oracle
from conformance.vectors import F32, FOLDER, SIZES, WORDS, encode
from conformance.vectors_build import Case, joined, seeded
from conformance.vectors_cases import SUBJECTS


def case_content(case: Case) -> dict[str, Any]:
    """Return what is stored of a case."""
    plan = case.plan
    start = oracle.initial_variables(plan, case.start)
    variables = start | dict(case.given)
    assert list(variables) == list(start)
    assert all(variables[name].shape == shape for name, shape in oracle.variable_shapes(plan).items())
    cotangents: dict[str, F32] = {}
    for stream, one in enumerate(plan["tensors"]):
        if one["name"] not in case.without:
            shape = oracle.viewed_shape(one["view"], one["shape"])
            cotangents[one["name"]] = case.cotangents.get(one["name"], seeded(1000 + stream, shape))
            assert cotangents[one["name"]].shape == shape
    capacity = oracle.virtual(plan, variables).size
    cells = sorted({0, capacity // 2, capacity - 1}) if sum(x.size for x in variables.values()) < 300 else []
    arrays = {
        "variables": variables,
        "cotangents": cotangents,
        "weights": oracle.weights(plan, variables),
        "gradients": oracle.gradients(plan, variables, cotangents),
    }
    return {
        "name": case.name,
        "about": case.about,
        "plan": plan,
        "initial": [] if case.given else [case.start],
        "gains": {optimizer: oracle.gains(plan, optimizer) for optimizer in ("sgd", "adam")},
        "kappas": {optimizer: oracle.kappas(plan, optimizer) for optimizer in ("sgd", "adam")},
        **{key: {name: encode(x) for name, x in group.items()} for key, group in arrays.items()},
        "cells": cells,
        "indices": {name: rows.tolist() for name, rows in oracle.indices(plan, cells).items()},
        "signs": {name: rows.tolist() for name, rows in oracle.signs(plan, cells).items()},
        "digest": oracle.digest(plan, variables),
    }


def words_content() -> list[dict[str, Any]]:
    """Return hash words of the smallest and largest seeds, streams and indices."""
    found = []
    i = [0, 1, 2, 255, 65536, 0x12345678, 2**31 - 1]
    for seed in (0, 1, 0xDEADBEEF, 2**32 - 1):
        for stream in (0, 1, 511, 1000, 1027, 65536):
            key = oracle.key(seed, stream)
            row = {"seed": seed, "stream": stream, "key": key, "indices": i}
            found.append(row | {"words": [oracle.word(key, one) for one in i]})
    return found


def sizes_content() -> list[dict[str, Any]]:
    """Return sizes of every kind of pool; `sized` is null where a size would be zero."""
    kinds: list[dict[str, Any]] = [
        {"kind": "matmul"},
        {"kind": "kronecker"},
        {"kind": "hash", "hashes": 1, "signed": True},
        {"kind": "hash", "hashes": 3, "signed": False},
    ]
    kinds.append(joined("sum", kinds[0], kinds[2]))
    kinds.append(joined("product", kinds[1], joined("sum", kinds[3], kinds[0], kinds[2])))
    found = []
    for pool in kinds:
        for weights in (1, 17, 279_000, 9_000_000):
            for ratio in (0.1, 1.0, 2.0, 0.123456789):
                try:
                    sized: dict[str, Any] | None = oracle.sizes(pool, weights, ratio)
                except ValueError:
                    sized = None
                found.append({"pool": pool, "weights": weights, "ratio": ratio, "sized": sized})
    return found


def render(rows: Iterable[dict[str, Any]]) -> bytes:
    """Return JSON, one line per row."""
    lines = ",\n".join(json.dumps(row, sort_keys=True, separators=(",", ":")) for row in rows)
    return f"[\n{lines}\n]\n".encode("ascii")


def make() -> dict[str, bytes]:
    """Return names of files and their contents."""
    found = {f"{WORDS}.json": render(words_content()), f"{SIZES}.json": render(sizes_content())}
    for subject in SUBJECTS:
        found[f"{subject.__name__}.json"] = render(map(case_content, subject()))
    return found


def differences(folder: Path = FOLDER) -> list[str]:
    """Return the names of files that are missing, stale or not as the oracle gives them."""
    made = make()
    on_disk = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    return sorted(name for name in made.keys() | on_disk.keys() if made.get(name) != on_disk.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the vectors, or check them."""
    parser = argparse.ArgumentParser(prog="python -m conformance.vectors_make", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    if parser.parse_args(arguments).check:
        differ = differences()
        for name in differ:
            print(f"differs: {name}")
        return 1 if differ else 0
    FOLDER.mkdir(exist_ok=True)
    made = make()
    for path in FOLDER.glob("*.json"):
        if path.name not in made:
            path.unlink()
    for name, content in made.items():
        (FOLDER / name).write_bytes(content)
    print(f"{len(made)} files, {sum(map(len, made.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
