"""How much a file may ask to be built: in every backend, by every command."""

import math

import numpy as np
import pytest

import smh
from smh.files import limits
from tests.files.common import assert_refused, plain_file
from tests.files.forgery import forged, hashed, plan_of, tensor

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
def test_commands_that_build_refuse_a_small_file_that_asks_for_too_much(write, call, tmp_path, arguments):
    path = write(forged(*BOMBS["a cycle of one"][:2]))
    command, *options = arguments
    options += [tmp_path / "out"] if command == "materialize" else []
    assert_refused(call(command, path, *options), "8,589,934,588 bytes", "--max-bytes 8589934588")
    assert not (tmp_path / "out").exists()


def test_commands_with_two_files_refuse_what_asks_for_too_much(write, call, tmp_path):
    bomb = write(forged(*BOMBS["a cycle of one"][:2]))
    plain = write(plain_file({"w": ("F32", [2, 3], 24)}), "plain")
    small = write(forged(plan_of([tensor([2])])), "small")
    for arguments in ([bomb, plain], [plain, bomb], [bomb, bomb, "--weights"]):
        assert_refused(call("diff", *arguments), "--max-bytes")
    assert call("diff", bomb, bomb).exit_code == 0  # builds nothing
    assert_refused(call("verify", small, "--backend", "numpy", "--against", bomb), "--max-bytes")
    mapping = smh.porting.Mapping.build({"x": "t0"}, {"t0": (HUGE,)})
    mapping.save(tmp_path / "map.json")
    assert_refused(call("port", bomb, "--map", tmp_path / "map.json", "-o", tmp_path / "out"), "--max-bytes")
    assert call("inspect", bomb).exit_code == 0  # builds nothing


def test_a_mapping_that_fills_too_much_is_refused(write, call, tmp_path):
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


def test_the_limit_of_commands_can_be_set(write, call, tmp_path):
    path = write(forged(plan_of([tensor([100])])))
    digest = smh.digest(*(lambda found: (found.plan, found.variables))(smh.load(path)))
    for size, code in (("399", 3), ("400B", 1), ("1kB", 1)):  # 1, for the file states another digest
        assert call("digest", path, "--max-bytes", size).exit_code == code
        assert call("verify", path, "--backend", "numpy", "--max-bytes", size).exit_code == code
    assert digest in call("digest", path, "--max-bytes", "400").stdout
    assert call("digest", path, "--max-bytes", "much").exit_code == 2
    assert_refused(call("materialize", path, "-o", tmp_path / "out", "--max-bytes", "400"), "the file would have")
    assert call("materialize", path, "-o", tmp_path / "out", "--max-bytes", "1kB").exit_code == 0


def test_more_weights_than_any_plan_can_have_are_refused(write, call):
    for shape in ([10**15], [10**5, 10**5, 10**5], [HUGE, HUGE]):
        content = forged(plan_of([tensor(shape)]))
        assert len(content) < 1000
        with pytest.raises(smh.CheckpointError, match="plan must be valid"):
            smh.load(write(content))
        assert_refused(call("digest", write(content), "--max-bytes", "100000 GB"), "plan must be valid")
    many = [tensor([2**30], 2**30 * k) for k in range(2)]
    with pytest.raises(smh.LimitError, match="the plan describes 2,147,483,648 weights"):
        smh.load(write(forged(plan_of(many))))


def test_what_a_file_stores_raises_its_own_limit():
    plan = smh.Plan.build({"w": (30_000, 30_000)}, ratio=0.01)
    variables = {name: np.broadcast_to(np.float32(0), shape) for name, shape in plan.variable_shapes.items()}
    found = smh.Checkpoint(plan, variables, {}, "0" * 64)
    stored = plan.file_bytes
    needed = 4 * 30_000**2
    limits.check_plan(plan, needed)
    with pytest.raises(smh.LimitError, match="limit is 3,599,999,999"):
        limits.check_plan(plan, needed - 1)
    assert needed > limits.FLOOR
    assert limits.default(found) == limits.GROWTH * stored
    limits.check_file(found)
    with pytest.raises(smh.LimitError, match=r"3,600,000,000 bytes .* limit is 1,073,741,824"):
        limits.check_file(found, limits.FLOOR)
    dense = {"d": np.broadcast_to(np.float64(0), (1000, 1000))}
    assert limits.default(smh.Checkpoint(plan, variables, dense, "0" * 64)) == limits.GROWTH * (stored + 8 * 10**6)
    small = smh.Plan.build({"w": (3, 4)}, ratio=1)
    assert limits.default(smh.Checkpoint(small, {}, {}, "0" * 64)) == limits.FLOOR


@pytest.mark.parametrize("limit", [-1, True, 1.5, "1GiB"])
def test_a_limit_is_a_whole_number(limit):
    plan = smh.Plan.build({"w": (3, 4)}, ratio=1)
    with pytest.raises(smh.LimitError, match="must be a whole number"):
        smh.materialize(plan, smh.initialize(plan), max_bytes=limit)


def test_the_limit_holds_for_chosen_tensors(tmp_path):
    plan = smh.Plan.build({"a": (3, 4), "b": (2, 5)}, ratio=1)
    path = tmp_path / "model"
    smh.save(path, plan, smh.initialize(plan))
    with pytest.raises(smh.LimitError, match=r"88 bytes .* limit is 87"):
        smh.load(path, max_bytes=87)
    found = smh.load(path, max_bytes=88)
    assert set(smh.materialize(found.plan, found.variables, max_bytes=88)) == {"a", "b"}
    assert set(smh.materialize(found.plan, found.variables, iter(["b"]), max_bytes=40)) == {"b"}
    with pytest.raises(smh.LimitError, match=r"40 bytes .* limit is 39"):
        smh.materialize(found.plan, found.variables, ["b"], max_bytes=39)
