"""The core against the oracle in integers, in several namespaces."""

import subprocess
import sys

import array_api_strict
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import PlanError, UnknownNameError, VariableError
from tests.core.cases import KINDS, check, long_sums, plans, seeds, values

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
NUMPY = Kernels(np)
PLAN = Plan.build({"a": (6, 5), "b": (2, 3)}, ratio=1.0)


@settings(max_examples=200, **RELAXED)
@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
def test_numpy_gives_the_bits_of_the_oracle(plan, seed, kind):
    check(NUMPY, plan, *values(plan, seed, kind))


@settings(max_examples=30, **RELAXED)
@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
def test_the_strict_namespace_gives_the_bits_of_the_oracle(plan, seed, kind):
    xp = array_api_strict
    check(Kernels(xp), plan, *values(plan, seed, kind), put=xp.asarray, take=np.asarray)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_torch_gives_the_bits_of_the_oracle_at_every_precision_of_float32(precision):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import array_api_compat.torch as xp

    class TorchKernels(Kernels):
        word_dtype = torch.int64  # uint32 has no arithmetic

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:

        @settings(max_examples=30, **RELAXED)
        @given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
        def holds(plan, seed, kind):
            check(TorchKernels(xp), plan, *values(plan, seed, kind), put=lambda x: torch.from_numpy(np.array(x)))

        holds()
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bits", [2, 8, 9, 16])
@pytest.mark.parametrize("terms", [1, 255, 257, 1025, 2500])
def test_long_sums(bits, terms):
    plan, cases = long_sums(terms, bits)
    for variables, cotangents in cases:
        check(NUMPY, plan, variables, cotangents)


@settings(max_examples=50, **RELAXED)
@given(plan=plans(), distribution=st.sampled_from(["normal", "uniform"]))
@example(plan=PLAN, distribution="normal")
def test_initial_values_are_those_of_the_oracle(plan, distribution):
    found, expected = initial_variables(plan, distribution), oracle.initial_variables(plan.to_dict(), distribution)
    assert list(found) == list(expected) == list(plan.variable_shapes)
    for name, x in expected.items():
        assert_same_bits(found[name], np.asarray(x), name)


@settings(max_examples=50, **RELAXED)
@given(plan=plans())
def test_indices_are_those_of_the_oracle(plan):
    i = np.arange(plan.capacity)
    found, expected = generate.indices(NUMPY, plan, i), oracle.indices(plan.to_dict(), i)
    assert list(found) == list(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@settings(max_examples=50, **RELAXED)
@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
def test_weights_by_name_have_the_bits_of_all_weights(plan, seed, kind):
    variables, _ = values(plan, seed, kind)
    with np.errstate(all="ignore"):
        every = generate.materialize(NUMPY, plan, variables)
        for name, w in every.items():
            assert_same_bits(generate.materialize(NUMPY, plan, variables, [name])[name], w, name)


@settings(max_examples=50, **RELAXED)
@given(plan=plans(), seed=seeds)
def test_values_on_the_grid_give_the_same_weights(plan, seed):
    """What is stored as integers comes back unchanged."""
    variables, _ = values(plan, seed, "normal")
    with np.errstate(all="ignore"):
        grids = generate.put_on_grids(NUMPY, plan, variables)
        stored = variables | {f"pool/{name}": one.integers * one.unit for name, one in grids.items()}
        again = generate.materialize(NUMPY, plan, stored)
        for name, w in generate.materialize(NUMPY, plan, variables).items():
            assert_same_bits(again[name], w, name)
            assert not np.any((np.abs(w) > 0) & (np.abs(w) < 2.0**-118)), "a weight is subnormal, or nearly so"


@settings(max_examples=50, **RELAXED)
@given(plan=plans(), seed=seeds)
def test_integers_give_the_weights_of_their_values(plan, seed):
    variables, _ = values(plan, 2 * (seed // 2) + 1, "normal")
    with np.errstate(all="ignore"):
        grids = generate.put_on_grids(NUMPY, plan, variables)
        integers = {name: one.integers.astype(np.int16) for name, one in grids.items()}
        exponents = {name: int(np.log2(one.power)) if one.power else None for name, one in grids.items()}
        again = generate.grids_of(NUMPY, plan, integers, exponents)
        frozen = generate.build(NUMPY, plan, again, variables, plan.tensors)
        for name, w in generate.materialize(NUMPY, plan, variables).items():
            assert_same_bits(frozen[name], w, name)


@settings(max_examples=30, **RELAXED)
@given(plan=plans(), seed=seeds)
def test_twice_the_cotangents_give_twice_the_gradients(plan, seed):
    variables, cotangents = values(plan, 2 * (seed // 2) + 1, "normal")
    once = generate.vjp(NUMPY, plan, variables, cotangents)
    twice = generate.vjp(NUMPY, plan, variables, {name: np.float32(2) * g for name, g in cotangents.items()})
    for name, g in once.items():
        if np.all(np.isfinite(twice[name])) and np.all((g == 0) | (np.abs(g) >= 2.0**-119)):
            assert_same_bits(twice[name], np.asarray(np.float32(2) * g), name)


def test_no_argument_is_changed():
    variables, cotangents = values(PLAN, 1, "normal")
    copies = [{name: x.copy() for name, x in given.items()} for given in (variables, cotangents)]
    generate.materialize(NUMPY, PLAN, variables)
    generate.vjp(NUMPY, PLAN, variables, cotangents)
    for before, after in zip(copies, (variables, cotangents), strict=True):
        for name, x in before.items():
            assert_same_bits(after[name], x, name)


def test_what_does_not_fit_is_refused():
    variables = initial_variables(PLAN)
    with pytest.raises(VariableError, match="'pool/left' is missing"):
        generate.materialize(NUMPY, PLAN, {name: x for name, x in variables.items() if name != "pool/left"})
    with pytest.raises(VariableError, match="no variable 'x'"):
        generate.materialize(NUMPY, PLAN, {**variables, "x": np.ones(1, dtype=np.float32)})
    with pytest.raises(VariableError, match="must be float32; got float64"):
        generate.materialize(NUMPY, PLAN, {**variables, "pool/left": variables["pool/left"].astype(np.float64)})
    with pytest.raises(VariableError, match="must have shape"):
        generate.vjp(NUMPY, PLAN, variables, {"a": np.ones((5, 6), dtype=np.float32)})
    with pytest.raises(UnknownNameError, match="no tensor 'c'"):
        generate.vjp(NUMPY, PLAN, variables, {"c": np.ones((6, 5), dtype=np.float32)})
    with pytest.raises(PlanError, match="distribution"):
        initial_variables(PLAN, "cauchy")


def test_the_core_imports_no_backend_and_no_framework():
    program = (
        "import sys, smh.core.generate, smh.core.initial\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'jax', 'tensorflow', 'keras')])\n"
        "sources = [m for m in sys.modules if m.startswith('smh.core')]\n"
        "print([m for m in sources if 'smh.backends' in open(sys.modules[m].__file__).read()])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_a_small_vjp_takes_few_calls():
    """The way of the data is short: a reader can follow every call of it."""
    plan = Plan.build({"a": (6, 5), "b": (2, 3)}, ratio=1.0)
    variables, cotangents = values(plan, 1, "normal")
    kernels, calls = NumpyKernels(), 0
    generate.vjp(kernels, plan, variables, cotangents)  # fills the caches of the plan

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and "/smh/" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        generate.vjp(kernels, plan, variables, cotangents)
    finally:
        sys.setprofile(None)
    assert calls < 100, calls
