"""Plain files: the bytes are those of materialize, whatever the pieces, and a file appears whole or not at all."""

import json
import os
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import smh
from conformance.bits import assert_same_bits
from smh.backends.numpy import NumpyBackend
from smh.errors import CheckpointError, UnknownNameError, VariableError
from smh.files import contents
from smh.files import export as exporting
from smh.files.export import export
from tests.core.cases import KINDS, plans, seeds, values

DENSE = {
    "bias": np.arange(3, dtype=np.float64),
    "mask": np.array([[True, False]]),
    "half": np.arange(5).astype(ml_dtypes.bfloat16),
    "steps": np.array(5, dtype=np.int64),
    "none": np.zeros((0, 3), np.float16),
    "single": np.arange(4, dtype=np.float32),
}


def checkpoint(plan, dense=None, variables=None):
    return smh.Checkpoint(plan, smh.initialize(plan) if variables is None else variables, dense or {}, "0" * 64)


def small_plan(**options):
    shapes = {"conv": (3, 3, 2, 4), "fc": (20, 7), "odd": (5,)}
    views = {"conv": "h w i o -> o i h w", "fc": "i o -> o i"}
    return smh.Plan.build(shapes, ratio=1, views=views, include=lambda name: True, **options)


def assert_same_weights(path, expected):
    found = load_file(path)
    assert set(found) == set(expected)
    for name, w in expected.items():
        assert found[name].shape == w.shape
        assert_same_bits(found[name], w, name)


@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS), block=st.integers(1, 300), view=st.booleans())
@settings(max_examples=60)
def test_the_file_has_the_bits_of_materialize_whatever_the_blocks(tmp_path_factory, plan, seed, kind, block, view):
    path = tmp_path_factory.mktemp("drawn") / "dense.safetensors"
    variables, _ = values(plan, seed, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "BLOCK", block)
        written = export(path, checkpoint(plan, variables=variables), view=view)
    seen = plan if view else exporting.canonical(plan)
    assert_same_weights(path, smh.materialize(seen, variables))
    assert written.size == path.stat().st_size
    assert written.weights == plan.num_weights
    os.remove(path)


def test_kept_tensors_keep_their_bytes(tmp_path):
    path = tmp_path / "dense.safetensors"
    plan = small_plan()
    carried = {"carried/x": np.ones(2, np.float32)}
    written = export(path, checkpoint(plan, DENSE | carried))
    found = load_file(path)
    assert set(found) == {"conv", "fc", "odd", *DENSE}
    for name, x in DENSE.items():
        assert found[name].dtype == x.dtype
        assert found[name].shape == x.shape
        assert found[name].tobytes() == x.tobytes()
    assert written.shapes == {name: x.shape for name, x in found.items()}
    big = {name: x.astype(x.dtype.newbyteorder(">")) if x.dtype.kind != "V" else x for name, x in DENSE.items()}
    export(tmp_path / "big.safetensors", checkpoint(plan, big))
    assert (tmp_path / "big.safetensors").read_bytes() == path.read_bytes()


def test_the_order_is_fixed_and_data_are_aligned(tmp_path):
    path = tmp_path / "dense.safetensors"
    plan = small_plan()
    export(path, checkpoint(plan, DENSE))
    first = path.read_bytes()
    export(path, checkpoint(plan, dict(reversed(DENSE.items()))))
    assert path.read_bytes() == first
    length = int.from_bytes(first[:8], "little")
    header = json.loads(first[8 : 8 + length])
    assert list(header) == ["bias", "steps", "conv", "fc", "odd", "single", "half", "none", "mask"]
    assert length % 8 == 0
    for name, entry in header.items():
        itemsize = (DENSE[name] if name in DENSE else np.float32(0)).dtype.itemsize
        assert entry["data_offsets"][0] % itemsize == 0
    with safe_open(path, "numpy") as file:
        assert file.metadata() is None


def test_names_choose(tmp_path):
    path = tmp_path / "dense.safetensors"
    plan = small_plan()
    export(path, checkpoint(plan, DENSE), ["odd", "mask", "conv"])
    assert set(load_file(path)) == {"conv", "odd", "mask"}
    weights = smh.materialize(plan, smh.initialize(plan))
    assert_same_bits(load_file(path)["odd"], weights["odd"])
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        export(path, checkpoint(plan), ["cnv"])
    with pytest.raises(smh.ExportError, match="at least one"):
        export(path, checkpoint(plan), [])


@pytest.mark.parametrize(
    ("dense", "options", "error", "what"),
    [
        ({"fc": np.zeros(3)}, {}, smh.ExportError, "same name"),
        ({"__metadata__": np.zeros(3)}, {}, smh.ExportError, "does not allow a tensor of this name"),
        ({"\ud800": np.zeros(3)}, {}, smh.ExportError, "does not allow a tensor of this name"),
        ({"z": np.zeros(3, np.complex128)}, {}, smh.ExportError, "complex128"),
        ({}, {"max_bytes": 1000}, smh.LimitError, r"1,\d\d\d bytes.* limit is 1,000"),
        ({}, {"variables": {}}, VariableError, "missing"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, dense, options, error, what):
    variables = options.pop("variables", None)
    with pytest.raises(error, match=what):
        export(tmp_path / "dense.safetensors", checkpoint(small_plan(), dense, variables), **options)
    assert not os.listdir(tmp_path)


def test_the_limit_is_the_size_itself(tmp_path):
    found = checkpoint(small_plan())
    size = export(tmp_path / "a", found).size
    assert export(tmp_path / "b", found, max_bytes=size).size == size
    with pytest.raises(smh.LimitError, match=f"{size:,} bytes"):
        export(tmp_path / "c", found, max_bytes=size - 1)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "dense.safetensors"
    path.write_bytes(b"old")
    usage = type("Usage", (), {"free": 100})
    with monkeypatch.context() as patch:
        patch.setattr(exporting.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(smh.ExportError, match="100 are free"):
            export(path, checkpoint(small_plan()))
    assert os.listdir(tmp_path) == ["dense.safetensors"]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_weights", full)
    with pytest.raises(OSError, match="No space"):
        export(path, checkpoint(small_plan()))
    assert os.listdir(tmp_path) == ["dense.safetensors"]
    assert path.read_bytes() == b"old"


def test_paths_that_are_no_files(tmp_path):
    found = checkpoint(small_plan())
    with pytest.raises(FileNotFoundError, match="No such folder"):
        export(tmp_path / "none" / "dense.safetensors", found)
    with pytest.raises(CheckpointError, match="only a file"):
        export(tmp_path, found)
    assert not os.listdir(tmp_path)


def test_another_backend_builds_whole_tensors(tmp_path):
    class Negative(NumpyBackend):
        def materialize(self, plan, variables, names=None):
            return {name: -w for name, w in super().materialize(plan, variables, names).items()}

    plan = small_plan()
    for view in (True, False):
        export(tmp_path / "dense.safetensors", checkpoint(plan), view=view, backend=Negative())
        weights = smh.materialize(plan if view else exporting.canonical(plan), smh.initialize(plan))
        assert_same_weights(tmp_path / "dense.safetensors", {name: -w for name, w in weights.items()})


def test_progress_is_told_all_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "BLOCK", 3)
    told, sizes = [], []
    written = export(tmp_path / "d", checkpoint(small_plan(), DENSE), start=sizes.append, advance=told.append)
    assert sizes == [written.size]
    assert sum(told) == written.size
    assert len(told) > len(DENSE) + 3


def test_memory_is_bounded_by_blocks_and_the_largest_view(tmp_path):
    """A file of 270 MB, with large tensors, small ones and views, from a process that never holds 160 MiB."""
    program = """
        import resource, sys
        import smh
        from smh.files.export import export

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

        shapes = {f"s{k}": (300, 400) for k in range(50)} | {"conv": (3, 3, 300, 1000), "fc": (5800, 10000)}
        views = {"conv": "h w i o -> o i h w", "s7": "i o -> o i"}
        plan = smh.Plan.build(shapes, ratio=0.0005, views=views)
        before = peak()
        written = export(sys.argv[1], smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64))
        print(written.size, peak() - before)
    """
    path = tmp_path / "dense.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, check=True
    )
    size, peak = map(float, done.stdout.split())
    assert size == path.stat().st_size > 2.6e8
    assert peak < 160
    path.unlink()
