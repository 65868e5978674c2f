"""The arithmetic under attack (``python -m trust numerics``), and that the harness would notice."""

import numpy as np
import pytest

from conformance import oracle
from conformance.bits import assert_same_bits
from smh import exact
from smh.v2.backends.numpy import NumpyOps
from trust import attacks, numerics

ROWS = 4


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="module")
def found():
    """What one round finds with NumPy."""
    return numerics.run(1, seed=0, backends=["numpy"])


def test_no_bit_is_different(found):
    assert found.failures == []
    assert found.counts["bits different"] == 0
    assert found.counts["bits compared"] > 500_000
    assert all(found.counts[f"products, {name}"] == len(attacks.TERMS) for name in attacks.ATTACKS)


def test_the_attacks_hit(found):
    assert found.counts["elements on ties of their grids"] > 10_000
    assert found.counts["results on ties of float32"] > 50
    assert found.counts["control: entries of plain float32 sums that depend on the order"] > 500


def plain(a, b):
    return (a.astype(np.float64) @ b).astype(np.float32)


def up(a, b):
    """Return the exact product with ties of the grid rounded up."""
    rows, columns = (np.nextafter(x, np.float32(np.inf)) for x in (a, b))
    return oracle.product(rows, columns)


@pytest.mark.parametrize(
    ("broken", "name"), [(plain, "ties of the grid"), (plain, "cancelling"), (up, "small beside large")]
)
def test_the_harness_finds_a_product_that_is_not_exact(monkeypatch, broken, name):
    monkeypatch.setattr(numerics.exact, "product", lambda ops, a, b: broken(a, b))
    monkeypatch.setattr(numerics, "ATTACKS", {name: attacks.ATTACKS[name]})
    findings = numerics.run(1, seed=0, terms=[33, 513], backends=[])
    assert findings.counts["bits different"] > 0
    assert any("the product:" in failure for failure in findings.failures)


def test_the_harness_finds_a_backend_that_is_not_exact(monkeypatch):
    monkeypatch.setattr(numerics, "built", lambda name, a, b: plain(a, b))
    findings = numerics.run(1, seed=0, terms=[513], backends=["numpy"])
    assert any("weights by numpy" in failure for failure in findings.failures)


@pytest.mark.parametrize("order", list(numerics.orders(np.random.default_rng(0))))
def test_orders_add_all_terms_once(order):
    rng = np.random.default_rng(1)
    add = numerics.orders(rng)[order]
    for terms in (1, 2, 7, 8, 9, 100):
        x = rng.integers(-1000, 1000, (3, 2, terms)).astype(np.float64)
        assert np.array_equal(add(x), x.sum(axis=-1))


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_transposed_attacks_give_transposed_products(name):
    a, b = attacks.operands(name, np.random.default_rng(2), ROWS, 65)
    assert a.dtype == b.dtype == np.float32
    assert a.shape == b.shape[::-1] == (ROWS, 65)
    found = exact.product(NumpyOps(), np.ascontiguousarray(b.T), np.ascontiguousarray(a.T))
    assert_same_bits(found.T, oracle.product(a, b))
