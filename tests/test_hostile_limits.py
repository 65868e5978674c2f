"""How much a file may ask to be built: in every backend, by every command."""

import importlib
import math

import numpy as np
import pytest

import smh
from smh import limits
from tests.forgery import assert_refused, call, forged, hashed, plan_of, tensor
from trust.honest import honest

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and returns its path."""

    def write(content, name="model"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


# --- Plans that ask for too much

HUGE = 2**31 - 1
BOMBS = {
    "one hash function": (plan_of([tensor([HUGE])], hashed(HUGE)), {"pool/table": (1, 1)}, 4 * HUGE),
    "a cycle of one": (plan_of([tensor([HUGE])]), {"pool/table": (1, 1)}, 4 * HUGE),
    "nothing but padding": (plan_of([tensor([HUGE])], layout="padding"), {"pool/table": (1, 1)}, 4 * HUGE),
    "256 hash functions": (
        plan_of([tensor([2**20, 8])], hashed(2**23, hashes=256)),
        {"pool/table": (256, 1)},
        4 * 2**23 * 256,
    ),
    "64 parts of 256": (
        plan_of([tensor([2**18])], {"kind": "sum", "parts": [hashed(2**18, hashes=256)] * 64}),
        {f"pool/{p}/table": (256, 1) for p in range(64)},
        4 * 2**18 * 256 * 64,
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_small_file_that_asks_for_too_much_is_refused(write, what):
    plan, shapes, needed = BOMBS[what]
    content = forged(plan, shapes)
    assert limits.GROWTH * len(content) < needed
    path = write(content)
    with pytest.raises(smh.LimitError) as caught:
        smh.load(path)
    for words in (f"{needed:,} bytes", f"limit is {limits.FLOOR:,}", f"max_bytes={needed}", f"--max-bytes {needed}"):
        assert words in str(caught.value)
    assert smh.load(path, max_bytes=needed).plan.num_weights == math.prod(plan["tensors"][0]["shape"])
    with pytest.raises(smh.LimitError):
        smh.load(path, max_bytes=needed - 1)


@pytest.mark.parametrize("arguments", [("digest",), ("verify", "--backend", "numpy"), ("materialize", "-o")])
def test_commands_that_build_refuse_a_small_file_that_asks_for_too_much(write, tmp_path, arguments):
    path = write(forged(*BOMBS["a cycle of one"][:2]))
    command, *options = arguments
    options += [tmp_path / "out"] if command == "materialize" else []
    assert_refused(call(command, path, *options), "8,589,934,588 bytes", "--max-bytes 8589934588")
    assert not (tmp_path / "out").exists()


def test_commands_with_two_files_refuse_what_asks_for_too_much(write, tmp_path):
    bomb = write(forged(*BOMBS["a cycle of one"][:2]))
    plain = write(honest()["plain/small"], "plain")
    small = write(forged(plan_of([tensor([2])])), "small")
    for arguments in ([bomb, plain], [plain, bomb], [bomb, bomb, "--weights"]):
        assert_refused(call("diff", *arguments), "--max-bytes")
    assert call("diff", bomb, bomb).exit_code == 0  # builds nothing
    assert_refused(call("verify", small, "--backend", "numpy", "--against", bomb), "--max-bytes")
    mapping = smh.porting.Mapping.build({"x": "t0"}, {"t0": (HUGE,)})
    mapping.save(tmp_path / "map.json")
    assert_refused(call("port", bomb, "--map", tmp_path / "map.json", "-o", tmp_path / "out"), "--max-bytes")
    assert call("inspect", bomb).exit_code == 0  # builds nothing


def test_a_mapping_that_fills_too_much_is_refused(write, tmp_path):
    small = write(forged(plan_of([tensor([2])])))
    for shape, code in (((2**28,), 3), ((2,), None)):
        fill = smh.porting.Source("carried/x", shape, default=(0.0, "float64"))
        entries = {"y": "t0", "z": smh.porting.Entry((fill,))}
        smh.porting.Mapping.build(entries, {"t0": (2,)}).save(tmp_path / "map.json")
        result = call("port", small, "--map", tmp_path / "map.json", "-o", tmp_path / "out")
        if code:
            assert_refused(result, "the mapping fills 2,147,483,648 bytes", "--max-bytes 2147483648")
        else:
            assert "the mapping fills" not in result.output


def test_the_limit_of_commands_can_be_set(write, tmp_path):
    path = write(forged(plan_of([tensor([100])])))
    digest = smh.digest(*(lambda found: (found.plan, found.variables))(smh.load(path)))
    for size, code in (("399", 3), ("400B", 1), ("1kB", 1)):  # 1, for the file states another digest
        assert call("digest", path, "--max-bytes", size).exit_code == code
        assert call("verify", path, "--backend", "numpy", "--max-bytes", size).exit_code == code
    assert digest in call("digest", path, "--max-bytes", "400").stdout
    assert call("digest", path, "--max-bytes", "much").exit_code == 2
    assert_refused(call("materialize", path, "-o", tmp_path / "out", "--max-bytes", "400"), "the file would have")
    assert call("materialize", path, "-o", tmp_path / "out", "--max-bytes", "1kB").exit_code == 0


def test_more_weights_than_any_plan_can_have_are_refused(write):
    for shape in ([10**15], [10**5, 10**5, 10**5], [HUGE, HUGE]):
        content = forged(plan_of([tensor(shape)]))
        assert len(content) < 1000
        with pytest.raises(smh.CheckpointError, match="plan must be valid"):
            smh.load(write(content))
        assert_refused(call("digest", write(content), "--max-bytes", "100TB"), "plan must be valid")
    many = [tensor([2**30], 2**30 * k) for k in range(2)]
    with pytest.raises(smh.CheckpointError, match="at most 2147483647 weights"):
        smh.load(write(forged(plan_of(many))))


def test_what_a_file_stores_raises_its_own_limit():
    plan = smh.Plan.build({"w": (30_000, 30_000)}, ratio=0.01)
    variables = {name: np.broadcast_to(np.float32(0), shape) for name, shape in plan.variable_shapes.items()}
    found = smh.Checkpoint(plan, variables, {}, "0" * 64)
    stored = 4 * plan.num_variables
    assert limits.needed(plan) == 4 * 30_000**2 > limits.FLOOR
    assert limits.default(found) == limits.GROWTH * stored
    limits.check_file(found)
    with pytest.raises(smh.LimitError, match=r"3,600,000,000 bytes .* limit is 1,073,741,824"):
        limits.check_file(found, limits.FLOOR)
    dense = {"d": np.broadcast_to(np.float64(0), (1000, 1000))}
    assert limits.default(smh.Checkpoint(plan, variables, dense, "0" * 64)) == limits.GROWTH * (stored + 8 * 10**6)
    assert limits.default(smh.Checkpoint(plan, {}, {}, "0" * 64)) == limits.FLOOR


@pytest.mark.parametrize("limit", [-1, True, 1.5, "1GiB"])
def test_a_limit_is_a_whole_number(limit):
    plan = smh.Plan.build({"w": (3, 4)}, ratio=1)
    with pytest.raises(smh.LimitError, match="must be a whole number"):
        smh.materialize(plan, smh.initialize(plan), max_bytes=limit)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_backend_has_the_limit(write, name):
    if name != "numpy":
        pytest.importorskip(name)
    functions = importlib.import_module(f"smh.backends.{name}")
    plan = smh.Plan.build({"a": (3, 4), "b": (2, 5)}, ratio=1)
    path = write(b"")
    smh.save(path, plan, smh.initialize(plan))
    with pytest.raises(smh.LimitError, match="88 bytes .* limit is 87"):
        functions.load(path, max_bytes=87)
    found = functions.load(path, max_bytes=88)
    assert set(functions.materialize(found.plan, found.variables, max_bytes=88)) == {"a", "b"}
    assert set(functions.materialize(found.plan, found.variables, ["b"], max_bytes=40)) == {"b"}
    with pytest.raises(smh.LimitError, match="88 bytes .* limit is 87"):
        functions.materialize(found.plan, found.variables, max_bytes=87)
    with pytest.raises(smh.LimitError, match="40 bytes .* limit is 39"):
        functions.materialize(found.plan, found.variables, iter(["b"]), max_bytes=39)


def test_models_have_the_limit_and_stay_as_they_are(tmp_path):
    torch = pytest.importorskip("torch")
    from smh.backends import torch as smh_torch

    model = torch.nn.Linear(40, 30)
    before = model.weight.clone()
    smh_torch.save(tmp_path / "model", smh_torch.compress(model, ratio=0.1))
    with pytest.raises(smh.LimitError, match="4,800 bytes .* limit is 4,799"):
        smh_torch.load(tmp_path / "model", model, max_bytes=4799)
    assert torch.equal(model.weight, before)
    smh_torch.load(tmp_path / "model", model, max_bytes=4800)
    assert smh_torch.plan_of(model).num_weights == 1200


def test_pytrees_and_keras_models_have_the_limit(tmp_path):
    jax, keras = pytest.importorskip("jax"), pytest.importorskip("keras")
    from smh.backends import jax as smh_jax
    from smh.backends import tensorflow as smh_keras

    params = {"w": jax.numpy.ones((40, 30))}
    smh_jax.save(tmp_path / "tree", smh_jax.compress(params, ratio=0.1))
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(30)])
    smh_keras.save(tmp_path / "model", smh_keras.compress(model, ratio=0.1))
    for functions, path, like in ((smh_jax, tmp_path / "tree", params), (smh_keras, tmp_path / "model", model)):
        with pytest.raises(smh.LimitError, match="4,800 bytes .* limit is 4,799"):
            functions.load(path, like, max_bytes=4799)
        assert functions.plan_of(functions.load(path, like, max_bytes=4800)).num_weights == 1200
