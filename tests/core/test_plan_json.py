"""JSON that is no plan, or lies in one of its keys."""

import json

import pytest
from hypothesis import given, settings

from smh.core import pools
from smh.core.plan import Plan
from smh.errors import PlanError
from tests.core.cases import plans

MODEL = {"conv.weight": (3, 3, 8, 16), "norm.weight": (16,), "fc.weight": (64, 10), "fc.bias": (10,)}


@settings(max_examples=50)
@given(plans())
def test_equal_plans_have_equal_canonical_json(plan):
    text = plan.to_json()
    again = Plan.from_json(text.encode("ascii"))
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == text
    assert Plan.from_dict(plan.to_dict()) == plan
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def changed(path, value):
    data = Plan.build(MODEL, ratio=0.5, pool=pools.Sum("matmul", "hash")).to_dict()
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
        (["version"], "1.0", "got version '1.0'"),
        (["version"], KeyError, "got version None"),
        (["sede"], 1, "unknown key 'sede'"),
        (["arithmetic"], "exact", "unknown key 'arithmetic'"),
        (["seed"], KeyError, "lacks the key 'seed'"),
        (["seed"], True, "seed must be an integer"),
        (["layout"], "wrapped", "'basic', 'cyclic', 'padding'"),
        (["layout"], [], "'basic', 'cyclic', 'padding'"),
        (["tensors"], [], "at least one tensor"),
        (["tensors"], {}, "must be a list"),
        (["tensors", 1], [], "must be an object"),
        (["tensors", 1, "offset"], 7, "must start at cell 1152"),
        (["tensors", 1, "offset"], 1152.0, "must start at cell 1152"),
        (["tensors", 1, "name"], "conv.weight", "two tensors have the name"),
        (["tensors", 1, "name"], "", "not empty"),
        (["tensors", 0, "shape"], [3, 3, 8, 17], "must start at cell"),
        (["tensors", 1, "shape"], [6400, 10], "do not fit into a pool"),
        (["tensors", 0, "shape"], "3388", "must be a list"),
        (["tensors", 0, "scale"], None, "scale must be"),
        (["tensors", 0, "scale"], "match", "scale must be"),
        (["tensors", 0, "scale"], 2.0**-31, "at least 2"),
        (["tensors", 0, "learn_scale"], 1, "true or false"),
        (["tensors", 0, "kappa"], KeyError, "lacks the key 'kappa'"),
        (["tensors", 0, "kappa"], -1, "kappa of tensor 'conv.weight'"),
        (["tensors", 0, "kappa"], 31, "kappa of tensor 'conv.weight'"),
        (["tensors", 0, "kappa"], 1.0, "kappa of tensor 'conv.weight'"),
        (["tensors", 0, "modifiers"], ["relu", 3], "modifiers must be among"),
        (["tensors", 0, "modifiers"], "relu", "must be a list"),
        (["tensors", 0, "view"], {"pattern": "a b c d -> d c b a"}, "lacks the key 'sizes'"),
        (["tensors", 0, "view"], {"pattern": 3, "sizes": {}}, "einops pattern"),
        (["tensors", 0, "view"], {"pattern": "a b c d -> a", "sizes": {}}, "does not fit"),
        (["tensors", 0, "axes"], "", "4 different letters"),
        (["pool"], "matmul", "pool must be an object"),
        (["pool", "kind"], "mean", "unknown kind"),
        (["pool", "kind"], KeyError, "unknown kind None"),
        (["pool", "parts"], {}, "must be a list"),
        (["pool", "parts"], [], "parts"),
        (["pool", "parts", 0, "n"], 0, "n of a matmul pool"),
        (["pool", "parts", 0, "n"], 2**60, "n of a matmul pool"),
        (["pool", "parts", 0, "n"], 2 * 10**7, "at most 16777216 rows"),
        (["pool", "parts", 0, "m"], None, "m of a matmul pool"),
        (["pool", "parts", 0, "m"], 2**40, "m of a matmul pool"),
        (["pool", "parts", 0, "bits"], None, "bits of a matmul pool"),
        (["pool", "parts", 0, "bits"], 17, "bits of a matmul pool"),
        (["pool", "parts", 0, "bits"], True, "bits of a matmul pool"),
        (["pool", "parts", 0, "gain"], None, "gain of a matmul pool"),
        (["pool", "parts", 0, "gain"], 21, "gain of a matmul pool"),
        (["pool", "parts", 0, "exponents"], KeyError, "lacks the key 'exponents'"),
        (["pool", "parts", 0, "exponents"], [0], "one integer for each of left, right"),
        (["pool", "parts", 0, "exponents"], 3, "one integer for each of left, right"),
        (["pool", "parts", 0, "exponents"], [0, 31], "the exponent of right"),
        (["pool", "parts", 0, "exponents"], [None, 0], "the exponent of left"),
        (["pool", "parts", 0, "rate"], 1, "unknown key 'rate'"),
        (["pool", "parts", 1, "signed"], 1, "true or false"),
        (["pool", "parts", 1, "hashes"], 0, "hashes of a hash pool"),
        (["pool", "parts", 1, "hashes"], "two", "hashes of a hash pool"),
        (["pool", "parts", 1, "capacity"], 5, "do not fit into a pool of capacity 5"),
    ],
)
def test_json_that_lies_is_refused_by_name(path, value, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":"2.0","version":"2.0"}',
        '{"version":NaN}',
        "[" * 100000,
        '{"seed":' + "1" * 100000 + "}",
        " " * ((8 << 20) + 1),
        "[" + "0," * (1 << 19) + "0]",
        b"\xff",
        "\ud800",
        3,
        None,
    ],
    ids=lambda text: repr(text)[:20],
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_deeply_nested_pools_are_refused():
    request = "matmul"
    for _ in range(8):
        request = pools.Sum(request)
    plan = Plan.build({"a": (4, 4)}, ratio=2, pool=request)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match="at most 8"):
        Plan.build({"a": (4, 4)}, ratio=2, pool=pools.Product(request))
    data = Plan.build({"a": (4, 4)}, ratio=2).to_dict()
    for _ in range(20):
        data["pool"] = {"kind": "sum", "parts": [data["pool"]]}
    with pytest.raises(PlanError, match="nested"):
        Plan.from_json(json.dumps(data))
