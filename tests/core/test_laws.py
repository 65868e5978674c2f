"""Laws of weights and gradients that need no oracle: names, layouts, cotangents, arguments that are refused."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import SmhError, UnknownNameError, VariableError
from tests.core.cases import KINDS, floats, plans, seeds, values

NUMPY = Kernels(np)
kinds = st.sampled_from(KINDS)


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@settings(max_examples=50)
@given(plans(), seeds, kinds, st.data())
def test_building_by_name_equals_building_all(plan, seed, kind, data):
    variables, _ = values(plan, seed, kind)
    weights = generate.materialize(NUMPY, plan, variables)
    names = data.draw(st.permutations([tensor.name for tensor in plan.tensors]))[: data.draw(st.integers(0, 4))]
    some = generate.materialize(NUMPY, plan, variables, names)
    assert list(some) == names
    for name in names:
        assert_same_bits(some[name], weights[name], name)


# --- Layouts

POOLS = {
    "matmul": pools.Matmul(n=9, m=3),
    "kronecker": pools.Kronecker(d=3, t=3),
    "hash": pools.Hash(size=11, hashes=2, capacity=81),
}


def plan_of(pool, layout, scale, first, size):
    """Return a plan whose last tensor is b, behind ``first`` cells."""
    shapes = {"a": (first,), "b": (size,)} if first else {"b": (size,)}
    options = {"layout": layout, "scale": scale, "learn_scale": False, "include": "*"}
    return Plan.build(shapes, ratio=10**9, pool=pool, **options)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [1, 80, 81, 82, 161, 162, 163, 5 * 81])
@pytest.mark.parametrize("first", [0, 1, 80, 81, 100])
def test_cyclic_wraps_exactly_at_capacity(pool, size, first):
    plan = plan_of(POOLS[pool], "cyclic", 1.0, first, size)
    variables = initial_variables(plan)
    expected = oracle.virtual(plan.to_dict(), variables)[(first + np.arange(size)) % 81]
    assert_same_bits(generate.materialize(NUMPY, plan, variables, ["b"])["b"], expected)


@pytest.mark.parametrize(("size", "first"), [(10, 0), (10, 78), (10, 81), (10, 90), (200, 5)])
def test_padding_shows_its_constant_past_the_end(size, first):
    plan = plan_of(pools.Matmul(n=9, m=2), "padding", 2.0, first, size)
    w = generate.materialize(NUMPY, plan, initial_variables(plan), ["b"])["b"]
    outside = first + np.arange(size) >= 81
    assert np.all(w[outside] == np.float32(2) * np.float32(0.01))
    assert not np.any(w[~outside] == np.float32(2) * np.float32(0.01))


def test_cells_beyond_the_capacity_send_cotangents_back_only_if_they_wrap():
    for layout, reached in (("cyclic", True), ("padding", False)):
        plan = plan_of(pools.Matmul(n=2, m=1), layout, 1.0, 4, 3)
        g = generate.vjp(NUMPY, plan, initial_variables(plan), {"b": np.ones(3, dtype=np.float32)})
        assert bool(np.any(g["pool/left"])) is reached


# --- Cotangents


@settings(max_examples=40)
@given(plans(), seeds, st.integers(-3, 3))
def test_gradients_scale_with_the_cotangent_by_powers_of_two(plan, seed, power):
    """Grids move with powers of two, so this linearity is exact, except where a value meets a floor."""
    variables, cotangents = initial_variables(plan), values(plan, 2 * (seed // 2) + 1, "normal")[1]
    factor = np.float32(2.0**power)
    plain = generate.vjp(NUMPY, plan, variables, cotangents)
    scaled = generate.vjp(NUMPY, plan, variables, {name: g * factor for name, g in cotangents.items()})
    for name, g in plain.items():
        clear = (g == 0.0) | (np.abs(g) >= 2.0**-90)
        assert_same_bits(np.where(clear, scaled[name], 0), np.where(clear, g * factor, np.float32(0)), name)


@settings(max_examples=50)
@given(plans(), seeds, kinds)
def test_missing_cotangents_are_zeros(plan, seed, kind):
    """Where virtual weights are finite: a tensor without a cotangent has a zero scale gradient whatever its values."""
    variables = values(plan, 2 * (seed // 2) + 1, "normal")[0]
    v = generate.cells(NUMPY, plan, generate.put_on_grids(NUMPY, plan, variables), 0, plan.num_weights)
    assume(np.all(np.isfinite(v)))
    rng = np.random.default_rng(seed)
    cotangents = {tensor.name: floats(rng, tensor.viewed_shape, kind) for tensor in plan.tensors}
    given = dict(list(cotangents.items())[::2])
    zeros = {name: g if name in given else np.zeros_like(g) for name, g in cotangents.items()}
    expected = generate.vjp(NUMPY, plan, variables, zeros)
    for name, g in generate.vjp(NUMPY, plan, variables, given).items():
        assert_same_bits(g, expected[name], name)


def test_without_cotangents_gradients_are_zeros():
    plan = Plan.build({"a": (6, 5), "b": (2, 3)}, ratio=1.0, pool=pools.Sum("matmul", "hash"))
    for name, g in generate.vjp(NUMPY, plan, initial_variables(plan), {}).items():
        assert_same_bits(g, np.zeros(plan.variable_shapes[name], dtype=np.float32), name)


@settings(max_examples=30)
@given(plans(), seeds, kinds)
def test_arguments_are_left_as_they_are(plan, seed, kind):
    variables, cotangents = values(plan, seed, kind)
    before = [x.copy() for x in [*variables.values(), *cotangents.values()]]
    for x in [*variables.values(), *cotangents.values()]:
        x.flags.writeable = False
    generate.materialize(NUMPY, plan, variables)
    generate.vjp(NUMPY, plan, variables, cotangents)
    generate.on_grid(NUMPY, plan, variables)
    for x, copy in zip([*variables.values(), *cotangents.values()], before, strict=True):
        assert_same_bits(x, copy)


@settings(max_examples=40)
@given(plans(), seeds)
def test_values_on_the_grid_stay_there(plan, seed):
    variables, _ = values(plan, seed, "normal")
    once = generate.on_grid(NUMPY, plan, variables)
    twice = generate.on_grid(NUMPY, plan, once)
    assert list(once) == list(variables)
    for name, x in once.items():
        assert np.asarray(x).dtype == np.float32
        assert_same_bits(twice[name], x, name)
        if name.startswith("scale/"):
            assert_same_bits(x, variables[name], name)


# --- Arguments that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/rigth": v["pool/right"]}, "did you mean 'pool/right'"),
        (lambda v: {**v, "pool/left": v["pool/left"].astype(np.float64)}, "float32; got float64"),
        (lambda v: {**v, "pool/left": v["pool/left"].T}, "must have shape (10, 2); got (2, 10)"),
        (lambda v: {**v, "pool/left": [[1.0]]}, "got list"),
        (lambda v: {**v, "scale/a": np.float32([1.0])}, "must have shape (); got (1,)"),
        (lambda v: {**v, "scale/a": 1.0}, "got float"),
    ],
)
def test_variables_that_do_not_fit_are_refused(change, message):
    plan = Plan.build({"a": (20, 5)}, ratio=0.4)
    variables = change(initial_variables(plan))
    for call in (
        lambda: generate.materialize(NUMPY, plan, variables),
        lambda: generate.vjp(NUMPY, plan, variables, {}),
    ):
        with pytest.raises(VariableError) as caught:
            call()
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fc.wieght"], "did you mean 'fc.weight'"),
        (["fc.weight", "fc.weight"], "twice"),
        ("fc.weight", r"write \['fc.weight'\]"),
        ([3], "no tensor 3"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message):
    plan = Plan.build({"fc.weight": (20, 5)}, ratio=0.4)
    with pytest.raises(UnknownNameError, match=message):
        generate.materialize(NUMPY, plan, initial_variables(plan), names)


@pytest.mark.parametrize(
    ("cotangents", "message"),
    [
        ({"fc.weights": np.zeros((5, 20), dtype=np.float32)}, "did you mean 'fc.weight'"),
        ({"fc.weight": np.zeros((20, 5), dtype=np.float32)}, r"must have shape \(5, 20\); got \(20, 5\)"),
        ({"fc.weight": np.zeros((5, 20))}, "must be float32; got float64"),
        ({"fc.weight": None}, "got NoneType"),
    ],
)
def test_cotangents_that_do_not_fit_are_refused(cotangents, message):
    """Their shapes are those that the model sees, after views."""
    plan = Plan.build({"fc.weight": (20, 5)}, ratio=0.4, views={"fc.weight": "i o -> o i"})
    with pytest.raises(SmhError, match=message):
        generate.vjp(NUMPY, plan, initial_variables(plan), cotangents)
