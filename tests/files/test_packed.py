"""Packed checkpoints: the same content in fewer bytes, one file for it, and nothing else is accepted."""

import hashlib
import json
import math
import tracemalloc

import numpy as np
import pytest

import smh
from smh.files import checkpoint
from smh.files.integers import pool_arrays, stored_bytes
from smh.files.limits import default
from smh.porting import Mapping, port
from tests.files import oracle_coder
from tests.files.common import DENSE, assert_refused
from tests.files.forgery import hashed, plan_of, seal, split, tensor, text_of, tree_of

SHAPES = {"a": (40, 50), "b": (50, 7), "c": (90,)}
POOLS = smh.pools
OPTIONS = {
    "8 bits": {},
    "2 bits": {"bits": 2, "ratio": 2},
    "4 bits": {"bits": 4},
    "16 bits": {"bits": 16},
    "kronecker": {"pool": "kronecker", "bits": 12},
    "hash": {"pool": POOLS.Hash(hashes=2, signed=False)},
    "sum": {"pool": POOLS.Sum("matmul", POOLS.Product("hash", "kronecker")), "ratio": 3},
    "fixed": {"pool": POOLS.Matmul(exponents=(7, -3))},
}
PLANS = {
    name: smh.Plan.build(SHAPES, include=lambda _: True, seed=3, **{"ratio": 0.9, **options})
    for name, options in OPTIONS.items()
}


def variables_of(name):
    """Return initial variables, so small with fixed exponents that most integers are 0."""
    return smh.initialize(PLANS[name])


def saved(folder, name, file="model", **options):
    smh.save(folder / file, PLANS[name], variables_of(name), DENSE, **options)
    return folder / file


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_a_packed_file_holds_what_the_file_holds(tmp_path, name, training):
    raw = saved(tmp_path, name, "raw", training=training)
    packed = saved(tmp_path, name, "packed", training=training, packed=True)
    one, other = smh.load(raw), smh.load(packed)
    assert other.coded
    assert not one.coded
    assert (one.plan, one.digest, one.training) == (other.plan, other.digest, other.training)
    for group in ("variables", "dense"):
        assert list(getattr(one, group)) == list(getattr(other, group))
        for key, x in getattr(one, group).items():
            assert x.dtype == getattr(other, group)[key].dtype
            assert x.tobytes() == getattr(other, group)[key].tobytes()
    assert packed.stat().st_size < raw.stat().st_size
    # There is one file for one content, and a way back.
    smh.save(tmp_path / "again", other.plan, other.variables, other.dense, training=training, packed=True)
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()
    smh.save(tmp_path / "back", other.plan, other.variables, other.dense, training=training)
    assert (tmp_path / "back").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("name", ["8 bits", "2 bits", "fixed"])
def test_streams_are_tensors_in_the_place_of_the_integers(tmp_path, name):
    raw, packed = saved(tmp_path, name, "raw").read_bytes(), saved(tmp_path, name, "packed", packed=True).read_bytes()
    tree, data = tree_of(packed), split(packed)[1]
    found = smh.load(tmp_path / "packed")
    names = {key.removeprefix("coded/") for key in tree}
    assert names == set(tree_of(raw))
    assert tree["__metadata__"]["smh"]["version"] == "2.1"
    for key, bits, shape, _ in pool_arrays(PLANS[name]):
        entry = tree[f"coded/{key}"]
        start, stop = entry["data_offsets"]
        assert (entry["dtype"], entry["shape"]) == ("U8", [stop - start])
        assert found.coded[key] == stop - start < stored_bytes(bits, shape)
        exponent = tree["__metadata__"]["smh"]["pool_exponents"][key.removeprefix("pool/")]
        unit = 2.0 ** ((exponent or 0) - bits + 1)
        q = oracle_coder.decode(data[start:stop], math.prod(shape))
        assert np.array_equal(np.array(q).reshape(shape) * unit, found.variables[key])


def test_where_nothing_gets_smaller_the_file_is_not_packed(tmp_path):
    plan = smh.Plan.build({"a": (20, 20)}, ratio=0.2)
    for packed in (False, True):
        smh.save(tmp_path / str(packed), plan, smh.initialize(plan), packed=packed)
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()


def test_arrays_that_do_not_get_smaller_are_stored_as_they_are(tmp_path):
    plan = smh.Plan.build({"a": (60, 60)}, ratio=0.5)
    variables = smh.initialize(plan)
    q = np.arange(variables["pool/left"].size) % 255 - 127  # equally many of all integers
    variables["pool/left"] = (q / 128).astype(np.float32).reshape(variables["pool/left"].shape)
    smh.save(tmp_path / "model", plan, variables, packed=True)
    found = smh.load(tmp_path / "model")
    assert list(found.coded) == ["pool/right"]
    assert np.array_equal(found.variables["pool/left"], variables["pool/left"])


def test_a_port_stays_packed(tmp_path, call):
    path, plan = tmp_path / "model", PLANS["8 bits"]
    smh.save(path, plan, smh.initialize(plan), packed=True)
    mapping = Mapping.build({"x": "a", "y": "b", "z": "c"}, smh.load(path))
    assert port(smh.load(path), mapping).coded == smh.load(path).coded
    mapping.save(tmp_path / "map.json")
    assert call("port", path, "--map", tmp_path / "map.json", "-o", tmp_path / "ported").exit_code == 0
    assert smh.load(tmp_path / "ported").coded


def test_the_limit_is_by_the_bytes_that_are_stored(tmp_path):
    plan = smh.Plan.build({"a": (3000, 3000)}, ratio=0.5)
    variables = {key: np.zeros(shape, np.float32) for key, shape in plan.variable_shapes.items()}
    checkpoint.write(tmp_path / "raw", plan, variables, {}, "0" * 64)
    checkpoint.write(tmp_path / "packed", plan, variables, {}, "0" * 64, packed=True)
    assert (tmp_path / "packed").stat().st_size < plan.file_bytes / 200
    assert default(smh.load(tmp_path / "raw")) == 1024 * plan.file_bytes
    assert default(smh.load(tmp_path / "packed")) == 2**30


def test_a_missing_library_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    import sys

    path = saved(tmp_path, "8 bits", packed=True)
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(smh.CheckpointError, match=r"need constriction: pip install .*\[pack\]") as caught:
        smh.load(path)
    assert "save it again" not in str(caught.value)
    with pytest.raises(smh.CheckpointError, match="need constriction"):
        saved(tmp_path, "8 bits", "other", packed=True)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


# --- Files that no writer writes


def forged(content, change):
    """Return a file whose tensors were changed, under right checksums and in order."""
    tree, data = tree_of(content), split(content)[1]
    tensors = {}
    for name, entry in tree.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], data[start:stop])
    metadata = tree["__metadata__"]["smh"]
    change(tensors, metadata)
    changed, joined = {"__metadata__": {"smh": metadata}}, b""
    for name, (dtype, shape, content) in tensors.items():
        changed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(joined), len(joined) + len(content)]}
        joined += content
    return seal(text_of(changed), joined)


def stream_of(content):
    return ("U8", [len(content)], content)


def older(tensors, metadata):
    metadata["version"] = "2.0"


def both(tensors, metadata):
    tensors["pool/left"] = tensors["raw"]


def nothing_coded(tensors, metadata):
    for name in [name for name in tensors if name.startswith("coded/")]:
        del tensors[name]


def as_it_is(tensors, metadata):
    del tensors["coded/pool/left"]
    tensors["pool/left"] = tensors["raw"]


def other_dtype(tensors, metadata):
    _, shape, content = tensors["coded/pool/left"]
    tensors["coded/pool/left"] = ("I8", shape, content)


def other_shape(tensors, metadata):
    dtype, shape, content = tensors["coded/pool/left"]
    tensors["coded/pool/left"] = (dtype, [1, *shape], content)


def kept(tensors, metadata):
    tensors["coded/dense/bias"] = stream_of(b"1234")


def scale(tensors, metadata):
    tensors["coded/scale/a"] = stream_of(b"1234")


def empty(tensors, metadata):
    tensors["coded/pool/left"] = stream_of(b"")


def padded(tensors, metadata):
    tensors["coded/pool/left"] = stream_of(tensors["coded/pool/left"][2] + b"\0")


def larger_than_raw(tensors, metadata):
    tensors["coded/pool/left"] = stream_of(tensors["coded/pool/left"][2].ljust(10_000, b"\0"))


def another_table(tensors, metadata):
    q = oracle_coder.decode(tensors["coded/pool/left"][2], math.prod(PLANS["8 bits"].variable_shapes["pool/left"]))
    tensors["coded/pool/left"] = stream_of(oracle_coder.written(q, 7, 3, 1))


def other_exponent(tensors, metadata):
    metadata["pool_exponents"]["left"] = None


FORGERIES = {
    "version 2.0": (older, "of version 2.0 must have no coded tensors"),
    "an array twice": (both, "must be of the plan"),
    "an array missing": (nothing_coded, "lacks 2"),
    "an array that is not coded": (as_it_is, "must be coded where that makes it smaller"),
    "another dtype": (other_dtype, "must be U8 with one axis"),
    "another shape": (other_shape, "must be U8 with one axis"),
    "a kept tensor": (kept, "must be an array of the pool"),
    "a scale": (scale, "must be of the plan"),
    "an empty stream": (empty, "must have at least 5 bytes"),
    "a longer stream": (padded, "must be the one that its integers have"),
    "a stream that is larger than the integers": (larger_than_raw, "and less than"),
    "another table": (another_table, "must be the one that its integers have"),
    "an exponent that does not fit": (other_exponent, "must have an exponent"),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    raw = saved(folder, "8 bits", "raw").read_bytes()
    entry = tree_of(raw)["pool/left"]
    integers = (entry["dtype"], entry["shape"], split(raw)[1][slice(*entry["data_offsets"])])
    return saved(folder, "8 bits", packed=True).read_bytes(), integers


@pytest.mark.parametrize("what", FORGERIES)
def test_what_no_writer_writes_is_refused(write, honest, what, call):
    change, words = FORGERIES[what]

    def with_raw(tensors, metadata):
        tensors["raw"] = honest[1]
        change(tensors, metadata)
        del tensors["raw"]

    path = write(forged(honest[0], with_raw))
    with pytest.raises(smh.CheckpointError, match=words):
        smh.load(path)
    assert_refused(call("inspect", path), "cannot load")


def test_the_forger_changes_nothing_by_itself(write, honest):
    one = smh.load(write(honest[0], "honest"))
    other = smh.load(write(forged(honest[0], lambda tensors, metadata: None)))
    assert (one.coded, one.digest) == (other.coded, other.digest)


@pytest.mark.parametrize("size", [2**20, 2**30])
def test_a_header_of_a_huge_array_allocates_nothing(write, size):
    plan = plan_of([tensor([2])], hashed(size=size))
    zeros = "0" * 64
    values = {"checksum": hashlib.sha256(bytes(100)).hexdigest(), "digest": zeros, "header_checksum": zeros}
    values |= {"plan": plan, "pool_exponents": {"table": None}, "version": "2.1"}
    tree = {"__metadata__": {"smh": values}}
    tree["coded/pool/table"] = {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}
    path = write(seal(text_of(tree), bytes(100)))
    tracemalloc.start()
    with pytest.raises(smh.CheckpointError, match=f"at least {size // 256} bytes"):
        smh.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_pools_of_very_many_arrays_are_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr("smh.files.packed.MOST", 4)
    path = saved(tmp_path, "8 bits", packed=True)
    assert smh.load(path).coded
    monkeypatch.setattr("smh.files.packed.MOST", 1)
    with pytest.raises(smh.CheckpointError, match="at most 1 arrays"):
        smh.load(path)
    assert saved(tmp_path, "8 bits", "a", packed=True).read_bytes() == saved(tmp_path, "8 bits", "b").read_bytes()


# --- The command


def test_pack_and_back(tmp_path, call):
    raw, packed = saved(tmp_path, "sum", "raw", training=True), tmp_path / "packed"
    result = call("pack", raw, "-o", packed, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert packed.read_bytes() == saved(tmp_path, "sum", "own", training=True, packed=True).read_bytes()
    assert (found["bytes_before"], found["bytes"]) == (raw.stat().st_size, packed.stat().st_size)
    loaded = smh.load(packed)
    for row, (name, bits, shape, _) in zip(found["arrays"], pool_arrays(PLANS["sum"]), strict=True):
        assert (row["name"], row["bits"], row["numbers"]) == (name, bits, math.prod(shape))
        assert row["raw"] == stored_bytes(bits, shape)
        assert row["bytes"] == loaded.coded.get(name, row["raw"])
        assert row["entropy"] <= row["bytes"]
    again = call("pack", packed, "--raw", "-o", tmp_path / "again")
    assert again.exit_code == 0
    assert (tmp_path / "again").read_bytes() == raw.read_bytes()
    assert "all" in again.stdout
    assert call("diff", raw, packed).exit_code == 0
    assert call("digest", packed).exit_code == 0
    shown = json.loads(call("inspect", packed, "--json").stdout)
    assert shown["packed"]
    stored = {entry["name"]: entry["bytes"] for entry in shown["tensors"] if entry["name"] in loaded.coded}
    assert stored == loaded.coded
    assert "packed: " in call("inspect", packed).stdout
    assert "packed: " not in call("inspect", raw).stdout


def test_pack_names_zstd_only_where_it_is(tmp_path, call, monkeypatch):
    raw = saved(tmp_path, "8 bits", "raw")
    monkeypatch.setattr("smh.cli.pack._zstd", lambda: lambda data, level: data[: len(data) // 2])
    result = call("pack", raw, "-o", tmp_path / "one")
    assert "zstd" in result.stdout.splitlines()[0]
    monkeypatch.setattr("smh.cli.pack._zstd", lambda: None)
    result = call("pack", raw, "-o", tmp_path / "two")
    assert result.exit_code == 0
    assert "zstd" not in result.stdout.splitlines()[0]


def test_pack_replaces_nothing_by_mistake(tmp_path, call):
    raw = saved(tmp_path, "8 bits", "raw")
    assert_refused(call("pack", raw, "-o", raw, "--force"), "would replace the input")
    (tmp_path / "there").write_bytes(b"x")
    assert_refused(call("pack", raw, "-o", tmp_path / "there"), "exists")
    assert call("pack", raw, "-o", tmp_path / "there", "--force", "-q").stdout == ""
