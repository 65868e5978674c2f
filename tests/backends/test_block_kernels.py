"""Kernels by blocks of rows change no bit, whatever the namespace: here on NumPy, against the default kernels."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from conformance.bits import assert_same_bits
from smh.backends.block_kernels import BlockKernels
from smh.core import generate
from smh.core.kernels import Kernels
from tests.core.cases import check_against, matmul_cases, matmul_plans, seeds

DEFAULT = Kernels(np)


class SmallBlocks(BlockKernels):
    """Blocks of a row or two, so that small plans have several."""

    block_elements, smooth_elements, most_blocks = 12, 12, 100


@pytest.mark.parametrize("kernels", [SmallBlocks(np), BlockKernels(np)], ids=["small blocks", "blocks"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=matmul_cases())
def test_weights_and_gradients_have_the_bits_of_the_default_kernels(kernels, case):
    check_against(kernels, DEFAULT, *case)


@pytest.mark.parametrize("blocks", [SmallBlocks, BlockKernels])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=matmul_plans(), seed=seeds)
def test_smooth_gradients_are_close_to_exact_ones(blocks, plan, seed):
    rng = np.random.default_rng(seed)
    shapes = plan.variable_shapes
    variables = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    variables = generate.on_grid(DEFAULT, plan, variables)
    some = [tensor for tensor in plan.tensors if rng.random() < 0.8]
    cotangents = {t.name: rng.standard_normal(t.viewed_shape).astype(np.float32) for t in some}
    exact = generate.vjp(DEFAULT, plan, variables, cotangents)
    sizes = [{name: np.abs(x) for name, x in some.items()} for some in (variables, cotangents)]
    terms = generate.vjp(DEFAULT, plan, *sizes)  # the sums of the magnitudes of all terms
    for name, found in generate.vjp(blocks(np, smooth=True), plan, variables, cotangents).items():
        assert found.dtype == np.float32
        assert found.shape == shapes[name]
        assert np.all(np.abs(found - exact[name]) <= 1e-5 * terms[name].max(initial=0.0)), name


@pytest.mark.parametrize("terms", [1024, 1025, 2048, 5000])
def test_products_of_more_terms_than_float32_adds_exactly(terms):
    """The largest integers of one sign, and sums next to a tie, which float32 sums of products would round twice."""
    left = np.full((3, terms), 127.0, dtype=np.float32)
    left[1, -1], left[2, : terms // 2] = 126.0, -125.0
    right = np.repeat(np.asarray([[127.0, 1.0, 126.0]], dtype=np.float32), terms, axis=0)
    right[0, 0] = 1.0
    unit = np.float32(0.25)
    expected = (left.astype(np.int64) @ right.astype(np.int64)).astype(np.float32) * unit
    assert_same_bits(BlockKernels(np).product(left, right, unit, 1024), expected)
    with np.errstate(invalid="ignore"):  # of what is cast and not used
        assert np.isnan(BlockKernels(np).product(left * np.float32(np.nan), right, unit, 1024)).all()
