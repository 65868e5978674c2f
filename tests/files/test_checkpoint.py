"""Checkpoint files: what is written comes back, and nothing else gets through (docs/specification.md)."""

import copy
import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load_file

from conformance import oracle as oracle
from smh import strict_json
from smh.core.plan import Plan
from smh.errors import CheckpointError, SmhError, VariableError
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint, read, write
from smh.files.integers import pack, unpack
from tests.core.cases import KINDS, plans, seeds, values
from tests.files.forgery import canonical, seal

MIB = 2**20
DIGEST = "0123456789abcdef" * 4
PLAN = Plan.build({"conv": (3, 3, 1, 2), "fc": (4, 5)}, ratio=0.9, seed=7)


def on_grid(plan, variables):
    """Return the variables that a file gives back: those of the pool are what their integers stand for."""
    return variables | unpack(plan, *pack(plan, variables))


def normal(plan, seed=0):
    """Return finite variables, on their grids."""
    rng = np.random.default_rng(seed)
    x = {name: np.asarray(rng.standard_normal(shape), dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    return on_grid(plan, x)


VARIABLES = normal(PLAN)
DENSE = {
    "bias": np.arange(3, dtype=np.float64),
    "mask": np.array([[True, False]]),
    "steps": np.array(5, dtype=np.int64),
    "none": np.zeros((0, 3), np.float16),
}
DTYPES = [*"?bBhHiIlLqQefd"]


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same_arrays(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert same(actual[name], array), f"{name}: {actual[name]!r} against {array!r}"


def assert_refused(path, pattern=None):
    """Reading must give a CheckpointError, and only that, which names the file and what is wrong."""
    with pytest.raises(CheckpointError, match=pattern) as caught:
        read(path)
    assert type(caught.value) is CheckpointError
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def honest(folder):
    """The bytes of an honest file."""
    path = folder / "honest"
    write(path, PLAN, VARIABLES, DENSE, DIGEST)
    return path.read_bytes()


# --- A forger's tools: they know the format from the specification only, and put right checksums on any lie.


def split(file):
    """Return the tensors of a file's header, its metadata, and its data."""
    end = 8 + int.from_bytes(file[:8], "little")
    tensors = json.loads(file[8:end])
    return tensors, json.loads(tensors.pop("__metadata__")["smh"]), file[end:]


def join(tensors, metadata, data):
    smh = json.dumps(canonical(metadata))
    rest = "".join(f",{json.dumps(name)}:{json.dumps(entry)}" for name, entry in tensors.items())
    return seal(f'{{"__metadata__":{{"smh":{smh}}}{rest}}}'.encode(), data)


def replaced(file, old, new):
    """Return the file with a part of its header replaced, sealed again."""
    end = 8 + int.from_bytes(file[:8], "little")
    assert file[8:end].count(old) == 1, (old, file[8:end])
    return seal(file[8:end].replace(old, new), file[end:])


def test_the_forger_can_make_an_honest_file(honest, tmp_path):
    path = tmp_path / "forged"
    path.write_bytes(join(*split(honest)))
    assert_same_arrays(read(path).variables, VARIABLES)


# --- Round trips


@given(data=st.data(), plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
@settings(max_examples=50)
def test_round_trip(folder, data, plan, seed, kind):
    array = hnp.arrays(
        st.sampled_from(DTYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
    )
    dense = data.draw(st.dictionaries(st.text(min_size=1).filter(_is_text), array, max_size=4))
    variables, _ = values(plan, seed, kind)
    path, again = folder / "round", folder / "again"
    if any(grid.unit is None for grid in oracle.grids(plan.to_json(), variables).values()):
        path.write_bytes(b"old")
        with pytest.raises(VariableError, match="cannot be stored"):
            write(path, plan, variables, dense, DIGEST)
        assert path.read_bytes() == b"old"
        return
    training = data.draw(st.booleans())
    write(path, plan, variables, dense, DIGEST, training)
    found = read(path)
    assert found.training is training
    if not training:
        variables |= {name: grid.value for name, grid in oracle.grids(plan.to_json(), variables).items()}
    assert found.plan == plan
    assert found.digest == DIGEST
    assert list(found.variables) == list(plan.variable_shapes)
    assert list(found.dense) == sorted(dense)
    assert_same_arrays(found.variables, variables)
    assert_same_arrays(found.dense, dense)
    write(again, found.plan, found.variables, found.dense, found.digest, training)
    assert again.read_bytes() == path.read_bytes()


def _is_text(name):
    return not any("\ud800" <= character <= "\udfff" for character in name)


def test_round_trip_of_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dense = {"b": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)}
    write(tmp_path / "x", PLAN, VARIABLES, dense, DIGEST)
    assert_same_arrays(read(tmp_path / "x").dense, dense)


def test_bfloat16_without_its_package(honest, tmp_path, monkeypatch):
    tensors, metadata, data = split(honest)
    tensors["dense/none"]["dtype"] = "BF16"
    (tmp_path / "x").write_bytes(join(tensors, metadata, data))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    error = assert_refused(tmp_path / "x", "pip install ml_dtypes")
    assert isinstance(error.__cause__, ImportError)


def test_arrays_are_writable_and_own_their_memory(honest, tmp_path):
    (tmp_path / "x").write_bytes(honest)
    found = read(tmp_path / "x")
    for array in [*found.variables.values(), *found.dense.values()]:
        assert array.flags.writeable
        assert array.base is None
        assert array.dtype.isnative
    found.variables["pool/left"][:] = 0
    assert (tmp_path / "x").read_bytes() == honest


def test_variables_come_in_the_order_of_the_plan_and_dense_tensors_by_name(tmp_path):
    plan = Plan.build({"b": (3, 4), "a": (4, 3)}, ratio=1.0)
    dense = {"z": np.zeros(1, np.uint8), "b": np.zeros(1, np.float64), "a": np.zeros(1, np.uint8)}
    write(tmp_path / "x", plan, normal(plan), dense, DIGEST)
    found = read(tmp_path / "x")
    assert list(found.variables) == ["pool/left", "pool/right", "scale/b", "scale/a"]
    assert list(found.dense) == ["a", "b", "z"]


def test_a_file_is_what_the_specification_says(honest, tmp_path):
    (tmp_path / "x").write_bytes(honest)
    grids = oracle.grids(PLAN.to_json(), VARIABLES)
    expected = {**VARIABLES, **{f"dense/{name}": array for name, array in DENSE.items()}}
    expected |= {name: grid.integers.astype(np.int8) for name, grid in grids.items()}
    assert_same_arrays(load_file(tmp_path / "x"), expected)
    length = int.from_bytes(honest[:8], "little")
    header, data = honest[8 : 8 + length], honest[8 + length :]
    both = json.loads(header)["__metadata__"]
    assert list(both) == ["smh"]
    metadata = json.loads(both["smh"])
    assert both["smh"] == canonical(metadata)
    assert sorted(metadata) == ["checksum", "digest", "header_checksum", "plan", "pool_exponents", "version"]
    assert metadata["version"] == "2.0"
    assert metadata["pool_exponents"] == {name.removeprefix("pool/"): grid.exponent for name, grid in grids.items()}
    assert metadata["digest"] == DIGEST
    assert canonical(metadata["plan"]) == PLAN.to_json()
    assert metadata["checksum"] == hashlib.sha256(data).hexdigest()
    digits = metadata["header_checksum"].encode()
    assert header.count(digits) == 1
    assert hashlib.sha256(header.replace(digits, b"")).hexdigest() == digits.decode()


def test_equal_content_gives_equal_bytes(honest, tmp_path):
    variables = dict(reversed(VARIABLES.items()))
    dense = {name: array.copy() for name, array in reversed(DENSE.items())}
    variables["pool/left"] = np.asfortranarray(variables["pool/left"]).astype(">f4", order="K")
    variables["pool/right"] = np.repeat(variables["pool/right"], 2, axis=1)[:, ::2]
    variables["scale/fc"] = variables["scale/fc"][()]  # a NumPy scalar
    dense["bias"] = np.ascontiguousarray(dense["bias"][::-1]).astype(">f8")[::-1]
    dense["mask"] = np.array([[7, 0]], dtype=np.uint8).view(np.bool_)
    assert not variables["pool/right"].flags.c_contiguous
    for array in dense.values():
        array.flags.writeable = False
    write(tmp_path / "x", Plan.from_json(PLAN.to_json()), variables, dense, DIGEST)
    assert (tmp_path / "x").read_bytes() == honest


def test_other_content_gives_other_bytes(honest, tmp_path):
    other = Plan.build({"conv": (3, 3, 1, 2), "fc": (4, 5)}, ratio=0.9, seed=8)
    for plan, dense, digest in [(other, DENSE, DIGEST), (PLAN, {}, DIGEST), (PLAN, DENSE, "f" * 64)]:
        write(tmp_path / "x", plan, VARIABLES, dense, digest)
        assert (tmp_path / "x").read_bytes() != honest


# --- Damage


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_found(honest, tmp_path, bit):
    path = tmp_path / "x"
    for position in range(len(honest)):
        damaged = bytearray(honest)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        assert_refused(path)


def test_every_cut_and_every_extension_is_found(honest, tmp_path):
    path = tmp_path / "x"
    end = 8 + int.from_bytes(honest[:8], "little")
    for length in range(len(honest)):
        path.write_bytes(honest[:length])
        part = "header's length" if length < 8 else f"header must be there up to byte {end}" if length < end else "data"
        assert_refused(path, f"{part}.*, got {length - end if length >= end else length}$")
    for tail in (b"\0", b" ", b"}", honest, bytes(4096)):
        path.write_bytes(honest + tail)
        assert_refused(path, "data section must have")


def test_damage_is_located(honest, tmp_path):
    (tmp_path / "x").write_bytes(honest[:-1] + bytes([honest[-1] ^ 4]))
    assert_refused(tmp_path / "x", "data are damaged")
    (tmp_path / "x").write_bytes(honest.replace(b"dense/bias", b"dense/bios"))
    assert_refused(tmp_path / "x", "header, bytes 8 to .* is damaged")


@given(data=st.data())
def test_a_damaged_header_with_right_checksums_gives_no_other_error(folder, honest, data):
    length = int.from_bytes(honest[:8], "little")
    header = bytearray(honest[8 : 8 + length])
    first = header.index(b'plan\\"')
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(first, length - 1))
        cut = data.draw(st.integers(0, 3))
        header[position : position + cut] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"0", b"9", b"-", b"e9", b"null", b'\\"', b"[", b"{}"]))
        )
    path = folder / "fuzzed"
    path.write_bytes(seal(bytes(header), honest[8 + length :]))
    try:
        found = read(path)
    except CheckpointError:
        return
    assert {name: array.shape for name, array in found.variables.items()} == found.plan.variable_shapes


# --- Lies, under right checksums


def lie(**edits):
    """Return a function that sets fields of entries of the header."""

    def apply(tensors, metadata, data):
        for name, fields in edits.items():
            tensors[name.replace("__", "/")].update(fields)
        return tensors, metadata, data

    return apply


def _set_metadata(**fields):
    return lambda tensors, metadata, data: (tensors, {**metadata, **fields}, data)


def _set_plan(**fields):
    def apply(tensors, metadata, data):
        metadata["plan"].update(fields)
        return tensors, metadata, data

    return apply


def _without(name):
    """Drop a tensor and its data, so that the rest is in order."""

    def apply(tensors, metadata, data):
        begin, end = tensors.pop(name)["data_offsets"]
        for entry in tensors.values():
            if entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
        return tensors, metadata, data[:begin] + data[end:]

    return apply


def _rename(old, new):
    def apply(tensors, metadata, data):
        return {new if name == old else name: entry for name, entry in tensors.items()}, metadata, data

    return apply


def _add(name, entry):
    return lambda tensors, metadata, data: ({**tensors, name: entry}, metadata, data)


def _swap_entries(tensors, metadata, data):
    return dict(reversed(tensors.items())), metadata, data


def _hole(tensors, metadata, data):
    for entry in tensors.values():
        entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    return tensors, metadata, bytes(8) + data


def _bad_tensors(fields):
    def apply(tensors, metadata, data):
        metadata["plan"]["tensors"][0].update(fields)
        return tensors, metadata, data

    return apply


HUGE = 2**62
LEAF = {"bits": 8, "exponents": None, "gain": 0}
LIES = {
    "offsets beyond the end": (lie(dense__steps={"data_offsets": [0, 2**60]}), "data_offsets"),
    "offsets reversed": (lie(dense__steps={"data_offsets": [8, 0]}), "data_offsets"),
    "offsets negative": (lie(dense__steps={"data_offsets": [-8, 0]}), "data_offsets"),
    "offsets overlap": (lie(dense__bias={"data_offsets": [0, 24]}), "data_offsets"),
    "offsets are booleans": (lie(dense__steps={"data_offsets": [False, 8]}), "data_offsets"),
    "offsets are floats": (lie(dense__steps={"data_offsets": [0.0, 8.0]}), "data_offsets"),
    "offsets are three": (lie(dense__steps={"data_offsets": [0, 8, 8]}), "data_offsets"),
    "offsets are a number": (lie(dense__steps={"data_offsets": 0}), "data_offsets"),
    "out of order": (_swap_entries, "data_offsets"),
    "hole at the start": (_hole, "data_offsets"),
    "hole at the end": (lambda t, m, d: (t, m, d + b"\0"), "data section must have"),
    "no data": (lambda t, m, d: (t, m, b""), "data section must have"),
    "shape larger than data": (lie(dense__bias={"shape": [2**40]}), "data_offsets"),
    "shape overflows": (lie(dense__bias={"shape": [HUGE, HUGE, 4]}), "less than 2..60 bytes"),
    "shape overflows to the right size": (lie(dense__bias={"shape": [2**61 + 3]}), "less than 2..60 bytes"),
    "shape is empty but overflows": (lie(dense__none={"shape": [0, HUGE]}), "less than 2..60 bytes"),
    "shape negative": (lie(dense__bias={"shape": [-3, -1]}), "have a shape"),
    "shape has booleans": (lie(dense__bias={"shape": [3, True]}), "have a shape"),
    "shape has floats": (lie(dense__bias={"shape": [3.0]}), "have a shape"),
    "shape is null": (lie(dense__bias={"shape": None}), "have a shape"),
    "shape is a string": (lie(dense__bias={"shape": "3"}), "have a shape"),
    "shape has 65 axes": (lie(dense__steps={"shape": [1] * 65}), "at most 64 axes"),
    "dtype unknown": (lie(dense__bias={"dtype": "F31"}), "have a dtype"),
    "dtype of another size": (lie(dense__bias={"dtype": "F32"}), "data_offsets"),
    "dtype is a list": (lie(dense__bias={"dtype": ["F64"]}), "have a dtype"),
    "dtype is null": (lie(dense__bias={"dtype": None}), "have a dtype"),
    "variable is I32": (lie(pool__left={"dtype": "I32"}), "tensor 'pool/left' must be .'I8'"),
    "variable transposed": (lie(pool__left={"shape": [2, 7]}), "by the plan"),
    "scale has an axis": (lie(scale__fc={"shape": [1]}), "by the plan"),
    "bool of other bytes": (lie(dense__steps={"dtype": "BOOL", "shape": [8]}), "bytes 0 and 1"),
    "entry has another key": (lie(dense__bias={"more": 1}), "'data_offsets', 'dtype', 'shape'"),
    "entry is null": (_add("dense/x", None), "'data_offsets', 'dtype', 'shape'"),
    "entry is a list": (_add("dense/x", ["dtype", "shape", "data_offsets"]), "'data_offsets', 'dtype', 'shape'"),
    "pool variable missing": (_without("pool/left"), "must have all variables.*'pool/left'"),
    "scale missing": (_without("scale/fc"), "must have all variables.*'scale/fc'"),
    "all tensors missing": (lambda t, m, d: ({}, m, b""), "must have all variables"),
    "unknown variable": (_rename("pool/left", "pool/lift"), "of the plan or 'dense/...', got 'pool/lift'"),
    "extra scale": (_rename("dense/steps", "scale/conv2"), "of the plan or"),
    "unknown prefix": (_rename("dense/steps", "steps"), "of the plan or"),
    "prefix only": (_rename("dense/steps", "dense/"), "of the plan or"),
    "empty name": (_rename("dense/steps", ""), "of the plan or"),
    "name is no text": (_rename("dense/steps", "dense/\ud800"), "valid Unicode"),
    "version 3": (_set_metadata(version="3.0"), "reads files of version 2.0: upgrade it, got '3.0'"),
    "version 10": (_set_metadata(version="10.0"), "upgrade it, got '10.0'"),
    "version without minor": (_set_metadata(version="2"), "upgrade it"),
    "version is a number": (_set_metadata(version=2.0), "upgrade it"),
    "metadata have another key": (_set_metadata(more="x"), "must have the keys"),
    "plan missing": (lambda t, m, d: (t, {k: m[k] for k in m if k != "plan"}, d), "must have the keys"),
    "version missing": (lambda t, m, d: (t, {k: m[k] for k in m if k != "version"}, d), "upgrade it"),
    "plan is null": (_set_metadata(plan=None), "plan must be valid"),
    "plan is a string": (_set_metadata(plan=PLAN.to_json()), "plan must be valid"),
    "plan of version 3": (_set_plan(version="3.0"), "plan must be valid.*3.0"),
    "plan has another key": (_set_plan(more=1), "plan must be valid"),
    "plan of another pool size": (_set_plan(pool={"kind": "matmul", "n": 8, "m": 2, **LEAF}), "by the plan"),
    "plan of too small a pool": (_set_plan(pool={"kind": "matmul", "n": 2, "m": 2, **LEAF}), "plan must be valid"),
    "plan of an unknown pool": (_set_plan(pool={"kind": "magic"}), "plan must be valid"),
    "plan of a negative pool": (_set_plan(pool={"kind": "matmul", "n": 7, "m": -2, **LEAF}), "plan must be valid"),
    "plan without tensors": (_set_plan(tensors=[]), "plan must be valid"),
    "plan with wrong offsets": (_bad_tensors({"offset": 1}), "plan must be valid"),
    "plan with another shape": (_bad_tensors({"shape": [3, 3, 1, 3]}), "plan must be valid"),
    "plan with a huge shape": (_bad_tensors({"shape": [10**9, 10**9, 1, 1]}), "plan must be valid"),
    "plan with a bad seed": (_set_plan(seed=-1), "plan must be valid"),
    # einops itself would take this axis for an argument of its own
    "plan with a hostile view": (
        _bad_tensors({"view": {"pattern": "h w i o -> o i h w", "sizes": {"tensor": 3}}}),
        "plan must be valid",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_lies_are_refused(honest, tmp_path, what):
    change, pattern = LIES[what]
    tensors, metadata, data = copy.deepcopy(split(honest))
    forged = join(*change(tensors, metadata, data))
    assert forged != honest
    (tmp_path / "x").write_bytes(forged)
    assert_refused(tmp_path / "x", pattern)


TEXT_LIES = {
    "twice the same tensor": (b'"dense/bias":{', b'"dense/bias":{},"dense/bias":{', "got 'dense/bias' twice"),
    "twice the same field": (b'"shape":[2,', b'"shape":[],"shape":[2,', "got 'shape' twice"),
    "twice the same metadata": (b'}"},"dense', b'}","smh":"{}"},"dense', "got 'smh' twice"),
    "two metadata": (b',"dense/bias"', b',"__metadata__":{},"dense/bias"', "got '__metadata__' twice"),
    "twice a checksum": (b'\\"plan\\":', b'\\"checksum\\":\\"\\",\\"plan\\":', "got 'checksum' twice"),
    "twice a key of the plan": (b'\\"seed\\":7', b'\\"seed\\":7,\\"seed\\":8', "got 'seed' twice"),
    "other metadata": (b'}"},"dense', b'}","format":"pt"},"dense', "single key 'smh'"),
    "NaN": (b'\\"seed\\":7', b'\\"seed\\":NaN', "must be finite"),
    "infinity": (b'\\"seed\\":7', b'\\"seed\\":-Infinity', "must be finite"),
    "too large a float": (b'\\"seed\\":7', b'\\"seed\\":1e999', "must be finite"),
    "long integer": (b'\\"seed\\":7', b'\\"seed\\":' + b"9" * 33, "at most 32 characters"),
    "huge integer": (b'\\"seed\\":7', b'\\"seed\\":' + b"9" * 100_000, "at most 32 characters"),
    "huge offset": (b'"data_offsets":[0,', b'"data_offsets":[' + b"9" * 5000 + b",", "at most 32 characters"),
    "deep nesting": (b'"dense/bias":', b'"x":' + b"[" * 50_000 + b"]" * 50_000 + b',"dense/bias":', "recursion"),
    "deep plan": (b'\\"seed\\":7', b'\\"seed\\":' + b"[" * 50_000 + b"]" * 50_000, "recursion"),
    "deep object": (b'"dense/bias":', b'"x":' + b'{"":' * 5000 + b"0" + b"}" * 5000 + b',"dense/bias":', "recursion"),
    "not JSON": (b'"dense/bias":', b'"dense/bias"', "plain JSON"),
    "not UTF-8": (b"dense/bias", b"dense/\xff", "plain JSON in UTF-8"),
    "a raw surrogate": (b"dense/bias", b"dense/\xed\xa0\x80", "valid Unicode"),
    "more than padding": (b'"dense/bias":', b'"dense/bias":{}} {"dense/bias":', "plain JSON"),
    "metadata not JSON": (b'\\"seed\\":7', b'\\"seed\\":', "metadata must be plain JSON"),
    "no start": (b'{"__metadata__"', b' {"__metadata__"', "not a checkpoint of smh version"),
    "capital digits": (DIGEST.encode(), DIGEST.upper().encode(), "not a checkpoint of smh version"),
}


@pytest.mark.parametrize("what", TEXT_LIES)
def test_lies_in_the_text_of_the_header_are_refused(honest, tmp_path, what):
    old, new, pattern = TEXT_LIES[what]
    (tmp_path / "x").write_bytes(replaced(honest, old, new))
    assert_refused(tmp_path / "x", pattern)


def test_nesting_up_to_every_depth_gives_no_other_error(honest, tmp_path):
    for depth in range(900, 1010, 3):
        nested = b"[" * depth + b"]" * depth
        (tmp_path / "x").write_bytes(replaced(honest, b'"dense/bias":', b'"dense/x":' + nested + b',"dense/bias":'))
        assert_refused(tmp_path / "x")
        (tmp_path / "x").write_bytes(replaced(honest, b'\\"seed\\":7', b'\\"seed\\":' + nested))
        assert_refused(tmp_path / "x")


def test_minor_versions_can_be_read(honest, tmp_path):
    tensors, metadata, data = split(honest)
    (tmp_path / "x").write_bytes(join(tensors, {**metadata, "version": "2.7"}, data))
    assert read(tmp_path / "x").plan == PLAN


@pytest.mark.parametrize("content", [b"", b"PK\3\4", bytes(8), bytes(100), b"\xff" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert_refused(tmp_path / "x", "got")


@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(folder, content):
    (folder / "any").write_bytes(content)
    assert_refused(folder / "any")


def test_another_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, tmp_path / "x", {"format": "pt"})
    assert_refused(tmp_path / "x", "a plain safetensors file, not a checkpoint of smh: smh fit converts it")
    save_file({}, tmp_path / "x")
    assert_refused(tmp_path / "x", "a plain safetensors file")


def test_the_error_is_short_and_keeps_its_cause(honest, tmp_path):
    name = b"dense/" + b"x" * 100_000
    (tmp_path / "x").write_bytes(replaced(honest, b'"dense/bias":', b'"' + name + b'":[],"dense/bias":'))
    assert len(str(assert_refused(tmp_path / "x"))) < 1000
    (tmp_path / "x").write_bytes(replaced(honest, b'\\"seed\\":7', b'\\"seed\\":-7'))
    error = assert_refused(tmp_path / "x", "save it again or fetch another copy")
    assert isinstance(error.__cause__, SmhError)


# --- Memory


def peak_of_reading(path):
    """Return the most memory that reading had allocated at once; the result is kept until the end."""
    tracemalloc.start()
    try:
        try:
            result = read(path)
        except CheckpointError as error:
            result = error
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_reading_allocates_the_data_once_and_the_values_of_the_pool(tmp_path):
    """Besides the data there are float32 values of the pool, four times its integers."""
    plan = Plan.build({"w": (1000, 1000)}, ratio=1.0)
    variables = {name: np.ones(shape, np.float32) for name, shape in plan.variable_shapes.items()}
    write(tmp_path / "x", plan, variables, {"more": np.zeros(MIB)}, DIGEST)
    size = (tmp_path / "x").stat().st_size + 4 * plan.file_bytes
    peak, result = peak_of_reading(tmp_path / "x")
    assert isinstance(result, Checkpoint)
    assert size - MIB < peak < size + MIB


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, strict_json.MAX_HEADER + 1, 100_000_000])
def test_a_huge_header_length_allocates_nothing(tmp_path, length):
    with open(tmp_path / "x", "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(2**41)  # sparse
    peak, result = peak_of_reading(tmp_path / "x")
    assert "the header of a safetensors file must have at most" in str(result)
    assert peak < MIB


def test_a_plan_of_a_billion_weights_in_a_tiny_file_allocates_nothing(honest, tmp_path):
    tensors, metadata, data = split(honest)
    plan = Plan.build({"w": (30_000, 33_333)}, ratio=0.5, learn_scale=False)
    metadata["plan"] = json.loads(plan.to_json())
    dense = {name: entry for name, entry in tensors.items() if name.startswith("dense/")}
    position = max(entry["data_offsets"][1] for entry in dense.values())
    claims = dict(dense)
    for name, shape in plan.variable_shapes.items():
        end = position + int(np.prod(shape))
        claims[name] = {"dtype": "I8", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    for lie in (tensors, dense, claims):
        (tmp_path / "x").write_bytes(join(lie, metadata, data))
        peak, result = peak_of_reading(tmp_path / "x")
        assert isinstance(result, CheckpointError)
        assert peak < MIB


def test_lies_allocate_nothing(honest, tmp_path):
    for what, (change, _) in LIES.items():
        (tmp_path / "x").write_bytes(join(*change(*copy.deepcopy(split(honest)))))
        peak, result = peak_of_reading(tmp_path / "x")
        assert isinstance(result, CheckpointError)
        assert peak < MIB, what


@pytest.mark.parametrize("element", ["[]", "{}", '{"":0}', "0.125", '"\U0001f600"', '["abc"]'])
@pytest.mark.parametrize("where", ["header", "plan"])
def test_a_header_of_the_largest_size_stays_within_the_constant(honest, tmp_path, element, where):
    inner = json.dumps(element, ensure_ascii=False)[1:-1] if where == "plan" else element
    commas = 1 + sum(map(element.count, ",[{"))
    room = strict_json.MAX_HEADER - len(honest)
    count = min(room // (len(inner.encode()) + 1), (strict_json.MAX_VALUES - 200) // commas)
    bomb = b"[" + b",".join([inner.encode()] * count) + b"]"
    old, new = (b'\\"seed\\":7', b'\\"seed\\":') if where == "plan" else (b'"dense/bias":', b'"dense/bias":{},"x":')
    (tmp_path / "x").write_bytes(replaced(honest, old, new + bomb + (b"" if where == "plan" else b',"y":')))
    peak, result = peak_of_reading(tmp_path / "x")
    assert isinstance(result, CheckpointError)
    assert "at most" not in str(result)  # it has been parsed
    assert peak < 128 * MIB


@pytest.mark.parametrize("element", [b"0", b"[[[]]]", b'{"":{}}'])
def test_too_many_values_are_not_parsed(honest, tmp_path, element):
    element = element.replace(b'"', b'\\"')
    count = strict_json.MAX_VALUES // sum(map((element + b",").count, (b",", b"[", b"{")))
    bomb = b"[" + b",".join([element] * count) + b"]"
    (tmp_path / "x").write_bytes(replaced(honest, b'\\"seed\\":7', b'\\"seed\\":' + bomb))
    peak, result = peak_of_reading(tmp_path / "x")
    assert "at most 524288 JSON values" in str(result)
    assert peak < 4 * len(bomb)


def test_more_data_than_memory(honest, tmp_path, monkeypatch):
    def no_memory(*args, **kwargs):
        raise MemoryError

    (tmp_path / "x").write_bytes(honest)
    monkeypatch.setattr(checkpoint.np, "empty", no_memory)
    error = assert_refused(tmp_path / "x", "memory must hold")
    assert isinstance(error.__cause__, MemoryError)


# --- What is written


WRONG_VARIABLES = {
    "missing": ({"pool/left": None}, "add or leave out {'pool/left'}"),
    "unknown": ({"pool/lift": np.zeros(3, np.float32)}, "add or leave out {'pool/lift'}"),
    "not a string": ({3: np.zeros(3, np.float32)}, "add or leave out .3., got"),
    "float64": ({"pool/left": VARIABLES["pool/left"].astype(np.float64)}, "'pool/left'.*float32.*got float64"),
    "int32": ({"scale/fc": np.array(1, np.int32)}, "'scale/fc'.*float32.*got int32"),
    "not finite": ({"pool/left": np.full((7, 2), np.nan, np.float32)}, "'pool/left' cannot be stored.*lower learning"),
    "infinite": ({"pool/right": np.full((2, 7), -np.inf, np.float32)}, "'pool/right' cannot be stored.*got .* inf"),
    "too large": ({"pool/left": np.full((7, 2), 2.0**30, np.float32)}, r"reaches 2\*\*30"),
    "transposed": ({"pool/left": VARIABLES["pool/left"].T}, r"shape \(7, 2\).*got float32 \(2, 7\)"),
    "an axis more": ({"scale/fc": np.ones(1, np.float32)}, r"shape \(\).*got float32 \(1,\)"),
    "a list": ({"scale/fc": [1.0]}, "numpy.asarray, got list"),
    "a float": ({"scale/fc": 1.0}, "numpy.asarray, got float"),
    "None": ({"scale/fc": lambda: None}, "numpy.asarray, got function"),
    "objects": ({"scale/fc": np.array(None)}, "got object"),
}
WRONG_DENSE = {
    "objects": ({"x": np.array([{}])}, "got object"),
    "strings": ({"x": np.array(["a"])}, "got <U1"),
    "bytes": ({"x": np.array([b"a"])}, r"got \|S1"),
    "complex": ({"x": np.zeros(2, np.complex128)}, "got complex128"),
    "long double": ({"x": np.zeros(2, np.longdouble)}, "got float128"),
    "dates": ({"x": np.zeros(2, "M8[s]")}, "got datetime64"),
    "records": ({"x": np.zeros(2, [("a", "f4")])}, "got "),
    "a list": ({"x": [1.0]}, "numpy.asarray, got list"),
    "no name": ({"": np.zeros(2)}, "a string that is not empty, got ''"),
    "a number as name": ({1: np.zeros(2)}, "a string that is not empty, got 1"),
    "a name that is no text": ({"\ud800": np.zeros(2)}, "valid Unicode"),
}


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("what", WRONG_VARIABLES)
def test_wrong_variables_write_nothing(tmp_path, what, old):
    edits, pattern = WRONG_VARIABLES[what]
    variables = {name: array for name, array in (VARIABLES | edits).items() if array is not None}
    _refuses_to_write(tmp_path, variables, DENSE, DIGEST, pattern, old)


@pytest.mark.parametrize("what", WRONG_DENSE)
def test_wrong_dense_tensors_write_nothing(tmp_path, what):
    dense, pattern = WRONG_DENSE[what]
    _refuses_to_write(tmp_path, VARIABLES, dense, DIGEST, pattern, b"old")


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", b"0" * 64, None, '"' * 64]
)
def test_a_wrong_digest_writes_nothing(tmp_path, digest):
    _refuses_to_write(tmp_path, VARIABLES, DENSE, digest, "64 hexadecimal digits", b"old")


def _refuses_to_write(folder, variables, dense, digest, pattern, old):
    path = folder / "x"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(VariableError, match=pattern):
        write(path, PLAN, variables, dense, digest)
    assert os.listdir(folder) == ([] if old is None else ["x"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize(("limit", "value"), [("MAX_HEADER", 500), ("MAX_VALUES", 20)])
def test_a_header_that_could_not_be_read_is_not_written(tmp_path, monkeypatch, limit, value):
    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(strict_json, limit, value)
    with pytest.raises(CheckpointError, match=f"{value} (bytes|JSON values).*got"):
        write(tmp_path / "x", PLAN, VARIABLES, DENSE, DIGEST)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_many_tensors_fit_the_limits(tmp_path):
    shapes = {f"model.layers.{i}.mlp.experts.down_proj.weight": (64, 64) for i in range(15_000)}
    plan = Plan.build(shapes, ratio=0.01)
    variables = {name: np.zeros(shape, np.float32) for name, shape in plan.variable_shapes.items()}
    write(tmp_path / "x", plan, variables, {}, DIGEST)
    assert read(tmp_path / "x").plan == plan


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    write(tmp_path / "x", PLAN, VARIABLES, DENSE, DIGEST)
    assert_same_arrays(read(tmp_path / "x").dense, DENSE)


# --- Crashes


def _raise(error):
    def fail(*args, **kwargs):
        raise error

    return fail


CRASHES = [
    (checkpoint.os, "replace", OSError("no rename")),
    (checkpoint.os, "fsync", OSError("no sync")),
    (checkpoint.os, "chmod", OSError("no chmod")),
    (checkpoint.hashlib, "file_digest", KeyboardInterrupt()),
    (checkpoint, "save_file", KeyboardInterrupt()),
    (checkpoint, "save_file", MemoryError()),
    (checkpoint, "_seal", OSError("disk full")),
]


@pytest.mark.parametrize(("owner", "name", "error"), CRASHES, ids=[f"{n}-{type(e).__name__}" for _, n, e in CRASHES])
def test_a_failure_leaves_the_old_file_whole(tmp_path, honest, monkeypatch, owner, name, error):
    path = tmp_path / "x"
    path.write_bytes(honest)
    monkeypatch.setattr(owner, name, _raise(error))
    with pytest.raises(type(error)):
        write(path, PLAN, VARIABLES, {}, DIGEST)
    assert path.read_bytes() == honest
    assert os.listdir(tmp_path) == ["x"]


def test_a_failure_of_the_serialiser_is_an_oserror(tmp_path, honest, monkeypatch):
    (tmp_path / "x").write_bytes(honest)
    monkeypatch.setattr(checkpoint, "save_file", _raise(SafetensorError("I/O error")))
    with pytest.raises(OSError, match="make sure the disk has room, got I/O error") as caught:
        write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)
    assert isinstance(caught.value.__cause__, SafetensorError)
    assert (tmp_path / "x").read_bytes() == honest
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, honest):
    resource = pytest.importorskip("resource")
    (tmp_path / "x").write_bytes(honest)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file of this process may become larger
    try:
        with pytest.raises(OSError, match="cannot write"):
            write(tmp_path / "x", PLAN, VARIABLES, {"large": np.zeros(100_000)}, DIGEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "x").read_bytes() == honest
    assert os.listdir(tmp_path) == ["x"]


def test_an_unknown_header_layout_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_START", checkpoint.re.compile(b"other"))
    with pytest.raises(CheckpointError, match="not a checkpoint of smh version"):
        write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)
    assert os.listdir(tmp_path) == []


def test_the_file_is_synchronised_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock")
        assert read(path).plan == PLAN  # nothing is left in a buffer
        fsync(descriptor)

    def record_replace(source, target):
        assert os.path.dirname(os.path.dirname(source)) == os.path.dirname(target)
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", record_fsync)
    monkeypatch.setattr(checkpoint.os, "replace", record_replace)
    write(tmp_path / "x", PLAN, VARIABLES, DENSE, DIGEST)
    assert calls == ["file", "replace", "folder"]


KILLED = """
import sys
import numpy as np
from smh.files.checkpoint import write
from smh.core.plan import Plan
from tests.core.cases import KINDS, plans, seeds, values
from tests.files.forgery import canonical, seal
plan = Plan.build({"w": (300, 300)}, ratio=1.0)
for i in range(1_000_000):
    variables = {name: np.full(shape, i, np.float32) for name, shape in plan.variable_shapes.items()}
    write(sys.argv[1], plan, variables, {}, f"{i:064x}")
    print(i, flush=True)
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x"
    for wait in (0.02, 0.05, 0.11):
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"0\n"
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        found = read(path)
        assert {float(x) for x in found.variables["scale/w"].flat} == {float(int(found.digest, 16))}
        assert len({float(x) for array in found.variables.values() for x in array.flat}) <= 3


# --- Paths


def test_permissions_of_a_new_file_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o444, 0o751])
def test_permissions_of_a_replaced_file_stay(tmp_path, mode):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(mode)
    write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == mode
    assert read(tmp_path / "x").plan == PLAN


def test_nobody_else_can_read_a_file_before_it_is_finished(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o600)
    save_file = checkpoint.save_file

    def check(tensors, path, metadata):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", check)
    write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_followed(tmp_path, exists):
    (tmp_path / "real").mkdir()
    if exists:
        (tmp_path / "real" / "x").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/x")
    write(tmp_path / "link", PLAN, VARIABLES, {}, DIGEST)
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["x"]
    assert read(tmp_path / "real" / "x").plan == read(tmp_path / "link").plan == PLAN


def test_paths_may_be_strings_relative_or_of_the_longest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("x", "a" * 255, str(tmp_path / "é 😀")):
        write(path, PLAN, VARIABLES, {}, DIGEST)
        assert read(path).plan == PLAN


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="only a file can be replaced"):
        write(tmp_path, PLAN, VARIABLES, {}, DIGEST)
    assert os.listdir(tmp_path) == []
    assert_refused(tmp_path, "it is a folder")


def test_a_missing_path_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "no" / "x", PLAN, VARIABLES, {}, DIGEST)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x")
    assert_refused(tmp_path / "x", "must be a regular file, got 'p")
    with pytest.raises(CheckpointError, match="only a file can be replaced"):
        write(tmp_path / "x", PLAN, VARIABLES, {}, DIGEST)
    assert stat.S_ISFIFO(os.stat(tmp_path / "x").st_mode)


def test_a_file_that_is_cut_while_it_is_read(tmp_path, honest, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(honest + bytes(100_000))
    empty = np.empty

    def cut(*args):
        os.truncate(path, 8 + int.from_bytes(honest[:8], "little") + 4)
        return empty(*args)

    tensors, metadata, data = split(honest)
    tensors["dense/z"] = {"dtype": "U8", "shape": [100_000], "data_offsets": [len(data), len(data) + 100_000]}
    path.write_bytes(join(tensors, metadata, data + bytes(100_000)))
    monkeypatch.setattr(checkpoint.np, "empty", cut)
    assert_refused(path, "must have .* bytes, got")
