"""Models of every kind of file: the same tensors give the same plan, and what cannot be read is named."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import smh
from smh.errors import CheckpointError
from smh.files.formats import is_safetensors, open_dense
from tests.cli.common import as_json, assert_fails, invoke

rng = np.random.default_rng(0)
DENSE = {
    "fc1.weight": rng.normal(size=(30, 40)).astype(np.float32),
    "fc1.bias": np.linspace(0, 1, 30, dtype=np.float32),
    "half": rng.normal(size=(8, 12)).astype(np.float16),
    "wide": rng.normal(size=(6, 5)),
    "steps": np.array(7),
    "mask": np.array([[True, False]]),
    "empty": np.zeros((0, 3), np.float32),
}
INDEX = "model.safetensors.index.json"


def torch_of(arrays):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return {name: torch.tensor(x) for name, x in arrays.items()}


def write_npz(folder):
    np.savez(folder / "x", **DENSE)
    return folder / "x.npz"


def write_deflated(folder):
    turned = {name: np.asarray(x, x.dtype.newbyteorder(">"), order="F") for name, x in DENSE.items()}
    np.savez_compressed(folder / "x", **turned)
    return folder / "x.npz"


def write_torch(folder):
    state = torch_of(DENSE)
    sys.modules["torch"].save(state, folder / "x.pt")
    return folder / "x.pt"


def write_old_torch(folder):
    state = torch_of(DENSE)
    sys.modules["torch"].save(state, folder / "x.bin", _use_new_zipfile_serialization=False)
    return folder / "x.bin"


def write_training_state(folder):
    state = {"epoch": 3, "optimizer": {"lr": 0.1}, "model": torch_of(DENSE)}
    sys.modules["torch"].save(state, folder / "x.pth")
    return folder / "x.pth"


def write_shards(folder, places=None):
    names = list(DENSE)
    shards = {"a-2.safetensors": names[:2], "a-1.safetensors": names[2:]}
    for shard, part in shards.items():
        save_file({name: DENSE[name] for name in part}, folder / shard, {"format": "pt", "shard": shard})
    places = places or {name: shard for shard, part in shards.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / INDEX


def write_folder_of_shards(folder):
    write_shards(folder)
    (folder / "config.json").write_text("{}")
    return folder


def write_folder(folder):
    save_file(DENSE, folder / "model.safetensors")
    save_file({"x": np.ones(2)}, folder / "adapter_model.safetensors")
    return folder


def write_folder_of_torch(folder):
    state = torch_of(DENSE)
    sys.modules["torch"].save(state, folder / "part.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "part.bin")}))
    return folder


WRITERS = [
    write_npz,
    write_deflated,
    write_torch,
    write_old_torch,
    write_training_state,
    write_shards,
    write_folder_of_shards,
    write_folder,
    write_folder_of_torch,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_gives_the_same_tensors(tmp_path, write):
    path = write(tmp_path)
    assert not is_safetensors(path)
    with open_dense(path) as file:
        assert set(file) == set(DENSE)
        for name, x in DENSE.items():
            stored = file.stored(name)
            assert (stored.dtype, stored.shape) == (x.dtype, x.shape)
            assert stored.tobytes() == x.tobytes()
            assert (file.shapes[name], file.sizes[name]) == (x.shape, x.nbytes)
            assert file[name].tobytes() == x.tobytes()
        assert all(os.path.exists(name) for name in file.files)


@pytest.mark.parametrize("write", [write_npz, write_torch, write_shards, write_folder])
def test_the_commands_take_every_kind(tmp_path, write):
    (tmp_path / "x").mkdir()
    path = write(tmp_path / "x")
    save_file(DENSE, tmp_path / "dense.safetensors")
    as_json("plan", path, "--ratio", "0.3", "--scale", "match", "-o", tmp_path / "plan.json")
    digests = set()
    for number, model in enumerate((path, tmp_path / "dense.safetensors")):
        out = tmp_path / f"{number}.out"
        digests.add(as_json("fit", model, "--plan", tmp_path / "plan.json", "-o", out)["digest"])
        kept = smh.load(out).dense
        for name in ("fc1.bias", "steps", "mask"):
            assert (kept[name].dtype, kept[name].shape) == (DENSE[name].dtype, DENSE[name].shape)
            assert kept[name].tobytes() == DENSE[name].tobytes()
    assert len(digests) == 1
    assert invoke("diff", path, tmp_path / "dense.safetensors").exit_code == 0
    found = as_json("inspect", path)
    assert (found["kind"], len(found["tensors"])) == ("plain", len(DENSE))


def test_bfloat16_and_float8_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.arange(6.0).reshape(2, 3)
    state = {"b": x.to(torch.bfloat16), "f": x.to(torch.float8_e5m2), "c": x.to(torch.complex64), "t": x.t()}
    torch.save(state | {"odd": x.to(torch.complex128)}, tmp_path / "x.pt")
    with open_dense(tmp_path / "x.pt") as file:
        assert file.dtypes == {"b": "BF16", "f": "F8_E5M2", "c": "C64", "t": "F32", "odd": "complex128"}
        assert file.stored("b").dtype == ml_dtypes.bfloat16
        assert file["b"].tolist() == file["f"].astype(np.float32).tolist() == file["c"].real.tolist() == x.tolist()
        assert file["t"].tolist() == x.t().tolist()
        assert file["t"].flags.c_contiguous
        with pytest.raises(CheckpointError, match="complex128"):
            file.stored("odd")


def test_tied_tensors_are_read_once(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.ones(20, 10)
    state = {"embed.weight": x, "rows": x[:10], "head.weight": x}
    torch.save(state, tmp_path / "x.bin")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, "x.bin")}))
    for path in (tmp_path / "x.bin", tmp_path / INDEX):
        with open_dense(path) as file:
            assert list(file) == ["embed.weight", "rows"]
            assert file.aliases == {"head.weight": "embed.weight"}
        text = invoke("plan", path, "--ratio", "0.3").stdout
        assert "tied, and read once: 'head.weight' is 'embed.weight'" in text
        kept = as_json("plan", path, "--ratio", "0.3", "--exclude", "head")["kept"]
        assert kept == {"embed.weight": "not selected"}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_runs_no_code(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    evil = Evil(str(tmp_path / "made"))
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"w": evil}))
    np.savez(tmp_path / "x", w=np.array([evil], dtype=object), v=rng.normal(size=(9, 9)))
    assert_fails(invoke("inspect", tmp_path / "x.pt"), "as tensors alone", "state_dict")
    assert as_json("inspect", tmp_path / "x.npz")["tensors"][0]["dtype"] == "object"
    assert_fails(invoke("fit", tmp_path / "x.npz", "--ratio", "0.3", "-o", tmp_path / "o"), "'w'", "'object'")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "o").exists()


def test_what_torch_files_must_hold(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.ones(3, 4)
    for state, words in (
        ({"a": {"w": x}, "b": {"w": x}}, ["tensors of one model", "'a', 'b'"]),
        ([x], ["tensors by name"]),
        ({"w": x.to_sparse()}, ["'w'", "plain values"]),
        ({"w": x.to("meta")}, ["'w'", "plain values"]),
        (torch.nn.Linear(2, 2), ["state_dict"]),
        ({"\ud800": x}, ["valid Unicode"]),
    ):
        torch.save(state, tmp_path / "x.pt")
        assert_fails(invoke("inspect", tmp_path / "x.pt"), "x.pt", *words)
    torch.save({"a": {"w": x}, "state_dict": {"w": x}}, tmp_path / "x.pt")
    assert "read from its entry 'state_dict'" in invoke("inspect", tmp_path / "x.pt").stdout
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
    assert_fails(invoke("inspect", tmp_path / "x.pt"), "x.pt", "cut archive")


def test_torch_that_is_not_installed(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({}))
    code = "import sys; sys.modules['torch'] = None; import smh.cli; smh.cli.main()"
    command = [sys.executable, "-c", code, "plan", str(tmp_path / "x.bin"), "--ratio", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_fails(done, 'pip install "structured-multi-hashing[torch]"')


def archive(entries):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in entries:
            found.writestr(name, content)
    return data.getvalue()


def npy(array=None, header=None):
    data = io.BytesIO()
    np.save(data, np.ones((2, 3), np.float32) if array is None else array)
    content = data.getvalue()
    return content if header is None else content.replace(b"(2, 3)", header)


NPY = npy()
BAD = {
    "cut": (archive([("w.npy", NPY)])[:-30], "cut archive"),
    "no array": (archive([("w.npy", b"weights")]), "damaged archive of NumPy"),
    "too short": (archive([("w.npy", NPY[:-1])]), "must have 24 bytes"),
    "lying shape": (archive([("w.npy", npy(header=b"(9, 9)"))]), "must have 324 bytes"),
    "negative": (archive([("w.npy", npy(header=b"(-2,3)"))]), "sizes of 0 or more"),
    "huge": (archive([("w.npy", npy(header=b"(2, 9999999999999)"))]), "must have 79999999999992 bytes, got"),
    "code": (archive([("w.npy", npy(header=b"exit()"))]), "damaged archive of NumPy"),
    "flipped": (archive([("w.npy", NPY)]).replace(b"w.npy", b"v.npy", 1), "damaged archive of NumPy"),
    "keras": (archive([("metadata.json", "{}"), ("config.json", "{}"), ("model.weights.h5", "")]), "smh.fit"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "keras.saving.load_model"),
    "other archive": (archive([("readme.txt", "hello")]), "an archive"),
    "text": (b"weights = [1, 2, 3]", "it is a text"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
}


def test_a_plan_is_no_model(tmp_path):
    (tmp_path / "p.json").write_text(smh.Plan.build({"w": (8, 9)}, ratio=0.5).to_json())
    out = ["-o", tmp_path / "out", "--ratio", "0.5"]
    for command, *options in (["inspect"], ["digest"], ["diff", tmp_path / "p.json"], ["plan", *out], ["fit", *out]):
        result = invoke(command, tmp_path / "p.json", *options)
        assert_fails(result, f"'{tmp_path / 'p.json'}' is a plan, which holds no tensors")


@pytest.mark.parametrize("write", WRITERS)
def test_what_helps_with_a_model_where_a_checkpoint_is_needed(tmp_path, write):
    path = write(tmp_path)
    words = "not a checkpoint of smh: smh fit converts it"
    for command, *options in (["digest"], ["verify"], ["materialize", "-o", tmp_path / "out"]):
        assert_fails(invoke(command, path, *options), str(path), words)
    if path.suffix != ".json":
        result = invoke("plot", path, "-o", tmp_path / "a.svg")
        assert_fails(result, str(path), "smh plan -o writes it, or a checkpoint", words)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["inspect", "fit"])
def test_files_that_are_no_good(tmp_path, kind, command):
    content, words = BAD[kind]
    (tmp_path / "x").write_bytes(content)
    options = ["--ratio", "0.3", "-o", tmp_path / "out"] if command == "fit" else []
    assert_fails(invoke(command, tmp_path / "x", *options), str(tmp_path / "x"), words)
    assert os.listdir(tmp_path) == ["x"]


def test_an_array_that_is_damaged(tmp_path):
    """The headers of all arrays are read first, and the data when they are needed."""
    data = archive([("w.npy", npy(rng.normal(size=(20, 20))))])
    (tmp_path / "x.npz").write_bytes(data[:400] + bytes([data[400] ^ 255]) + data[401:])
    result = invoke("fit", tmp_path / "x.npz", "--ratio", "0.3", "-o", tmp_path / "out")
    assert_fails(result, "x.npz", "damaged archive of NumPy")
    assert os.listdir(tmp_path) == ["x.npz"]


def test_an_archive_that_is_a_bomb(tmp_path):
    """What deflate cannot have made is refused before memory is reserved."""
    data = archive([("w.npy", NPY)])
    at = data.rindex(b"PK\x01\x02") + 24  # the size in the central directory
    (tmp_path / "x.npz").write_bytes(data[:at] + (1 << 31).to_bytes(4, "little") + data[at + 4 :])
    assert_fails(invoke("inspect", tmp_path / "x.npz"), "must fit its data")


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"fc1.weight": "../a-1.safetensors"}, "without a folder"),
        ({"fc1.weight": "/etc/passwd"}, "without a folder"),
        ({"fc1.weight": ".."}, "without a folder"),
        ({"fc1.weight": 3}, "without a folder"),
        ({"fc1.weight": "none.safetensors"}, "none.safetensors: No such file"),
        ({"fc1.weight": "a-2.safetensors"}, "must name all tensors of 'a-2.safetensors'"),
        ({"fc3.weight": "a-2.safetensors"}, "must hold 'fc3.weight'"),
        ({"fc1.weight": INDEX}, "must name files of tensors"),
    ],
)
def test_an_index_that_is_no_good(tmp_path, places, words):
    index = write_shards(tmp_path, places)
    assert_fails(invoke("inspect", index), words)


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"weight_map": []}', b"{", b"\xff", b" " * (9 << 20)])
def test_a_text_that_is_no_index(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text)
    result = invoke("inspect", tmp_path / INDEX)
    assert result.exit_code == 3
    assert INDEX in result.stderr


def test_folders(tmp_path):
    assert_fails(invoke("inspect", tmp_path), "a folder without a model")
    for name in ("b.safetensors", "a.safetensors"):
        save_file({"w": np.ones((2, 2))}, tmp_path / name)
    assert_fails(invoke("inspect", tmp_path), "several models: name one, such as 'a.safetensors'")


def test_no_shard_is_replaced(tmp_path):
    index = write_shards(tmp_path)
    before = (tmp_path / "a-1.safetensors").read_bytes()
    for path in (index, tmp_path):
        result = invoke("fit", path, "--ratio", "0.3", "-o", tmp_path / "a-1.safetensors", "--force")
        assert_fails(result, "would replace the input")
    assert_fails(invoke("plan", index, "--ratio", "0.3", "-o", index, "--force"), "would replace the input")
    assert (tmp_path / "a-1.safetensors").read_bytes() == before


def test_metadata_that_all_shards_share(tmp_path):
    with open_dense(write_shards(tmp_path)) as file:
        assert file.metadata == {"format": "pt"}
