"""A forger's tools: small checkpoints that say anything, under right checksums."""

import math

import numpy as np
from typer.testing import CliRunner

from smh.cli import app
from trust import mutations


def tensor(shape, start=0, /, **changes):
    """Return the JSON object of a tensor."""
    axes = " ".join("abcdefgh"[: len(shape)])
    fields = {"axes": axes, "learn_scale": False, "modifiers": [], "name": f"t{start}", "offset": start}
    return {**fields, "scale": 1.0, "shape": list(shape), "view": None, **changes}


def hashed(capacity=4, /, **changes):
    """Return the JSON object of a hash pool of one variable."""
    return {"kind": "hash", "size": 1, "hashes": 1, "signed": True, "capacity": capacity, "gain": 0, **changes}


def plan_of(tensors, pool=None, /, **changes):
    """Return the JSON object of a plan."""
    fields = {"arithmetic": "exact", "layout": "cyclic", "pool": pool or hashed(), "seed": 0}
    return {**fields, "tensors": tensors, "version": "1.0", **changes}


def forged(plan, shapes=None, dense=None):
    """Return a checkpoint with right checksums, whose variables have some shapes, all ones."""
    zeros = "0" * 64
    metadata = {"checksum": zeros, "digest": zeros, "header_checksum": zeros, "plan": plan, "version": "1.0"}
    tree = {"__metadata__": {"smh": metadata}}
    position = 0
    for name, shape in {**({"pool/table": (1, 1)} if shapes is None else shapes), **(dense or {})}.items():
        stop = position + 4 * math.prod(shape)
        tree[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    return mutations.seal(mutations.text_of(tree), np.ones(position // 4, dtype="<f4").tobytes())


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, *words):
    assert result.exit_code == 3, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
