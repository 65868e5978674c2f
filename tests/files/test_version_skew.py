"""Files of other versions: those of older ones are read for ever, those of newer ones say so."""

import hashlib
import json

import pytest

import smh
from smh.backends import numpy as smh_numpy
from smh.core.layout import LAYOUTS
from smh.core.pools.base import KINDS
from smh.core.versions import NEWEST, VERSION
from smh.files import checkpoint
from tests.files.common import DENSE, file_of, honest_plans
from tests.files.forgery import seal, split, text_of, tree_of
from tests.files.golden_files import contents, make

FOLDERS = sorted(path for path in make.FOLDER.iterdir() if (path / "index.json").exists())
FILES = [path for folder in FOLDERS for path in sorted(folder.iterdir()) if path.name != "index.json"]
CHECKPOINTS = [path for path in FILES if path.suffix == ".smh"]
OURS = make.FOLDER / VERSION
OLD = make.FOLDER / "version-1.smh"


def known(path):
    """Return what the index of a folder says of a file."""
    return json.loads((path.parent / "index.json").read_text(encoding="utf-8"))[path.name]


def named(path):
    return f"{path.parent.name}/{path.name}"


# --- Golden files


def test_this_version_has_golden_files_of_every_kind():
    names = {f"{name}.smh" for name in contents.plans()}
    assert {path.name for path in OURS.iterdir()} == names | {"plan.json", "mapping.json", "index.json"}
    pools = {leaf.pool.kind for plan in contents.plans().values() for leaf in plan.pool.leaves(seed=0)}
    assert pools | {plan.pool.kind for plan in contents.plans().values()} == set(KINDS)
    assert {plan.layout for plan in contents.plans().values()} == set(LAYOUTS)


def test_the_maker_writes_nothing_twice(tmp_path):
    names = make.make(tmp_path)
    assert set(names) == {f"{name}.smh" for name in contents.plans()} | {"plan.json", "mapping.json"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (OURS / name).read_bytes(), name
    (tmp_path / "hash.smh").write_bytes(b"old")
    (tmp_path / "sum.smh").unlink()
    assert make.make(tmp_path) == ["sum.smh"]
    assert (tmp_path / "hash.smh").read_bytes() == b"old"
    assert make.make(tmp_path) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_golden_file_has_not_changed(path):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known(path)["sha256"]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=named)
def test_a_golden_file_is_read_and_gives_its_weights(path):
    found = smh_numpy.load(path)
    expected = known(path)
    assert found.digest == expected["digest"]
    assert smh_numpy.digest(found.plan, found.variables) == expected["digest"]
    assert make.arrays_of(path) == expected["arrays"]
    weights = smh_numpy.materialize(found.plan, found.variables)
    assert {name: w.shape for name, w in weights.items()} == {t.name: t.viewed_shape for t in found.plan.tensors}


@pytest.mark.parametrize("path", [path for path in CHECKPOINTS if path.parent == OURS], ids=named)
def test_what_was_read_is_written_as_it_was(path, tmp_path):
    found = checkpoint.read(path)
    packed = bool(found.coded)
    assert packed == path.name.startswith("packed")
    bits = {name: one.bits for name, one in found.rounded.items()}
    assert bool(bits) == path.name.endswith("rounded.smh")
    arguments = (found.plan, found.variables, found.dense, found.digest, found.training, packed, bits)
    checkpoint.write(tmp_path / "again", *arguments)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_golden_plans_mean_what_they_meant(folder):
    for name, plan in contents.plans().items():
        assert checkpoint.read(folder / f"{name}.smh").plan == plan
    dense = checkpoint.read(folder / "matmul.smh").dense
    assert set(dense) == set(contents.dense())
    for name, x in contents.dense().items():
        assert (dense[name].dtype, dense[name].shape) == (x.dtype, x.shape)
        assert dense[name].tobytes() == x.tobytes()
    assert smh.Plan.from_json((folder / "plan.json").read_text(encoding="utf-8")) == contents.plans()["views"]
    assert smh.porting.Mapping.load(folder / "mapping.json") == contents.mapping()


# --- The past


def test_a_file_of_version_1_says_which_smh_reads_it(tmp_path, call):
    words = r"smh 0.1 wrote it, and this smh reads files of version 2.0: use smh 0.1 to read it, got '1.0'"
    with pytest.raises(smh.CheckpointError, match=words) as caught:
        smh.load(OLD)
    assert "save it again" not in str(caught.value)
    for command in ("inspect", "digest", "verify"):
        result = call(command, OLD)
        assert result.exit_code == 3
        assert "use smh 0.1 to read it" in result.stderr
    result = call("materialize", OLD, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert not list(tmp_path.iterdir())


# --- The future


PLANS = honest_plans()
HONEST = file_of(PLANS["matmul"], DENSE)


def changed(change, version=None):
    """Return a checkpoint whose JSON was changed, under right checksums."""
    content = HONEST
    tree = tree_of(content)
    metadata = tree["__metadata__"]["smh"]
    if version is not None:
        metadata["version"] = version
    change(metadata, tree)
    return seal(text_of(tree), split(content)[1])


def load(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    return smh_numpy.load(tmp_path / "model")


def nothing(metadata, tree):
    pass


def plan_version(version, **more):
    def change(metadata, tree):
        metadata["plan"] |= {"version": version, **more}

    return change


@pytest.mark.parametrize("version", ["2.1", "2.7", "2.10", "2.999999999"])
def test_minor_versions_that_add_nothing_are_read(tmp_path, version):
    assert load(tmp_path, changed(nothing, version)).plan == load(tmp_path, changed(nothing)).plan
    assert load(tmp_path, changed(plan_version(version))).plan.seed == 7
    text = json.dumps({**json.loads(PLANS["hash"].to_json()), "version": version})
    assert smh.Plan.from_json(text) == smh.Plan.from_json(PLANS["hash"].to_json())


@pytest.mark.parametrize(
    "version", ["3.0", "0.9", "20.0", "21.0", "2", "2.", "2.x", "2.0.0", " 2.0", "2.0\n", "\uff12.0", ""]
)
def test_other_major_versions_are_refused_by_name(tmp_path, version):
    with pytest.raises(smh.CheckpointError, match="this smh reads files of version 2.0: upgrade it, got ") as caught:
        load(tmp_path, changed(nothing, version))
    assert repr(version) in str(caught.value)
    with pytest.raises(smh.CheckpointError, match="plans of version 2.0 are read here; got version ") as caught:
        load(tmp_path, changed(plan_version(version)))
    assert repr(version) in str(caught.value)


NEWER = rf"this is of version 2.3, newer than {NEWEST}, which this smh reads: upgrade smh"
ADDITIONS = {
    "a key of the metadata": lambda metadata, tree: metadata.update(signature="x"),
    "a tensor of another kind": lambda metadata, tree: tree.update({"index/a": tree.pop("dense/steps")}),
    "a key of an entry": lambda metadata, tree: tree["dense/steps"].update(compression="x"),
    "a dtype": lambda metadata, tree: tree["dense/steps"].update(dtype="I128"),
}


@pytest.mark.parametrize("what", ADDITIONS)
def test_what_a_newer_minor_version_adds_to_files_is_refused_as_new(tmp_path, what):
    with pytest.raises(smh.CheckpointError, match=NEWER):
        load(tmp_path, changed(ADDITIONS[what], "2.3"))
    with pytest.raises(smh.CheckpointError) as caught:
        load(tmp_path, changed(ADDITIONS[what]))
    assert "newer than" not in str(caught.value)


PLAN_ADDITIONS = {
    "a key": ({"rounding": "up"}, "unknown key 'rounding'"),
    "a pool": ({"pool": {"kind": "fourier"}}, "unknown kind 'fourier'"),
    "a layout": ({"layout": "spiral"}, "layout must be one of 'basic', 'cyclic', 'padding'; got 'spiral'"),
}


@pytest.mark.parametrize("what", PLAN_ADDITIONS)
def test_what_a_newer_minor_version_adds_to_plans_is_refused_as_new(tmp_path, what):
    fields, words = PLAN_ADDITIONS[what]
    text = {**json.loads(PLANS["matmul"].to_json()), **fields}
    with pytest.raises(smh.PlanError, match=f"{words}.*{NEWER}"):
        smh.Plan.from_json(json.dumps({**text, "version": "2.3"}))
    with pytest.raises(smh.PlanError, match=words) as caught:
        smh.Plan.from_json(json.dumps(text))
    assert "newer than" not in str(caught.value)
    with pytest.raises(smh.CheckpointError, match=f"plan must be valid.*{NEWER}") as caught:
        load(tmp_path, changed(plan_version("2.3", **fields)))
    assert str(caught.value).count("newer than") == 1


@pytest.mark.parametrize("version", ["2.3", "4.0", "3.1"])
def test_a_file_that_begins_otherwise_says_its_version(tmp_path, version):
    def change(metadata, tree):
        metadata["algorithm"] = "sha3"  # sorts before the checksum, where this version looks for it

    with pytest.raises(smh.CheckpointError, match=f"reads files of version {VERSION}: upgrade it, got '{version}'"):
        load(tmp_path, changed(change, version))
    with pytest.raises(smh.CheckpointError, match="not a checkpoint of smh version 2.0"):
        load(tmp_path, changed(change))


@pytest.mark.parametrize("metadata", ["", "[]", "{}", '{"version":3}', "x", 7, None, ["3.0"]])
def test_a_beginning_of_no_version_is_no_checkpoint(tmp_path, metadata):
    header = json.dumps({"__metadata__": {"smh": metadata}}).encode()
    with pytest.raises(smh.CheckpointError, match="not a checkpoint of smh version|upgrade it, got 3"):
        load(tmp_path, len(header).to_bytes(8, "little") + header)
