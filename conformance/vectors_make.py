"""Write the golden vectors from the oracle, or check those on disk.

`python -m conformance.vectors_make` writes `conformance/vectors/*.json`, the same bytes every time;
with `--check` it writes nothing and says what differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance import oracle
from conformance.vectors import F32, FOLDER, SIZES, WORDS, encode
from conformance.vectors_build import Case, joined, seeded
from conformance.vectors_cases import cases


def case_content(case: Case) -> dict[str, Any]:
    """What the file of a case holds."""
    text = json.dumps(case.plan, sort_keys=True, separators=(",", ":"))
    start = oracle.initial_variables(text, case.start)
    variables = start | dict(case.given)
    assert list(variables) == list(start)
    assert all(variables[name].shape == shape for name, shape in oracle.variable_shapes(text).items())
    fast = case.plan["arithmetic"] == "fast"
    cotangents: dict[str, F32] = {}
    for stream, one in enumerate(case.plan["tensors"]):
        if one["name"] not in case.without and not fast:
            shape = oracle.viewed_shape(one["view"], one["shape"])
            default = seeded(1000 + stream, shape)
            cotangents[one["name"]] = case.cotangents.get(one["name"], default)
            assert cotangents[one["name"]].shape == shape
    capacity = oracle.virtual(text, variables).size
    small = sum(x.size for x in variables.values()) < 700
    cells = sorted({0, 1 % capacity, capacity // 2, capacity - 1}) if small else []
    reads, signs = oracle.indices(text, cells), oracle.signs(text, cells)
    results: dict[str, dict[str, F32]] = {"weights": {}, "gradients": {}}
    if not fast:
        results["weights"] = oracle.weights(text, variables)
        results["gradients"] = oracle.gradients(text, variables, cotangents)
    arrays = {"variables": variables, "cotangents": cotangents} | results
    return {
        "name": case.name,
        "about": case.about,
        "plan": json.loads(text),
        "initial": {} if case.given else {case.start: "variables"},
        "gains": {rule: oracle.gains(text, rule) for rule in ("sgd", "adam")},
        **{key: {name: encode(x) for name, x in group.items()} for key, group in arrays.items()},
        "indices": {
            "cells": cells,
            "reads": {name: rows.tolist() for name, rows in reads.items()},
            "signs": {name: rows.tolist() for name, rows in signs.items()},
        },
        "digest": oracle.digest(text, variables),
    }


def words_content() -> dict[str, Any]:
    """Hash words of the smallest and largest seeds, streams and indices."""
    found = []
    i = [0, 1, 2, 255, 65536, 0x12345678, 2**31 - 1]
    for seed in (0, 1, 0xDEADBEEF, 2**32 - 1):
        for stream in (0, 1, 511, 1000, 1011, 1027, 65536, 65537):
            key = oracle.key(seed, stream)
            row = {"seed": seed, "stream": stream, "key": key, "indices": i}
            found.append(row | {"words": [oracle.word(key, one) for one in i]})
    return {"about": "key(seed, stream) and word(key, i).", "cases": found}


def sizes_content() -> dict[str, Any]:
    """Sizes of every kind of pool; `sized` is null where a size would be zero."""
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
        for weights in (1, 10, 17, 279_000, 900_000_000):
            for ratio in (0.1, 0.3, 1.0, 2.0, 0.123456789):
                try:
                    sized: dict[str, Any] | None = oracle.sizes(pool, weights, ratio)
                except ValueError:
                    sized = None
                row = {"pool": pool, "weights": weights, "ratio": ratio, "sized": sized}
                found.append(row)
    return {"about": "Sizes for N weights at a ratio, read as the shortest decimal.", "cases": found}


def render(content: Mapping[str, Any]) -> bytes:
    """JSON, one line per key, and per case where there is a list of them."""
    lines = []
    for key, value in sorted(content.items()):
        if key == "cases":
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            lines.append(f'"cases": [\n{rows}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value, separators=(",", ":"))}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def make() -> dict[str, bytes]:
    """File names and contents."""
    found = {f"{WORDS}.json": render(words_content()), f"{SIZES}.json": render(sizes_content())}
    for case in cases():
        assert f"{case.name}.json" not in found
        found[f"{case.name}.json"] = render(case_content(case))
    return found


def differences(folder: Path = FOLDER) -> list[str]:
    """Names of files that are missing, stale or not as the oracle gives them."""
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
