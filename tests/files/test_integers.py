"""Integers and exponents in files: packed as specified, and refused where no grid gives them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import smh
from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core.integers import pool_arrays
from smh.files import checkpoint, integers
from smh.files.integers import pack, unpack
from tests.core.cases import KINDS, plans, seeds, values
from tests.files.forgery import seal, split, text_of, tree_of

ZEROS = "0" * 64


def plan_with(bits, exponents=None):
    return smh.Plan.build({"w": (3, 3)}, pool=smh.pools.Matmul(n=3, m=1, exponents=exponents), ratio=1, bits=bits)


def file_of(folder, plan, variables=None, training=False):
    checkpoint.write(folder / "model", plan, variables or smh.initialize(plan), {}, ZEROS, training)
    return (folder / "model").read_bytes()


def refused(folder, content, words):
    (folder / "forged").write_bytes(content)
    with pytest.raises(smh.CheckpointError, match=words):
        smh.load(folder / "forged")


def with_metadata(content, **fields):
    tree = tree_of(content)
    tree["__metadata__"]["smh"] |= fields
    return seal(text_of(tree), split(content)[1])


def with_data(content, name, x):
    header, data = split(content)
    start, stop = tree_of(content)[name]["data_offsets"]
    data = bytearray(data)
    data[start:stop] = np.asarray(x).tobytes()
    assert len(data) == len(split(content)[1])
    return seal(header, bytes(data))


def with_tensor(content, name, x, code="F32"):
    """Add a tensor, or give one another array, at the end of the data."""
    tree, data = tree_of(content), split(content)[1]
    tree[name] = {"dtype": code, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
    return seal(text_of(tree), data + x.tobytes())


# --- What is written


@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
@settings(max_examples=60)
def test_integers_and_exponents_are_those_of_the_oracle(plan, seed, kind):
    variables, _ = values(plan, seed, kind)
    expected = oracle.grids(plan.to_json(), variables)
    if any(grid.unit is None for grid in expected.values()):
        with pytest.raises(smh.VariableError, match="cannot be stored"):
            pack(plan, variables)
        return
    arrays, exponents = pack(plan, variables)
    assert exponents == {name.removeprefix("pool/"): grid.exponent for name, grid in expected.items()}
    for name, bits, _, _ in pool_arrays(plan):
        q, x = expected[name].integers, arrays[name]
        dtype, size = integers.stored(plan)[name]
        assert (x.dtype.name, x.shape) == ({"U8": "uint8", "I8": "int8", "I16": "int16"}[dtype], size)
        if bits <= 4:
            low, high = (x & 15).astype(int), (x >> 4).astype(int)
            flat = np.stack([low, high], axis=1).reshape(-1)
            flat = np.where(flat > 7, flat - 16, flat)
            assert not flat[q.size :].any()
            x = flat[: q.size].reshape(q.shape)
        assert np.array_equal(x, q)
    integers.check_exponents(plan, exponents)
    found = unpack(plan, arrays, exponents)
    for name, grid in expected.items():
        assert_same_bits(found[name], grid.value, name)
    again = pack(plan, variables | found)
    assert again[1] == exponents
    assert all(np.array_equal(again[0][name], x) for name, x in arrays.items())


@pytest.mark.parametrize(
    ("bits", "dtype", "most"),
    [(2, "uint8", 1), (4, "uint8", 7), (5, "int8", 15), (8, "int8", 127), (9, "int16", 255), (16, "int16", 32767)],
)
def test_the_bits_decide_the_dtype(tmp_path, bits, dtype, most):
    plan = plan_with(bits)
    file_of(tmp_path, plan)
    x = load_file(tmp_path / "model")["pool/left"]
    assert x.dtype.name == dtype
    if dtype != "uint8":
        assert most / 2 < np.abs(x.astype(int)).max() <= most


def test_nibbles_begin_with_the_low_half_and_end_with_zeros(tmp_path):
    plan = plan_with(4)
    left = np.float32([[7], [-1], [3]]) / 8
    file_of(tmp_path, plan, {**smh.initialize(plan), "pool/left": left})
    assert load_file(tmp_path / "model")["pool/left"].tolist() == [0xF7, 0x03]
    assert_same_bits(smh.load(tmp_path / "model").variables["pool/left"], left)


def test_a_file_of_training_values_gives_them_back(tmp_path):
    plan = plan_with(8)
    variables = smh.initialize(plan)
    digest = smh.save(tmp_path / "plain", plan, variables)
    assert smh.save(tmp_path / "training", plan, variables, training=True) == digest
    plain, training = smh.load(tmp_path / "plain"), smh.load(tmp_path / "training")
    assert (plain.training, training.training) == (False, True)
    assert any(np.any(plain.variables[name] != x) for name, x in variables.items())
    for name, x in variables.items():
        assert_same_bits(training.variables[name], x, name)
    for found in (plain, training):
        assert smh.digest(found.plan, found.variables) == digest
    smh.save(tmp_path / "again", plan, training.variables)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**30])
def test_a_poisoned_array_is_not_saved_and_nothing_is_written(tmp_path, bad, old):
    plan = plan_with(8)
    variables = smh.initialize(plan)
    variables["pool/right"][0, 1] = bad
    if old:
        (tmp_path / "model").write_bytes(old)
    for training in (False, True):
        with pytest.raises(smh.VariableError, match=r"'pool/right' cannot be stored.*lower learning rate"):
            smh.save(tmp_path / "model", plan, variables, training=training)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([old] if old else [])


def test_fixed_exponents_clip_and_take_zeros(tmp_path):
    plan = plan_with(8, exponents=(0, -3))
    variables = smh.initialize(plan) | {"pool/left": np.float32([[5], [-5], [0.25]])}
    variables["pool/right"] = np.zeros((1, 3), np.float32)
    file_of(tmp_path, plan, variables)
    found = smh.load(tmp_path / "model")
    assert found.variables["pool/left"].reshape(-1).tolist() == [127 / 128, -127 / 128, 0.25]
    assert not found.variables["pool/right"].any()
    assert tree_of((tmp_path / "model").read_bytes())["__metadata__"]["smh"]["pool_exponents"]["right"] is None
    small = {**variables, "pool/left": np.float32([[0.25], [0], [0]])}  # no grid without a fixed exponent has these
    file_of(tmp_path, plan, small)
    assert_same_bits(smh.load(tmp_path / "model").variables["pool/left"], small["pool/left"])


# --- What is refused

ONES = np.float32([[1], [-1], [0.5]])
EXPONENTS = {
    "none": (None, "must be an object with the keys"),
    "a list of the keys": (["left", "right"], "must be an object with the keys"),
    "text": ("left", "must be an object with the keys"),
    "a key missing": ({"left": 0}, r"keys \['left', 'right'\], got \['left'\]"),
    "a key too many": ({"left": 0, "right": 0, "scale/w": 0}, "must be an object with the keys"),
    "keys with a prefix": ({"pool/left": 0, "pool/right": 0}, "must be an object with the keys"),
    "true": ({"left": True, "right": 0}, "of 'left' must be a whole number or null, got True"),
    "a float": ({"left": 1.0, "right": 0}, "must be a whole number or null, got 1.0"),
    "text as a number": ({"left": "1", "right": 0}, "must be a whole number or null"),
    "a list": ({"left": [1], "right": 0}, "must be a whole number or null"),
    "too small": ({"left": -30, "right": 0}, "must be from -29 to 30, got -30"),
    "too large": ({"left": 31, "right": 0}, "must be from -29 to 30, got 31"),
    "huge": ({"left": 10**31, "right": 0}, "must be from -29 to 30"),
    "null beside integers": ({"left": None, "right": 0}, "'pool/left' must have an exponent, unless all are 0"),
}


@pytest.mark.parametrize("what", EXPONENTS)
def test_exponents_that_no_grid_has(tmp_path, what):
    exponents, words = EXPONENTS[what]
    refused(tmp_path, with_metadata(file_of(tmp_path, plan_with(8)), pool_exponents=exponents), words)


def test_exponents_are_checked_before_any_array_is_read(tmp_path, monkeypatch):
    content = with_metadata(file_of(tmp_path, plan_with(8)), pool_exponents={"left": 99, "right": 0})
    monkeypatch.setattr(checkpoint, "_read_data", None)
    refused(tmp_path, content, "from -29 to 30")


def test_any_exponent_in_range_is_read(tmp_path):
    content = file_of(tmp_path, plan_with(8))
    for e in (-29, 30):
        (tmp_path / "x").write_bytes(with_metadata(content, pool_exponents={"left": e, "right": 0}))
        assert 2.0 ** (e - 1) <= np.abs(smh.load(tmp_path / "x").variables["pool/left"]).max() < 2.0**e


@pytest.mark.parametrize(
    ("bits", "q", "words"),
    [
        (8, np.int8([-128, 127, 0]), "magnitudes of at most 127 with 8 bits, got 128"),
        (8, np.int8([63, -63, 0]), "largest magnitude of at least 64, got 63"),
        (8, np.int8([0, 0, 0]), "exponent null if all are 0"),
        (5, np.int8([16, 0, 0]), "magnitudes of at most 15 with 5 bits, got 16"),
        (5, np.int8([7, 0, 0]), "largest magnitude of at least 8, got 7"),
        (16, np.int16([-32768, 0, 0]), "magnitudes of at most 32767 with 16 bits, got 32768"),
        (9, np.int16([256, 0, 0]), "magnitudes of at most 255 with 9 bits, got 256"),
        (4, np.uint8([0x87, 0x00]), "magnitudes of at most 7 with 4 bits, got 8"),
        (4, np.uint8([0x33, 0x03]), "largest magnitude of at least 4, got 3"),
        (4, np.uint8([0x77, 0x17]), "last byte of 'pool/left' must be filled with 0, got 23"),
        (2, np.uint8([0x02, 0x00]), "magnitudes of at most 1 with 2 bits, got 2"),
    ],
)
def test_integers_that_no_grid_gives(tmp_path, bits, q, words):
    content = file_of(tmp_path, plan_with(bits))
    refused(tmp_path, with_data(content, "pool/left", q), words)


def test_integers_beside_fixed_exponents(tmp_path):
    content = file_of(tmp_path, plan_with(8, exponents=(0, -3)), {**smh.initialize(plan_with(8)), "pool/left": ONES})
    (tmp_path / "x").write_bytes(with_data(content, "pool/left", np.int8([1, 0, 0])))
    assert smh.load(tmp_path / "x").variables["pool/left"][0, 0] == 2.0**-7
    refused(tmp_path, with_data(content, "pool/left", np.int8([-128, 0, 0])), "at most 127")
    exponents = {"left": 1, "right": -3}
    refused(tmp_path, with_metadata(content, pool_exponents=exponents), "'left' must be 0, as the plan fixes it, got 1")


@pytest.mark.parametrize(("bits", "code"), [(8, "I16"), (8, "U8"), (9, "I8"), (4, "I8"), (8, "F32")])
def test_arrays_of_another_dtype(tmp_path, bits, code):
    content = file_of(tmp_path, plan_with(bits))
    tree = tree_of(content)
    tree["pool/left"]["dtype"] = code
    refused(tmp_path, seal(text_of(tree), split(content)[1]), "'pool/left' must be .* by the plan")


def test_training_values_of_another_grid(tmp_path):
    plan = plan_with(8)
    variables = smh.initialize(plan)
    content = file_of(tmp_path, plan, variables, training=True)
    left = variables["pool/left"]
    name = "training/pool/left"
    words = "of 'pool/left' must have the exponent .* of its integers"
    refused(tmp_path, with_data(content, name, 2 * left), words)
    refused(tmp_path, with_data(content, name, 0 * left), words)
    refused(tmp_path, with_data(content, name, -left), "must round to its integers, got '3 that do not'")
    for bad in (np.nan, np.inf):
        refused(tmp_path, with_data(content, name, np.full_like(left, bad)), "must have a grid.*cannot be stored")
    (tmp_path / "x").write_bytes(with_data(content, name, smh.load(tmp_path / "model").variables["pool/left"]))
    assert smh.load(tmp_path / "x").training


def test_training_values_are_those_of_all_arrays_of_the_pool(tmp_path):
    plan = plan_with(8)
    variables = smh.initialize(plan)
    content = file_of(tmp_path, plan, variables)
    some = with_tensor(content, "training/pool/left", variables["pool/left"])
    refused(tmp_path, some, "lacks 1, got .'training/pool/right'")
    for name in ("training/scale/w", "training/pool/lift", "training/", "training/dense/x"):
        refused(tmp_path, with_tensor(content, name, np.float32(1)), "must be of the plan or 'dense/...'")
    both = with_tensor(some, "training/pool/right", variables["pool/right"].astype(np.float64), "F64")
    refused(tmp_path, both, "'training/pool/right' must be .'F32'")
    both = with_tensor(some, "training/pool/right", variables["pool/right"].T)
    refused(tmp_path, both, "by the plan")
    (tmp_path / "x").write_bytes(with_tensor(some, "training/pool/right", variables["pool/right"]))
    assert smh.load(tmp_path / "x").training


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda metadata: json.dumps(metadata, sort_keys=True, separators=(",", ":")).replace('"seed":0', '"seed": 0'),
        lambda metadata: json.dumps(metadata, separators=(",", ":")),
        lambda metadata: json.dumps(metadata, sort_keys=True, separators=(",", ":")).replace('"seed":0', '"seed":-0'),
        lambda metadata: json.dumps(metadata, sort_keys=True, separators=(",", ":")).replace("0.5", "5e-1"),
        lambda metadata: json.dumps(metadata, sort_keys=True, separators=(",", ":")) + " ",
    ],
    ids=["space", "order", "minus", "exponent", "tail"],
)
def test_metadata_that_are_not_canonical(tmp_path, rewrite):
    plan = smh.Plan.build({"w": (3, 3)}, pool=smh.pools.Matmul(n=3, m=1), ratio=1, scale=0.5)
    content = file_of(tmp_path, plan)
    tree = tree_of(content)
    metadata = tree["__metadata__"]["smh"]
    first = {key: metadata[key] for key in ("checksum", "digest", "header_checksum")}
    text = rewrite(first | {key: metadata[key] for key in ("version", "pool_exponents", "plan")})
    tree["__metadata__"]["smh"] = text
    refused(tmp_path, seal(text_of(tree), split(content)[1]), "metadata must be canonical JSON")


def test_a_plan_of_a_huge_pool_in_a_small_file_allocates_nothing(tmp_path, monkeypatch):
    plan = smh.Plan.build({"w": (40_000, 40_000)}, ratio=0.5, learn_scale=False)
    content = with_metadata(file_of(tmp_path, plan_with(8)), plan=json.loads(plan.to_json()))
    monkeypatch.setattr(checkpoint, "_read_data", None)
    refused(tmp_path, content, "by the plan|of the plan")
