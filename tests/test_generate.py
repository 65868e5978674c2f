import dataclasses
import math
import tracemalloc

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import smh
from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import as_dict, cotangents_for, kinds, plans, seeds, variables_for
from smh import generate, pools
from smh.backends.numpy import NumpyOps
from smh.ops import Ops


@settings(max_examples=250)
@given(plans(), seeds, kinds, kinds)
def test_weights_and_gradients_equal_the_oracle(plan, seed, kind, cotangent_kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, cotangent_kind)
    weights = smh.materialize(plan, variables)
    expected = oracle.weights(as_dict(plan), variables)
    assert list(weights) == [tensor.name for tensor in plan.tensors]
    for name in expected:
        assert_same_bits(weights[name], expected[name], name)
    gradients = smh.vjp(plan, variables, cotangents)
    expected = oracle.gradients(as_dict(plan), variables, cotangents)
    assert list(gradients) == list(plan.variable_shapes)
    for name in plan.variable_shapes:
        assert_same_bits(gradients[name], expected[name], name)


@settings(max_examples=60)
@given(plans(), seeds, kinds)
def test_the_core_runs_unchanged_under_array_api_strict(plan, seed, kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, kind)
    ops = Ops(array_api_strict)
    with np.errstate(all="ignore"):
        strict = {name: array_api_strict.asarray(x) for name, x in variables.items()}
        weights = generate.materialize(ops, plan, strict)
        gradients = generate.vjp(
            ops, plan, strict, {name: array_api_strict.asarray(x) for name, x in cotangents.items()}
        )
    for name, w in smh.materialize(plan, variables).items():
        assert_same_bits(np.asarray(weights[name]), w, name)
    for name, g in smh.vjp(plan, variables, cotangents).items():
        assert_same_bits(np.asarray(gradients[name]), g, name)


@given(plans(), seeds, kinds, st.data())
def test_building_by_name_equals_building_all(plan, seed, kind, data):
    variables = variables_for(plan, seed, kind)
    weights = smh.materialize(plan, variables)
    names = data.draw(st.permutations([tensor.name for tensor in plan.tensors]))[: data.draw(st.integers(0, 4))]
    some = smh.materialize(plan, variables, names)
    assert list(some) == names
    for name in names:
        assert_same_bits(some[name], weights[name], name)


@settings(max_examples=50)
@given(plans(), st.sampled_from(["normal", "uniform"]))
def test_initial_variables_and_digest_equal_the_oracle(plan, distribution):
    variables = smh.initialize(plan, distribution)
    expected = oracle.initial_variables(as_dict(plan), distribution)
    assert list(variables) == list(plan.variable_shapes)
    for name, x in variables.items():
        assert_same_bits(x, expected[name], name)
    assert smh.digest(plan, variables) == oracle.digest(as_dict(plan), variables)


@given(plans(), seeds)
def test_indices_equal_the_oracle(plan, seed):
    rng = np.random.default_rng(seed)
    start, stop = sorted(int(i) for i in rng.integers(0, plan.capacity + 1, 2))
    found = smh.get_backend("numpy").indices(plan, start, stop)
    expected = oracle.indices(as_dict(plan), np.arange(start, stop))
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].dtype == np.int64
        assert np.array_equal(found[name], expected[name])


POOLS = {
    "matmul": lambda capacity: pools.Matmul(n=int(np.sqrt(capacity)), m=3),
    "kronecker": lambda capacity: pools.Kronecker(d=round(capacity**0.25), t=3),
    "hash": lambda capacity: pools.Hash(size=11, hashes=2, capacity=capacity),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [1, 80, 81, 82, 161, 162, 163, 5 * 81])
@pytest.mark.parametrize("first", [0, 1, 80, 81, 100])
def test_cyclic_wraps_exactly_at_capacity(pool, size, first):
    shapes = {"a": (first,), "b": (size,)} if first else {"b": (size,)}
    plan = smh.Plan.build(
        shapes,
        ratio=10**9,
        pool=POOLS[pool](81),
        layout="cyclic",
        scale=1.0,
        learn_scale=False,
        include=r"\w",
    )
    variables = smh.initialize(plan)
    v = oracle.virtual(as_dict(plan), variables)
    expected = v[(first + np.arange(size)) % 81]
    assert_same_bits(smh.materialize(plan, variables, ["b"])["b"], expected)


@pytest.mark.parametrize(("size", "first"), [(10, 0), (10, 78), (10, 81), (10, 90), (200, 5)])
def test_padding_shows_its_constant_past_the_end(size, first):
    shapes = {"a": (first,), "b": (size,)} if first else {"b": (size,)}
    plan = smh.Plan.build(
        shapes,
        ratio=10**9,
        pool=pools.Matmul(n=9, m=2),
        layout="padding",
        scale=2.0,
        learn_scale=False,
        include=r"\w",
    )
    w = smh.materialize(plan, smh.initialize(plan), ["b"])["b"]
    outside = first + np.arange(size) >= 81
    assert np.all(w[outside] == np.float32(2) * np.float32(0.01))
    assert not np.any(w[~outside] == np.float32(2) * np.float32(0.01))


@settings(max_examples=30)
@given(plans(), seeds, st.integers(-3, 3))
def test_vjp_scales_with_the_cotangent_by_powers_of_two(plan, seed, power):
    """Grids move with powers of two, so this linearity is exact where nothing meets the flush threshold."""
    variables = smh.initialize(plan)
    cotangents = cotangents_for(plan, seed, "normal")
    factor = np.float32(2.0**power)
    plain = smh.vjp(plan, variables, cotangents)
    scaled = smh.vjp(plan, variables, {name: g * factor for name, g in cotangents.items()})
    for name in plain:
        assert_same_bits(scaled[name], plain[name] * factor, name)


@given(plans(), seeds)
def test_missing_cotangents_are_zeros(plan, seed):
    variables, cotangents = variables_for(plan, seed, "normal"), cotangents_for(plan, seed, "normal")
    kept = dict(list(cotangents.items())[::2])
    zeros = {name: g if name in kept else np.zeros_like(g) for name, g in cotangents.items()}
    expected = smh.vjp(plan, variables, zeros)
    for name, g in smh.vjp(plan, variables, kept).items():
        assert_same_bits(g, expected[name], name)


@given(plans(), seeds, kinds)
def test_arguments_are_left_as_they_are(plan, seed, kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, kind)
    for x in [*variables.values(), *cotangents.values()]:
        x.flags.writeable = False
    smh.materialize(plan, variables)
    smh.vjp(plan, variables, cotangents)


def smooth(plan, variables):
    """The same formula in float64, without grids, flushes or roundings: what gradients must agree with."""
    counter = iter(range(100))

    def virtual(pool, prefix):
        if isinstance(pool, pools.Sum):
            return sum(virtual(part, f"{prefix}{p}/")[: plan.capacity] for p, part in enumerate(pool.parts))
        if isinstance(pool, pools.Product):
            return np.prod(
                [virtual(part, f"{prefix}{p}/")[: plan.capacity] for p, part in enumerate(pool.parts)], axis=0
            )
        seed = seeds_of_leaves[next(counter)]
        found = pool.indices(NumpyOps(), np.arange(plan.capacity), seed)
        if isinstance(pool, pools.Hash):
            terms = variables[f"{prefix}table"].reshape(-1)[found["table"]]
            terms = terms * pool.signs(NumpyOps(), np.arange(plan.capacity), seed)
        else:
            terms = variables[f"{prefix}left"].reshape(-1)[found["left"]]
            terms = terms * variables[f"{prefix}right"].reshape(-1)[found["right"]]
        return terms.sum(axis=1) * pool.factor

    seeds_of_leaves = [leaf.seed for leaf in plan.pool.leaves(plan.seed)]
    v = virtual(plan.pool, "pool/")
    weights = {}
    for tensor in plan.tensors:
        cells = np.arange(tensor.offset, tensor.stop)
        shown = v[cells % plan.capacity]
        if plan.layout == "padding":
            shown = np.where(cells < plan.capacity, shown, 0.01)
        w = shown * variables.get(tensor.scale_variable, tensor.initial_scale)
        for modifier in tensor.modifiers:
            w = np.maximum(w, 0) if modifier == "relu" else w
        weights[tensor.name] = w
    return weights


@pytest.mark.parametrize("layout", ["basic", "cyclic", "padding"])
@pytest.mark.parametrize(
    "pool",
    [
        pools.Matmul(n=7, m=3),
        pools.Kronecker(d=3, t=2),
        pools.Hash(size=20, hashes=2, capacity=49),
        pools.Sum(pools.Matmul(n=7, m=2), pools.Product(pools.Hash(size=9, capacity=49), pools.Kronecker(d=3, t=2))),
    ],
    ids=lambda pool: pool.kind,
)
@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_gradients_agree_with_finite_differences(pool, layout, arithmetic):
    sizes = (30, 19) if layout == "basic" else (30, 40)
    plan = smh.Plan.build(
        {"a": sizes[:1], "b": sizes[1:]},
        ratio=10**9,
        pool=pool,
        layout=layout,
        scale={"a": 0.7, "b": 1.3},
        modifiers={"a": (), "b": ("relu",)},
        gain=1,
        arithmetic=arithmetic,
        include=r"\w",
    )
    variables = smh.initialize(plan)
    cotangents = cotangents_for(plan, 0, "normal")
    gradients = smh.vjp(plan, variables, cotangents)
    wide = {name: x.astype(np.float64) for name, x in variables.items()}

    def loss(variables):
        return sum(float(np.sum(w * cotangents[name])) for name, w in smooth(plan, variables).items())

    step = 1e-6
    for name, x in wide.items():
        numeric = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[at] += step
            down[at] -= step
            numeric[at] = (loss({**wide, name: up}) - loss({**wide, name: down})) / (2 * step)
        scale = max(1.0, float(np.max(abs(numeric))))
        assert np.max(abs(numeric - gradients[name])) < 2e-5 * scale, name


def norms(plan, variables):
    """Return a plan and variables whose weights are scale * |a| |b|, for the vectors a and b behind each weight."""
    pool = plan.pool
    if isinstance(pool, pools.Hash):
        small = pools.Hash(pool.size, pool.hashes, False, pool.capacity, pool.gain)
        return smh.Plan(small, plan.tensors, plan.seed, plan.layout), {n: abs(x) for n, x in variables.items()}
    matmul = isinstance(pool, pools.Matmul)
    small = pools.Matmul(pool.n, 1, pool.gain) if matmul else pools.Kronecker(pool.d, 1, pool.gain)
    axes = {"pool/left": 1 if matmul else 0, "pool/right": 0}
    reduced = {n: np.linalg.norm(variables[n], axis=axis, keepdims=True) for n, axis in axes.items()}
    return smh.Plan(small, plan.tensors, plan.seed, plan.layout), {**variables, **reduced}


@settings(max_examples=200)
@given(plans(arithmetic="fast"), seeds)
def test_fast_stays_within_its_bound_of_exact(plan, seed):
    """Weights of leaf pools differ by at most 4 K 2**-24 |a| |b|, K the terms of a sum."""
    if isinstance(plan.pool, (pools.Sum, pools.Product)):
        return
    tensors = tuple(dataclasses.replace(tensor, modifiers=()) for tensor in plan.tensors)
    plan = dataclasses.replace(plan, tensors=tensors)
    variables = variables_for(plan, seed, "normal")
    variables.update({t.scale_variable: np.float32(t.initial_scale) for t in tensors if t.learn_scale})
    fast = smh.materialize(plan, variables)
    exact = smh.materialize(dataclasses.replace(plan, arithmetic="exact"), variables)
    bound = smh.materialize(*norms(plan, variables))
    terms = plan.pool.hashes if isinstance(plan.pool, pools.Hash) else plan.pool.terms
    for name in fast:
        difference = abs(fast[name].astype(np.float64) - exact[name])
        assert np.all(difference <= 4 * terms * 2.0**-24 * bound[name].astype(np.float64)), name


def test_one_tensor_of_a_billion_weights_needs_little_memory():
    for pool in ("matmul", "kronecker", pools.Hash(hashes=2)):
        shapes = {f"t{i}": (1000, 1000) for i in range(1000)}
        plan = smh.Plan.build(shapes, ratio=0.1, pool=pool)
        assert plan.num_weights == 10**9
        variables = {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
        tracemalloc.start()
        smh.materialize(plan, variables, ["t617"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6, f"{plan.pool}: {peak / 1e6:.0f} MB"


def test_building_all_weights_needs_little_more_than_the_weights():
    """The whole float64 matrix is never there: at most 1.5 times the weights' own bytes beyond the variables."""
    for pool in ("matmul", pools.Hash(hashes=2)):
        plan = smh.Plan.build({f"t{i}": (400, 500) for i in range(20)}, ratio=0.1, pool=pool)
        variables = smh.initialize(plan)
        tracemalloc.start()
        weights = smh.materialize(plan, variables)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        size = sum(w.nbytes for w in weights.values())
        assert peak < 1.5 * size + 8e6, f"{pool}: {peak / size:.2f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/rigth": v["pool/right"]}, "did you mean 'pool/right'"),
        (lambda v: {**v, "pool/left": v["pool/left"].astype(np.float64)}, "float32; got float64"),
        (lambda v: {**v, "pool/left": v["pool/left"].T}, "must have shape (10, 2); got (2, 10)"),
        (lambda v: {**v, "pool/left": [[1.0]]}, "got list"),
        (lambda v: {**v, "scale/a": np.float32([1.0])}, "must have shape (); got (1,)"),
    ],
)
def test_variables_that_do_not_fit_are_refused(change, message):
    plan = smh.Plan.build({"a": (20, 5)}, ratio=0.4)
    variables = change(smh.initialize(plan))
    with pytest.raises(smh.VariableError) as caught:
        smh.materialize(plan, variables)
    assert message in str(caught.value)
    with pytest.raises(smh.VariableError):
        smh.vjp(plan, variables, {})


def test_names_and_cotangents_that_do_not_fit_are_refused():
    plan = smh.Plan.build({"fc.weight": (20, 5)}, ratio=0.4)
    variables = smh.initialize(plan)
    with pytest.raises(smh.UnknownNameError, match="did you mean 'fc.weight'"):
        smh.materialize(plan, variables, ["fc.wieght"])
    with pytest.raises(smh.UnknownNameError, match="twice"):
        smh.materialize(plan, variables, ["fc.weight", "fc.weight"])
    with pytest.raises(smh.UnknownNameError, match=r"write \['fc.weight'\]"):
        smh.materialize(plan, variables, "fc.weight")
    with pytest.raises(smh.UnknownNameError, match="did you mean"):
        smh.vjp(plan, variables, {"fc.weights": np.zeros((20, 5), dtype=np.float32)})
    with pytest.raises(smh.VariableError, match=r"must have shape \(20, 5\); got \(5, 20\)"):
        smh.vjp(plan, variables, {"fc.weight": np.zeros((5, 20), dtype=np.float32)})
    with pytest.raises(smh.PlanError, match="normal, uniform"):
        smh.initialize(plan, "gaussian")


def test_the_digest_does_not_depend_on_how_many_tensors_are_built_at_a_time(monkeypatch):
    plan = smh.Plan.build({f"t{i}": (5, i + 1) for i in range(9)}, ratio=0.9)
    variables = smh.initialize(plan)
    expected = smh.digest(plan, variables)
    assert expected == oracle.digest(as_dict(plan), variables)
    for limit in (1, 30, 60):
        monkeypatch.setattr("smh.digests._GROUP", limit)
        assert smh.digest(plan, variables) == expected


@pytest.mark.parametrize("seed", range(20))
def test_fast_factors_that_take_the_scales_stay_close_to_exact(seed):
    # Tensors that begin and end within rows, share rows, or lie in one; some without cotangent, some scales fixed.
    rng = np.random.default_rng(seed)
    shapes = {f"t{k}": tuple(int(n) for n in rng.integers(1, 9, 2)) for k in range(rng.integers(1, 7))}
    n = math.isqrt(sum(a * b for a, b in shapes.values())) + 1 + seed % 3
    pool = pools.Matmul(n=n, m=1 + seed % 5)
    fast = smh.Plan.build(shapes, ratio=10**9, pool=pool, learn_scale=seed % 4 > 0, gain=seed % 3, arithmetic="fast")
    exact = dataclasses.replace(fast, arithmetic="exact")
    variables = smh.initialize(fast)
    cotangents = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    given = {name: g for k, (name, g) in enumerate(cotangents.items()) if k % 3 != seed % 3} or cotangents
    for found, expected in (
        (smh.materialize(fast, variables), smh.materialize(exact, variables)),
        (smh.vjp(fast, variables, given), smh.vjp(exact, variables, given)),
    ):
        assert list(found) == list(expected)
        for name, x in expected.items():
            np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5 * float(np.abs(x).max()), err_msg=name)


def test_one_weight_from_smaller_strips_has_the_same_bits():
    plan = smh.Plan.build({"a": (300, 600), "b": (290, 600)}, ratio=10**9, pool=pools.Matmul(n=600, m=600))
    ops = NumpyOps()
    assert ops.sparing().strip_elements < 600 * 600 <= ops.strip_elements
    variables = smh.initialize(plan)
    for name, w in smh.materialize(plan, variables).items():
        assert_same_bits(smh.materialize(plan, variables, [name])[name], w, name)


def test_an_array_that_is_our_own_is_overwritten_block_by_block():
    ops = NumpyOps()
    x = np.arange(ops.block_elements + 5, dtype=np.float32)
    expected = np.sqrt(x)
    found = ops.map_own(np.sqrt, x)
    assert np.shares_memory(found, x)
    assert_same_bits(found, expected)


def test_weights_of_numpy_are_in_memory_as_they_are_indexed(tmp_path):
    # safetensors writes the memory of an array, whatever its strides.
    plan = smh.Plan.build({"w": (3, 4), "b": (5,)}, ratio=1, views={"w": "i o -> o i"}, include=lambda name: True)
    weights = smh.materialize(plan, smh.initialize(plan))
    save_file(weights, tmp_path / "w.safetensors")
    for name, w in load_file(tmp_path / "w.safetensors").items():
        assert_same_bits(w, weights[name], name)


@pytest.mark.parametrize("ops", [NumpyOps(), Ops(np)], ids=["in place", "default"])
def test_vectors_are_joined_as_they_are_made(ops):
    parts = [np.float32([1, 2]), np.float32([3]), np.float32([4, 5, 6])]
    kept = [part.copy() for part in parts]
    made = []

    def maker(part, in_place):
        def make(place):
            made.append(part.shape[0])
            assert place is None or place.shape == part.shape
            if not in_place or place is None:
                return part
            place[...] = part
            return place

        return make

    for in_place in (True, False):
        made.clear()
        found = ops.join([(part.shape[0], maker(part, in_place)) for part in parts], parts[0])
        assert_same_bits(found, np.float32([1, 2, 3, 4, 5, 6]))
        assert made == [2, 1, 3]
        for part, before in zip(parts, kept, strict=True):
            assert_same_bits(part, before)
        assert_same_bits(ops.join([(2, maker(parts[0], in_place))], parts[0]), parts[0])


@given(plans(), seeds, kinds, st.integers(1, 60))
def test_no_size_of_blocks_strips_or_groups_changes_a_bit(plan, seed, kind, elements):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, "normal")
    small = NumpyOps()
    small.block_elements = small.product_elements = small.strip_elements = elements
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(generate, "_TOGETHER", elements)
        weights = generate.materialize(small, plan, variables)
        gradients = generate.vjp(small, plan, variables, cotangents)
    for name, w in smh.materialize(plan, variables).items():
        assert_same_bits(weights[name], w, name)
    for name, g in smh.vjp(plan, variables, cotangents).items():
        assert_same_bits(np.asarray(gradients[name]), g, name)


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_the_parts_of_a_sum_do_not_overwrite_what_others_need(arithmetic):
    pool = pools.Sum(pools.Matmul(), pools.Hash(), pools.Matmul())
    plan = smh.Plan.build({"w": (30, 30)}, ratio=0.5, pool=pool, gain=3, arithmetic=arithmetic)
    variables, cotangents = smh.initialize(plan), cotangents_for(plan, 1, "normal")
    small = NumpyOps()
    small.block_elements = 100
    found = generate.vjp(small, plan, variables, cotangents)
    for name, g in smh.vjp(plan, variables, cotangents).items():
        assert np.all(np.isfinite(g))
        np.testing.assert_allclose(found[name], g, rtol=1e-4, atol=1e-5 * float(np.abs(g).max()), err_msg=name)


@pytest.mark.parametrize("pool", [pools.Matmul(), pools.Hash(hashes=2), pools.Kronecker()], ids=str)
def test_an_overflow_in_the_gain_is_not_undone_by_a_small_scale(pool):
    plan = smh.Plan.build({"w": (8, 8)}, ratio=0.5, pool=pool, gain=3, scale=2.0**-30, learn_scale=False)
    largest = {
        name: np.full_like(x, 3e38 if isinstance(pool, pools.Hash) else 1.5e19)
        for name, x in smh.initialize(plan).items()
    }
    weights = smh.materialize(plan, largest)["w"]
    assert np.isinf(weights).any()
    assert_same_bits(weights, oracle.weights(as_dict(plan), largest)["w"])
