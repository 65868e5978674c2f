"""Plans of version 2: sizes, bits, bytes, optimizers, limits and JSON."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from smh.core import pools
from smh.core.plan import Plan
from smh.core.sizes import parse_size
from smh.errors import PlanError
from tests.core.cases import plans

SHAPES = {"conv": (3, 3, 16, 32), "fc": (64, 10)}
POOLS = ["matmul", "kronecker", "hash", pools.Sum("matmul", "hash"), pools.Product("matmul", "kronecker")]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans())
def test_json_comes_back(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).fingerprint == plan.fingerprint
    assert json.loads(plan.to_json())["version"] == "2.0"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.5, 3.0])
def test_sizes_gains_and_kappas_are_those_of_the_oracle(optimizer, pool, ratio):
    try:
        plan = Plan.build(SHAPES, ratio=ratio, pool=pool, optimizer=optimizer)
    except PlanError:
        with pytest.raises(PlanError, match="smallest feasible ratio"):
            Plan.build(SHAPES, ratio=ratio, pool=pool, optimizer=optimizer)
        return
    described = plan.to_dict()
    request = pools.named(pool).with_bits(8).to_dict()
    sized = oracle.sizes(_asked(request), plan.num_weights, ratio)
    assert _without_gain(described["pool"]) == _without_gain(sized)
    assert [leaf.pool.gain for leaf in plan.pool.leaves(0)] == oracle.gains(described, optimizer)
    assert [tensor.kappa for tensor in plan.tensors] == oracle.kappas(described, optimizer)


def _asked(request):
    """Return what a request says: fields that are None are left out."""
    if "parts" in request:
        return {**request, "parts": [_asked(part) for part in request["parts"]]}
    return {key: value for key, value in request.items() if value is not None}


def _without_gain(pool):
    if "parts" in pool:
        return {**pool, "parts": [_without_gain(part) for part in pool["parts"]]}
    return {key: value for key, value in pool.items() if key != "gain"}


def test_a_fixed_scale_has_no_kappa():
    plan = Plan.build(SHAPES, ratio=0.1, learn_scale=False)
    assert {tensor.kappa for tensor in plan.tensors} == {0}
    bad = dataclasses.replace(plan.tensors[0], kappa=1)
    with pytest.raises(PlanError, match="kappa of tensor 'conv'"):
        dataclasses.replace(plan, tensors=(bad, plan.tensors[1]))


def test_a_pool_may_bring_its_bits_and_gain():
    plan = Plan.build(SHAPES, ratio=0.2, bits=4, pool=pools.Sum(pools.Matmul(bits=12, gain=7), "hash"))
    assert [(leaf.pool.bits, leaf.pool.gain == 7) for leaf in plan.pool.leaves(0)] == [(12, True), (4, False)]


def test_a_stack_axis_counts_in_no_fan():
    one = Plan.build({"a": (64, 32)}, ratio=0.2)
    stack = Plan.build({"a": (12, 64, 32)}, ratio=0.2, axes={"a": "s i o"})
    for rule in ("fan_in", "fan_out", "he", "glorot"):
        scales = [
            Plan.build({"a": shape}, ratio=0.2, scale=rule, axes={"a": axes}).tensors[0].initial_scale
            for shape, axes in (((64, 32), "i o"), ((12, 64, 32), "s i o"))
        ]
        assert scales[0] == scales[1]
    assert one.tensors[0].initial_scale == stack.tensors[0].initial_scale


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(300, 40_000),
    bits=st.sampled_from([2, 4, 5, 8, 9, 16]),
    pool=st.sampled_from(POOLS),
    learn=st.booleans(),
)
def test_the_largest_pool_that_fits_is_taken(size, bits, pool, learn):
    try:
        plan = Plan.build(SHAPES, size=size, bits=bits, pool=pool, learn_scale=learn)
    except PlanError as error:
        least = int(str(error).split("at least ")[1].split(" bytes")[0].replace(",", ""))
        assert least > size
        assert Plan.build(SHAPES, size=least, bits=bits, pool=pool, learn_scale=learn).file_bytes == least
        return
    assert plan.file_bytes <= size
    # One more term, or entry, in every part would be too much.
    larger = [
        dataclasses.replace(leaf.pool, **{_grows(leaf.pool): getattr(leaf.pool, _grows(leaf.pool)) + 1})
        for leaf in plan.pool.leaves(0)
    ]
    pool = larger[0] if len(larger) == 1 else type(plan.pool)(*larger)
    assert dataclasses.replace(plan, pool=pool).file_bytes > size


def _grows(pool):
    return {"matmul": "m", "kronecker": "t", "hash": "size"}[pool.kind]


@pytest.mark.parametrize("size", ["", "5", "500 kB", "1.5MB", "2 MiB", "7 GB"])
def test_sizes_are_read(size):
    expected = {"5": 5, "500 kB": 500_000, "1.5MB": 1_500_000, "2 MiB": 2 << 20, "7 GB": 7_000_000_000}
    if size in expected:
        assert parse_size(size) == expected[size]
    else:
        with pytest.raises(PlanError, match="size must be"):
            parse_size(size)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "ten", "5 k B", "5 EB"])
def test_other_sizes_are_refused(size):
    with pytest.raises(PlanError, match="size must be"):
        parse_size(size)


def test_billions_of_weights_have_plans():
    shapes = {f"layer{k}": (8192, 28672) for k in range(300)}
    plan = Plan.build(shapes, ratio=0.01)
    assert plan.num_weights == 300 * 8192 * 28672 > 2**36
    with pytest.raises(PlanError, match="has at most 65536 rows"):
        Plan.build(shapes, ratio=0.01, bits=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.1, "bits": 1}, "bits must be an integer from 2 to 16; got 1"),
        ({"ratio": 0.1, "bits": 17}, "bits must be an integer from 2 to 16; got 17"),
        ({"ratio": 0.1, "optimizer": "lion"}, "optimizer must be one of 'sgd', 'adam'; got 'lion'"),
        ({}, "pass either ratio or size"),
        ({"ratio": 0.1, "size": 500}, "pass either ratio or size"),
        ({"ratio": 0.0}, "ratio must be a number above 0"),
        ({"size": "8 B"}, "need at least"),
        ({"ratio": 0.1, "scale": 2.0**-31}, "at least 2\\*\\*-30"),
        ({"ratio": 0.1, "scale": 2.0**30}, "below 2\\*\\*30"),
        ({"ratio": 0.1, "pool": pools.Matmul(exponents=(1,))}, "one integer for each of left, right"),
        ({"ratio": 0.1, "pool": pools.Matmul(exponents=(31, 0))}, "exponent of left"),
        ({"ratio": 0.1, "pool": pools.Matmul(gain=21)}, "gain of a matmul pool"),
        ({"ratio": 0.1, "pool": "hashes"}, "pool must be one of"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(PlanError, match=message):
        Plan.build(SHAPES, **options)


def test_a_pool_without_room_for_its_sums_is_refused():
    with pytest.raises(PlanError, match="fewer than 2\\*\\*24 terms"):
        dataclasses.replace(Plan.build({"a": (1, 1)}, ratio=9), pool=pools.Matmul(n=1, m=2**24, bits=8, gain=0))


@pytest.mark.parametrize("version", ["1.0", "3.0", None, 2])
def test_plans_of_another_version_are_refused(version):
    described = Plan.build(SHAPES, ratio=0.1).to_dict() | {"version": version}
    with pytest.raises(PlanError, match="version"):
        Plan.from_dict(described)


def test_a_plan_is_described():
    text = str(Plan.build(SHAPES, ratio=0.1))
    assert "5,248 weights from" in text
    assert "bytes in a file" in text
