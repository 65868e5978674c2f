"""The oracle against facts that do not come from it: rational arithmetic, published values, finite differences."""

import hashlib
import math
from fractions import Fraction

import einops
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conformance import oracle
from conformance.vectors import FOLDER, decode, encode, load_sizes, load_vectors, load_words
from conformance.vectors_build import hashed, joined, kronecker, matmul, plan, tensor
from conformance.vectors_make import differences

NAN = 0x7FC00000
TINY = Fraction(1, 2**120)

patterns = st.integers(0, 2**32 - 1)
near_one = st.builds(lambda sign, e, m: sign << 31 | e << 23 | m, *map(st.integers, (0, 120, 0), (1, 134, 2**23 - 1)))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits(x):
    return oracle.bits_of(x).reshape(-1).tolist()


def rounded(value):
    """Float32 bits of a fraction by rule 7, by counting in units of the last place."""
    if abs(value) < TINY:
        return 0
    sign, value, e = (0, value, 0) if value > 0 else (1, -value, 0)
    while value >= 2**24:
        value, e = value / 2, e + 1
    while value < 2**23:
        value, e = value * 2, e - 1
    mantissa = round(value)  # a tie goes to the even integer
    if mantissa == 2**24:
        mantissa, e = 2**23, e + 1
    return sign << 31 | (0x7F800000 if e > 104 else (e + 150) << 23 | mantissa - 2**23)


def exponent(values):
    """The e with 2^(e-1) <= max < 2^e."""
    top, e = max(abs(value) for value in values), 0
    while top >= Fraction(2) ** e:
        e += 1
    while top < Fraction(2) ** (e - 1):
        e -= 1
    return e


def on_grid(values, b):
    values = [Fraction(0) if abs(value) < TINY else value for value in values]
    if not any(values):
        return values
    unit = Fraction(2) ** (exponent(values) - b)
    return [round(value / unit) * unit for value in values]


def naive_product(a, b, grid):
    """Rules 1 to 7 of the exact product for at most 2048 finite terms."""
    rows = [on_grid([Fraction(float(x)) for x in row], grid) for row in a]
    columns = [on_grid([Fraction(float(x)) for x in column], grid) for column in b.T]
    return [rounded(sum(x * y for x, y in zip(row, column, strict=True))) for row in rows for column in columns]


def arrays(shape, elements=near_one):
    count = math.prod(shape)
    return st.lists(elements, min_size=count, max_size=count).map(lambda b: oracle.from_bits(b).reshape(shape))


# Float32 in integers


def canonical(x):
    """Bits after the rules: below 2^-120 is +0, one NaN."""
    x = np.where(np.abs(x) < np.float32(2.0**-120), np.float32(0), x)
    return np.where(np.isnan(x), NAN, oracle.bits_of(x)).tolist()


@given(st.lists(patterns, min_size=1))
@example([0x80000000, 0x03800000, 0x037FFFFF, 0x83800000, 0x007FFFFF, 1, 0x7F800001, 0xFFC12345, 0xFF800000])
def test_flush(values):
    x = oracle.from_bits(values)
    assert bits(oracle.flush(x)) == canonical(x)


@given(st.lists(st.floats(), min_size=1), st.lists(st.tuples(patterns, st.integers(-3, 3)), min_size=1))
def test_rounding_is_a_cast(values, neighbours):
    halves = oracle.from_bits([b for b, _ in neighbours]).astype(np.float64)
    halves = halves * (1 + np.asarray([n for _, n in neighbours]) * 2.0**-25)  # ties and what is next to them
    x = np.concatenate([values, halves])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.where(np.abs(x) < 2.0**-120, 0.0, x).astype(np.float32)
    assert bits(oracle.round32(x)) == canonical(expected)


@given(st.fractions(max_denominator=2**40), st.integers(-130, 110))
def test_rounding_is_that_of_fractions(value, e):
    wide = float(value) * 2.0**e
    assert bits(oracle.round32(wide)) == [rounded(Fraction(wide))]


@given(st.lists(st.tuples(patterns | near_one, patterns | near_one), min_size=1))
@example(
    [(0x7F800000, 0), (0x7F800000, 1), (0x7F7FFFFF, 0x3F800001), (0x217FFC00, 0x21800400), (0x21800000, 0x21800000)]
)
def test_multiplication_is_that_of_the_machine(pairs):
    a, b = (oracle.from_bits(side) for side in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        expected = oracle.flush(a) * oracle.flush(b)
    assert bits(oracle.multiply(a, b)) == canonical(expected)


# Exact product and sums


@given(st.data(), st.integers(1, 3), st.sampled_from([1, 2, 31, 32, 33, 70]), st.integers(1, 3))
def test_product_follows_the_rules(data, p, K, q):
    a, b = data.draw(arrays((p, K))), data.draw(arrays((K, q)))
    grid = {1: 24, 2: 24, 31: 24, 32: 24, 33: 23, 70: 23}[K]
    assert bits(oracle.product(a, b)) == naive_product(a, b, grid)


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.sets(st.integers(0, 7)))
def test_product_over_the_whole_range(data, p, q, spoiled):
    a = data.draw(arrays((p, 3), patterns.map(lambda b: b & 0xBFFFFFFF)))
    b = data.draw(arrays((3, q), patterns.map(lambda b: b & ~0x20000000)))
    for index in spoiled:  # rows 0 to 3 of a, then columns of b
        line = a.T if index < 4 else b
        if index % 4 < line.shape[1]:
            line[data.draw(st.integers(0, 2)), index % 4] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    rows, columns = np.isfinite(a).all(axis=1), np.isfinite(b).all(axis=0)
    result = oracle.bits_of(oracle.product(a, b))
    assert result[rows][:, columns].reshape(-1).tolist() == naive_product(a[rows], b[:, columns], 24)
    assert (result[~(rows[:, None] & columns[None, :])] == NAN).all()


@pytest.mark.parametrize(("K", "grid"), [(64, 23), (65, 23), (128, 23), (129, 22), (512, 22), (513, 21), (2048, 21)])
def test_grid_of_larger_products(K, grid):
    rng = np.random.default_rng(K)
    a, b = rng.standard_normal((2, K)).astype(np.float32), rng.standard_normal((K, 2)).astype(np.float32)
    assert bits(oracle.product(a, b)) == naive_product(a, b, grid)


@pytest.mark.parametrize("K", [2049, 4096, 4097, 6200])
def test_chunks_are_added_in_float64_ascending(K):
    rng = np.random.default_rng(K)
    a, b = rng.standard_normal((2, K)).astype(np.float32), rng.standard_normal((K, 2)).astype(np.float32)
    rows = [on_grid([Fraction(float(x)) for x in row], 21) for row in a]
    columns = [on_grid([Fraction(float(x)) for x in column], 21) for column in b.T]
    expected = []
    for row in rows:
        for column in columns:
            terms = [x * y for x, y in zip(row, column, strict=True)]
            total = 0.0
            for start in range(0, K, 2048):
                chunk = sum(terms[start : start + 2048])
                assert Fraction(float(chunk)) == chunk
                total += float(chunk)
            expected.append(rounded(Fraction(total)))
    assert bits(oracle.product(a, b)) == expected


def test_the_vector_of_chunks_distinguishes_the_order_of_adding():
    vector = next(v for v in load_vectors() if v.name == "matmul_chunks")
    left, right = (vector.variables[f"pool/{side}"].astype(np.float64).reshape(-1) for side in ("left", "right"))
    terms = [int(x) for x in (left * 2.0**20)], [int(y) for y in right * 2.0**20]
    chunks = [sum(x * y for x, y in list(zip(*terms, strict=True))[k : k + 2048]) for k in (0, 2048, 4096)]
    ascending = rounded(Fraction((float(chunks[0]) + chunks[1]) + chunks[2]) / 2**40)
    assert bits(vector.weights["w"]) == [ascending]
    assert rounded(Fraction(sum(chunks), 2**40)) != ascending
    assert rounded(Fraction(chunks[0] + (float(chunks[1]) + chunks[2])) / 2**40) != ascending


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=50), st.integers(-200, 200))
def test_sum_without_rounding_is_fsum(integers, e):
    x = np.ldexp(np.asarray(integers, dtype=np.float64), e)
    assert bits(oracle.exact_sum(x)) == [rounded(Fraction(math.fsum(x)))]


def naive_grid(x):
    values = [Fraction(float(value)) for value in x]
    if not any(values):
        return values
    unit = Fraction(2) ** (exponent(values) - (53 - math.ceil(math.log2(len(values)))))
    return [round(value / unit) * unit for value in values]


@given(st.data(), st.lists(st.floats(-(2.0**100), 2.0**100), min_size=1, max_size=20), st.integers(1, 4))
def test_sums_follow_the_rules(data, values, size):
    segment = data.draw(st.lists(st.integers(0, size - 1), min_size=len(values), max_size=len(values)))
    grid = naive_grid(values)
    assert bits(oracle.exact_sum(values)) == [rounded(sum(grid))]
    expected = [
        rounded(sum((x for x, s in zip(grid, segment, strict=True) if s == t), Fraction())) for t in range(size)
    ]
    assert bits(oracle.exact_segment_sum(values, segment, size)) == expected
    values[0] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    assert bits(oracle.exact_sum(values)) == [NAN]
    assert bits(oracle.exact_segment_sum(values, segment, size)) == [NAN] * size


@pytest.mark.parametrize("values", [[5e-324, -1.0], [5e-324] * 3, [1.7e308] * 4, [1.7e308, -1.7e308, 1.0], [-0.0]])
def test_sums_at_the_ends_of_float64(values):
    assert bits(oracle.exact_sum(values)) == [rounded(sum(naive_grid(values)))]


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_dot_is_the_sum_of_exact_products(pairs):
    a, c = (np.asarray(side, dtype=np.float32) for side in zip(*pairs, strict=True))
    products = oracle.flush(a).astype(np.float64) * oracle.flush(c).astype(np.float64)
    assert bits(oracle.exact_dot(a, c)) == [rounded(sum(naive_grid(products)))]
    a[0] = math.inf
    assert bits(oracle.exact_dot(a, c)) == [NAN]


# Hash words


def xor_shift(h, shift):
    return sum(((h >> k & 1) ^ (h >> (k + shift) & 1)) << k for k in range(32))


def times(h, factor):
    return sum(h << k for k in range(32) if factor >> k & 1) % 2**32


@given(patterns)
@example(0)
@example(2**32 - 1)
def test_fmix32_bit_by_bit(h):
    expected = times(xor_shift(h, 16), 0x85EBCA6B)
    expected = xor_shift(times(xor_shift(expected, 13), 0xC2B2AE35), 16)
    assert oracle.fmix32(h) == expected
    assert oracle.fmix32(np.asarray([h], dtype=np.uint64)).tolist() == [expected]


def test_published_values_of_fmix32():
    assert oracle.fmix32(0) == 0
    assert oracle.fmix32(1) == 0x514E28B7
    assert oracle.key(0, 0) == oracle.fmix32(0x9E3779B9)
    assert oracle.key(1, 1) == oracle.fmix32(0x514E28B7 ^ 0x3C6EF372)
    assert oracle.word(5, 5) == 0
    assert oracle.word(5, 4) == 0x514E28B7


# Pools, layouts and gradients


def integer_variables(case, rng, low=-3, high=3):
    return {
        name: rng.integers(low, high + 1, shape).astype(np.float32)
        for name, shape in oracle.variable_shapes(case).items()
    }


def test_kronecker_is_that_of_numpy():
    case = plan(kronecker(3, 2), tensor("w", 9, 9))
    variables = integer_variables(case, np.random.default_rng(0))
    pairs = zip(variables["pool/left"], variables["pool/right"], strict=True)
    expected = sum(np.kron(left, right) for left, right in pairs)
    assert np.array_equal(oracle.virtual(case, variables).reshape(9, 9), expected)


@pytest.mark.parametrize("pool", [matmul(4, 33), kronecker(2, 33), matmul(3, 1)])
def test_a_factorised_pool_is_the_explicit_multi_hash(pool):
    case = plan(pool, tensor("w", 2, 4))
    variables = oracle.initial_variables(case)
    v = oracle.virtual(case, variables)
    reads = oracle.indices(case, np.arange(v.size))
    gathered = [variables[name].reshape(-1)[rows] for name, rows in reads.items()]
    for cell, (left, right) in enumerate(zip(*gathered, strict=True)):
        assert bits(oracle.product(left[None], right[:, None])) == bits(v[cell])


def test_a_hash_pool_is_the_explicit_multi_hash():
    case = plan(hashed(50, 7, 3), tensor("w", 5, 5), seed=9)
    variables, cells = oracle.initial_variables(case), np.arange(50)
    terms = variables["pool/table"].reshape(-1)[oracle.indices(case, cells)["pool/table"]].astype(np.float64)
    terms = terms * oracle.signs(case, cells)["pool/table"]
    assert bits(oracle.virtual(case, variables)) == bits((terms[:, 0] + terms[:, 1]) + terms[:, 2])
    for m in range(3):
        for i in (0, 17, 49):
            column = oracle.word(oracle.key(9, 2 * m), i) % 7
            assert oracle.indices(case, [i])["pool/table"][0, m] == m * 7 + column
            odd = oracle.word(oracle.key(9, 2 * m + 1), i) % 2
            assert oracle.signs(case, [i])["pool/table"][0, m] == 1 - 2 * odd


POOLS = [
    matmul(5, 2, 1),
    kronecker(3, 2),
    hashed(30, 5, 2, True, 2),
    joined("sum", matmul(5, 2), hashed(30, 4)),
    joined("product", hashed(25, 4), matmul(6, 1), kronecker(3, 1)),
    joined("sum", joined("product", matmul(6, 1), hashed(40, 3)), joined("sum", hashed(26, 4), kronecker(3, 2))),
]
TENSORS = [
    tensor("a", 3, 4, scale=0.5, learn=False, view={"pattern": "a (b c) -> c (b a)", "sizes": {"c": 2}}),
    tensor("b", 2, 5, view={"pattern": "a b -> b 1 a", "sizes": {}}),
    tensor("c"),
]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool["kind"])
@pytest.mark.parametrize(("layout", "extra"), [("basic", 0), ("cyclic", 40), ("padding", 0)])
def test_gradients_are_finite_differences(pool, layout, extra):
    # Weights are multilinear in the variables (a hash may read an element once per hash, also linearly), and all is
    # a small integer or a fraction of one, so differences are exact.
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
    pool = {"kind": "matmul", "n": 3, "m": 1, "gain": 0}
    variables = {"pool/left": np.float32([[1], [2], [3]]), "pool/right": np.float32([[1, 10, 100]])}
    v = [1, 10, 100, 2, 20, 200, 3, 30, 300]
    weights = oracle.weights(plan(pool, a, b, layout="cyclic"), variables)
    assert weights["a"].reshape(-1).tolist() == v[:6]
    assert weights["b"].tolist() == [2 * x for x in [*v[6:], v[0]]]
    weights = oracle.weights(plan(pool, a, b, layout="padding"), variables)
    assert weights["b"].tolist() == [6, 60, 600, float(np.float32(0.02))]
    with pytest.raises(ValueError, match="10 weights"):
        oracle.weights(plan(pool, a, b), variables)


def test_modifiers_and_their_gradients():
    tensors = [tensor(name, 4, scale=1.0, learn=False, modifiers=[name]) for name in ("relu", "sign")]
    case = plan(hashed(8, 4, 1, False), *tensors)
    variables = {"pool/table": np.float32([[-2, 0, math.nan, 3]])}
    reads = oracle.indices(case, np.arange(8))["pool/table"][:, 0]
    v = variables["pool/table"][0][reads]
    cotangents = {"relu": np.float32([1, 2, 4, 8]), "sign": np.float32([16, 32, 64, 128])}
    expected_gradient = np.zeros(4)
    for i, (x, G) in enumerate(zip(v, np.concatenate(list(cotangents.values())), strict=True)):
        expected_gradient[reads[i]] += G if i >= 4 or x > 0 else 0
    weights = oracle.weights(case, variables)
    np.testing.assert_array_equal(weights["relu"], np.where(np.isnan(v[:4]), v[:4], np.maximum(v[:4], 0)))
    signs = np.where(v[4:] >= 0, 1, -1)
    np.testing.assert_array_equal(weights["sign"], np.where(np.isnan(v[4:]), v[4:], signs))
    np.testing.assert_array_equal(oracle.gradients(case, variables, cotangents)["pool/table"][0], expected_gradient)


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
        assert pool["gain"] == 0

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
    assert oracle.sizes({"kind": "hash"}, 10, 0.3)["size"] == 3
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
    assert oracle.gains(plan(matmul(8, 16), tensor("w", 8, 8, scale=2.0**-100)), "sgd") == [60]


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(
    "pool",
    [
        matmul(100, 64, 2),
        kronecker(10, 16),
        hashed(10_000, 5000, 4, True, 1),
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
    case = plan(joined("sum", matmul(2, 4), matmul(2, 4, 3)), tensor("w", 2, 2), seed=8)
    seed = oracle.key(8, 65537)
    u = [Fraction(2 * (oracle.word(oracle.key(seed, 1016 + j), 5) >> 8) + 1, 2**25) for j in range(12)]
    sigma = math.sqrt((1 / math.sqrt(2)) / math.sqrt(4))
    expected = np.float32(float(sum(u) - 6) * sigma) / np.float32(8)
    assert oracle.initial_variables(case)["pool/1/right"][2, 1] == expected
    expected = np.float32(float(2 * u[0] - 1) * math.sqrt(3) * sigma) / np.float32(8)
    assert oracle.initial_variables(case, "uniform")["pool/1/right"][2, 1] == expected


# Golden vectors


def test_vectors_on_disk_are_those_of_the_oracle():
    assert differences() == []


def test_vectors_are_small_and_decode():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 2**20
    vectors = load_vectors()
    assert len(vectors) > 40
    assert len({vector.name for vector in vectors}) == len(vectors)
    assert load_words()[0].words[0] == oracle.word(oracle.key(0, 0), 0)
    assert any(size.sized is None for size in load_sizes())
    x = oracle.from_bits([[1, NAN, 0x80000000], [0xFF800000, 0x12345678, 0]])
    assert bits(decode(encode(x))) == bits(x)
    assert decode(encode(x)).shape == (2, 3)
    assert encode(x)["bits"].startswith("00000001" + "7fc00000" + "80000000")
