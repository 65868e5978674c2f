"""The oracle against facts that do not come from it: rational arithmetic, published values, finite differences."""

import hashlib
import json
import math
from fractions import Fraction

import einops
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from conformance.oracle.grid import check_budget

NAN = 0x7FC00000
INF = math.inf

patterns = st.integers(0, 2**32 - 1)


def bits(x):
    return oracle.bits_of(x).reshape(-1).tolist()


def same(actual, expected):
    assert bits(actual) == canonical(np.asarray(expected, dtype=np.float64).astype(np.float32))


def canonical(x):
    """Bits with one NaN and one zero."""
    return np.where(np.isnan(x), NAN, np.where(x == 0, 0, oracle.bits_of(x))).reshape(-1).tolist()


# What plans are put together from


def matmul(n, m, bits=8, gain=0, exponents=None):
    return {"kind": "matmul", "n": n, "m": m, "bits": bits, "exponents": exponents, "gain": gain}


def kronecker(d, t, bits=8, gain=0, exponents=None):
    return {"kind": "kronecker", "d": d, "t": t, "bits": bits, "exponents": exponents, "gain": gain}


def hashed(capacity, size, hashes=1, signed=True, bits=8, gain=0, exponents=None):
    shape = {"kind": "hash", "capacity": capacity, "size": size, "hashes": hashes, "signed": signed}
    return shape | {"bits": bits, "exponents": exponents, "gain": gain}


def joined(kind, *parts):
    return {"kind": kind, "parts": list(parts)}


def tensor(name, *shape, scale="fan_in", learn=True, kappa=0, modifiers=(), axes=None, view=None):
    axes = ("", "o", "i o", "w i o", "h w i o")[len(shape)] if axes is None else axes
    found = {"name": name, "shape": list(shape), "scale": scale, "learn_scale": learn, "kappa": kappa}
    return found | {"modifiers": list(modifiers), "axes": axes, "view": view}


def plan(pool, *tensors, layout="basic", seed=0):
    offset, placed = 0, []
    for one in tensors:
        placed.append(one | {"offset": offset})
        offset += math.prod(one["shape"])
    return {"layout": layout, "pool": pool, "seed": seed, "tensors": placed, "version": "2.0"}


# A second reference, slow and tiny: real numbers are fractions, float32 and float64 numbers are Python floats


def rounded(x, low=None):
    """Float32 nearest to a fraction, ties to even, by counting in units of the last place."""
    x = Fraction(x)
    if x == 0 or (low is not None and abs(x) < Fraction(2) ** low):
        return 0.0
    e = exponent_of(x)
    place = Fraction(2) ** (max(e, -125) - 24)
    x = round(x / place) * place
    return math.copysign(INF, x) if abs(x) >= 2**128 else float(x)


def exponent_of(x):
    """The e with 2**(e - 1) <= |x| < 2**e."""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length() - 1
    while abs(x) >= Fraction(2) ** e:
        e += 1
    return e


def times(a, b, low=None):
    """Float32 of the floored product; IEEE 754 decides what is not finite."""
    return rounded(Fraction(a) * Fraction(b), low) if math.isfinite(a) and math.isfinite(b) else a * b


def ascending(terms, low):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return rounded(total, low) if math.isfinite(total) else total


def on_grid(values, B, low, high, exponent=None):
    """Values on the grid and the exponent, None where all are 0; no values where the array is poisoned."""
    if not all(map(math.isfinite, values)):
        return None, None
    values, e = [Fraction(value) for value in values], exponent
    if e is None:
        top = max(map(abs, values))
        if top < Fraction(2) ** -low:
            return [Fraction(0)] * len(values), None
        e = exponent_of(top) - 2
        while top > (1 - Fraction(1, 2**B)) * Fraction(2) ** e:
            e += 1
        if e > high:
            return None, None
    unit, most = Fraction(2) ** (e - B), 2**B - 1
    found = [min(most, max(-most, round(value / unit))) for value in values]
    return [q * unit for q in found], e if any(found) else None


def reads(pool, seed):
    """For every virtual weight, (factor, position in the first array, position in the second) of its terms."""
    if pool["kind"] == "matmul":
        n, m = pool["n"], pool["m"]
        return [[(1, r * m + k, k * n + c) for k in range(m)] for r in range(n) for c in range(n)]
    if pool["kind"] == "kronecker":
        d, t = range(pool["d"]), range(pool["t"])
        at = np.arange(len(t) * len(d) ** 2).reshape(len(t), len(d), len(d)).tolist()
        return [[(1, at[r][i][j], at[r][k][h]) for r in t] for i in d for k in d for j in d for h in d]
    words = [[oracle.word(oracle.key(seed, c), i) for c in range(2 * pool["hashes"])] for i in range(pool["capacity"])]
    size, signed = pool["size"], pool["signed"]
    return [
        [(1 - 2 * (signed and w[2 * m + 1] % 2), m * size + w[2 * m] % size, 0) for m in range(pool["hashes"])]
        for w in words
    ]


def children(pool, name, seed):
    return [(p, f"{name}/{i}", oracle.key(seed, 65536 + i)) for i, p in enumerate(pool["parts"])]


def arrays(pool, name, variables):
    """Grids and exponents of a leaf's two arrays; a hash has a second one that is 1."""
    names = [f"{name}/table"] if pool["kind"] == "hash" else [f"{name}/left", f"{name}/right"]
    fixed = pool["exponents"] or [None, None]
    values = [variables[one].reshape(-1).tolist() for one in names]
    found = [on_grid(x, pool["bits"] - 1, 30, 30, e) for x, e in zip(values, fixed, strict=False)]
    return names, (found + [([Fraction(1)], 0)])[:2], Fraction(2) ** (len(names) * pool["gain"])


def virtual(pool, name, seed, variables):
    if "parts" in pool:
        vs = [virtual(part, n, s, variables) for part, n, s in children(pool, name, seed)]
        if pool["kind"] == "sum":
            return [ascending(terms, -88) for terms in zip(*vs, strict=False)]
        found = vs[0]
        for v in vs[1:]:
            found = [times(a, b, -88) for a, b in zip(found, v, strict=False)]
        return found
    _, ((a, _), (b, _)), gain = arrays(pool, name, variables)
    cells = reads(pool, seed)
    if a is None or b is None:
        return [math.nan] * len(cells)
    return [rounded(gain * sum(f * a[i] * b[k] for f, i, k in cell)) for cell in cells]


def gradient(pool, name, seed, variables, dv):
    if "parts" in pool:
        vs = [virtual(part, n, s, variables) for part, n, s in children(pool, name, seed)]
        found = {}
        for p, (part, n, s) in enumerate(children(pool, name, seed)):
            own = list(dv)
            for q, v in enumerate(vs):
                if q != p and pool["kind"] == "product":
                    own = [times(a, b, -120) for a, b in zip(own, v, strict=False)]
            found |= gradient(part, n, s, variables, own + [0.0] * (len(vs[p]) - len(own)))
        return found
    names, ((a, _), (b, _)), gain = arrays(pool, name, variables)
    Q, _ = on_grid(dv, 22, 70, 90)
    sizes = [variables[one].size for one in names]
    da, db = [Fraction(0)] * sizes[0], [Fraction(0)] * (sizes + [1])[1]
    for i, cell in enumerate(reads(pool, seed) if Q else []):
        for factor, p, q in cell:
            da[p] += gain * factor * Q[i] * (b[q] if b else 0)
            db[q] += gain * factor * Q[i] * (a[p] if a else 0)
    found = [[rounded(x, -120) if Q and other else math.nan for x in d] for d, other in ((da, b), (db, a))]
    return dict(zip(names, found, strict=False))


def multiplies(pool):
    return pool["kind"] == "product" or any(map(multiplies, pool.get("parts", [])))


def bound(pool, name, variables, v):
    if multiplies(pool):
        top = Fraction(max(map(abs, v)))
        return -INF if top == 0 else exponent_of(top) - (top == Fraction(2) ** (exponent_of(top) - 1))
    if pool["kind"] == "sum":
        best = max(bound(part, n, variables, v) for part, n, _ in children(pool, name, 0))
        return best + math.ceil(math.log2(len(pool["parts"])))
    _, ((_, e), (_, f)), gain = arrays(pool, name, variables)
    if e is None or f is None:
        return -INF
    terms = pool[{"matmul": "m", "kronecker": "t", "hash": "hashes"}[pool["kind"]]]
    return e + f + math.ceil(math.log2(terms)) + exponent_of(gain) - 1


def poisoned(pool, name, variables):
    if "parts" in pool:
        return any(poisoned(part, n, variables) for part, n, _ in children(pool, name, 0))
    return any(a is None for a, _ in arrays(pool, name, variables)[1])


def scale_gradient(case, one, G, v, variables, capacity):
    top = max(map(abs, G))
    if not all(map(math.isfinite, G + v)) or poisoned(case["pool"], "pool", variables) or top >= 2**90:
        return math.nan
    E = bound(case["pool"], "pool", variables, v)
    if case["layout"] == "padding" and one["offset"] + len(v) > capacity:
        E = max(E, -6)
    if top < Fraction(1, 2**70) or E == -INF:
        return 0.0
    unit = Fraction(2) ** (exponent_of(Fraction(top)) + E - 53 + math.ceil(math.log2(len(G))))
    total = unit * sum(round(Fraction(g) * Fraction(x) / unit) for g, x in zip(G, v, strict=True))
    return rounded(total / 2 ** one["kappa"], -120)


def reference(case, variables, cotangents):
    """Weights and gradients of a plan without views."""
    v = virtual(case["pool"], "pool", case["seed"], variables)
    capacity, N = len(v), sum(math.prod(one["shape"]) for one in case["tensors"])
    cells = [v[i % capacity] if case["layout"] == "cyclic" or i < capacity else rounded(0.01) for i in range(N)]
    weights, gradients, dcells = {}, {}, [0.0] * N
    for one in case["tensors"]:
        name, at = one["name"], slice(one["offset"], one["offset"] + math.prod(one["shape"]))
        rho = float(variables[f"scale/{name}"] if one["learn_scale"] else np.float32(one["scale"]))
        s = Fraction(rho) / 2 ** one["kappa"] if math.isfinite(rho) else None
        s = math.nan if s is None or abs(s) >= 2**30 else 0.0 if abs(s) < Fraction(1, 2**30) else float(s)
        stages = [[times(s, x) for x in cells[at]]]
        for modifier in one["modifiers"]:
            old = stages[-1]
            new = [max(w, 0.0) for w in old] if modifier == "relu" else [1.0 if w >= 0 else -1.0 for w in old]
            stages.append([w if math.isnan(w) else m for w, m in zip(old, new, strict=True)])
        weights[name] = stages[-1]
        drho = 0.0
        if name in cotangents:
            G = [0.0 if abs(g) < 2.0**-120 else g for g in cotangents[name].reshape(-1).tolist()]
            for modifier, w in reversed(list(zip(one["modifiers"], stages, strict=False))):
                G = [g if modifier == "sign" or x > 0 else 0.0 for g, x in zip(G, w, strict=True)]
            dcells[at] = [times(s, g, -120) for g in G]
            drho = scale_gradient(case, one, G, cells[at], variables, capacity)
        if one["learn_scale"]:
            gradients[f"scale/{name}"] = [drho]
    dv = [dcells[c::capacity] if case["layout"] == "cyclic" else dcells[c : c + 1] for c in range(capacity)]
    dv = [ascending(terms, -120) if terms else 0.0 for terms in dv]
    return weights, gradient(case["pool"], "pool", case["seed"], variables, dv) | gradients


# Random plans, variables and cotangents for it


def random_leaf(rng):
    own = {"bits": int(rng.integers(2, 17)), "gain": int(rng.choice([0, 0, 1, 5, 20]))}
    fixed = [int(e) for e in rng.choice([-29, -2, 0, 2, 3, 30], 2)] if rng.random() < 0.15 else None
    kind = rng.choice(["matmul", "kronecker", "hash"])
    if kind == "hash":
        capacity, size, hashes = (int(x) for x in rng.integers(1, (21, 6, 4)))
        return hashed(capacity, size, hashes, bool(rng.random() < 0.7), exponents=fixed and fixed[:1], **own)
    if kind == "matmul":
        return matmul(int(rng.integers(1, 5)), int(rng.integers(1, 4)), exponents=fixed, **own)
    return kronecker(int(rng.integers(1, 3)), int(rng.integers(1, 4)), exponents=fixed, **own)


def random_pool(rng, depth=2):
    if depth == 0 or rng.random() < 0.5:
        return random_leaf(rng)
    return joined(rng.choice(["sum", "product"]), *[random_pool(rng, depth - 1) for _ in range(rng.integers(1, 4))])


def random_array(rng, shape, ends):
    """Values around one power of two, mostly moderate and often at one of the ends; few bits, so that ties occur."""
    high = int(rng.choice([-2, 0, 3]) if rng.random() < 0.85 else rng.choice(ends))
    spread = rng.choice([1, 3, 12, 40])
    m = rng.integers(2**23, 2**24, shape) >> (drop := rng.integers(0, 24)) << drop
    exponents = np.maximum(high - rng.integers(0, spread, shape), -149 + 24)
    x = np.ldexp(m * rng.choice([-1.0, 1.0], shape), exponents - 24)
    x = np.where(rng.random(shape) < rng.choice([0, 0.1, 1], p=[0.7, 0.27, 0.03]), 0.0, x)
    special = rng.choice([math.nan, INF, -INF, 1e-45, -0.0])
    x = np.where(rng.random(shape) < rng.choice([0, 0.1], p=[0.95, 0.05]), special, x)
    return np.asarray(x, dtype=np.float32)


def random_case(seed):
    rng = np.random.default_rng(seed)
    pool = random_pool(rng)
    tensors = []
    for t in range(rng.integers(1, 4)):
        learn = bool(rng.random() < 0.8)
        modifiers = [str(x) for x in rng.choice(["relu", "sign"], rng.choice([0, 0, 1, 2]))]
        scale, kappa = float(rng.choice([0.5, 1.25, 2.0**-30])), int(learn and rng.choice([0, 0, 7, 30]))
        shape = [int(x) for x in rng.integers(1, 4, rng.integers(0, 3))]
        tensors.append(tensor(f"t{t}", *shape, scale=scale, learn=learn, kappa=kappa, modifiers=modifiers))
    layout = str(rng.choice(["basic", "cyclic", "padding"]))
    case = plan(pool, *tensors, layout=layout, seed=int(rng.integers(2**32)))
    ends = [-140, -121, -32, -31, -30, -29, -28, 29, 30, 31, 61, 128]
    variables = {name: random_array(rng, shape, ends) for name, shape in oracle.variable_shapes(case).items()}
    if layout == "basic" and sum(math.prod(t["shape"]) for t in tensors) > oracle.virtual(case, variables).size:
        case["layout"] = "padding"
    ends = [-121, -119, -99, -71, -70, -69, -68, -40, 40, 60, 89, 90, 91, 92, 120, 128]
    cotangents = {t["name"]: random_array(rng, t["shape"], ends) for t in tensors if rng.random() < 0.9}
    return case, variables, cotangents


@settings(max_examples=4 * settings.default.max_examples)
@given(st.integers(0, 2**32))
def test_weights_and_gradients_are_those_of_fractions(seed):
    case, variables, cotangents = random_case(seed)
    weights, gradients = reference(case, variables, cotangents)
    found = oracle.weights(json.dumps(case), variables)
    for name, w in weights.items():
        same(found[name], w)
    found = oracle.gradients(case, variables, cotangents)
    assert list(found) == list(variables)
    for name, x in variables.items():
        assert found[name].shape == x.shape
        same(found[name], gradients[name])


@given(st.integers(0, 2**32))
def test_bounds_hold_and_nothing_is_subnormal(seed):
    case, variables, cotangents = random_case(seed)
    v = oracle.virtual(case, variables)
    assert set(bits(v)) & {0x80000000} == set()
    weights = oracle.weights(case, variables).values()
    gradients = oracle.gradients(case, variables, cotangents).values()
    for x in (v, *weights, *gradients):
        magnitude = np.abs(x)
        assert not ((magnitude > 0) & (magnitude < 2.0**-120)).any()
    N = sum(math.prod(t["shape"]) for t in case["tensors"])
    cells = v[np.arange(N) % v.size] if case["layout"] == "cyclic" else v[:N]
    for one, E in zip(case["tensors"], oracle.bounds(case, variables).values(), strict=True):
        shown = cells[one["offset"] : one["offset"] + math.prod(one["shape"])]
        assert math.isnan(E) or (np.abs(shown.astype(np.float64)) <= 2.0**E).all()


@given(st.integers(0, 2**32))
def test_integers_and_values_on_the_grid_generate_the_same(seed):
    case, variables, cotangents = random_case(seed)
    values = variables | {name: one.value for name, one in oracle.grids(case, variables).items()}
    assert oracle.digest(case, values) == oracle.digest(case, variables)
    before, after = (oracle.gradients(case, x, cotangents) for x in (variables, values))
    assert {name: bits(x) for name, x in before.items()} == {name: bits(x) for name, x in after.items()}


# Float32 in integers


@given(st.lists(st.floats(), min_size=1), st.lists(st.tuples(patterns, st.integers(-3, 3)), min_size=1))
def test_rounding_is_a_cast(values, neighbours):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        halves = oracle.from_bits([b for b, _ in neighbours]).astype(np.float64)  # a NaN may be a signalling one
        halves = halves * (1 + np.asarray([n for _, n in neighbours]) * 2.0**-25)  # ties and what is next to them
        x = np.concatenate([values, halves])
        assert bits(oracle.round32(x)) == canonical(x.astype(np.float32))
        assert bits(oracle.round32(x, -120)) == canonical(np.where(np.abs(x) < 2.0**-120, 0, x).astype(np.float32))


@given(st.integers(-(2**53), 2**53), st.integers(-300, 200), st.sampled_from([None, -120, -88]))
@example(2**53 - 1, -173, -120)  # just below 2**-120: floored, though it would round up to it
@example(2**53 - 1, -173, None)
@example(3, -150, None)
@example(1, -150, None)
@example(2**24 + 1, 0, None)
@example(2**25 - 1, 103, None)
def test_rounding_is_that_of_fractions(m, k, low):
    found = oracle.rounded(m, k, -INF if low is None else low)
    same(found, rounded(m * Fraction(2) ** k, low))


def test_rounding_by_hand():
    assert bits(oracle.rounded([2**24 + 1, 2**24 + 3, -(2**24) - 1], 0)) == bits([2.0**24, 2.0**24 + 4, -(2.0**24)])
    assert bits(oracle.rounded([2**24 - 1, 2**25 - 1, 2**25 - 2], [104, 103, 103])) == [
        0x7F7FFFFF,
        0x7F800000,
        0x7F7FFFFF,
    ]
    assert bits(oracle.rounded([1, 3, 2, -1], [-150, -150, -150, -150])) == [0, 2, 1, 0]
    assert bits(oracle.rounded([1, 2**53 - 1, -1], [-120, -173, -120], -120)) == [0x03800000, 0, 0x83800000]
    with pytest.raises(AssertionError, match="float64 does not hold"):
        oracle.rounded(2**53 + 1, 0)


@given(st.lists(patterns, min_size=1))
@example([0x80000000, 0x03800000, 0x037FFFFF, 0x83800000, 0x007FFFFF, 1, 0x7F800001, 0xFFC12345, 0xFF800000])
def test_floor(values):
    x = oracle.from_bits(values)
    assert bits(oracle.floor(x, -120)) == canonical(np.where(np.abs(x) < np.float32(2.0**-120), np.float32(0), x))


@given(st.lists(st.tuples(patterns, patterns), min_size=1))
@example(
    [(0x7F800000, 0), (0x7F800000, 1), (0x7F7FFFFF, 0x3F800001), (0x217FFC00, 0x21800400), (0x21800000, 0x21800000)]
)
def test_multiplication_is_that_of_the_machine(pairs):
    a, b = (oracle.from_bits(side) for side in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        assert bits(oracle.multiply(a, b)) == canonical(a * b)
        wide = a.astype(np.float64) * b.astype(np.float64)
        expected = np.where(np.abs(wide) < 2.0**-120, 0, wide).astype(np.float32)
    assert bits(oracle.multiply(a, b, -120)) == canonical(expected)


# Grid


def test_grid_by_hand():
    def found(x, *rest, **named):
        q = oracle.grid(np.float32(x), *rest, **named)
        return q.integers.tolist(), q.unit, q.exponent

    assert found([1, -0.5, 2.5 / 64, 3.5 / 64, -2.5 / 64], 7, 30, 30) == ([64, -32, 2, 4, -2], -6, 1)
    assert found([127 / 128, -1 / 128], 7, 30, 30) == ([127, -1], -7, 0)
    assert found([127 / 128 + 2**-20], 7, 30, 30) == ([64], -6, 1)
    assert found([0.5], 1, 30, 30) == ([1], -1, 0)
    assert found([0.75], 1, 30, 30) == ([1], 0, 1)  # 0.75 rounds to 1
    assert found([2.0**-30], 7, 30, 30) == ([64], -36, -29)
    assert found([2.0**-30 - 2.0**-54, 0], 7, 30, 30) == ([0, 0], 0, None)
    assert found([0.0, -0.0], 7, 30, 30) == ([0, 0], 0, None)
    assert found([(1 - 2**-7) * 2.0**30], 7, 30, 30) == ([127], 23, 30)
    for x in (2.0**30, 2.0**127, INF, -INF, math.nan):
        assert found([x, 1], 7, 30, 30) == ([0, 0], None, None)
        assert bits(oracle.grid([x, 1], 7, 30, 30).value) == [NAN, NAN]
    assert found([2.0**-70, 2.0**90 * (1 - 2**-22)], 22, 70, 90) == ([0, 2**22 - 1], 68, 90)
    assert found([2.0**90], 22, 70, 90)[1] is None

    assert found([1, -3, 0.3, 2.0**127, -(2.0**31)], 3, 30, 30, exponent=0) == ([7, -7, 2, 7, -7], -3, 0)
    assert found([1, 2.0**-40], 3, 30, 30, exponent=30) == ([0, 0], 27, None)
    assert found([2.0**-31 * 1.5], 1, 30, 30, exponent=-29) == ([1], -30, -29)
    assert found([1, INF], 3, 30, 30, exponent=0) == ([0, 0], None, None)


@given(st.lists(patterns, min_size=1, max_size=8), st.integers(1, 22), st.none() | st.integers(-29, 30), st.booleans())
def test_grid(values, B, exponent, moderate):
    x = oracle.from_bits([b & 0x87FFFFFF | 0x38000000 if moderate else b for b in values])
    low, high = (30, 30) if B < 16 else (70, 90)
    found = oracle.grid(x, B, low, high, exponent)
    values, e = on_grid(x.tolist(), B, low, high, exponent)
    assert found.exponent == e
    assert (found.unit is None) == (values is None)
    if values is None:
        return
    assert [int(q) * Fraction(2) ** found.unit for q in found.integers] == values
    assert [Fraction(float(value)) for value in found.value] == values
    again = oracle.grid(found.value, B, low, high, exponent)
    assert again.integers.tolist() == found.integers.tolist()
    assert again.exponent == found.exponent
    most = np.abs(found.integers).max()
    assert most <= 2**B - 1
    if found.exponent is not None and exponent is None:
        assert most >= 2 ** (B - 1)
        assert found.unit == again.unit


def test_products_by_hand():
    a, b = oracle.Grid(np.array([[1, -2], [3, 0]]), -5, 7), oracle.Grid(np.array([[4], [5]]), 3, 7)
    assert oracle.product(a, b).tolist() == [[-6 / 4], [12 / 4]]
    assert oracle.product(a, b, 10).tolist() == [[-6 * 256], [12 * 256]]
    assert bits(oracle.product(a, b._replace(unit=None))) == [NAN, NAN]
    assert bits(oracle.product(a, b, -121, -120)) == [0, bits([12 * 2.0**-123])[0]]  # 6 / 2**123 is below 2**-120


def test_a_plan_beyond_the_budget_fails_loudly():
    wide = oracle.Grid(np.full((1, 2), 2**26), 0, 27)
    column = wide._replace(integers=wide.integers.T)
    assert oracle.product(wide, column) == 2.0**53
    with pytest.raises(AssertionError, match="section 3.3"):
        oracle.product(wide, column._replace(integers=column.integers + 1))
    check_budget(2**31, np.array([-(2**22)]))
    with pytest.raises(AssertionError, match="section 3.3"):
        check_budget(2**31, np.array([0, -(2**22) - 1]))


def test_scale_gradients_by_hand():
    def found(G, v, E, kappa=0):
        return float(oracle.scale_gradient(np.float32(G), np.float32(v), E, kappa))

    assert found([1, 2], [3, -0.5], 2) == 2
    assert found([1, 2], [3, -0.5], 2, 3) == 0.25
    # One element: e = 1 and unit = 2**(1 + 20 - 53), so 2**-32 counts and half of it is a tie.
    assert found([1], [2.0**-32], 20) == 2.0**-32
    assert found([1], [2.0**-33], 20) == 0
    assert found([1], [3 * 2.0**-33], 20) == 2.0**-31
    # Three elements: c = 51.
    assert found([1, 0, 0], [2.0**-31, 0, 0], 20) == 0
    assert found([1, 0, 0], [2.0**-30, 0, 0], 20) == 2.0**-30
    assert found([2.0**-70], [1], 0) == 2.0**-70
    assert found([2.0**-70 - 2.0**-94], [1], 0) == 0
    assert found([1], [0], -INF) == 0
    assert found([2.0**-70], [2.0**-60], -60, 0) == 0  # 2**-130 is below 2**-120
    for G, v, E in (([2.0**90], [1], 0), ([math.nan], [1], 0), ([INF], [1], 0), ([1], [1], math.nan)):
        assert bits(oracle.scale_gradient(np.float32(G), np.float32(v), E, 0)) == [NAN]
    with pytest.raises(AssertionError, match=r"section 4\.6"):
        found([1], [1.5], 0)


# Hash words


def xor_shift(h, shift):
    return sum(((h >> k & 1) ^ (h >> (k + shift) & 1)) << k for k in range(32))


def modular(h, factor):
    return sum(h << k for k in range(32) if factor >> k & 1) % 2**32


@given(patterns)
@example(0)
@example(2**32 - 1)
def test_fmix32_bit_by_bit(h):
    expected = modular(xor_shift(h, 16), 0x85EBCA6B)
    expected = xor_shift(modular(xor_shift(expected, 13), 0xC2B2AE35), 16)
    assert oracle.fmix32(h) == expected
    assert oracle.fmix32(np.asarray([h], dtype=np.uint64)).tolist() == [expected]


def test_published_values_of_fmix32():
    assert oracle.fmix32(0) == 0
    assert oracle.fmix32(1) == 0x514E28B7
    assert oracle.fmix32(2) == 0x30F4C306
    assert oracle.key(0, 0) == oracle.fmix32(0x9E3779B9)
    assert oracle.key(1, 1) == oracle.fmix32(0x514E28B7 ^ 0x3C6EF372)
    assert oracle.word(5, 5) == 0
    assert oracle.word(5, 4) == 0x514E28B7


# Pools, layouts and gradients


def integer_variables(case, rng, low=-3, high=3):
    shapes = oracle.variable_shapes(case)
    return {name: rng.integers(low, high + 1, shape).astype(np.float32) for name, shape in shapes.items()}


def test_weights_by_hand():
    # 4 bits: integers up to 7. Left has e = 1 and unit 1/4, right e = 2 and unit 1/2; 0.3 is 1/4, 1.75 is a tie.
    case = plan(matmul(2, 1, bits=4, gain=1), tensor("w", 2, 2, kappa=1))
    variables = {"pool/left": np.float32([[1], [0.3]]), "pool/right": np.float32([[3, -1.75]])}
    variables |= {"scale/w": np.float32(0.5)}
    grids = oracle.grids(case, variables)
    assert grids["pool/left"].integers.tolist() == [[4], [1]]
    assert grids["pool/right"].integers.tolist() == [[6, -4]]
    assert oracle.virtual(case, variables).tolist() == [12, -8, 3, -2]
    assert oracle.bounds(case, variables) == {"w": 5}
    assert oracle.weights(case, variables)["w"].tolist() == [[3, -2], [0.75, -0.5]]
    G = np.float32([[1, 0], [0, 2]])  # dv = [[0.25, 0], [0, 0.5]]
    gradients = oracle.gradients(case, variables, {"w": G})
    assert gradients["pool/left"].tolist() == [[3], [-4]]  # 4 * dv times 3 and -2
    assert gradients["pool/right"].tolist() == [[1, 0.5]]  # 4 * dv times 1 and 1/4
    assert gradients["scale/w"] == (12 - 4) / 2


def test_poison_reaches_only_what_it_multiplies():
    case = plan(matmul(1, 1), tensor("w", 1), tensor("u", 1), layout="padding")
    one = {"scale/w": np.float32(1), "scale/u": np.float32(2)}
    variables = one | {"pool/left": np.float32([[2.0**30]]), "pool/right": np.float32([[1]])}
    cotangents = {"w": np.float32([1]), "u": np.float32([1])}
    weights = oracle.weights(case, variables)
    assert np.isnan(weights["w"]).all()
    assert weights["u"] == np.float32(0.02)
    gradients = oracle.gradients(case, variables, cotangents)
    assert gradients["pool/left"] == 1
    assert np.isnan(gradients["pool/right"]).all()
    assert np.isnan(gradients["scale/w"])
    assert np.isnan(gradients["scale/u"])
    gradients = oracle.gradients(case, variables, {"w": cotangents["w"]})
    assert gradients["scale/u"] == 0
    # One cotangent beyond 2**90 poisons the grid of the whole leaf.
    gradients = oracle.gradients(case, variables | {"pool/left": np.float32([[1]])}, {"w": np.float32([2.0**90])})
    assert [bool(np.isnan(x).all()) for x in gradients.values()] == [True, True, True, False]


def test_scales_are_cleaned():
    def weight(rho, kappa=0):
        case = plan(hashed(1, 1, signed=False), tensor("w", kappa=kappa))
        return float(oracle.weights(case, {"pool/table": np.float32([[1]]), "scale/w": np.float32(rho)})["w"])

    assert weight(-(2.0**-30)) == -(2.0**-30)
    assert weight(-(2.0**-30) + 2.0**-54) == 0
    assert weight(2.0**30 - 64) == 2.0**30 - 64
    assert weight(2.0**59, 30) == 2.0**29
    assert weight(2.0**-1, 30) == 0
    assert weight(2.0**-140, 30) == 0
    for rho, kappa in ((2.0**30, 0), (2.0**60, 30), (INF, 3), (math.nan, 0)):
        assert math.isnan(weight(rho, kappa))


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_kronecker_is_that_of_numpy(bits):
    case = plan(kronecker(3, 2, bits), tensor("w", 9, 9))
    variables = integer_variables(case, np.random.default_rng(0))
    pairs = zip(variables["pool/left"], variables["pool/right"], strict=True)
    expected = sum(np.kron(left, right) for left, right in pairs)
    assert np.array_equal(oracle.virtual(case, variables).reshape(9, 9), expected)


@pytest.mark.parametrize(
    "pool",
    [matmul(4, 33, 8, 2), kronecker(2, 33, 12), matmul(3, 1, 16), hashed(50, 7, 3, gain=3), matmul(40, 1100, 13)],
)
def test_a_pool_is_the_explicit_multi_hash(pool):
    case = plan(pool, tensor("w", 2, 4), seed=9)
    variables = oracle.initial_variables(case)
    v, grids = oracle.virtual(case, variables), oracle.grids(case, variables)
    reads, signs = oracle.indices(case, np.arange(v.size)), oracle.signs(case, np.arange(v.size))
    terms = math.prod(grids[name].integers.reshape(-1)[at] * signs.get(name, 1) for name, at in reads.items())
    sums = np.ldexp(terms.sum(axis=1).astype(np.float64), sum(one.unit for one in grids.values()))
    assert bits(v) == canonical((sums * 2.0 ** (len(grids) * pool["gain"])).astype(np.float32))


def test_indices_of_a_hash_by_hand():
    case = plan(hashed(50, 7, 3), tensor("w", 5, 5), seed=9)
    for m in range(3):
        for i in (0, 17, 49):
            column = oracle.word(oracle.key(9, 2 * m), i) % 7
            assert oracle.indices(case, [i])["pool/table"][0, m] == m * 7 + column
            odd = oracle.word(oracle.key(9, 2 * m + 1), i) % 2
            assert oracle.signs(case, [i])["pool/table"][0, m] == 1 - 2 * odd


POOLS = [
    matmul(5, 2, 8, 1),
    kronecker(3, 2, 6),
    hashed(30, 5, 2, gain=2),
    joined("sum", matmul(5, 2), hashed(30, 4, bits=5)),
    joined("product", hashed(25, 4), matmul(6, 1, 12), kronecker(3, 1)),
    joined("sum", joined("product", matmul(6, 1), hashed(40, 3)), joined("sum", hashed(26, 4), kronecker(3, 2))),
]
TENSORS = [
    tensor("a", 3, 4, scale=0.5, learn=False, view={"pattern": "a (b c) -> c (b a)", "sizes": {"c": 2}}),
    tensor("b", 2, 5, kappa=2, view={"pattern": "a b -> b 1 a", "sizes": {}, "order": {"b": [3, 0, 4, 2, 1]}}),
    tensor("c"),
]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool["kind"])
@pytest.mark.parametrize(("layout", "extra"), [("basic", 0), ("cyclic", 40), ("padding", 0)])
def test_gradients_are_finite_differences(pool, layout, extra):
    # Weights are multilinear in the variables (a hash may read an element once per hash, also linearly), and all is
    # a small integer or a fraction of one, on every grid, so differences are exact.
    tensors = TENSORS + ([tensor("d", extra, scale=2.0)] if extra else [])
    case = plan(pool, *tensors, layout=layout, seed=4)
    rng = np.random.default_rng(1)
    variables = integer_variables(case, rng)
    before = oracle.weights(case, variables)
    cotangents = {name: rng.integers(-2, 3, w.shape).astype(np.float32) for name, w in before.items()}
    gradients = oracle.gradients(case, variables, cotangents)
    assert list(gradients) == list(variables)
    for name, value in variables.items():
        assert gradients[name].shape == value.shape
        for at in np.ndindex(value.shape):
            changed = variables | {name: value.copy()}
            changed[name][at] += 1
            after = oracle.weights(case, changed)
            expected = sum(float((G * (after[w] - before[w])).sum()) for w, G in cotangents.items())
            assert gradients[name][at] == expected, (name, at)


def test_layouts():
    a, b = tensor("a", 2, 3, scale=1.0, learn=False), tensor("b", 4, scale=2.0, learn=False)
    pool = matmul(3, 1)
    variables = {"pool/left": np.float32([[1], [2], [3]]), "pool/right": np.float32([[1, 10, 100]])}
    v = [1, 10, 100, 2, 20, 200, 3, 30, 300]
    weights = oracle.weights(plan(pool, a, b, layout="cyclic"), variables)
    assert weights["a"].reshape(-1).tolist() == v[:6]
    assert weights["b"].tolist() == [2 * x for x in [*v[6:], v[0]]]
    weights = oracle.weights(plan(pool, a, b, layout="padding"), variables)
    assert weights["b"].tolist() == [6, 60, 600, float(np.float32(0.02))]
    with pytest.raises(ValueError, match="10 weights"):
        oracle.weights(plan(pool, a, b), variables)


def test_bounds_by_hand():
    def bounds(pool, *tensors, layout="basic", **given):
        case = plan(pool, *(tensors or [tensor("w", 2)]), layout=layout)
        shapes = oracle.variable_shapes(case).items()
        variables = {name: np.ones(shape, np.float32) for name, shape in shapes}
        given = {
            name.replace("_", "/"): np.full_like(variables[name.replace("_", "/")], x) for name, x in given.items()
        }
        return list(oracle.bounds(case, variables | given).values())

    assert bounds(matmul(2, 5, gain=2)) == [1 + 1 + 3 + 4]
    assert bounds(kronecker(2, 4), pool_left=0.5) == [0 + 1 + 2]
    assert bounds(hashed(9, 3, 3, gain=1)) == [1 + 2 + 1]
    assert bounds(hashed(9, 3, exponents=[7]), pool_table=1) == [7]
    assert bounds(hashed(9, 3, exponents=[7]), pool_table=-0.75) == [7]
    assert bounds(hashed(9, 3, exponents=[7]), pool_table=0.5) == [-INF]
    assert bounds(joined("sum", matmul(2, 5), hashed(9, 3), hashed(9, 3)), pool_0_left=0) == [1 + 2]
    assert bounds(joined("sum", hashed(9, 3)), pool_0_table=0) == [-INF]
    product = joined("product", hashed(9, 3, signed=False), hashed(9, 3, signed=False))
    assert bounds(product, pool_0_table=1.5) == [1]
    assert bounds(product, pool_0_table=0.5) == [-1]
    assert bounds(product, pool_0_table=0) == [-INF]
    assert bounds(joined("sum", product, hashed(9, 3, signed=False)), pool_0_0_table=1.5) == [2]
    small = [tensor("w", 3), tensor("u", 2), tensor("t", 2)]
    assert bounds(matmul(2, 1), *small, layout="padding", pool_left=2.0**-20) == [-18, -6, -6]
    assert bounds(matmul(2, 1), *small, layout="padding", pool_left=0) == [-INF, -6, -6]
    assert bounds(matmul(2, 1), tensor("w", 4), layout="padding", pool_left=0) == [-INF]
    assert math.isnan(bounds(matmul(2, 1), pool_left=2.0**40)[0])


def cells(kind, *values):
    """A combination of pools with one virtual weight each, what they show, and its variables without the scale."""
    parts = [hashed(1, 1, signed=False, bits=16, gain=20 if value > 2**20 else 0) for value in values]
    found = [np.float32([[value / 2.0 ** part["gain"]]]) for value, part in zip(values, parts, strict=True)]
    return joined(kind, *parts), {f"pool/{p}/table": x for p, x in enumerate(found)}


def test_virtual_weights_are_floored_before_they_are_rounded():
    def shown(*values):
        pool, variables = cells("product", *values)
        return float(oracle.virtual(plan(pool, tensor("w")), variables)[0])

    near = 2.0**-14
    assert shown(2.0**-30, 2.0**-29, 2.0**-29) == 2.0**-88
    assert shown(2.0**-30, 2.0**-29 * (1 - near), 2.0**-29 * (1 + near)) == 0  # 2**-88 * (1 - 2**-28) rounds to 2**-88
    assert shown(2.0**-30, 2.0**-30, 2.0**-29, 2.0**49) == 0  # in order
    assert shown(2.0**49, 2.0**-30, 2.0**-30, 2.0**-29) == 2.0**-40
    assert shown(2.0**49, 2.0**49, 2.0**49) == INF
    assert math.isnan(shown(2.0**49, 2.0**49, 2.0**49, 0))
    one, a = cells("product", 2.0**-30, 2.0**-29, 2.0**-29 * (1 + near))
    other, b = cells("product", 2.0**-30, 2.0**-29, -(2.0**-29))
    variables = {f"pool/{p}{name[4:]}": x for p, part in enumerate((a, b)) for name, x in part.items()}
    assert oracle.virtual(plan(joined("sum", one, other), tensor("w")), variables) == 0  # 2**-102


def test_cotangents_are_floored():
    def arrives(G, *others, scale=1.0):
        pool, variables = cells("product", *others, 1.0)
        case = plan(pool, tensor("w", scale=scale, learn=False))
        found = oracle.gradients(case, variables, {"w": np.float32(G)})
        return float(found[f"pool/{len(others)}/table"][0, 0])

    assert arrives(2.0**-120, 2.0**49, 2.0**49) == 2.0**-22
    assert arrives(2.0**-121, 2.0**49, 2.0**49, scale=16.0) == 0
    assert arrives(2.0**-120, 2.0**49, 2.0**49, scale=0.5) == 0
    assert arrives(2.0**-90, 2.0**-30, 2.0**49, 2.0**49) == 2.0**-22
    assert arrives(2.0**-91, 2.0**-30, 2.0**49, 2.0**49) == 0
    assert arrives(2.0**-91, 2.0**49, 2.0**49, 2.0**-30) == 2.0**-23


def test_gradients_of_variables_are_floored():
    tiny = np.float32([2.0**-30, 2.0**-44])  # one unit of 16 bits
    variables = {"pool/left": tiny[:, None], "pool/right": tiny[None]}
    case = plan(matmul(2, 1, 16), tensor("w", 2, 2, scale=1.0, learn=False))
    found = oracle.gradients(case, variables, {"w": np.float32([[2.0**-70, 0], [0, 2.0**-91]])})
    assert [x.reshape(-1).tolist() for x in found.values()] == [[2.0**-100, 0]] * 2


def test_modifiers_and_their_gradients():
    tensors = [tensor(name, 4, scale=1.0, learn=False, modifiers=[name]) for name in ("relu", "sign")]
    case = plan(hashed(8, 4, 1, False), *tensors)
    variables = {"pool/table": np.float32([[-2, 0, -1, 3]])}
    reads = oracle.indices(case, np.arange(8))["pool/table"][:, 0]
    v = variables["pool/table"][0][reads]
    cotangents = {"relu": np.float32([1, 2, 4, 8]), "sign": np.float32([16, 32, 64, 128])}
    expected_gradient = np.zeros(4)
    for i, (x, G) in enumerate(zip(v, np.concatenate(list(cotangents.values())), strict=True)):
        expected_gradient[reads[i]] += G if i >= 4 or x > 0 else 0
    weights = oracle.weights(case, variables)
    np.testing.assert_array_equal(weights["relu"], np.maximum(v[:4], 0))
    np.testing.assert_array_equal(weights["sign"], np.where(v[4:] >= 0, 1, -1))
    np.testing.assert_array_equal(oracle.gradients(case, variables, cotangents)["pool/table"][0], expected_gradient)
    assert np.isnan(oracle.weights(case, {"pool/table": np.float32([[math.nan, 0, 0, 0]])})["sign"]).all()


@pytest.mark.parametrize(
    ("shape", "pattern", "sizes"),
    [
        ((2, 3, 4, 5), "o i h w -> h w i o", {}),
        ((4, 30), "o (c h w) -> (h w c) o", {"c": 2, "h": 3}),
        ((6, 4), "(a b) (c d) -> d (b c) a", {"a": 2, "d": 2}),
        ((2, 1, 3), "a 1 b -> 1 b () a", {}),
    ],
)
def test_views_are_those_of_einops(shape, pattern, sizes):
    size = math.prod(shape)
    one = tensor("w", *shape, scale=1.0, learn=False, view={"pattern": pattern, "sizes": sizes})
    case = plan(hashed(size, 9), one)
    variables = oracle.initial_variables(case)
    canonical_weights = oracle.weights(case, variables, view=False)["w"]
    expected = einops.rearrange(canonical_weights, pattern, **sizes)
    viewed = oracle.weights(case, variables)["w"]
    assert viewed.shape == expected.shape == oracle.viewed_shape(one["view"], shape)
    assert bits(viewed) == bits(expected)


def test_digest_by_hand():
    w = tensor("w", 2, 3, scale=1.0, learn=False, view={"pattern": "a b -> (b a)", "sizes": {}})
    case = plan(hashed(7, 1, 1, False), w, tensor("x", scale=1.0, learn=False))
    for value in (1.5, math.nan):
        element = np.float32(value).tobytes() if value == value else bytes.fromhex("0000c07f")
        expected = hashlib.sha256(b"2,3\n" + element * 6 + b"\n" + element).hexdigest()
        assert oracle.digest(case, {"pool/table": np.float32([[-value if value != value else value]])}) == expected


# Plans


@given(st.integers(1, 10**6), st.floats(0.001, 3.0))
def test_sizes_are_the_largest_within_the_ratio(weights, ratio):
    limit = Fraction(str(ratio)) * weights

    def check(pool, size, unit):
        assert unit * size <= limit < unit * (size + 1)
        assert (pool["bits"], pool["exponents"], pool["gain"]) == (8, None, 0)

    try:
        pool = oracle.sizes({"kind": "matmul"}, weights, ratio)
    except ValueError:
        assert limit < 2 * math.ceil(math.sqrt(weights))
    else:
        assert (pool["n"] - 1) ** 2 < weights <= pool["n"] ** 2
        check(pool, pool["m"], 2 * pool["n"])
    try:
        pool = oracle.sizes({"kind": "kronecker"}, weights, ratio)
    except ValueError:
        pass
    else:
        assert (pool["d"] - 1) ** 4 < weights <= pool["d"] ** 4
        check(pool, pool["t"], 2 * pool["d"] ** 2)
    try:
        pool = oracle.sizes({"kind": "hash", "hashes": 3, "signed": False}, weights, ratio)
    except ValueError:
        assert limit < 3
    else:
        assert (pool["capacity"], pool["hashes"], pool["signed"]) == (weights, 3, False)
        check(pool, pool["size"], 3)


def test_sizes_read_decimals():
    assert oracle.sizes({"kind": "hash", "bits": 5}, 10, 0.3) == hashed(10, 3, bits=5)
    assert oracle.sizes({"kind": "hash"}, 10, Fraction(0.3))["size"] == 2
    two = oracle.sizes({"kind": "sum", "parts": [{"kind": "hash"}, {"kind": "matmul"}]}, 100, 0.6)
    assert (two["parts"][0]["size"], two["parts"][1]["m"]) == (30, 1)


def test_initial_scales_by_hand():
    def scale(rule, *shape, **rest):
        return float(oracle.initial_scale(tensor("w", *shape, scale=rule, **rest)))

    # h w i o: fan_in 3 * 3 * 4 = 36, fan_out 3 * 3 * 8 = 72; 108 in the sum
    assert scale("fan_in", 3, 3, 4, 8) == np.float32(1 / math.sqrt(108))
    assert scale("fan_out", 3, 3, 4, 8) == np.float32(1 / 6)
    assert scale("he", 3, 3, 4, 8) == np.float32(math.sqrt(1 / 18))
    assert scale("glorot", 3, 3, 4, 8) == np.float32(math.sqrt(1 / 54))
    assert scale("fan_out", 9, 16) == 0.25
    assert scale("fan_in", 9, 16, axes="o i") == np.float32(1 / math.sqrt(48))
    assert scale("fan_out", 16) == 0.25
    assert scale("fan_out") == 1.0
    assert scale("he", 7) == np.float32(math.sqrt(2))
    assert scale(0.1, 7) == np.float32(0.1)
    # A stack counts in no fan, nor in the rank.
    for rule in ("fan_in", "fan_out", "he", "glorot"):
        assert scale(rule, 5, 9, 16, axes="s i o") == scale(rule, 9, 16)
        assert scale(rule, 3, 3, 5, 4, 8, axes="h w s i o") == scale(rule, 3, 3, 4, 8)
    for outside in (0.0, -1.0, 2.0**-31, 2.0**30):
        with pytest.raises(ValueError, match="initial scale"):
            scale(outside, 7)


def test_gains_by_hand():
    w = tensor("w", 8, 8, scale=2.0**-5)
    assert oracle.gains(plan(matmul(8, 2), w), "adam") == [4]  # 2^5 / √4
    assert oracle.gains(plan(matmul(8, 16), w), "sgd") == [4]  # 2^5 / (√(1/4) · √16) = 2^4
    assert oracle.gains(plan(kronecker(4, 16), w), "sgd") == [3]  # n = 16: 2^5 · 2 / √32, between 8 and 16
    assert oracle.gains(plan(hashed(64, 16, 1), w), "sgd") == [4]  # 2^5 / √4
    assert oracle.gains(plan(hashed(64, 16, 4), w), "adam") == [4]
    # Each part of a sum of four has σ divided by 2 (hash: not in the rule) or √2.
    four = joined("sum", *[matmul(8, 16)] * 3, hashed(64, 16, 1))
    assert oracle.gains(plan(four, w), "sgd") == [4, 4, 4, 4]
    sixteen = joined("sum", *[matmul(8, 16)] * 16)
    assert oracle.gains(plan(sixteen, w), "sgd") == [5] * 16
    product = joined("product", *[matmul(8, 16)] * 2)
    assert oracle.gains(plan(joined("sum", *[product] * 16), w), "sgd") == [5, 4] * 16
    assert oracle.gains(plan(matmul(8, 16), tensor("w", 8, 8, scale=1.0)), "sgd") == [0]
    assert oracle.gains(plan(matmul(8, 16), tensor("w", 8, 8, scale=2.0**-30)), "sgd") == [20]


def test_kappas_by_hand():
    tensors = [tensor("a", 8, 8, scale=0.125), tensor("b", 3, scale=0.3), tensor("c", scale=4.0)]
    tensors += [tensor("d", 8, scale=0.1, learn=False), tensor("e", 63, scale=2.0**-30)]
    case = plan(matmul(9, 1), *tensors)
    assert oracle.kappas(case, "sgd") == [3, 0, 0, 0, 2]
    assert oracle.kappas(case, "adam") == [3, 1, 0, 0, 30]


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(
    "pool",
    [
        matmul(100, 64, gain=2),
        kronecker(10, 16),
        hashed(10_000, 5000, 4, gain=1),
        joined("sum", matmul(100, 20), hashed(10_000, 4000), kronecker(10, 30)),
        joined("product", matmul(100, 20), joined("sum", hashed(10_000, 5000), matmul(100, 30))),
    ],
    ids=lambda pool: pool["kind"],
)
def test_virtual_weights_start_with_unit_variance(pool, distribution):
    v = oracle.virtual(case := plan(pool, tensor("w", 100, 100), seed=3), oracle.initial_variables(case, distribution))
    assert abs(v.mean(dtype=np.float64)) < 0.05
    assert v.std(dtype=np.float64) == pytest.approx(1, abs=0.05)


def test_initial_values_by_hand():
    case = plan(joined("sum", matmul(2, 4), matmul(2, 4, gain=3)), tensor("w", 2, 2, scale=0.1, kappa=3), seed=8)
    seed = oracle.key(8, 65537)
    u = [Fraction(2 * (oracle.word(oracle.key(seed, 1016 + j), 5) >> 8) + 1, 2**25) for j in range(12)]
    sigma = math.sqrt((1 / math.sqrt(2)) / math.sqrt(4))
    expected = np.float32(float(sum(u) - 6) * sigma) / np.float32(8)
    assert oracle.initial_variables(case)["pool/1/right"][2, 1] == expected
    expected = np.float32(float(2 * u[0] - 1) * math.sqrt(3) * sigma) / np.float32(8)
    assert oracle.initial_variables(case, "uniform")["pool/1/right"][2, 1] == expected
    assert oracle.initial_variables(case)["scale/w"] == np.float32(0.1) * 8
