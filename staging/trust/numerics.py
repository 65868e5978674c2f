"""The arithmetic under attack: products of hostile operands, in every order, against integers.

The product of the library, by every backend that is installed, and sums of its terms in many orders, fused or not, are
compared with the oracle of the conformance suite, which computes in integers. As a control the same sums are taken in
plain float32, where orders do show.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np

from conformance import oracle
from conformance.bits import canonical_bits
from smh import exact
from smh.v2.backends.numpy import NumpyOps
from smh.v2.backends.registry import get_backend
from smh.grid import CHUNK, grid_bits
from smh.plan import Plan
from smh.v2.core.pools import Matmul
from trust.attacks import ATTACKS, F32, F64, TERMS, operands
from trust.record import Findings

ROWS = 5
FUSED = 2
"""For how many rows and columns fused sums are computed: term by term, in rational numbers."""
FRAMEWORKS = ("torch", "jax", "tensorflow")


def run(rounds: int, seed: int, terms: Iterable[int] = TERMS, backends: Iterable[str] | None = None) -> Findings:
    """Compare products of hostile operands, in so many rounds of all attacks and lengths."""
    findings = Findings("numerics")
    if backends is None:
        backends = ["numpy", *(name for name in FRAMEWORKS if importlib.util.find_spec(name))]
        for name in set(FRAMEWORKS) - set(backends):
            findings.skipped[f"backend {name}"] = "it is not installed"
    backends = list(backends)
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        for _ in range(rounds):
            for count in terms:
                for name in ATTACKS:
                    _attack(findings, rng, name, count, backends)
    for what in ("bits compared", "bits different", "control: entries of plain float32 sums that depend on the order"):
        findings.count(what, 0)
    control = findings.counts["control: entries of plain float32 sums that depend on the order"]
    findings.expect(control > 0, "the control saw no order in plain float32 sums: the orders are not different")
    return findings


def _attack(findings: Findings, rng: np.random.Generator, name: str, terms: int, backends: list[str]) -> None:
    a, b = operands(name, rng, ROWS, terms)
    expected = oracle.product(a, b)
    findings.count(f"products, {name}")
    what = f"{name}, {terms} terms"
    _compare(findings, exact.product(NumpyOps(), a, b), expected, f"{what}: the product")
    transposed = exact.transposed_product(NumpyOps(), np.ascontiguousarray(a.T), b)
    _compare(findings, transposed, expected, f"{what}: the product of a transposed operand")
    for backend in backends:
        _compare(findings, built(backend, a, b), expected, f"{what}: weights by {backend}")
    products = on_grid(a)[:, None, :] * on_grid(b.T)[None, :, :]
    finite = np.isfinite(a).all(axis=1)[:, None] & np.isfinite(b).all(axis=0)[None, :]
    for order, add in orders(rng).items():
        _compare(
            findings, np.where(finite, total(products, add), np.float32(np.nan)), expected, f"{what}: {order} sums"
        )
    findings.count("elements on ties of their grids", _grid_ties(a) + _grid_ties(b.T))
    findings.count("results on ties of float32", _result_ties(products, finite))
    part = slice(0, FUSED)
    sums = total(products[part, part], lambda chunk: chunk.sum(axis=-1), fused(a[part], b[:, part]))
    sums = np.where(finite[part, part], sums, np.float32(np.nan))
    _compare(findings, sums, expected[part, part], f"{what}: fused sums")
    plain = [add(a[:, None, :] * b.T[None, :, :]) for add in orders(rng).values()]
    depends = np.any([canonical_bits(x) != canonical_bits(plain[0]) for x in plain], axis=0)
    findings.count("control: entries of plain float32 sums that depend on the order", int(depends.sum()))


def _compare(findings: Findings, actual: F32, expected: F32, what: str) -> None:
    one, other = canonical_bits(actual), canonical_bits(expected)
    different = int(np.bitwise_count(one ^ other).sum())
    findings.count("bits compared", 32 * expected.size)
    findings.count("bits different", different)
    at = tuple(np.argwhere(one != other)[0]) if different else ()
    findings.expect(not different, f"{what}: {actual[at]!r} for {expected[at]!r}" if different else "")


def built(name: str, a: F32, b: F32) -> F32:
    """Return the product as the weights of a plan, by a backend."""
    rows, terms = a.shape
    pool = Matmul(n=rows, m=terms)
    plan = Plan.build({"w": (rows, rows)}, ratio=10**9, pool=pool, scale=1.0, learn_scale=False, gain=0)
    backend = get_backend(name)
    variables = {"pool/left": backend.asarray(a, None), "pool/right": backend.asarray(b, None)}
    return backend.to_numpy(backend.materialize(plan, variables)["w"])


def on_grid(rows: F32) -> F64:
    """Round each row to its grid (specification, section 3.1, rules 1 to 4), by a way of its own; 0 if not finite."""
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    x = np.where(finite & (np.abs(rows) >= 2.0**-120), rows, np.float32(0)).astype(np.float64)
    exponents = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1] - grid_bits(rows.shape[1])
    return np.ldexp(np.rint(np.ldexp(x, -exponents)), exponents)


def _grid_ties(rows: F32) -> int:
    """Count the elements that lie in the middle between two points of their grids."""
    grid = on_grid(rows)
    unit = np.frexp(np.abs(grid).max(axis=1, keepdims=True))[1] - grid_bits(rows.shape[1])
    away = np.abs(np.where(np.isfinite(rows), rows, np.float32(0)).astype(np.float64) - grid)
    return int(np.count_nonzero(np.ldexp(away, -unit) == 0.5))


def _result_ties(products: F64, finite: np.ndarray) -> int:
    """Count the sums, before their last rounding, that lie in the middle between two float32."""
    whole = sum(products[..., start : start + CHUNK].sum(axis=-1) for start in range(0, products.shape[-1], CHUNK))
    low = np.asarray(whole).view(np.int64) & (2**29 - 1)
    return int(np.count_nonzero(finite & (low == 2**28)))


Add = Callable[[np.ndarray], np.ndarray]


def orders(rng: np.random.Generator) -> dict[str, Add]:
    """Return ways to add along the last axis, one addition after another, in the type of the terms."""

    def ascending(x: np.ndarray) -> np.ndarray:
        return np.add.accumulate(x, axis=-1)[..., -1]

    def shuffled(x: np.ndarray) -> np.ndarray:
        return ascending(x[..., rng.permutation(x.shape[-1])])

    def blocked(x: np.ndarray) -> np.ndarray:
        cuts = np.sort(rng.integers(0, x.shape[-1], 7))
        blocks = [block for block in np.split(x, cuts, axis=-1) if block.shape[-1]]
        return ascending(np.stack([ascending(block) for block in blocks], axis=-1))

    def pairwise(x: np.ndarray) -> np.ndarray:
        while x.shape[-1] > 1:
            if x.shape[-1] % 2:
                x = np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1)
            x = x[..., ::2] + x[..., 1::2]
        return x[..., 0]

    def interleaved(x: np.ndarray) -> np.ndarray:
        return ascending(np.stack([ascending(x[..., k::8]) for k in range(min(8, x.shape[-1]))], axis=-1))

    return {
        "ascending": ascending,
        "reversed": lambda x: ascending(x[..., ::-1]),
        "shuffled": shuffled,
        "blocked": blocked,
        "pairwise": pairwise,
        "interleaved": interleaved,
        "NumPy's own": lambda x: x.sum(axis=-1),
    }


def total(products: F64, add: Add, sums: list[F64] | None = None) -> F32:
    """Add the terms of each chunk in some way, the chunks in ascending order, and round once (rules 5 and 7).

    Parameters
    ----------
    products : array, shape (rows, columns, terms), float64
        The terms.
    add : callable
        How the terms of a chunk are added.
    sums : list of array, optional
        The sums of the chunks, if they are known already.
    """
    starts = range(0, products.shape[-1], CHUNK)
    found = sums or [add(products[..., start : start + CHUNK]) for start in starts]
    whole = found[0]
    for chunk in found[1:]:
        whole = whole + chunk
    return np.where(np.abs(whole) < 2.0**-120, 0.0, whole).astype(np.float32)


def fused(a: F32, b: F32) -> list[F64]:
    """Return the sums of all chunks by fused multiply-adds: each rounds the exact ``x * y + sum`` once, to float64."""
    left, right = on_grid(a), on_grid(b.T)
    found = []
    for start in range(0, a.shape[1], CHUNK):
        sums = np.zeros((len(left), len(right)))
        for i, row in enumerate(left[:, start : start + CHUNK].tolist()):
            for j, column in enumerate(right[:, start : start + CHUNK].tolist()):
                sums[i, j] = _fused_sum(row, column)
        found.append(sums)
    return found


def _fused_sum(row: list[float], column: list[float]) -> float:
    result = 0.0
    for x, y in zip(row, column, strict=True):
        result = float(Fraction(x) * Fraction(y) + Fraction(result))  # rounded once, half to even
    return result
