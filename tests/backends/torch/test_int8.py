"""Products of bytes change no bit, and are used only where they are exact."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smh.core import pools
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import BackendError
from tests.core.cases import check_against, cotangents_for, values

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

from smh.backends.torch import int8  # noqa: E402
from smh.backends.torch.int8 import ByteSums, WideSums, exact  # noqa: E402
from smh.backends.torch.kernels import TorchKernels  # noqa: E402

TENSORS = {"put": lambda x: torch.tensor(np.asarray(x)), "take": lambda x: x.numpy()}
EXACT = exact(torch._int_mm)
needs_exact = pytest.mark.skipif(not EXACT, reason="products of bytes are not exact on this processor")


class Bytes(TorchKernels):
    """Products of bytes, in small blocks."""

    tile_elements = 700

    def bytes_multiply(self):
        return True


@needs_exact
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    side=st.integers(16, 70),
    terms=st.integers(2, 40),
    bits=st.integers(2, 8),
    layout=st.sampled_from(["basic", "padding"]),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["normal", "extreme"]),
)
def test_weights_and_gradients_have_the_bits_of_the_default_kernels(monkeypatch, side, terms, bits, layout, seed, kind):
    monkeypatch.setattr(ByteSums, "band", 40)  # more than a block, fewer than some sides
    size = side * side // 3
    plan = Plan.build(
        {"a": (side, 3), "b": (size,), "c": (5, 7)},
        ratio=99,
        pool=pools.Matmul(n=side, m=terms, bits=bits),
        include=lambda _: True,
        layout=layout,
    )
    variables, cotangents = values(plan, 2 * seed + 1, "normal")
    if kind == "extreme":  # the largest integers of both signs
        variables = {k: np.where(x < 0, -1, 1).astype("f4") if "pool" in k else x for k, x in variables.items()}
        cotangents = {k: np.where(g < 0, -1, 1).astype("f4") for k, g in cotangents_for(plan, seed, "normal").items()}
    check_against(Bytes(), Kernels(np), plan, variables, cotangents, **TENSORS)


@needs_exact
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("terms", [1024, 1500])
def test_sums_beyond_24_bits_are_rounded_before_scale_gradients(terms, seed):
    pool = pools.Matmul(n=17, m=terms)
    plan = Plan.build({"a": (17, 3), "b": (95,), "c": (5, 7)}, ratio=10**9, pool=pool, include=lambda _: True)
    rng = np.random.default_rng(seed)
    variables, cotangents = values(plan, 2 * seed + 1, "normal")
    large = {k: rng.uniform(0.98, 0.99, x.shape).astype("f4") for k, x in variables.items() if "pool" in k}
    check_against(Bytes(), Kernels(np), plan, variables | large, cotangents_for(plan, seed, "normal"), **TENSORS)


@needs_exact
@pytest.mark.parametrize(("side", "terms"), [(700, 3), (300, 300)])
def test_sums_of_the_largest_integers(side, terms):
    most = 2**22 - 1
    left, right = torch.full((side, terms), 127.0), torch.full((terms, side), -127.0)
    for value in (most, -most, 128, -129, 2**15, -(2**15) - 1):
        found, wide = ByteSums(left, right), WideSums(left, right)
        for rows in (slice(0, 200), slice(200, side)):
            shape = (rows.stop - rows.start, side)
            here = found.add(torch.full(shape, value, dtype=torch.int32), rows)
            assert torch.equal(here, wide.add(torch.full(shape, value, dtype=torch.float64), rows))
            assert here[0, 0] == -127 * value * side
        assert torch.equal(found.total(), wide.total())
        assert found.total()[0, 0] == 127 * value * side


def test_products_that_saturate_are_not_exact():
    def saturating(x, y):
        pairs = x.to(torch.int32)[:, :, None] * y.to(torch.int32)[None]
        two = (pairs[:, 0::2] + pairs[:, 1::2]).clamp(-(2**15), 2**15 - 1)
        return two.sum(1)

    def right(x, y):
        return (x.double() @ y.double()).to(torch.int32)

    assert exact(right)
    assert not exact(saturating)


def test_small_or_huge_factors_take_other_products():
    assert ByteSums.holds(torch.empty(16, 2))
    assert not ByteSums.holds(torch.empty(16, 1))
    assert not ByteSums.holds(torch.empty(15, 2))
    assert ByteSums.holds(torch.empty(131_071, 2, device="meta"))
    assert not ByteSums.holds(torch.empty(131_072, 2, device="meta"))
    assert ByteSums.holds(torch.empty(16, 131_071, device="meta"))
    assert not ByteSums.holds(torch.empty(16, 131_072, device="meta"))


def test_the_environment_turns_them_off(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    try:
        for value, expected in (("0", False), ("1", EXACT)):
            monkeypatch.setenv("SMH_INT8", value)
            int8._probed.cache_clear()
            assert int8.available() is expected
        monkeypatch.setenv("SMH_INT8", "yes")
        int8._probed.cache_clear()
        with pytest.raises(BackendError, match="SMH_INT8 must be 0"):
            int8.available()
    finally:
        int8._probed.cache_clear()
