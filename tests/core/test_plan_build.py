"""What ``Plan.build`` makes of its arguments: selection, scales, views, ratios, sizes and the table."""

import math
import re
from fractions import Fraction

import einops
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from smh.core import pools
from smh.core.plan import Plan
from smh.core.sizes import file_bytes, largest_that_fits
from smh.core.views import View
from smh.errors import PlanError
from tests.core.cases import plans

MODEL = {"conv.weight": (3, 3, 8, 16), "norm.weight": (16,), "fc.weight": (64, 10), "fc.bias": (10,)}


def test_properties():
    plan = Plan.build(MODEL, ratio=0.25)
    assert [tensor.name for tensor in plan.tensors] == ["conv.weight", "fc.weight"]
    assert plan.num_weights == 3 * 3 * 8 * 16 + 640
    assert plan.capacity == 43**2
    assert plan.ratio <= 0.25
    assert plan.num_variables == 2 * 43 * plan.pool.m + 2
    assert plan.file_bytes == 2 * 43 * plan.pool.m + 8
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


def test_the_table_is_readable():
    plan = Plan.build(MODEL, ratio=0.25, views={"fc.weight": "i o -> o i"}, modifiers=("relu",), learn_scale=False)
    lines = str(plan).splitlines()
    columns = {name: lines[0].index(name) for name in ("shape", "scale", "modifiers", "view")}
    for line, shape in zip(lines[2:4], ("3x3x8x16", "64x10"), strict=True):
        assert line.index(shape) == columns["shape"]
        assert line.index("relu") == columns["modifiers"]
        assert "(fixed)" in line
    assert lines[3].index("i o -> o i") == columns["view"]
    assert "1,792 weights from" in lines[5]
    assert f"{plan.file_bytes:,} bytes in a file" in lines[5]


def test_equal_plans_are_equal_and_plans_cannot_be_changed():
    first, second = Plan.build(MODEL, ratio=0.25), Plan.build(MODEL, ratio=0.25)
    assert first == second
    assert hash(first) == hash(second)
    assert first != Plan.build(MODEL, ratio=0.25, seed=1)
    with pytest.raises(AttributeError):
        first.seed = 3


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, ["conv.weight", "fc.weight"]),
        (re.compile(r"fc\..*"), None, ["fc.weight", "fc.bias"]),
        ("fc", None, ["fc.weight"]),
        ("*.bias", None, ["fc.bias"]),
        ([re.compile("fc.b.*"), "norm", lambda name: name[0] == "c"], None, ["conv.weight", "norm.weight", "fc.bias"]),
        (["weight"], None, ["conv.weight", "norm.weight", "fc.weight"]),
        (["fc.bias", "conv.weight"], None, ["conv.weight", "fc.bias"]),
        (lambda name: name.startswith("norm"), None, ["norm.weight"]),
        (None, ["conv.weight"], ["fc.weight"]),
        (["fc", "fc.bias"], None, ["fc.weight", "fc.bias"]),
        (["*.b*s", "c*v.weight"], None, ["conv.weight", "fc.bias"]),
        (None, iter(["conv"]), ["fc.weight"]),
        ("*", ["*bias", re.compile("norm.*")], ["conv.weight", "fc.weight"]),
        (re.compile(".*").fullmatch, re.compile("FC.*|conv.weight", re.IGNORECASE), ["norm.weight"]),
    ],
)
def test_selection(include, exclude, names):
    plan = Plan.build(MODEL, ratio=3, include=include, exclude=exclude)
    assert [tensor.name for tensor in plan.tensors] == names


NESTED = dict.fromkeys(("0.w", "0.attn.q", "1.0.w", "1.attn.q", "1.attn.k", "10.w", "head", "aux.head"), (4, 4))


@pytest.mark.parametrize(
    ("include", "names"),
    [
        ("0", ["0.w", "0.attn.q"]),  # of exactly this name, and not 1.0 or 10
        ("1.attn", ["1.attn.q", "1.attn.k"]),
        ("attn", ["0.attn.q", "1.attn.q", "1.attn.k"]),
        ("attn.q", ["0.attn.q", "1.attn.q"]),
        ("w", ["0.w", "1.0.w", "10.w"]),
        ("head", ["head"]),
        ("*head", ["head", "aux.head"]),
        ("*.attn", ["0.attn.q", "1.attn.q", "1.attn.k"]),
        ("?.w", ["0.w"]),
        ("[1-9].attn.*", ["1.attn.q", "1.attn.k"]),
    ],
)
@pytest.mark.parametrize("separator", "./")
def test_names_are_those_of_tensors_and_modules_or_their_ends(include, names, separator):
    shapes = {name.replace(".", separator): shape for name, shape in NESTED.items()}
    plan = Plan.build(shapes, ratio=0.9, include=include.replace(".", separator))
    assert [tensor.name.replace(separator, ".") for tensor in plan.tensors] == names


def test_options_by_name_take_the_same_names_and_globs():
    scale = {"0.w": 0.5, "*": "he", "1.*": 0.25, "1": 0.125}
    plan = Plan.build(NESTED, ratio=0.9, scale=scale, axes={"attn.q": "o i"}, modifiers={"*": [], "head": ["relu"]})
    he = {tensor.name: tensor.initial_scale for tensor in Plan.build(NESTED, ratio=0.9, scale="he").tensors}
    expected = he | {"0.w": 0.5} | dict.fromkeys(("1.0.w", "1.attn.q", "1.attn.k"), 0.125)
    assert {tensor.name: tensor.initial_scale for tensor in plan.tensors} == expected
    assert [tensor.name for tensor in plan.tensors if tensor.axes == "o i"] == ["0.attn.q", "1.attn.q"]
    assert [tensor.name for tensor in plan.tensors if tensor.modifiers] == ["head"]
    viewed = Plan.build(NESTED, ratio=0.9, views={"attn": "i o -> o i"})
    assert [tensor.name for tensor in viewed.tensors if tensor.view] == ["0.attn.q", "1.attn.q", "1.attn.k"]


# --- Scales


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


@given(plans())
def test_initial_scales_equal_the_oracle(plan):
    for tensor, entry in zip(plan.tensors, plan.to_dict()["tensors"], strict=True):
        assert tensor.initial_scale == float(oracle.initial_scale(entry))


def test_dense_fan_out_and_match():
    assert Plan.build({"a": (8, 16)}, ratio=1, scale="fan_out").tensors[0].initial_scale == 0.25
    values = np.random.default_rng(0).normal(0, 0.3, (8, 16))
    plan = Plan.build({"a": (8, 16)}, ratio=1, scale="match", values={"a": values})
    assert plan.tensors[0].initial_scale == float(np.float32(np.std(values)))
    assert Plan.from_json(plan.to_json()) == plan


# --- Views


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


# --- Ratios


def test_a_ratio_is_read_as_the_decimal_that_was_typed():
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
        with pytest.raises(PlanError, match="smallest feasible ratio") as caught:
            Plan.build({"a": (123, 457)}, ratio=1e-5, pool=pool)
        named = float(str(caught.value).split("smallest feasible ratio is ")[1])
        plan = Plan.build({"a": (123, 457)}, ratio=named, pool=pool)
        assert plan.ratio <= named
        assert plan.ratio > named * 0.9 or isinstance(pool, pools.Sum)


@given(st.integers(1, 10**7), st.fractions(min_value="1/1000", max_value=2))
def test_sizes_equal_the_oracle_and_never_exceed_the_ratio(weights, ratio):
    for kind in ("matmul", "kronecker", "hash"):
        if ratio < pools.named(kind).smallest_ratio(weights):
            with pytest.raises(PlanError, match="smallest feasible ratio"):
                Plan.build({"a": (weights,)}, ratio=ratio, pool=kind, include=["a"])
            continue
        plan = Plan.build({"a": (weights,)}, ratio=ratio, pool=kind, include=["a"])
        spec = {"kind": kind, "bits": 8} | ({"hashes": 1, "signed": True} if kind == "hash" else {})
        found, expected = plan.pool.to_dict(), oracle.sizes(spec, weights, ratio)
        for field in ("n", "m", "d", "t", "size", "capacity"):
            assert found.get(field) == expected.get(field), field
        assert sum(math.prod(shape) for shape in plan.pool.variable_shapes().values()) <= ratio * weights
        assert plan.capacity >= weights


def test_a_plan_for_a_billion_weights_is_made_without_arrays():
    plan = Plan.build({f"t{i}": (1000, 1000) for i in range(1000)}, ratio=0.01)
    assert plan.num_weights == 10**9
    assert plan.capacity >= 10**9


# --- Sizes in bytes


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["matmul", "kronecker", "hash"]), min_size=1, max_size=2),
    st.integers(1, 400),
    st.integers(1, 1500),
    st.integers(0, 500),
    st.sampled_from([2, 4, 8, 16]),
)
def test_the_largest_pool_that_fits_is_the_largest(parts, weights, size, besides, bits):
    """Compare the bisection with a search over all numbers of variables, one after another."""
    request = (pools.named(parts[0]) if len(parts) == 1 else pools.Sum(*parts)).with_bits(bits)
    least = math.ceil(request.smallest_ratio(weights) * weights)
    fits = None
    for variables in range(least, max(least, 2 * size) + 1):
        pool = request.sized(weights, Fraction(variables, weights))
        if file_bytes(pool) + besides > size:
            break
        fits = pool
    if fits is None:
        with pytest.raises(PlanError, match="need at least"):
            largest_that_fits(request, weights, size, besides)
    else:
        assert largest_that_fits(request, weights, size, besides) == fits


@given(st.integers(0, 900), st.booleans())
def test_kept_bytes_count_towards_the_size(kept, learn):
    shapes = {"a": (30, 20), "b": (20, 9)}
    size = 1200
    plan = Plan.build(shapes, size=size, kept_bytes=kept, learn_scale=learn)
    assert plan == Plan.build(shapes, size=size - kept, learn_scale=learn)
    row = 2 * plan.pool.n  # a term more takes that many bytes
    assert size - row < plan.file_bytes + kept <= size


@pytest.mark.parametrize("kept", [-1, 1.5, True, "1 kB", None])
def test_kept_bytes_must_be_a_number_of_bytes(kept):
    with pytest.raises(PlanError, match="kept_bytes must be an integer"):
        Plan.build({"a": (30, 20)}, size=500, kept_bytes=kept)


def test_what_is_kept_may_leave_no_room():
    with pytest.raises(PlanError, match="need at least 1,054 bytes with this pool and these bits; got 1,000"):
        Plan.build({"a": (30, 20)}, size=1000, kept_bytes=1000)
    assert Plan.build({"a": (30, 20)}, size=1054, kept_bytes=1000).pool.m == 1


# --- Fingerprints


def test_fingerprints_are_those_of_the_content():
    plan = Plan.build(MODEL, ratio=0.25)
    assert plan.fingerprint == Plan.build(MODEL, ratio=0.25).fingerprint
    assert plan.fingerprint == Plan.from_json(plan.to_json()).fingerprint
    assert len(plan.fingerprint) == 64
    assert set(plan.fingerprint) <= set("0123456789abcdef")
    renamed = {name.replace("fc", "fd"): shape for name, shape in MODEL.items()}
    others = [
        Plan.build(MODEL, **{"ratio": 0.25, **change})
        for change in (
            {"seed": 1},
            {"bits": 9},
            {"ratio": 0.3},
            {"optimizer": "adam"},
            {"layout": "cyclic"},
            {"pool": "hash"},
            {"scale": "he"},
            {"learn_scale": False},
            {"modifiers": ["relu"]},
            {"modifiers": ["sign"]},
            {"axes": {"fc.weight": "o i"}},
            {"views": {"fc.weight": "i o -> o i"}},
            {"views": {"fc.weight": ("i o -> o i", {}, {"i": list(range(1, 64)) + [0]})}},
            {"exclude": ["fc.weight"]},
        )
    ]
    others += [Plan.build(renamed, ratio=0.25), Plan.build(dict(reversed(MODEL.items())), ratio=0.25)]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
