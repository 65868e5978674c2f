"""Plain safetensors files, good and hostile ones."""

import json
import os
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import smh
from conformance.bits import assert_same_bits
from smh.files.dense import DenseFile, is_checkpoint
from smh.files.header import MAX_HEADER

TENSORS = {
    "fc": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5,
    "half": np.arange(4, dtype=np.float16),
    "wide": np.array(np.pi),
    "brain": np.array([[1.5, -0.0, np.inf, 2.0**-130]]).astype(ml_dtypes.bfloat16),
    "ids": np.arange(-3, 3, dtype=np.int64).reshape(1, 2, 3),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 5), dtype=np.float32),
    "bytes": np.arange(256, dtype=np.uint8),
}
DTYPES = {
    **{"fc": "F32", "half": "F16", "wide": "F64", "brain": "BF16"},
    **{"ids": "I64", "mask": "BOOL", "none": "F32", "bytes": "U8"},
}


def write(path, header, data=b""):
    """Write a file with a header of any kind, and return its path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "plain.safetensors", {"format": "pt"})
    return tmp_path / "plain.safetensors"


def test_every_tensor_is_what_was_written(path):
    with DenseFile(path) as file:
        assert set(file) == set(TENSORS)
        assert len(file) == len(TENSORS)
        assert file.shapes == {name: TENSORS[name].shape for name in file}
        assert file.dtypes == {name: DTYPES[name] for name in file}
        assert file.sizes == {name: TENSORS[name].nbytes for name in file}
        for name, x in TENSORS.items():
            found = file.stored(name)
            assert found.dtype == x.dtype == file.stored_dtype(name)
            assert found.shape == x.shape
            assert found.tobytes() == x.tobytes()
            if name != "brain":
                assert file[name].dtype == x.dtype
                assert file[name].tobytes() == x.tobytes()
        assert_same_bits(file["brain"], TENSORS["brain"].astype(np.float32), "brain")


def test_tensors_are_in_the_order_of_their_data(tmp_path):
    header = {"last": entry(offsets=(4, 8)), "first": entry(offsets=(0, 4))}
    with DenseFile(write(tmp_path / "f", header, np.array([1, 2], dtype=np.float32).tobytes())) as file:
        assert list(file.shapes) == list(file) == ["first", "last"]
        assert (file["first"], file["last"]) == (1, 2)


def test_tensors_own_their_memory(path):
    with DenseFile(path) as file:
        file["fc"][:] = 0
        assert_same_bits(file["fc"], TENSORS["fc"], "fc")


def test_names_are_known_without_reading(path, monkeypatch):
    with DenseFile(path) as file:
        monkeypatch.setattr(DenseFile, "_read", None)
        assert "fc" in file
        assert "nope" not in file
        with pytest.raises(smh.UnknownNameError, match=r"no tensor 'halv': did you mean 'half'"):
            file["halv"]
        assert file.get("halv") is None
        with pytest.raises(TypeError):  # what is read is read by the method that is missing now
            file["fc"]


def test_a_closed_file_is_no_silent_nothing(path):
    with DenseFile(path) as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        file["fc"]


def test_bfloat16_needs_no_other_package(path):
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy as np, smh as smh; from smh.files.dense import DenseFile\n"
        f"file = DenseFile({str(path)!r}); print(file['brain'].dtype, file['brain'][0, 0])\n"
        "try: file.stored('brain')\n"
        "except smh.CheckpointError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value, error = done.stdout.splitlines()
    assert value == "float32 1.5"
    assert "pip install ml_dtypes" in error


@pytest.mark.parametrize(("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_dtypes_that_numpy_does_not_have(tmp_path, dtype, bits):
    header = {"fine": entry(), "odd": entry(dtype, (4,), (4, 4 + bits // 2))}
    with DenseFile(write(tmp_path / "f", header, bytes(4 + bits // 2))) as file:
        assert file.dtypes["odd"] == dtype
        assert_same_bits(file["fine"], np.zeros(1, dtype=np.float32), "fine")
        for read in (file.stored, file.__getitem__):
            with pytest.raises(smh.CheckpointError, match=rf"tensor 'odd' .* got '{dtype}'"):
                read("odd")


BAD = {
    "empty": (b"", "8 bytes"),
    "short": (b"\x00" * 7, "8 bytes"),
    "no header": ((100).to_bytes(8, "little"), "it is cut"),
    "an endless header": ((2**63).to_bytes(8, "little") + b"{}", "at most"),
    "a header beyond its bound": ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "at most"),
    "a zip": (b"PK\x03\x04" + bytes(60), "archive"),
    "an image": ((2).to_bytes(8, "little") + b"GIF89a", "not a safetensors file"),
}
BAD_HEADERS = {
    "no JSON": (b"{nope", "plain JSON"),
    "no UTF-8": (b'{"\xff":1}', "plain JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "deep": (b'{"a":' + b"[" * 100_000, "plain JSON"),
    "many values": (b'{"a":[' + b"1," * 600_000 + b"1]}", "JSON values"),
    "twice the same name": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', "once"),
    "a long number": (b'{"a":' + b"9" * 5000 + b"}", "32 characters"),
    "metadata that are none": ({"__metadata__": 3}, "metadata must be an object"),
    "an entry that is none": ({"a": 1}, "data_offsets"),
    "an entry without a shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, "data_offsets"),
    "an unknown dtype": ({"a": entry("F12")}, "dtype"),
    "a dtype that is none": ({"a": entry(3)}, "dtype"),
    "a negative size": ({"a": entry(shape=[-1])}, "shape"),
    "a size that is true": ({"a": entry(shape=[True])}, "shape"),
    "a size that is text": ({"a": entry(shape=["1"])}, "shape"),
    "a float": ({"a": entry(shape=[1.0])}, "shape"),
    "a huge shape": ({"a": entry(shape=[2**40, 2**40])}, "bytes"),
    "a huge shape of nothing": ({"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}, "bytes"),
    "too many axes": ({"a": entry(shape=[1] * 65)}, "axes"),
    "half a byte": ({"a": entry("F4", [1], [0, 1])}, "whole bytes"),
    "one offset": ({"a": entry(offsets=[0])}, "two data_offsets"),
    "offsets beyond the file": ({"a": entry(shape=[2**50], offsets=[0, 2**52])}, "data section"),
    "offsets that are text": ({"a": entry(offsets=["0", "4"])}, "data_offsets"),
    "offsets that do not fit the shape": ({"a": entry(offsets=[0, 3])}, "data_offsets"),
    "a gap": ({"a": entry(offsets=[1, 5])}, "data_offsets"),
    "an overlap": ({"a": entry(), "b": entry(offsets=[2, 6])}, "data_offsets"),
    "too little data": ({"a": entry(shape=[2], offsets=[0, 8])}, "data section"),
    "too much data": ({}, "data section"),
    "half a surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "Unicode"),
}


def assert_refused(path, words):
    """It is refused in a few words, in little memory, and names the file."""
    tracemalloc.start()
    try:
        with pytest.raises(smh.CheckpointError, match=words) as caught:
            DenseFile(path)
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"cannot read {str(path)!r}: ")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_safetensors_file(tmp_path, kind):
    data, words = BAD[kind]
    (tmp_path / "bad").write_bytes(data)
    assert_refused(tmp_path / "bad", words)
    with pytest.raises(smh.CheckpointError, match=words):
        is_checkpoint(tmp_path / "bad")


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_headers_that_lie(tmp_path, kind):
    header, words = BAD_HEADERS[kind]
    assert_refused(write(tmp_path / "bad", header, bytes(4)), words)


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    path = write(tmp_path / "bad", {"a": entry("F32", [2**40], [0, 2**42])})
    assert_refused(path, "data section")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        DenseFile(tmp_path / "none")
    with pytest.raises(smh.CheckpointError, match="it is a folder, .* it holds no .safetensors file"):
        DenseFile(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(smh.CheckpointError, match="such as 'model.safetensors'"):
        DenseFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(smh.CheckpointError, match="regular file"):
        DenseFile(tmp_path / "pipe")


def test_a_file_that_is_cut_after_it_was_opened(tmp_path):
    save_file({"large": np.zeros(1 << 20, dtype=np.uint8)}, tmp_path / "f")
    with DenseFile(tmp_path / "f") as file:
        os.truncate(tmp_path / "f", 1 << 19)
        with pytest.raises(smh.CheckpointError, match="tensor 'large' must have 1048576 bytes"):
            file["large"]


def test_a_bool_that_is_neither(tmp_path):
    with DenseFile(write(tmp_path / "f", {"mask": entry("BOOL", (2,), (0, 2))}, b"\x01\x02")) as file:
        with pytest.raises(smh.CheckpointError, match="bytes 0 and 1"):
            file["mask"]


def test_checkpoints_are_told_from_plain_files(path, tmp_path):
    plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    smh.save(tmp_path / "model", plan, smh.initialize(plan))
    assert is_checkpoint(tmp_path / "model")
    assert not is_checkpoint(path)
    with pytest.raises(smh.CheckpointError, match=r"a checkpoint of smh.*smh materialize"):
        DenseFile(tmp_path / "model")


def test_a_header_is_enough_to_tell_a_checkpoint(tmp_path):
    plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    smh.save(tmp_path / "model", plan, smh.initialize(plan))
    os.truncate(tmp_path / "model", os.path.getsize(tmp_path / "model") - 10)
    assert is_checkpoint(tmp_path / "model")


def test_a_file_that_is_refused_is_closed(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("smh.files.dense.open_file", lambda path: opened.append(open(path, "rb")) or opened[-1])
    with pytest.raises(smh.CheckpointError):
        DenseFile(write(tmp_path / "bad", {"a": entry()}))
    assert [file.closed for file in opened] == [True]


@given(data=st.data())
def test_no_changed_byte_brings_anything_but_an_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_file({name: TENSORS[name] for name in ("fc", "mask", "ids")}, path, {"format": "pt"})
    raw = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    try:
        with DenseFile(path) as file:
            assert sum(x.nbytes for x in file.values()) <= len(raw)
    except smh.CheckpointError:
        pass
