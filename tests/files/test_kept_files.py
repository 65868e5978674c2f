"""Checkpoints with rounded kept tensors: one file for one content, and nothing else is accepted."""

import dataclasses
import hashlib
import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import smh
from smh.files import checkpoint
from smh.files.limits import default
from smh.porting import Entry, Mapping, Source, port
from tests.files import oracle_coder
from tests.files.common import assert_refused
from tests.files.forgery import hashed, plan_of, seal, split, tensor, text_of, tree_of
from tests.files.test_packed import forged, stream_of

PLAN = smh.Plan.build({"a": (40, 50)}, ratio=0.9, seed=3)
RNG = np.random.default_rng(5)
KEPT = {
    "bias": RNG.standard_normal(300).astype(np.float32),
    "small": np.array([[0.5, -3.0, 0.1]], np.float32),
    "var": np.array([1.0, 0.5, 1e-3] * 50),
    "wide": np.array([1.0, 1e-9], np.float32),
    "half": np.array([1.0, -0.3], np.float16),
    "brain": np.array([1.0, -0.3], ml_dtypes.bfloat16),
    "zeros": np.zeros((10, 20), np.float32),
    "steps": np.array(7),
    "mask": np.array([True, False]),
    "carried/x": np.array([0.3, 0.7], np.float32),
}
BITS = {"bias": 8, "brain": 8, "half": 8, "small": 8, "var": 16, "zeros": 8}


def saved(folder, file="model", kept=None, **options):
    options = {"kept_bits": 8, **options}
    smh.save(folder / file, PLAN, smh.initialize(PLAN), KEPT if kept is None else kept, **options)
    return folder / file


def same(one, other):
    """Return whether arrays have equal names, dtypes, shapes and bits, in one order."""
    both = zip(one.items(), other.items(), strict=True)
    return all((a, x.dtype, x.shape, x.tobytes()) == (b, y.dtype, y.shape, y.tobytes()) for (a, x), (b, y) in both)


def test_what_is_rounded_and_what_is_not(tmp_path):
    found = smh.load(saved(tmp_path))
    assert {name: one.bits for name, one in found.rounded.items()} == BITS
    assert list(found.dense) == sorted(KEPT)
    for name, x in KEPT.items():
        y = found.dense[name]
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        if name in BITS:
            assert np.abs(x.astype(np.float64) - y.astype(np.float64)).max() <= 0.016 * np.abs(x).max()
        else:
            assert x.tobytes() == y.tobytes()
    assert found.dense["small"].tolist() == [[0.5, -3.0, 0.09375]]
    assert found.dense["bias"].flags.writeable
    assert np.all(found.dense["var"] > 0)


def test_integers_are_tensors_of_the_file(tmp_path):
    content = saved(tmp_path).read_bytes()
    tree, data = tree_of(content), split(content)[1]
    metadata = tree["__metadata__"]["smh"]
    assert metadata["version"] == "2.1"
    assert metadata["rounded"]["small"] == [8, "F32", 2, [1, 3]]
    assert metadata["rounded"]["zeros"] == [8, "F32", None, [10, 20]]
    assert metadata["rounded"]["var"] == [16, "F64", 1, [150]]
    names = {f"rounded/{name}" if name in BITS else f"dense/{name}" for name in KEPT}
    assert set(tree) - {"__metadata__"} - set(PLAN.variable_shapes) == names
    entry = tree["rounded/small"]
    assert (entry["dtype"], entry["shape"]) == ("I8", [1, 3])
    assert np.frombuffer(data[slice(*entry["data_offsets"])], np.int8).tolist() == [16, -96, 3]
    assert tree["rounded/var"]["dtype"] == "I16"


@pytest.mark.parametrize(
    "options", [{}, {"packed": True}, {"training": True}, {"kept_bits": 16, "packed": True}], ids=str
)
def test_one_content_has_one_file(tmp_path, options):
    path = saved(tmp_path, **options)
    found = smh.load(path)
    shuffled = dict(reversed(found.dense.items()))
    packed, bits = bool(found.coded), {name: one.bits for name, one in found.rounded.items()}
    for kept_bits in (bits, options.get("kept_bits", 8)):
        arguments = (found.plan, found.variables, shuffled, found.digest, found.training, packed, kept_bits)
        checkpoint.write(tmp_path / "again", *arguments)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    frozen = checkpoint.read(path, frozen=True)
    assert same(frozen.dense, found.dense)
    assert (frozen.rounded, frozen.kept_digest, frozen.coded) == (found.rounded, found.kept_digest, found.coded)


@pytest.mark.parametrize("packed", [False, True])
def test_saving_what_was_loaded_gives_the_same_file(tmp_path, packed):
    """Also where all negative values became 0, so that the rule for tensors without them would apply."""
    faint = np.append(np.geomspace(1, 100, 200), -0.01).astype(np.float32)
    path = saved(tmp_path, kept=KEPT | {"faint": faint}, packed=packed)
    found = smh.load(path)
    assert found.rounded["faint"].bits == 8
    assert found.dense["faint"].min() == 0
    again = saved(tmp_path, "again", kept=found.dense, packed=packed)
    assert again.read_bytes() == path.read_bytes()


def test_packed_files_have_streams_of_kept_tensors(tmp_path):
    raw, packed = saved(tmp_path, "raw"), saved(tmp_path, "packed", packed=True)
    one, other = smh.load(raw), smh.load(packed)
    assert same(one.dense, other.dense)
    assert same(one.variables, other.variables)
    assert (one.kept_digest, one.rounded) == (other.kept_digest, other.rounded)
    assert sorted(other.coded) == ["pool/left", "pool/right", "rounded/bias", "rounded/var", "rounded/zeros"]
    tree, data = tree_of(packed.read_bytes()), split(packed.read_bytes())[1]
    for name in ("bias", "var", "zeros"):
        start, stop = tree[f"coded/rounded/{name}"]["data_offsets"]
        rounding = other.rounded[name]
        q = oracle_coder.decode(data[start:stop], math.prod(rounding.shape))
        unit = 2.0 ** ((rounding.exponent or 0) - rounding.bits + 1)
        assert np.array_equal(np.array(q).reshape(rounding.shape) * unit, other.dense[name])
        assert other.kept_bytes(name) == stop - start < one.kept_bytes(name) == len(q) * rounding.bits // 8
    assert other.kept_bytes("steps") is None
    assert packed.stat().st_size < raw.stat().st_size


def test_without_rounded_tensors_a_file_is_what_it_was(tmp_path):
    plain = {name: KEPT[name] for name in ("wide", "steps", "mask", "carried/x")}
    for packed in (False, True):
        one = saved(tmp_path, "one", kept=plain, packed=packed).read_bytes()
        other = saved(tmp_path, "other", kept=plain, packed=packed, kept_bits=None).read_bytes()
        assert one == other
    assert smh.load(saved(tmp_path, kept=plain)).kept_digest is None


@pytest.mark.parametrize("bits", [0, 4, 7, 8.0, 32, "8", True, (8,)])
def test_other_numbers_of_bits_are_refused(tmp_path, bits):
    with pytest.raises(smh.PlanError, match="kept_bits must be 8 or 16"):
        saved(tmp_path, kept_bits=bits)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(smh.VariableError, match=r"'norm\.bias' cannot be rounded"):
        saved(tmp_path, kept={**KEPT, "norm.bias": np.array([1, np.nan])})
    assert not list(tmp_path.iterdir())


def test_the_limit_is_by_the_bytes_that_are_stored(tmp_path):
    kept = {"x": np.zeros((1000, 1000))}
    found = smh.load(saved(tmp_path, kept=kept, packed=True))
    assert found.coded["rounded/x"] < 4000
    raw = smh.load(saved(tmp_path, kept=kept))
    pool = PLAN.file_bytes
    assert default(dataclasses.replace(raw, plan=PLAN)) == max(2**30, 1024 * (pool + 10**6))
    assert default(found) == 2**30


def test_very_many_kept_tensors_are_not_coded(tmp_path, monkeypatch):
    monkeypatch.setattr("smh.files.packed.MOST", len(BITS))
    path = saved(tmp_path, packed=True)
    assert "rounded/bias" in smh.load(path).coded
    monkeypatch.setattr("smh.files.packed.MOST", len(BITS) - 1)
    with pytest.raises(smh.CheckpointError, match=f"at most {len(BITS) - 1} arrays, got {len(BITS)}"):
        smh.load(path)
    found = smh.load(saved(tmp_path, "fewer", packed=True))
    assert sorted(found.coded) == ["pool/left", "pool/right"]
    assert len(found.rounded) == len(BITS)


# --- Files that no writer writes


def metadata_of(name, value):
    """Return a change of what the metadata say of a rounded tensor."""
    return lambda tensors, metadata: metadata["rounded"].update({name: value})


def digest_of(value):
    return lambda tensors, metadata: metadata.update(kept_digest=value)


def integers_of(name, q):
    """Return a change of the integers of a tensor that is not coded."""

    def change(tensors, metadata):
        code, shape, _ = tensors[f"rounded/{name}"]
        dtype = {"I8": np.int8, "I16": "<i2"}[code]
        tensors[f"rounded/{name}"] = (code, shape, np.array(q, dtype).tobytes())

    return change


def removed(*keys):
    def change(tensors, metadata):
        for key in keys:
            metadata.pop(key, None)
            tensors.pop(key, None)

    return change


def added(name, entry):
    return lambda tensors, metadata: tensors.update({name: entry})


def older(tensors, metadata):
    metadata["version"] = "2.0"


def nothing_rounded(tensors, metadata):
    metadata["rounded"] = {}


def carried_elsewhere(tensors, metadata):
    """Integers that the metadata do not name."""
    del metadata["rounded"]["small"]


def another_value(tensors, metadata):
    code, shape, content = tensors["dense/carried/x"]
    tensors["dense/carried/x"] = (code, shape, content[::-1])


def other_float(tensors, metadata):
    """A float16 that does not hold the integers of 8 bits at this exponent."""
    metadata["rounded"]["half"][2] = -20


def wrong_stream(tensors, metadata):
    tensors["coded/rounded/bias"] = stream_of(tensors["coded/rounded/bias"][2] + b"\0")


def coded_anyway(tensors, metadata):
    del tensors["rounded/small"]
    tensors["coded/rounded/small"] = stream_of(b"12")


def as_it_is(tensors, metadata):
    q = oracle_coder.decode(tensors.pop("coded/rounded/bias")[2], 300)
    tensors["rounded/bias"] = ("I8", [300], np.array(q, np.int8).tobytes())


FLAT = [8, "F32", 2, [1, 3]]
FORGERIES = {
    "version 2.0": (older, "its metadata must have the keys"),
    "no digest": (removed("kept_digest"), "its metadata must have the keys"),
    "no roundings": (removed("rounded"), "its metadata must have the keys"),
    "an empty object": (nothing_rounded, "must be an object that is not empty"),
    "a list": (lambda tensors, metadata: metadata.update(rounded=[1]), "must be an object that is not empty"),
    "another digest": (digest_of("0" * 64), "digest of its kept tensors must be"),
    "a digest that is none": (digest_of(None), "digest of its kept tensors must be"),
    "another tensor": (another_value, "digest of its kept tensors must be"),
    "another exponent": (metadata_of("small", [8, "F32", 3, [1, 3]]), "digest of its kept tensors must be"),
    "another dtype": (metadata_of("small", [8, "F64", 2, [1, 3]]), "digest of its kept tensors must be"),
    "no list": (metadata_of("small", {"bits": 8}), "must have bits, dtype, exponent and shape"),
    "a longer list": (metadata_of("small", [*FLAT, 1]), "must have bits, dtype, exponent and shape"),
    "9 bits": (metadata_of("small", [9, *FLAT[1:]]), "must have 8 or 16 bits"),
    "true bits": (metadata_of("small", [True, *FLAT[1:]]), "must have 8 or 16 bits"),
    "16 bits of 16": (metadata_of("half", [16, "F16", 1, [2]]), "dtype of floats with more than 16 bits"),
    "16 bits in int8": (metadata_of("small", [16, *FLAT[1:]]), "must be .'I16'"),
    "whole numbers": (metadata_of("small", [8, "I32", 2, [1, 3]]), "dtype of floats with more than 8 bits"),
    "a dtype that is a list": (metadata_of("small", [8, [], 2, [1, 3]]), "dtype of floats"),
    "an exponent of a half": (metadata_of("small", [8, "F32", 2.5, [1, 3]]), "whole exponent or null"),
    "a true exponent": (metadata_of("small", [8, "F32", True, [1, 3]]), "whole exponent or null"),
    "an exponent too large": (metadata_of("small", [8, "F32", 31, [1, 3]]), "must have one in -29 to 30"),
    "an exponent too small": (metadata_of("small", [8, "F32", -30, [1, 3]]), "must have one in -29 to 30"),
    "no exponent": (metadata_of("small", [8, "F32", None, [1, 3]]), "must have an exponent, unless all are 0"),
    "an exponent of zeros": (integers_of("small", [0, 0, 0]), "the exponent null if all are 0"),
    "small integers": (integers_of("small", [63, 3, 3]), "largest magnitude of at least 64"),
    "the least int8": (integers_of("small", [-128, 3, 3]), "magnitudes of at most 127"),
    "a float16 that cannot": (other_float, "must fit float16"),
    "another shape": (metadata_of("small", [8, "F32", 2, [3]]), "by the plan"),
    "a shape that is none": (metadata_of("small", [8, "F32", 2, [-3]]), "must have a shape"),
    "too many axes": (metadata_of("small", [8, "F32", 2, [1] * 64 + [3]]), "at most 64 axes"),
    "one value": (metadata_of("small", [8, "F32", 2, [1, 1]]), "two values or more"),
    "no value": (metadata_of("small", [8, "F32", 2, [0, 3]]), "two values or more"),
    "no name": (metadata_of("", FLAT), "must have a name"),
    "a name that is not text": (metadata_of("\ud800", FLAT), "must have a name"),
    "a missing tensor": (removed("rounded/small"), "lacks 1"),
    "a tensor that the metadata do not name": (carried_elsewhere, "must be of the plan or 'dense/...'"),
    "a tensor twice": (added("dense/small", ("I8", [1], b"1")), "must be there once, as it is rounded"),
    "raw and coded": (added("rounded/bias", ("I8", [300], bytes(300))), "must be of the plan"),
    "a stream of a few": (coded_anyway, "at least 128 integers"),
    "a stream of a tensor as it is": (added("coded/dense/steps", stream_of(b"12")), "or a rounded kept tensor"),
    "a stream that is longer": (wrong_stream, "must be the one that its integers have"),
    "integers that are not coded": (as_it_is, "must be coded where that makes it smaller"),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("honest"), packed=True).read_bytes()


@pytest.mark.parametrize("what", FORGERIES)
def test_what_no_writer_writes_is_refused(write, honest, what, call):
    change, words = FORGERIES[what]
    path = write(forged(honest, change))
    with pytest.raises(smh.CheckpointError, match=words):
        smh.load(path)
    with pytest.raises(smh.CheckpointError, match=words):
        checkpoint.read(path, frozen=True)
    assert_refused(call("inspect", path), "cannot load")


def test_the_forger_changes_nothing_by_itself(write, honest):
    one = smh.load(write(honest, "honest"))
    other = smh.load(write(forged(honest, lambda tensors, metadata: None)))
    assert (one.coded, one.kept_digest) == (other.coded, other.kept_digest)


@pytest.mark.parametrize("shape", [[2**20], [2**30], [2**31, 2**31, 2**31]])
def test_a_header_of_a_huge_kept_tensor_allocates_nothing(write, shape):
    zeros, data = "0" * 64, b"\1" + bytes(100)
    values = {"checksum": hashlib.sha256(data).hexdigest(), "digest": zeros, "header_checksum": zeros}
    values |= {"plan": plan_of([tensor([2])], hashed()), "pool_exponents": {"table": 0}, "version": "2.1"}
    values |= {"kept_digest": zeros, "rounded": {"x": [8, "F64", None, shape]}}
    tree = {"__metadata__": {"smh": values}}
    tree["pool/table"] = {"dtype": "I8", "shape": [1, 1], "data_offsets": [0, 1]}
    tree["scale/t0"] = {"dtype": "F32", "shape": [], "data_offsets": [1, 5]}
    tree["coded/rounded/x"] = {"dtype": "U8", "shape": [96], "data_offsets": [5, 101]}
    path = write(seal(text_of(tree), data))
    tracemalloc.start()
    with pytest.raises(smh.CheckpointError, match=f"at least {math.prod(shape) // 256} bytes|of the plan"):
        smh.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# --- Ports


def test_a_port_keeps_what_is_rounded(tmp_path, call):
    kept = {"x": KEPT["bias"], "y": KEPT["bias"], "old": KEPT["var"]}
    kept |= {name: RNG.standard_normal((4, 3)).astype(np.float32) for name in ("m", "p")}
    found = smh.load(saved(tmp_path, kept=kept, packed=True))
    parts = [Entry((Source("p", (4, 3), None, (k, 2)),)) for k in range(2)]
    entries = {"w": "a", "turned": ("m", "a b -> b a"), "first": parts[0], "second": parts[1], "carried/old": "old"}
    entries["both"] = Entry((Source("x", (300,)), Source("y", (300,))), "sum")
    mapping = Mapping.build(entries, found)
    ported = port(found, mapping)
    expected = {"carried/old": 16, "first": 8, "second": 8, "turned": 8}
    assert {name: one.bits for name, one in ported.rounded.items()} == expected
    assert ported.rounded["turned"].shape == (3, 4)
    assert np.array_equal(ported.dense["both"], 2 * found.dense["x"])
    mapping.save(tmp_path / "map.json")
    result = call("port", tmp_path / "model", "--map", tmp_path / "map.json", "-o", tmp_path / "ported")
    assert result.exit_code == 0, result.output
    written = smh.load(tmp_path / "ported")
    assert same(written.dense, ported.dense)
    assert written.rounded == ported.rounded
    assert "rounded/carried/old" in written.coded
    # What is only carried along stays rounded in another port.
    names = [name for name in entries if not name.startswith("carried/")]
    again = port(written, Mapping.build({f"{name}2": name for name in names}, written))
    assert again.rounded["carried/old"] == ported.rounded["carried/old"]


def test_a_port_that_leaves_single_values_stores_them_as_they_are(tmp_path, call):
    found = smh.load(saved(tmp_path, kept={"b": np.array([1.0, -0.5], np.float32)}))
    assert list(found.rounded) == ["b"]
    parts = {f"b{k}": Entry((Source("b", (2,), None, (k, 2)),)) for k in range(2)}
    mapping = Mapping.build({"a": "a", **parts}, found)
    assert port(found, mapping).rounded == {}
    mapping.save(tmp_path / "map.json")
    result = call("port", tmp_path / "model", "--map", tmp_path / "map.json", "-o", tmp_path / "ported")
    assert result.exit_code == 0, result.output
    assert {name: x.tolist() for name, x in smh.load(tmp_path / "ported").dense.items()} == {"b0": [1.0], "b1": [-0.5]}


# --- Commands


def test_pack_rounds_and_says_what(tmp_path, call):
    path = saved(tmp_path, kept_bits=None)
    result = call("pack", path, "-o", tmp_path / "packed", "--kept-bits", 8, "--json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "packed").read_bytes() == saved(tmp_path, "own", packed=True).read_bytes()
    shown, found = json.loads(result.stdout), smh.load(tmp_path / "packed")
    kept = {row["name"]: row for row in shown["kept"]}
    assert {name: row["bits"] for name, row in kept.items() if row["bits"]} == BITS
    assert {name for name, row in kept.items() if row["error"] is None} == set(KEPT) - set(BITS)
    assert kept["small"]["error"] == pytest.approx(0.00625 / math.sqrt(9.26), rel=1e-4)
    assert kept["zeros"]["error"] == 0
    assert (kept["bias"]["bytes_before"], kept["bias"]["bytes"]) == (1200, found.coded["rounded/bias"])
    rows = {row["name"]: row for row in shown["arrays"]}
    assert {name for name in rows if name.startswith("rounded/")} == {f"rounded/{name}" for name in BITS}
    assert (rows["rounded/var"]["bits"], rows["rounded/var"]["raw"]) == (16, 300)
    text = call("pack", path, "-o", tmp_path / "again", "--kept-bits", 8).stdout
    assert "6 kept tensors" in text
    assert "kept tensors: 5 to 8 bits and 1 to 16 bits, 4 as they are; " in text
    worst = max(BITS, key=lambda name: kept[name]["error"])
    assert f"largest relative error of a kept tensor: {kept[worst]['error']:.2%} ({worst!r})" in text


def test_pack_and_unpack_keep_what_is_rounded(tmp_path, call):
    path = saved(tmp_path)
    assert call("pack", path, "-o", tmp_path / "packed").exit_code == 0
    assert (tmp_path / "packed").read_bytes() == saved(tmp_path, "own", packed=True).read_bytes()
    assert call("pack", tmp_path / "packed", "--raw", "-o", tmp_path / "raw").exit_code == 0
    assert (tmp_path / "raw").read_bytes() == path.read_bytes()
    plain = saved(tmp_path, "plain", kept_bits=None)
    assert call("pack", plain, "--raw", "--kept-bits", 16, "-o", tmp_path / "wide").exit_code == 0
    assert (tmp_path / "wide").read_bytes() == saved(tmp_path, "own", kept_bits=16).read_bytes()
    result = call("pack", path, "-o", tmp_path / "x", "--kept-bits", 4)
    assert result.exit_code == 2
    assert "8 or 16 bits; got 4" in result.stderr
    assert not (tmp_path / "x").exists()


def test_commands_show_the_digest_of_kept_tensors(tmp_path, call):
    path, plain = saved(tmp_path, packed=True), saved(tmp_path, "plain", kept_bits=None)
    found = smh.load(path)
    shown = json.loads(call("inspect", path, "--json").stdout)
    assert shown["kept_digest"] == found.kept_digest
    entries = {entry["name"]: entry for entry in shown["tensors"]}
    assert (entries["bias"]["dtype"], entries["bias"]["bits"]) == ("I8", 8)
    assert entries["bias"]["bytes"] == found.coded["rounded/bias"]
    assert entries["bias"]["numbers"] == 300
    assert "bits" not in entries["wide"]
    assert shown["dense_bytes"] == json.loads(call("inspect", plain, "--json").stdout)["dense_bytes"]
    assert f"digest of kept tensors {found.kept_digest} (verified)" in call("inspect", path).stdout
    assert "digest of kept tensors" not in call("inspect", plain).stdout
    result = call("verify", path, "--backend", "numpy")
    assert result.exit_code == 0, result.output
    assert "kept tensors: digest same as the file's" in result.stdout
    assert json.loads(call("verify", path, "--backend", "numpy", "--json").stdout)["kept_digest"] == found.kept_digest
    assert call("diff", path, plain).exit_code == 1
