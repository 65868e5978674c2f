"""Files of other kinds are named, and tensors of every dtype of the format pass bit for bit."""

import gzip
import io
import pickle
import zipfile

import ml_dtypes  # noqa: F401  (it teaches NumPy names)
import numpy as np
import pytest
from safetensors.numpy import load, save_file

import smh
from smh.files import checkpoint
from smh.files.dense import DenseFile, is_checkpoint
from smh.files.export import export
from smh.files.header import DTYPES, FOREIGN


def archive(*names):
    """Return a zip archive with files of these names."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as found:
        for name in names:
            found.writestr(name, b"x")
    return data.getvalue()


def npz():
    data = io.BytesIO()
    np.savez(data, a=np.ones(3))
    return data.getvalue()


def npy():
    data = io.BytesIO()
    np.save(data, np.ones(3))
    return data.getvalue()


KINDS = {
    "torch.save": (archive("model/data.pkl", "model/data/0"), "torch.save"),
    "numpy.savez": (npz(), "npz"),
    "keras": (archive("metadata.json", "config.json"), "Keras"),
    "numpy.save": (npy(), "npy"),
    "pickle": (pickle.dumps({"a": 1}), "pickle"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "gzip": (gzip.compress(b"hi"), "gzip"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html></html>", "web page"),
    "xml": (b"\n<?xml version='1.0'?><Error/>", "web page"),
    "json": (b'{"metadata": {"total_size": 1}, "weight_map": {}}', "a text"),
    "text": (b"not found", "a text"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [DenseFile, checkpoint.read, is_checkpoint])
def test_files_of_other_kinds_are_named(tmp_path, kind, read):
    content, words = KINDS[kind]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(smh.CheckpointError, match=words) as caught:
        read(tmp_path / "x")
    assert "save it again" not in str(caught.value)


def test_a_header_is_no_text_whatever_its_length(tmp_path):
    """Lengths whose bytes are those with which files of other kinds begin: gzip's are a header of 559,903 bytes."""
    for length in (0x00088B1F, 0x227B, 0x0280, 0x20A):
        header = b"{}" + b" " * (length - 2)
        (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header)
        with DenseFile(tmp_path / "x") as file:
            assert len(file) == 0


def every_dtype():
    """Return arrays of all dtypes, of random bits."""
    random = np.random.default_rng(0)
    for code, name in DTYPES.items():
        dtype = np.dtype(name)
        data = random.integers(0, 2 if name == "bool" else 256, 6 * dtype.itemsize, dtype=np.uint8)
        yield code, data.view(dtype).reshape(2, 3)


def test_every_dtype_passes_bit_for_bit(tmp_path):
    given = {f"kept/{code}": x for code, x in every_dtype()}
    dense = {"w": np.random.default_rng(1).standard_normal((20, 30), dtype=np.float32), **given}
    save_file(dense, tmp_path / "dense")
    with DenseFile(tmp_path / "dense") as file:
        assert {file.dtypes[f"kept/{code}"] for code in DTYPES} == set(DTYPES)
        stored = {name: file.stored(name) for name in given}
    plan = smh.Plan.build({"w": (20, 30)}, ratio=0.4)
    smh.save(tmp_path / "smh", plan, smh.initialize(plan), stored)
    found = smh.load(tmp_path / "smh")
    export(tmp_path / "again", found)
    with DenseFile(tmp_path / "again") as again:
        for name, x in given.items():
            for y in (stored[name], found.dense[name], again.stored(name)):
                assert y.dtype == x.dtype, name
                assert y.tobytes() == x.tobytes(), name


def test_the_words_of_the_format_are_those_of_safetensors(tmp_path):
    """safetensors' own reader gives NumPy what it has a type for."""
    own = {code: x for code, x in every_dtype() if DTYPES[code] not in FOREIGN}
    save_file(own, tmp_path / "own")
    for code, x in load((tmp_path / "own").read_bytes()).items():
        assert x.tobytes() == own[code].tobytes(), code
