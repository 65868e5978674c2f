"""ResNet-34's shapes, 21.8 million weights, at three ratios; fingerprints that all backends agreed upon.

    python -m conformance.real_sizes

prints the fingerprints that the NumPy backend gives, to compare with the stored ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import smh
from conformance.cases import Case
from smh.core.hashing import key, words
from smh.core.initial import initial_variables
from smh.core.plan import Plan

FILE = Path(__file__).with_suffix(".json")
RATIOS = (0.02, 0.1, 0.5)


def resnet34() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all convolutions and of the last layer, as `h w i o` and `i o`."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (7, 7, 3, 64)}
    before = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (3, 3, before, width)
            shapes[f"{name}.conv2"] = (3, 3, width, width)
            if before != width:
                shapes[f"{name}.downsample"] = (1, 1, before, width)
            before = width
    return shapes | {"fc": (512, 1000)}


def case(ratio: float) -> Case:
    """Return ResNet-34 at a ratio, with the initial variables, and cotangents uniform in [-1/2, 1/2)."""
    plan = Plan.build(resnet34(), ratio=ratio, seed=34)
    cotangents = {}
    for tensor in plan.tensors:
        i = np.arange(tensor.offset, tensor.stop, dtype=np.uint32)
        u = (words(np, key(34, 0), i) >> 8).astype(np.float32) * np.float32(2.0**-24)
        cotangents[tensor.name] = (u - np.float32(0.5)).reshape(tensor.viewed_shape)
    return Case(f"ResNet-34 at ratio {ratio}", plan, initial_variables(plan), cotangents, seed=34)


def cases() -> Iterator[Case]:
    """Iterate over the cases of all ratios."""
    return map(case, RATIOS)


def golden() -> dict[str, str]:
    """Return the stored fingerprints by the names of the cases."""
    content: dict[str, str] = json.loads(FILE.read_text(encoding="ascii"))
    return content


if __name__ == "__main__":
    from conformance import fingerprint

    numpy = smh.get_backend("numpy")
    print(json.dumps({one.name: fingerprint.of(numpy, "cpu", [one]) for one in cases()}, indent=1))
