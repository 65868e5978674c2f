"""The arithmetic under attack (``python -m trust numerics``), and that the harness would notice."""

import numpy as np
import pytest

from trust import attacks, numerics

ROWS = 4
TERMS, WIDTHS = (1, 33, 1024, 1025), (2, 8, 16)


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="module")
def found():
    """What one round finds with NumPy."""
    return numerics.run(1, seed=0, terms=TERMS, backends=["numpy"], widths=WIDTHS)


def test_no_bit_is_different(found):
    assert found.failures == []
    assert found.counts["bits different"] == 0
    assert found.counts["bits compared"] > 50_000
    rounds = len(TERMS) * len(WIDTHS)
    assert all(found.counts[f"plans, {name}"] == rounds for name in attacks.ATTACKS)


def test_the_attacks_hit(found):
    assert found.counts["elements on ties of their grids"] > 5_000
    assert found.counts[numerics.CONTROL] > 500


@pytest.mark.parametrize("backend", numerics.FRAMEWORKS)
def test_no_bit_is_different_elsewhere(backend):
    pytest.importorskip(backend)
    assert numerics.run(1, seed=1, backends=[backend], terms=[33], widths=[8]).failures == []


def floats(backend, plan, variables, cotangents):
    """Compute from the values themselves, without grids."""
    return {"w": variables["pool/left"] @ variables["pool/right"] * variables["scale/w"]}


def up(backend, plan, variables, cotangents):
    """Round ties of the grid up."""
    moved = {name: np.nextafter(x, np.float32(np.inf)) if x.ndim else x for name, x in variables.items()}
    return computed(backend, plan, moved, cotangents)


computed = numerics.computed


@pytest.mark.parametrize(
    ("broken", "name"), [(floats, "cancelling"), (up, "ties of the grid"), (up, "limits of exponents")]
)
def test_the_harness_finds_a_backend_that_is_not_exact(monkeypatch, broken, name):
    monkeypatch.setattr(numerics, "computed", broken)
    monkeypatch.setattr(numerics, "ATTACKS", {name: attacks.ATTACKS[name]})
    findings = numerics.run(3, seed=0, terms=[33], backends=["numpy"])
    assert findings.counts["bits different"] > 0
    assert any("'w' by numpy" in failure for failure in findings.failures)


def test_the_harness_finds_a_control_that_sees_nothing(monkeypatch):
    monkeypatch.setattr(numerics, "orders", lambda rng: {"one": lambda x: x.sum(axis=-1)})
    findings = numerics.run(1, seed=0, terms=[33], backends=[])
    assert any("the control saw no order" in failure for failure in findings.failures)


@pytest.mark.parametrize("order", list(numerics.orders(np.random.default_rng(0))))
def test_orders_add_all_terms_once(order):
    rng = np.random.default_rng(1)
    add = numerics.orders(rng)[order]
    for terms in (1, 2, 7, 8, 9, 100):
        x = rng.integers(-1000, 1000, (3, 2, terms)).astype(np.float64)
        assert np.array_equal(add(x), x.sum(axis=-1))


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("bits", attacks.BITS)
def test_attacks_have_their_shapes(name, bits):
    a, b = attacks.operands(name, np.random.default_rng(2), ROWS, 65, bits)
    assert a.dtype == b.dtype == np.float32
    assert a.shape == b.shape[::-1] == (ROWS, 65)
