import json
import math
from fractions import Fraction

import einops
import numpy as np
import pytest
from hypothesis import given

import smh
from conformance import oracle
from conformance.cases import as_dict, plans
from smh import pools
from smh.plan import Plan
from smh.views import View

MODEL = {"conv.weight": (3, 3, 8, 16), "norm.weight": (16,), "fc.weight": (64, 10), "fc.bias": (10,)}


def test_properties():
    plan = Plan.build(MODEL, ratio=0.25)
    assert [tensor.name for tensor in plan.tensors] == ["conv.weight", "fc.weight"]
    assert plan.num_weights == 3 * 3 * 8 * 16 + 640
    assert plan.capacity == 43**2
    assert plan.ratio <= 0.25
    assert plan.num_variables == 2 * 43 * plan.pool.m + 2
    assert [tensor.offset for tensor in plan.tensors] == [0, 1152]
    assert list(plan.variable_shapes) == ["pool/left", "pool/right", "scale/conv.weight", "scale/fc.weight"]


def test_variables_of_nested_pools_are_named_by_their_place():
    pool = pools.Sum("matmul", pools.Product("hash", "kronecker"))
    plan = Plan.build(MODEL, ratio=0.9, pool=pool, learn_scale=False)
    assert list(plan.variable_shapes) == [
        "pool/0/left",
        "pool/0/right",
        "pool/1/0/table",
        "pool/1/1/left",
        "pool/1/1/right",
    ]


def test_table_is_readable():
    text = str(Plan.build(MODEL, ratio=0.25, views={"fc.weight": "i o -> o i"}, modifiers=("relu",)))
    assert "conv.weight" in text
    assert "3x3x8x16" in text
    assert "i o -> o i" in text
    assert "1,792 weights from" in text
    assert len({line.index("weights") for line in text.splitlines()[:1]}) == 1


@given(plans())
def test_json_round_trip(plan):
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@given(plans())
def test_initial_scales_equal_the_oracle(plan):
    for tensor, entry in zip(plan.tensors, as_dict(plan)["tensors"], strict=True):
        assert tensor.initial_scale == float(oracle.initial_scale(entry))


def test_equal_plans_are_equal_and_plans_cannot_be_changed():
    first, second = Plan.build(MODEL, ratio=0.25), Plan.build(MODEL, ratio=0.25)
    assert first == second
    assert first != Plan.build(MODEL, ratio=0.25, seed=1)
    with pytest.raises(AttributeError):
        first.seed = 3


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, ["conv.weight", "fc.weight"]),
        (r"fc\..*", None, ["fc.weight", "fc.bias"]),
        (["weight"], None, ["conv.weight", "norm.weight", "fc.weight"]),
        (["fc.bias", "conv.weight"], None, ["conv.weight", "fc.bias"]),
        (lambda name: name.startswith("norm"), None, ["norm.weight"]),
        (None, ["conv.weight"], ["fc.weight"]),
        (r".*", r".*bias|norm.*", ["conv.weight", "fc.weight"]),
    ],
)
def test_selection(include, exclude, names):
    plan = Plan.build(MODEL, ratio=3, include=include, exclude=exclude)
    assert [tensor.name for tensor in plan.tensors] == names


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fan_in", 1 / math.sqrt(3 * 72)),
        ("fan_out", math.sqrt(2 / 144)),
        ("he", math.sqrt(2 / 72)),
        ("glorot", math.sqrt(2 / 216)),
        (0.125, 0.125),
    ],
)
def test_scale_rules(rule, expected):
    plan = Plan.build({"conv": (3, 3, 8, 16)}, ratio=0.5, scale=rule)
    assert plan.tensors[0].initial_scale == float(np.float32(expected))
    torch_like = Plan.build({"conv": (16, 8, 3, 3)}, ratio=0.5, scale=rule, axes={"conv": "o i h w"})
    assert torch_like.tensors[0].initial_scale == float(np.float32(expected))


def test_dense_fan_out_and_match():
    assert Plan.build({"a": (8, 16)}, ratio=1, scale="fan_out").tensors[0].initial_scale == 0.25
    values = np.random.default_rng(0).normal(0, 0.3, (8, 16))
    plan = Plan.build({"a": (8, 16)}, ratio=1, scale="match", values={"a": values})
    assert plan.tensors[0].initial_scale == float(np.float32(np.std(values)))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("pattern", "sizes", "shape"),
    [
        ("h w i o -> o i h w", {}, (3, 2, 4, 5)),
        ("(h w) o -> o h w", {"h": 3}, (6, 4)),
        ("o c h w -> (h w c) o", {}, (4, 2, 3, 5)),
        ("a b -> b 1 a", {}, (3, 4)),
        ("a 1 b -> (b a)", {}, (3, 1, 4)),
        ("a (b c) (d e) -> e (a d) c b", {"b": 2, "d": 3}, (5, 4, 6)),
    ],
)
def test_views_do_what_einops_does_and_back(pattern, sizes, shape):
    x = np.arange(math.prod(shape)).reshape(shape)
    view = View.make((pattern, sizes))
    expected = einops.rearrange(x, pattern, **sizes)
    assert view.shape(shape) == expected.shape
    assert np.array_equal(view.apply(np, x), expected)
    assert np.array_equal(view.invert(np, expected, shape), x)


def test_ratio_is_read_as_the_decimal_that_was_typed():
    plan = Plan.build({"a": (1000,)}, ratio=0.3, pool=pools.Hash(hashes=3), include=["a"])
    assert plan.pool.size == 100
    assert Plan.build({"a": (10, 10)}, ratio=Fraction(1, 5)).pool.m == 1


def test_the_smallest_feasible_ratio_that_an_error_names_works():
    for pool in (
        "matmul",
        "kronecker",
        pools.Hash(hashes=7),
        pools.Sum("matmul", pools.Product("hash", "kronecker")),
    ):
        with pytest.raises(smh.PlanError, match="smallest feasible ratio") as caught:
            Plan.build({"a": (123, 457)}, ratio=1e-5, pool=pool)
        named = float(str(caught.value).split("smallest feasible ratio is ")[1])
        plan = Plan.build({"a": (123, 457)}, ratio=named, pool=pool)
        assert plan.ratio <= named
        assert plan.ratio > named * 0.9 or isinstance(pool, pools.Sum)


def test_a_plan_for_a_billion_weights_is_made_without_arrays():
    plan = Plan.build({f"t{i}": (1000, 1000) for i in range(1000)}, ratio=0.01)
    assert plan.num_weights == 10**9
    assert plan.capacity >= 10**9


BAD = [
    ({"ratio": 0}, "above 0; got 0"),
    ({"ratio": -0.1}, "above 0"),
    ({"ratio": math.nan}, "above 0"),
    ({"ratio": math.inf}, "above 0"),
    ({"ratio": "0.1"}, "number above 0; got '0.1'"),
    ({"pool": "matmull"}, "'matmul', 'kronecker', 'hash'"),
    ({"pool": pools.Matmul(n=10)}, "do not fit"),
    ({"pool": pools.Matmul(n=10**6)}, "smallest feasible ratio"),
    ({"layout": "cyclical"}, "basic, cyclic, padding; got 'cyclical'"),
    ({"arithmetic": "exactly"}, "exact, fast"),
    ({"scale": "fanin"}, "fan_in, fan_out"),
    ({"scale": 0.0}, "positive"),
    ({"scale": -1.0}, "positive"),
    ({"scale": 1e300}, "positive, at least"),
    ({"scale": 10**400}, "positive, at least"),
    ({"scale": -(10**400)}, "positive, at least"),
    ({"scale": "match"}, "needs its present values"),
    (
        {"scale": "match", "values": {"conv.weight": np.ones((3, 3, 8, 16)), "fc.weight": np.ones((64, 10))}},
        "vary",
    ),
    ({"scale": {"conv.weight": "he"}}, "lacks tensor 'fc.weight'"),
    ({"modifiers": ("tanh",)}, "relu, sign"),
    ({"modifiers": "relu"}, r"write \['relu'\]"),
    ({"gain": "adamw"}, "sgd, adam"),
    ({"gain": -1}, "from 0 to 60"),
    ({"gain": 61}, "from 0 to 60"),
    ({"seed": -1}, "seed must be an integer"),
    ({"seed": 2**32}, "seed must be an integer"),
    ({"seed": 1.5}, "got 1.5"),
    ({"learn_scale": "yes"}, "true or false"),
    ({"axes": {"fc.weight": "i o o"}}, "2 different letters"),
    ({"axes": {"fc.wieght": "i o"}}, "did you mean 'fc.weight'"),
    ({"axes": {"fc.bias": "o"}}, "is not hashed"),
    ({"views": {"fc.weight": "i o -> o"}}, "does not fit"),
    ({"views": {"fc.weight": "a b c -> c b a"}}, "does not fit"),
    ({"views": {"fc.weight": "a ... -> ... a"}}, "no ellipsis"),
    ({"views": {"fc.weight": 3}}, "einops pattern"),
    ({"include": ["fc.wieght"]}, "did you mean"),
    ({"include": "conv"}, "matches no whole name"),
    ({"include": "("}, "not a regular expression"),
    ({"include": lambda name: False}, "none of 4 names"),
    ({"exclude": ["weight"]}, "no tensor is left"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(sorted(a)) + m[:20] for a, m in BAD])
def test_what_cannot_work_is_refused_with_a_reason(arguments, message):
    with pytest.raises(smh.PlanError, match=message):
        Plan.build(MODEL, **{"ratio": 0.25, **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda: pools.Matmul(n=0),
        lambda: pools.Matmul(m=-1),
        lambda: pools.Kronecker(d=2.5),
        lambda: pools.Hash(size=2**31),
        lambda: pools.Hash(hashes=257),
        lambda: pools.Sum(),
        lambda: pools.Product(*["matmul"] * 65),
        lambda: pools.Sum("matmull"),
    ],
)
def test_pools_that_cannot_be_are_refused_at_once(make):
    with pytest.raises(smh.PlanError, match="got"):
        make()


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
        ({"a": (2**16, 2**14), "b": (2**16, 2**14)}, "at most 2147483647 weights"),
        ({"a": 3}, "sequence of integers; got 3"),
        ({"": (3, 3)}, "not empty"),
        ({"a": (1, 1, 1, 1, 1, 2)}, "needs axes"),
    ],
)
def test_shapes_that_cannot_work_are_refused(shapes, message):
    with pytest.raises(smh.PlanError, match=message):
        Plan.build(shapes, ratio=0.9)


def changed(path, value):
    data = as_dict(Plan.build(MODEL, ratio=0.5, pool=pools.Sum("matmul", "hash")))
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], "2.0", "got version '2.0'"),
        (["version"], KeyError, "got version None"),
        (["sede"], 1, "unknown key 'sede'"),
        (["seed"], KeyError, "lacks the key 'seed'"),
        (["seed"], True, "seed must be an integer"),
        (["layout"], "wrapped", "basic, cyclic, padding"),
        (["layout"], [], "basic, cyclic, padding"),
        (["tensors"], [], "at least one tensor"),
        (["tensors"], {}, "must be a list"),
        (["tensors", 1, "offset"], 7, "must start at cell 1152"),
        (["tensors", 1, "name"], "conv.weight", "two tensors have the name"),
        (["tensors", 0, "shape"], [3, 3, 8, 17], "must start at cell"),
        (["tensors", 1, "shape"], [6400, 10], "do not fit into a pool"),
        (["tensors", 0, "shape"], "3388", "must be a list"),
        (["tensors", 0, "scale"], None, "scale must be"),
        (["tensors", 0, "scale"], "match", "scale must be"),
        (["tensors", 0, "modifiers"], ["relu", 3], "modifiers must be among"),
        (["tensors", 0, "view"], {"pattern": "a b c d -> d c b a"}, "lacks the key 'sizes'"),
        (["tensors", 0, "view"], {"pattern": 3, "sizes": {}}, "einops pattern"),
        (["tensors", 0, "view"], {"pattern": "a b c d -> a", "sizes": {}}, "does not fit"),
        (["tensors", 0, "axes"], "", "4 different letters"),
        (["pool", "kind"], "mean", "unknown kind"),
        (["pool", "parts"], {}, "must be a list"),
        (["pool", "parts"], [], "parts"),
        (["pool", "parts", 0, "n"], 0, "n of a matmul pool"),
        (["pool", "parts", 0, "n"], 10**9, "n of a matmul pool"),
        (["pool", "parts", 0, "m"], None, "m of a matmul pool"),
        (["pool", "parts", 0, "gain"], 99, "gain of a matmul pool"),
        (["pool", "parts", 1, "signed"], 1, "true or false"),
        (["pool", "parts", 1, "hashes"], 0, "hashes of a hash pool"),
        (["pool", "parts", 1, "hashes"], "two", "hashes of a hash pool"),
    ],
)
def test_json_that_lies_is_refused_by_name(path, value, message):
    with pytest.raises(smh.PlanError, match=message):
        Plan.from_json(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":"1.0","version":"1.0"}',
        '{"version":NaN}',
        "[" * 100000,
        b"\xff",
        3,
        None,
    ],
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(smh.PlanError):
        Plan.from_json(text)


def test_deeply_nested_pools_are_refused():
    data = as_dict(Plan.build({"a": (4, 4)}, ratio=2))
    request = "matmul"
    for _ in range(8):
        request = pools.Sum(request)
    plan = Plan.build({"a": (4, 4)}, ratio=2, pool=request)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(smh.PlanError, match="at most 8"):
        Plan.build({"a": (4, 4)}, ratio=2, pool=pools.Product(request))
    pool = data["pool"]
    for _ in range(20):
        pool = {"kind": "sum", "parts": [pool]}
    data["pool"] = pool
    with pytest.raises(smh.PlanError, match="nested"):
        Plan.from_json(json.dumps(data))
