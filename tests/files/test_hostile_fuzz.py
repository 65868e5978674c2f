"""Changes of honest files, under right checksums: a reader accepts or refuses them, and raises nothing else."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smh
from smh.files import checkpoint
from smh.files.digests import kept_digest
from tests.files.common import DENSE, file_of, honest_plans
from tests.files.forgery import seal, split, text_of, tree_of

PLANS = honest_plans()
ROUNDED = {"w": np.array([0.5, -3.0], np.float32), "v": np.array([1.0, 1e-3]), "z": np.zeros(3, np.float16)}
FILES = {name: file_of(plan, DENSE, training=name == "sum") for name, plan in PLANS.items()}
PLANS["rounded"] = PLANS["matmul"]
FILES["rounded"] = file_of(PLANS["rounded"], DENSE | ROUNDED, kept_bits=8)
NASTY = [
    None,
    True,
    0,
    -1,
    1,
    30,
    31,
    2**31,
    2**64,
    10**31,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "2.0",
    "\ud800",
    "\0",
    "F32",
    "I8",
]
NASTY += [[], [0], [1, 2], [[]], {}, {"a": 1}, {"kind": "matmul"}, "training/pool/left", [2**62, 2**62]]


def places(tree, path=()):
    """Iterate over the places of all values."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(tree, path, value):
    """Return a tree with another value at a place."""
    if not path:
        return value
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    tree[path[0]] = changed(tree[path[0]], path[1:], value)
    return tree


@pytest.mark.parametrize("name", FILES)
def test_honest_files_are_read_and_survive_being_saved_again(tmp_path, name):
    (tmp_path / "x").write_bytes(FILES[name])
    found = smh.load(tmp_path / "x")
    assert found.plan == PLANS[name]
    assert smh.digest(found.plan, found.variables) == found.digest
    bits = 8 if found.rounded else None
    smh.save(tmp_path / "again", found.plan, found.variables, found.dense, training=found.training, kept_bits=bits)
    assert (tmp_path / "again").read_bytes() == FILES[name]


@given(name=st.sampled_from(sorted(FILES)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=400)
def test_changed_values_bring_nothing_but_the_documented_error(tmp_path_factory, name, seed):
    rng = random.Random(seed)
    tree, data = tree_of(FILES[name]), split(FILES[name])[1]
    for _ in range(rng.choice([1, 1, 2])):
        tree = changed(tree, rng.choice([path for path in places(tree) if path]), rng.choice(NASTY))
    if rng.random() < 0.3:
        data = bytes(rng.randrange(256) if rng.random() < 0.05 else byte for byte in data)
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(seal(text_of(tree), data))
    try:
        found = checkpoint.read(path)
    except smh.CheckpointError:
        return
    assert {name: x.shape for name, x in found.variables.items()} == found.plan.variable_shapes
    assert smh.Plan.from_json(found.plan.to_json()) == found.plan
    assert found.kept_digest == (kept_digest(found.dense) if found.rounded else None)
