"""Arguments of ``Plan.build`` and of pools that cannot work, and what the errors say."""

import math
import re

import numpy as np
import pytest

import smh
from smh import strict_json
from smh.core import pools
from smh.core.plan import Plan
from smh.core.sizes import check_storable
from smh.errors import PlanError

MODEL = {"conv.weight": (3, 3, 8, 16), "norm.weight": (16,), "fc.weight": (64, 10), "fc.bias": (10,)}
BAD = [
    ({"ratio": 0}, "above 0, or text such as '10%'; got 0$"),
    ({"ratio": -0.1}, "above 0"),
    ({"ratio": math.nan}, "above 0"),
    ({"ratio": math.inf}, "above 0"),
    ({"ratio": True}, "above 0, .*; got True$"),
    ({"ratio": "0.1.2"}, "number above 0, .*; got '0.1.2'$"),
    ({"pool": "matmull"}, "'matmul', 'kronecker', 'hash'"),
    ({"pool": "sum"}, "'matmul', 'kronecker', 'hash'"),
    ({"pool": pools.Matmul(n=10)}, "do not fit"),
    ({"pool": pools.Matmul(n=10**6)}, "smallest feasible ratio"),
    ({"layout": "cyclical"}, "'basic', 'cyclic', 'padding'; got 'cyclical': use 'cyclic'"),
    ({"layout": []}, "'basic', 'cyclic', 'padding'; got "),
    ({"bits": 8.0}, "bits must be an integer from 2 to 16; got 8.0"),
    ({"optimizer": "adamw"}, "'sgd', 'adam'; got 'adamw': use 'adam'"),
    ({"scale": "fanin"}, "fan_in, fan_out"),
    ({"scale": 0.0}, "at least 2"),
    ({"scale": -1.0}, "at least 2"),
    ({"scale": math.nan}, "at least 2"),
    ({"scale": 1e300}, "below 2"),
    ({"scale": 10**400}, "below 2"),
    ({"scale": -(10**400)}, "at least 2"),
    ({"scale": True}, "or a number; got True"),
    ({"scale": "match"}, "needs its present values"),
    (
        {"scale": "match", "values": {"conv.weight": np.ones((3, 3, 8, 16)), "fc.weight": np.ones((64, 10))}},
        "vary",
    ),
    ({"scale": "match", "values": {"conv.weight": np.ones(5)}}, r"have shape \(5,\)"),
    ({"scale": {"conv.weight": "he"}}, "lacks tensor 'fc.weight'"),
    ({"modifiers": ("tanh",)}, "relu, sign"),
    ({"modifiers": ("relu",) * 17}, "at most 16 modifiers; got 17"),
    ({"modifiers": "relu"}, r"write \['relu'\]"),
    ({"seed": -1}, "seed must be an integer"),
    ({"seed": 2**32}, "seed must be an integer"),
    ({"seed": 1.5}, "got 1.5"),
    ({"learn_scale": "yes"}, "true or false"),
    ({"axes": {"fc.weight": "i o o"}}, "2 different letters"),
    ({"axes": {"fc.wieght": "i o"}}, "did you mean 'fc.weight'"),
    ({"axes": {"fc.bias": "o"}}, "is not generated"),
    ({"views": {"fc.weight": "i o -> o"}}, "does not fit"),
    ({"views": {"fc.weight": "a b c -> c b a"}}, "does not fit"),
    ({"views": {"fc.weight": "a ... -> ... a"}}, "no ellipsis"),
    ({"views": {"fc.weight": 3}}, "einops pattern"),
    ({"include": ["fc.wieght"]}, "did you mean"),
    ({"axes": {"fc.b*": "o"}}, "is not generated"),
    ({"scale": {"conv*": "he"}}, "lacks tensor 'fc.weight'"),
    ({"include": "con"}, "include='con' matches no tensor: did you mean 'conv'"),
    ({"exclude": int}, "exclude has the class int, but these tensors have no layers"),
    ({"include": r"fc\..*"}, r"for a regular expression, write re.compile\('fc"),
    ({"exclude": ".*bias"}, r"a name or a glob; for a regular expression, write re.compile\('.\*bias'\)"),
    ({"exclude": "fc.weight|fc.bias"}, r"write re.compile\('fc.weight\|fc.bias'\)"),
    ({"include": re.compile("fc")}, "matches no tensor: it has to match a full name; known names: 'conv.weight'"),
    ({"include": re.compile(b"fc")}, "regular expressions of str"),
    ({"include": lambda name: False}, "true for none of 4 names"),
    ({"include": lambda name: name.no}, "fails for the name 'conv.weight'.* has no attribute 'no'"),
    ({"include": ["fc.weight", 3]}, "or functions; got 3"),
    ({"include": 3}, "or functions; got 3"),
    ({"exclude": ["weight"]}, "no tensor is left"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(sorted(a)) + m[:20] for a, m in BAD])
def test_what_cannot_work_is_refused_with_a_reason(arguments, message):
    with pytest.raises(PlanError, match=message):
        Plan.build(MODEL, **{"ratio": 0.25, **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda: pools.Matmul(n=0),
        lambda: pools.Matmul(m=-1),
        lambda: pools.Kronecker(d=2.5),
        lambda: pools.Hash(size=2**61),
        lambda: pools.Hash(hashes=257),
        lambda: pools.Sum(),
        lambda: pools.Product(*["matmul"] * 65),
        lambda: pools.Sum("matmull"),
    ],
)
def test_pools_that_cannot_be_are_refused_at_once(make):
    with pytest.raises(PlanError, match="got"):
        make()


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (pools.Hash(size=2**31), "size of a hash pool"),
        (pools.Hash(size=2**30, hashes=2), "size of a hash pool"),
        (pools.Hash(capacity=2**31), "capacity of a hash pool"),
        (pools.Hash(size=5, signed=1), "signed of a hash pool must be true or false; got 1"),
        (pools.Matmul(n=2**16, m=2**15), "m of a matmul pool"),
        (pools.Kronecker(t=1, bits=17), "bits of a kronecker pool"),
        (pools.Hash(size=5, gain=-1), "gain of a hash pool"),
        (pools.Hash(size=5, exponents=(0, 0)), "one integer for each of table"),
        (pools.Kronecker(t=1, exponents=(0, -30)), "the exponent of right of a kronecker pool"),
    ],
    ids=str,
)
def test_pools_that_cannot_be_once_they_are_sized_are_refused_by_the_plan(pool, message):
    with pytest.raises(PlanError, match=message):
        Plan.build({"a": (10, 10)}, ratio=10**9, pool=pool)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "no tensors"),
        ({"bias": (10,)}, "no tensor is left"),
        ({"a": (0, 3)}, r"shape \(0, 3\)"),
        ({"a": (-1, 3)}, r"got -1"),
        ({"a": (2.5, 3)}, "got 2.5"),
        ({"a": (2**31, 3)}, "2147483648"),
        ({"a": (2**30, 2**30)}, "too large"),
        ({"a": 3}, "sequence of integers; got 3"),
        ({"": (3, 3)}, "not empty"),
        ({3: (3, 3)}, "not empty; got 3"),
        ({"a": (1, 1, 1, 1, 1, 2)}, "needs axes"),
    ],
)
def test_shapes_that_cannot_work_are_refused(shapes, message):
    with pytest.raises(PlanError, match=message):
        Plan.build(shapes, ratio=0.9)


def test_hash_pools_cover_fewer_weights_than_matmul_pools():
    shapes = {"a": (2**16, 2**14), "b": (2**16, 2**14)}
    assert Plan.build(shapes, ratio=0.01).num_weights == 2**31
    with pytest.raises(PlanError, match="capacity of a hash pool must be an integer from 1 to 2147483647"):
        Plan.build(shapes, ratio=0.01, pool="hash")


# --- Plans that no file can hold


def test_names_that_no_file_can_hold_are_refused():
    """The header has every name in the plan, and once more with the variable of its scale."""
    with pytest.raises(PlanError, match="shorten their names") as caught:
        Plan.build({"a" * (5 << 20): (4, 4)}, ratio=0.9)
    assert "the header of a file with this plan must have at most 8388608 bytes, got" in str(caught.value)
    Plan.build({"a" * (5 << 20): (4, 4)}, ratio=0.9, learn_scale=False)


def test_more_tensors_than_a_file_can_hold_are_refused(monkeypatch):
    """Each of 100 tensors makes more than 10 JSON values."""
    shapes = {str(k): (1, 1) for k in range(100)}
    Plan.build(shapes, ratio=0.9)
    monkeypatch.setattr(strict_json, "MAX_VALUES", 1000)
    with pytest.raises(PlanError, match="generate fewer tensors") as caught:
        Plan.build(shapes, ratio=0.9)
    assert "the header of a file with this plan must have at most 1000 JSON values, got" in str(caught.value)


@pytest.mark.parametrize("limit", ["MAX_HEADER", "MAX_VALUES"])
def test_a_plan_at_the_limit_can_be_read_again(limit, monkeypatch):
    """Whatever ``Plan.build`` returns, ``Plan.from_json`` takes: the limit of both is that of files."""
    shapes = {f"\u00e9{k}": (k + 1, 2) for k in range(9)}
    allowed = 0
    for most in range(100, 6000, 50):
        monkeypatch.setattr(strict_json, limit, most)
        try:
            plan = Plan.build(shapes, ratio=0.9)
        except PlanError:
            assert not allowed, "what fits into less fits into more"
            continue
        allowed += 1
        assert Plan.from_json(plan.to_json()) == plan
    assert 0 < allowed < 118


def test_variables_count_in_the_header():
    plan = Plan.build({"a": (4, 4)}, ratio=0.9)
    check_storable(plan.to_json(), plan.pool, ["scale/a"])
    with pytest.raises(PlanError, match="at most 524288 JSON values"):
        check_storable(plan.to_json(), plan.pool, [f"scale/{k}" for k in range(90_000)])


@pytest.mark.parametrize("pool", ["matmul", pools.Sum("hash", pools.Matmul(bits=4), pools.Matmul(bits=12))])
def test_a_plan_that_is_built_has_a_header_that_can_be_saved(monkeypatch, tmp_path, pool):
    """The bound is that of the file, but for some digits of offsets: below its header nothing is built."""
    shapes = {f"layer.{k}.wéight": (6, 5) for k in range(40)}
    plan = Plan.build(shapes, ratio=0.5, pool=pool)
    path = tmp_path / "model.safetensors"
    smh.save(path, plan, smh.initialize(plan))
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little")).rstrip(b" ")
    monkeypatch.setattr(strict_json, "MAX_HEADER", len(header) - 1)
    with pytest.raises(PlanError, match="the header of a file with this plan"):
        Plan.build(shapes, ratio=0.5, pool=pool)
    monkeypatch.setattr(strict_json, "MAX_HEADER", len(header) + 8 * len(plan.variable_shapes))
    assert Plan.build(shapes, ratio=0.5, pool=pool) == plan
