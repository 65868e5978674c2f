"""The arithmetic under attack: weights and gradients of hostile arrays, by every backend, against integers.

Expected values come from the oracle of the conformance suite, which computes in integers. Besides, the sums of integers
are taken in many orders, in float32 where the specification says that it holds them and in float64 elsewhere. As a
control the same sums are taken of the values themselves in plain float32, where orders do show.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import numpy as np

from conformance import oracle
from conformance.bits import canonical_bits
from smh.backends.registry import get_backend
from smh.core.plan import Plan
from smh.core.pools import Matmul
from trust.attacks import ATTACKS, BITS, F32, TERMS, operands
from trust.record import Findings

ROWS = 4
FRAMEWORKS = ("torch", "jax", "tensorflow")
CONTROL = "control: entries of plain float32 sums that depend on the order"
Results = dict[str, F32]


def run(
    rounds: int,
    seed: int,
    terms: Iterable[int] = TERMS,
    backends: Iterable[str] | None = None,
    widths: Iterable[int] = BITS,
) -> Findings:
    """Compare weights and gradients of hostile arrays, in so many rounds of all attacks, lengths and widths."""
    findings = Findings("numerics")
    if backends is None:
        backends = ["numpy", *(name for name in FRAMEWORKS if importlib.util.find_spec(name))]
        for name in set(FRAMEWORKS) - set(backends):
            findings.skipped[f"backend {name}"] = "it is not installed"
    backends, widths = list(backends), list(widths)
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        for _ in range(rounds):
            for count in terms:
                for bits in widths:
                    for name in ATTACKS:
                        _attack(findings, rng, name, count, bits, backends)
    for what in ("bits compared", "bits different", "elements on ties of their grids", CONTROL):
        findings.count(what, 0)
    findings.expect(
        findings.counts[CONTROL] > 0, "the control saw no order in plain float32 sums: the orders are not different"
    )
    return findings


def _attack(
    findings: Findings, rng: np.random.Generator, name: str, terms: int, bits: int, backends: list[str]
) -> None:
    a, b = operands(name, rng, ROWS, terms, bits)
    plan = plan_of(terms, bits)
    variables = {"pool/left": a, "pool/right": b, "scale/w": np.float32(rng.choice([1.0, -0.3, 2.0**-40]))}
    cotangents = {"w": operands(name, rng, ROWS, ROWS, bits)[0]}
    described = plan.to_dict()
    expected = oracle.weights(described, variables)
    expected |= oracle.gradients(described, variables, cotangents)
    findings.count(f"plans, {name}")
    what = f"{name}, {terms} terms of {bits} bits"
    for backend in backends:
        for part, x in computed(backend, plan, variables, cotangents).items():
            _compare(findings, x, expected[part], f"{what}: {part!r} by {backend}")
    left, right = (oracle.grid(x, bits - 1, 30, 30) for x in (a, b))
    integers = left.integers @ right.integers
    products = left.integers[:, None, :] * right.integers.T[None, :, :]
    dtype = np.float32 if terms * 4 ** (bits - 1) <= 2**24 else np.float64
    for order, add in orders(rng).items():
        found = add(products.astype(dtype))
        findings.expect(np.array_equal(found, integers), f"{what}: {order} sums of integers differ")
        findings.count("sums of integers", found.size)
    findings.count("elements on ties of their grids", _ties(a, left) + _ties(b, right))
    plain = [add(a[:, None, :] * b.T[None, :, :]) for add in orders(rng).values()]
    depends = np.any([canonical_bits(x) != canonical_bits(plain[0]) for x in plain], axis=0)
    findings.count(CONTROL, int(depends.sum()))


def plan_of(terms: int, bits: int) -> Plan:
    """Return the plan of one tensor whose weights are the product of two arrays, times its scale."""
    pool = Matmul(n=ROWS, m=terms, bits=bits)
    return Plan.build({"w": (ROWS, ROWS)}, ratio=10**9, pool=pool, scale=1.0)


def computed(name: str, plan: Plan, variables: Results, cotangents: Results) -> Results:
    """Return weights and gradients of a plan by a backend."""
    backend = get_backend(name)
    given = {key: backend.asarray(x, None) for key, x in variables.items()}
    found = dict(backend.materialize(plan, given))
    found |= backend.vjp(plan, given, {key: backend.asarray(x, None) for key, x in cotangents.items()})
    return {key: backend.to_numpy(x) for key, x in found.items()}


def _compare(findings: Findings, actual: F32, expected: F32, what: str) -> None:
    one, other = canonical_bits(actual), canonical_bits(expected)
    different = int(np.bitwise_count(one ^ other).sum())
    findings.count("bits compared", 32 * one.size)
    findings.count("bits different", different)
    at = tuple(np.argwhere(one != other)[0]) if different else ()
    findings.expect(not different, f"{what}: {actual[at]!r} for {expected[at]!r}" if different else "")


def _ties(x: F32, one: oracle.Grid) -> int:
    """Return how many elements lie in the middle of two values of their grid."""
    if one.unit is None:
        return 0
    halves = np.ldexp(x.astype(np.float64), 1 - one.unit)
    return int(np.count_nonzero((halves % 2 == 1) & np.isfinite(halves)))


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
