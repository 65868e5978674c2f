"""Honest files, of which hostile ones are made, and what tests of files share."""

import json
import tempfile

import numpy as np

import smh
from smh.files import checkpoint

SHAPES = {"conv.weight": (3, 3, 1, 2), "fc": (4, 5), "b": (6,)}
DENSE = {
    "bias": np.arange(3, dtype=np.float64),
    "mask": np.array([[True, False]]),
    "steps": np.array(5, dtype=np.int64),
    "half": np.ones((2, 2), np.float16),
    "carried/x": np.zeros((0, 3), np.uint8),
}


def assert_refused(result, *words):
    """A command failed with an error that says why, and printed nothing else."""
    assert result.exit_code == 3, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def honest_plans():
    """Return plans that together have every kind of pool, layout, number of bits, scale, modifier and view."""
    pools = smh.pools
    views = {
        "conv.weight": ("h w i (o p) -> (p o) i h w", {"p": 2}, {"h": [2, 0, 1]}),
        "fc": "i o -> o i",
    }
    options = {
        "matmul": {"pool": "matmul", "views": views},
        "kronecker": {"pool": "kronecker", "layout": "cyclic", "modifiers": ["relu", "sign"], "ratio": 3, "bits": 12},
        "hash": {"pool": pools.Hash(hashes=2), "layout": "padding", "scale": 0.5, "learn_scale": False, "bits": 3},
        "sum": {"pool": pools.Sum("matmul", pools.Product("hash", "kronecker")), "scale": "glorot", "ratio": 9},
        "fixed": {"pool": pools.Matmul(n=7, m=2, exponents=(1, -1)), "optimizer": "adam"},
    }
    common = {"include": lambda name: True, "seed": 7}
    return {name: smh.Plan.build(SHAPES, **{"ratio": 2, **common, **option}) for name, option in options.items()}


def file_of(plan, dense, training=False, kept_bits=None):
    """Return the bytes of a checkpoint."""
    with tempfile.NamedTemporaryFile() as file:
        variables = smh.initialize(plan)
        digest = smh.digest(plan, variables)
        checkpoint.write(file.name, plan, variables, dense, digest, training, kept_bits=kept_bits)
        with open(file.name, "rb") as written:
            return written.read()


def plain_file(entries):
    """Return a plain safetensors file of zeros and ones, given dtype, shape and size of each tensor."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(k % 2 for k in range(position))
