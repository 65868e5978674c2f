"""Views composed and inverted, against einops and NumPy; their order of elements, their JSON and their errors."""

import math
import re

import einops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.bits import assert_same_bits
from smh.core import generate
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.core.views import MAX_ORDER, View, compose, invert
from smh.errors import PlanError


def by_numpy(view, x):
    """Apply a view without the code under test: split, take, permute, merge, one after the other."""
    left, right = (side.strip() for side in view.pattern.split("->"))
    names = [name for name in left.replace("(", " ").replace(")", " ").split() if name != "1"]
    split = einops.rearrange(x, f"{left} -> {' '.join(names)}", **dict(view.sizes))
    for name, places in view.order:
        split = np.take(split, places, axis=names.index(name))
    return einops.rearrange(split, f"{' '.join(names)} -> {right}")


@st.composite
def views(draw, shape):
    """Draw a view of a shape: split dimensions by divisors, reorder some axes, permute, merge."""
    groups, names, sizes, order = [], [], {}, {}
    for k, size in enumerate(shape):
        group = []
        for j in range(draw(st.integers(1, 2))):
            part = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])) if j == 0 else size
            size //= part
            name = f"{'abcdefgh'[k]}{j}"
            group.append(name)
            sizes[name] = part
        if size > 1:
            group.append(f"{'abcdefgh'[k]}9")
            sizes[group[-1]] = size
        groups.append(group)
        names += group
    for name in names:
        if sizes[name] > 1 and draw(st.integers(0, 3)) == 0:
            order[name] = draw(st.permutations(range(sizes[name])))
    after = draw(st.permutations(names))
    merged, place = [], 0
    while place < len(after):
        step = draw(st.integers(1, 2))
        merged.append(f"({' '.join(after[place : place + step])})")
        place += step
    left = " ".join(f"({' '.join(group)})" for group in groups)
    return View.make((f"{left} -> {' '.join(merged)}", sizes, order))


def marks(view, side, shape):
    """Return, for every dimension of one side of a view, its axes: (where it ends, where it starts, has an order)."""
    groups = re.findall(r"\(([^()]*)\)", view.pattern.split("->")[side])
    sizes, ordered = dict(view.sizes), dict(view.order)
    found = []
    for group in groups:
        stride, axes = 1, []
        for name in reversed(group.split()):
            axes.append((stride, stride * sizes[name], name in ordered))
            stride *= sizes[name]
        found.append(axes)
    return found


def one_pattern_will_do(first, second, shape):
    """Say so from the strides: those of both views divide one another, and none lies within an axis with an order."""
    if first is None or second is None:
        return True
    for one, other in zip(marks(first, 1, shape), marks(second, 0, shape), strict=True):
        strides = sorted({stride for axis in (*one, *other) for stride in axis[:2]})
        if any(b % a for a, b in zip(strides, strides[1:], strict=False)):
            return False
        if any(start < s < stop for start, stop, ordered in (*one, *other) if ordered for s in strides):
            return False
    return True


shapes = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3).map(tuple)


@given(st.data(), shapes)
def test_a_view_applies_as_numpy_does_and_inverts(data, shape):
    view = data.draw(views(shape))
    x = np.arange(math.prod(shape)).reshape(shape)
    expected = by_numpy(view, x)
    assert view.shape(shape) == expected.shape
    assert np.array_equal(view.apply(np, x), expected)
    assert np.array_equal(view.invert(np, expected, shape), x)
    undone = invert(view, shape)
    again = by_numpy(undone, expected) if undone else expected
    assert np.array_equal(again, x)
    assert compose(view, undone, shape) is None


@given(st.data(), shapes)
def test_composed_views_do_both(data, shape):
    x = np.arange(math.prod(shape)).reshape(shape)
    first = data.draw(st.none() | views(shape))
    middle = by_numpy(first, x) if first else x
    second = data.draw(st.none() | views(middle.shape))
    expected = by_numpy(second, middle) if second else middle
    if not one_pattern_will_do(first, second, shape):
        with pytest.raises(PlanError, match="splits an axis at a different place"):
            compose(first, second, shape)
        return
    both = compose(first, second, shape)
    found = by_numpy(both, x) if both else x
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    # Normal form: what does the same is the same.
    assert compose(both, None, shape) == both
    if first is None:
        assert compose(compose(None, second, shape), None, shape) == both


@pytest.mark.parametrize(
    ("first", "second", "shape", "axes", "expected"),
    [
        ("o i h w -> h w i o", None, (4, 3, 2, 5), "o i h w", View("o i h w -> h w i o")),
        ("a b -> b a", "x y -> y x", (4, 3), "o i", None),
        (
            None,
            ("o (c h w) -> (h w c) o", {"c": 2, "h": 3}),
            (5, 24),
            "o i",
            View("o (i1 i2) -> (i2 i1) o", (("i2", 12),)),
        ),
        ("a b c -> (a b) c", ("(a b) c -> c (a b)", {"b": 3}), (2, 3, 4), "d i o", View("d i o -> o (d i)")),
        (("(a b) c -> a b c", {"a": 2}), "a b c -> (a b) c", (6, 4), "o i", None),
        ("o 1 h w -> h w o 1", None, (4, 1, 2, 5), "o i h w", View("o 1 h w -> h w o 1")),
        ("a 1 b -> a b", None, (4, 1, 3), "o i h", View("o 1 h -> o h")),
        (("g i -> g i", {}, {"g": (1, 0, 2)}), ("g i -> i g", {}, {"g": (1, 0, 2)}), (3, 4), "o i", View("o i -> i o")),
    ],
)
def test_normal_form(first, second, shape, axes, expected):
    assert compose(View.make(first), View.make(second), shape, axes) == expected


def test_flips_and_gates_pass_through_flattening():
    flip = View.make(("o i h w -> o i h w", {}, {"h": (2, 1, 0), "w": (2, 1, 0)}))
    flat = View.make(("o (i h w) -> (h w i) o", {"h": 3, "w": 3}))
    joined = View.make("o i h w -> o (i h w)")
    both = compose(compose(flip, joined, (2, 4, 3, 3)), flat, (2, 4, 3, 3), "o i h w")
    x = np.arange(72).reshape(2, 4, 3, 3)
    assert np.array_equal(by_numpy(both, x), x[:, :, ::-1, ::-1].transpose(2, 3, 1, 0).reshape(36, 2))


def test_an_ordered_axis_cannot_be_cut():
    first = View.make(("a b -> a b", {}, {"a": (3, 1, 2, 0)}))
    with pytest.raises(PlanError, match="no single view"):
        compose(first, View.make(("(a c) b -> c a b", {"c": 2})), (4, 3))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"x": (0, 1)}, "not an axis of"),
        ({"o": (0, 0, 1)}, "each of 0 to 2 once"),
        ({"o": (0, 1)}, "each of 0 to 2 once"),
        ({"o": (0, 1, True)}, "each of 0 to 2 once"),
        ({"o": 3}, "lists of positions"),
    ],
)
def test_orders_that_are_none(order, message):
    with pytest.raises(PlanError, match=message):
        Plan.build({"w": (3, 4)}, ratio=1, views={"w": ("o i -> i o", {}, order)})


def test_long_orders_are_refused():
    with pytest.raises(PlanError, match=f"at most {MAX_ORDER}"):
        View.make(("a -> a", {}, {"a": range(0)} | {"a": tuple(range(300))})).shape((300,))


def test_order_in_json():
    plan = Plan.build({"w": (3, 4)}, ratio=1, views={"w": ("o i -> i o", {}, {"o": [2, 0, 1]})})
    text = plan.to_json()
    assert '"order":{"o":[2,0,1]}' in text
    assert Plan.from_json(text) == plan
    assert hash(Plan.from_json(text)) == hash(plan)
    assert '"order"' not in Plan.build({"w": (3, 4)}, ratio=1, views={"w": "o i -> i o"}).to_json()
    for changed, message in (('"order":{}', "be omitted"), ('"order":3', "must be an object")):
        with pytest.raises(PlanError, match=message):
            Plan.from_json(text.replace('"order":{"o":[2,0,1]}', changed))


def test_weights_and_gradients_pass_through_the_view():
    kernels = Kernels(np)
    plan = Plan.build({"w": (3, 4)}, ratio=1, views={"w": ("o i -> i o", {}, {"o": [2, 0, 1]})})
    plain = Plan.build({"w": (3, 4)}, ratio=1)
    variables = initial_variables(plan)
    w = generate.materialize(kernels, plan, variables)["w"]
    assert_same_bits(w, generate.materialize(kernels, plain, variables)["w"][[2, 0, 1]].T, "w")
    g = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = generate.vjp(kernels, plain, variables, {"w": np.ascontiguousarray(g.T[[1, 2, 0]])})
    for name, x in generate.vjp(kernels, plan, variables, {"w": g}).items():
        assert_same_bits(x, expected[name], name)
