"""The cases that the golden vectors hold, by subject."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from conformance.oracle.hashing import words
from conformance.vectors_build import (
    INF,
    MAX,
    NAN,
    NEG_INF,
    NEG_ZERO,
    SUBNORMAL,
    TINY,
    Case,
    bits,
    floats,
    hashed,
    joined,
    kronecker,
    matmul,
    plan,
    replaced,
    seeded,
    tensor,
)


def inner_dimensions() -> Iterator[Case]:
    """The number of terms K decides the grid's bits and the chunks."""
    for n, m in ((3, 1), (4, 32), (4, 33), (3, 64), (3, 65), (2, 512), (2, 513), (1, 2048), (2, 2049)):
        about = f"matmul with K = {m}: b = {min(24, (53 - (min(m, 2048) - 1).bit_length()) // 2)}"
        chunks = "" if m <= 2048 else ", two chunks"
        yield Case(f"matmul_k{m}", about + chunks + ".", plan(matmul(n, m), tensor("w", n, n), seed=m))
    wide = plan(matmul(33, 2), tensor("w", 30, 36))
    yield Case("matmul_wide", "The gradients' products have K = n = 33, so b = 23 there and 24 forward.", wide)


def chunk_sums() -> Iterator[Case]:
    """Three chunks whose float64 sums round, and decide the last float32 bit."""
    K, top = 4097, 2**21 - 1
    left, right = np.full(K, top), np.full(K, top)
    left[[0, 2048, 4096]], right[[0, 2048, 4096]] = [1, 2**20, 1], [0, 0, 1]
    # The first two chunks add up to 2^31 j + 2^29 + 1 > 2^53: float64 drops the 1, which leaves a float32
    # tie, and then drops the third chunk's 1 as well. Any other order of adding keeps a 2.
    free = (2**29 + 1 - int((left[:4096] * right[:4096]).sum())) % 2**31
    right[[0, 2048]] = free % 2**20, free >> 20
    yield Case(
        "matmul_chunks",
        "K = 4097: chunk sums near 2^53 are added in float64, ascending, where they round to a float32 tie.",
        plan(matmul(1, K), tensor("w", 1, 1, scale=1.0)),
        given={"pool/left": floats(left[None] * 2.0**-20), "pool/right": floats(right[:, None] * 2.0**-20)},
    )


def pools() -> Iterator[Case]:
    dense = tensor("w", 9, 8)
    yield Case("kronecker", "Kronecker with d = 3, t = 5.", plan(kronecker(3, 5), dense))
    yield Case("kronecker_k33", "Kronecker with t = 33.", plan(kronecker(2, 33), tensor("w", 4, 4)))
    yield Case("hash_signed", "One signed hash.", plan(hashed(72, 20), dense, seed=3))
    yield Case("hash_unsigned", "Three unsigned hashes.", plan(hashed(72, 7, 3, False), dense, seed=3))
    yield Case("hash_four", "Four signed hashes, capacity above N.", plan(hashed(100, 6, 4), dense, seed=2**32 - 1))
    ascending = floats([[2.0**60], [1.0], [-(2.0**60)]])
    yield Case(
        "hash_ascending",
        "Hash terms 2^60 + 1 - 2^60 are added in float64, ascending, which gives 0.",
        plan(hashed(4, 1, 3, False), tensor("w", 4, 1)),
        given={"pool/table": ascending},
    )


def combined_pools() -> Iterator[Case]:
    a, b = tensor("a", 4, 5), tensor("b", 3, 5)
    two = joined("sum", matmul(6, 2), hashed(40, 9, 2))
    yield Case("sum_two", "Sum of matmul (capacity 36) and hash (40): capacity 36.", plan(two, a, b, seed=11))
    equal = joined("sum", matmul(6, 2), matmul(6, 2))
    yield Case("sum_equal", "Equal parts of a sum have different seeds.", plan(equal, a, b))
    three = joined("product", matmul(6, 2), hashed(35, 9), kronecker(3, 2))
    yield Case("product_three", "Product of three parts, left to right; the others' v in turn.", plan(three, a, b))
    deep = joined("sum", joined("product", matmul(6, 3), hashed(50, 10)), kronecker(3, 2))
    yield Case("sum_of_product", "A product inside a sum.", plan(deep, a, b, seed=5))
    deep = joined("product", joined("sum", hashed(35, 4, 2, False), kronecker(3, 1)), matmul(7, 2))
    yield Case("product_of_sum", "A sum inside a product.", plan(deep, a, b, seed=6))
    constants = [floats([[2.0**60]]), floats([[1.0]]), floats([[-(2.0**60)]])]
    one = [hashed(4, 1, 1, False)] * 3
    yield Case(
        "sum_ascending",
        "Parts 2^60 + 1 - 2^60 are added in float64, ascending, which gives 0.",
        plan(joined("sum", *one), tensor("w", 2, 2)),
        given={f"pool/{p}/table": value for p, value in enumerate(constants)},
    )
    constants = [floats([[2.0**-100]]), floats([[2.0**-30]]), floats([[2.0**100]])]
    yield Case(
        "product_flush",
        "2^-100 * 2^-30 * 2^100 is flushed after the first multiplication, gradients in another order.",
        plan(joined("product", *one), tensor("w", 2, 2)),
        given={f"pool/{p}/table": value for p, value in enumerate(constants)},
    )


def layouts() -> Iterator[Case]:
    a, b = tensor("a", 4, 4), tensor("b", 3, 3)
    yield Case("layout_basic", "Cells past the last tensor send zeros.", plan(matmul(6, 2), a, b))
    cyclic = {"layout": "cyclic"}
    yield Case("cyclic_exact", "Cyclic, N = capacity.", plan(matmul(5, 2), a, b, **cyclic))
    more = tensor("c", 1, 1)
    yield Case("cyclic_one_more", "Cyclic, N = capacity + 1.", plan(matmul(5, 2), a, b, more, **cyclic))
    twice = tensor("c", 5, 5)
    yield Case("cyclic_twice", "Cyclic, N = 2 capacity.", plan(matmul(5, 2), a, b, twice, **cyclic))
    turns = [tensor(name, 2, 2, scale=1.0) for name in "abc"]
    big = 2.0**60
    for name, values, total in (("rounded", (big, 1.0, -big), 0), ("ascending", (big, -big, 1.0), 1)):
        yield Case(
            f"cyclic_{name}",
            f"Cyclic gradients {', '.join(f'{value:.0f}' for value in values)} of a cell are added in float64, "
            f"ascending, which gives {total}.",
            plan(hashed(4, 2, signed=False), *turns, **cyclic),
            cotangents={t["name"]: floats(np.full((2, 2), value)) for t, value in zip(turns, values, strict=True)},
        )
    yield Case(
        "padding",
        "Cells past the capacity are float32(0.01): no gradient to the pool, but to the scale.",
        plan(matmul(4, 2), a, b, tensor("c", 2, 2, scale=0.5, learn=False), layout="padding"),
    )


def scales() -> Iterator[Case]:
    rules: tuple[str | float, ...] = ("fan_in", "fan_out", "he", "glorot", 0.05)
    shapes: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (2, 2, 3), (2, 1, 3, 2), (1, 2, 1, 2, 3))
    for learn in (True, False):
        tensors = [
            tensor(f"{rule}/{len(shape)}", *shape, scale=rule, learn=learn) for rule in rules for shape in shapes
        ]
        name = "learnable" if learn else "fixed"
        N = sum(math.prod(shape) for shape in shapes) * len(rules)
        yield Case(f"scales_{name}", f"Each scale rule at ranks 0 to 5, {name}.", plan(hashed(N, 40), *tensors))
    channels = tensor("torch", 4, 3, 2, 2, scale="fan_out", axes="o i h w")
    depthwise = tensor("depthwise", 3, 3, 5, scale="he", axes="h w o")
    yield Case("scales_axes", "Fans follow the axes.", plan(matmul(10, 2), channels, depthwise))


def modifiers_and_views() -> Iterator[Case]:
    a = tensor("relu", 4, 3, modifiers=["relu"])
    b = tensor("sign", 4, 3, modifiers=["sign"])
    c = tensor("both", 4, 3, modifiers=["relu", "sign"])
    d = tensor("other", 4, 3, modifiers=["sign", "relu"])
    yield Case("modifiers", "relu, sign, and both in both orders.", plan(matmul(7, 2), a, b, c, d))
    values = bits(NAN, INF, NEG_INF, NEG_ZERO, 0x3F800000, 0xBF800000, TINY, TINY - 1, SUBNORMAL, MAX)
    yield Case(
        "modifiers_special",
        "relu and sign of NaN, infinities and zeros; relu sends zero where the weight is NaN.",
        plan(
            hashed(48, 10, 1, False),
            *[one | {"scale": 1.0, "learn_scale": False} for one in (a, b, c, d)],
        ),
        given={"pool/table": values.reshape(1, 10)},
    )
    permute = tensor("permute", 3, 2, 2, 2, axes="o i h w", view={"pattern": "o i h w -> h w i o", "sizes": {}})
    merge = tensor("merge", 2, 3, 2, view={"pattern": "a b c -> (c a) b", "sizes": {}})
    split = tensor("split", 5, 12, axes="o i", view={"pattern": "o (c h w) -> (h w c) o", "sizes": {"h": 2, "w": 3}})
    both = tensor("both", 6, 4, view={"pattern": "(a b) (c d) -> d (b c) a", "sizes": {"a": 2, "d": 2}})
    pool = hashed(120, 30)
    yield Case("views", "Views that permute, merge and split axes.", plan(pool, permute, merge, split, both))
    gates = {"pattern": "i (g h) -> (g h) i", "sizes": {"g": 3}, "order": {"g": [1, 2, 0]}}
    flips = {"pattern": "h w i o -> i o h w", "sizes": {}, "order": {"h": [2, 1, 0], "w": [1, 0]}}
    turned = tensor("flips", 3, 2, 2, 3, axes="h w i o", view=flips)
    yield Case(
        "views_order",
        "Views that put gates in another order, and flip kernels.",
        plan(hashed(84, 21), tensor("gates", 4, 12, axes="i o", view=gates), turned),
    )


def gains() -> Iterator[Case]:
    w = tensor("w", 4, 4, scale=0.03125)
    yield Case("gain_matmul", "Gain 3: the variables are 8 times smaller.", plan(matmul(4, 3, 3), w))
    yield Case("gain_kronecker", "Gain 1 of a kronecker pool.", plan(kronecker(2, 3, 1), w))
    yield Case("gain_hash", "Gain 3 of a hash pool counts once.", plan(hashed(16, 5, 2, True, 3), w))
    mixed = joined("sum", matmul(4, 2, 1), joined("product", kronecker(2, 2), hashed(16, 4, 1, True, 2)))
    yield Case("gain_mixed", "Leaves with different gains.", plan(mixed, w))
    v = replaced(seeded(20, (3, 2), -2, 0), i0=0x7F000000, i1=0x00800000, i4=TINY)
    yield Case(
        "gain_largest",
        "Gain 60: 2^120 * v0 overflows or not, and so does the gradient.",
        plan(matmul(3, 2, 60), tensor("w", 3, 3, scale=2.0**-100)),
        given={"pool/left": v, "pool/right": seeded(21, (2, 3), -20, 6)},
    )
    yield Case(
        "gain_overflow",
        "The same with a fixed scale, which must not be multiplied with the gain first.",
        plan(matmul(3, 2, 60), tensor("w", 3, 3, scale=2.0**-100, learn=False)),
        given={"pool/left": v, "pool/right": seeded(21, (2, 3), -20, 6)},
    )


def initial() -> Iterator[Case]:
    mixed = joined("sum", matmul(4, 2, 2), hashed(16, 5, 3), kronecker(2, 3))
    w = tensor("w", 4, 4)
    yield Case("initial_uniform", "Uniform initial variables.", plan(mixed, w, seed=123456789), start="uniform")


def extremes() -> Iterator[Case]:
    square = tensor("w", 4, 4, scale=1.0)
    edge = bits(TINY, TINY - 1, TINY + 1, TINY | NEG_ZERO, (TINY - 1) | NEG_ZERO, SUBNORMAL, 0x007FFFFF, NEG_ZERO)
    yield Case(
        "flush_inputs",
        "Variables and cotangents below 2^-120 are flushed before any use.",
        plan(matmul(4, 2), square),
        given={"pool/left": edge.reshape(4, 2), "pool/right": seeded(30, (2, 4), 100, 120)},
        cotangents={"w": np.tile(edge, 2).reshape(4, 4)},
    )
    yield Case(
        "flush_scale",
        "A subnormal scale is zero however large v is; a scale of 2^-120 is not.",
        plan(hashed(8, 8), tensor("tiny", 2, 2), tensor("edge", 2, 2)),
        given={
            "pool/table": seeded(31, (1, 8), 100, 120),
            "scale/tiny": bits(0x00200000, shape=()),
            "scale/edge": bits(TINY, shape=()),
        },
    )
    below, above = floats([1 - 2.0**-13, 1 + 2.0**-13]) * np.float32(2.0**-60)
    yield Case(
        "flush_sides",
        "(1 - 2^-26) * 2^-120 is zero as an exact product, but a float32 multiplication rounds it to 2^-120.",
        plan(matmul(2, 1), tensor("w", 2, 2)),
        given={
            "pool/left": np.stack([[below], floats([2.0**-60])]),
            "pool/right": np.stack([above, floats(1.0)])[None],
            "scale/w": above.reshape(()),
        },
        cotangents={"w": np.full((2, 2), below)},
    )
    yield Case(
        "flush_before_rounding",
        "(1 - 2^-26) * 2^-120 is zero as an exact product, where a scale of 2^60 would show it.",
        plan(matmul(2, 1), tensor("w", 2, 2)),
        given={
            "pool/left": np.stack([[below], floats([2.0**-60])]),
            "pool/right": np.stack([above, floats(1.0)])[None],
            "scale/w": floats(2.0**60).reshape(()),
        },
        cotangents={"w": floats(np.ones((2, 2)))},
    )
    zeros = seeded(32, (4, 3))
    zeros[1], zeros[2, :2] = 0.0, bits(NEG_ZERO, SUBNORMAL)
    column = seeded(33, (3, 4))
    column[:, 2] = bits(0, NEG_ZERO, SUBNORMAL)
    yield Case(
        "zeros",
        "Rows and columns of zeros stay +0, whatever sign and however small their elements are.",
        plan(matmul(4, 3), square),
        given={"pool/left": zeros, "pool/right": column},
        cotangents={"w": replaced(np.zeros((4, 4), np.float32), i5=NEG_ZERO, i9=0xBF800000)},
    )
    yield Case(
        "exponents",
        "Exponents over the whole range in one product; what is far below a row's largest is lost.",
        plan(matmul(5, 40), tensor("w", 5, 5)),
        given={"pool/left": seeded(34, (5, 40), -120, 127), "pool/right": seeded(35, (40, 5), -120, -10)},
        cotangents={"w": seeded(36, (5, 5), -126, 100)},
    )
    yield Case(
        "overflow",
        "Products, weights and gradients overflow to ±inf; a tie at the largest float32 does too.",
        plan(matmul(3, 1), tensor("w", 3, 3)),
        given={
            "pool/left": floats([[18631.0 * 2.0**50], [2.0**120], [-1.5]]),
            "pool/right": floats([[1801.0 * 2.0**53, 2.0**8, 2.0**-3]]),
            "scale/w": floats(2.0),
        },
        cotangents={"w": seeded(37, (3, 3), 0, 127)},
    )


def ties() -> Iterator[Case]:
    odd = 2 * (words(7, 500, np.arange(4 * 33)) % 2**22) + 1
    left = floats(odd.reshape(4, 33) * 2.0**-23)
    left[:, 0] = floats([1.5, 1.0, 2 - 2.0**-23, -1.5])
    right = np.zeros((33, 4), dtype=np.float32)
    for j in range(4):
        right[j * 8 + 1 : j * 8 + 5, j] = floats([1.0, -1.0, 2.0, 0.5])
    yield Case(
        "ties_grid",
        "With b = 23 each element lies half way between two grid points, or rounds up to 2^b.",
        plan(matmul(4, 33), tensor("w", 4, 4, scale=1.0)),
        given={"pool/left": left, "pool/right": right},
    )
    yield Case(
        "ties_result",
        "Products of 25 bits lie half way between two float32 numbers, in the pool and with the scale.",
        plan(matmul(4, 1), tensor("w", 4, 4)),
        given={
            "pool/left": floats([[4097.0], [4099.0], [5001.0], [-5003.0]]),
            "pool/right": floats([[4101.0, 4103.0, 5005.0, -5007.0]]),
            "scale/w": floats(1.5),
        },
        cotangents={"w": floats(np.arange(2**22 + 1, 2**22 + 17).reshape(4, 4))},
    )


def not_finite() -> Iterator[Case]:
    square = tensor("w", 4, 4)
    yield Case(
        "nonfinite_variables",
        "NaN and infinities make their rows and columns NaN, and nothing else.",
        plan(matmul(4, 3), square),
        given={
            "pool/left": replaced(seeded(40, (4, 3)), i1=NAN, i6=NEG_INF),
            "pool/right": replaced(seeded(41, (3, 4)), i3=INF),
        },
    )
    yield Case(
        "nonfinite_cotangents",
        "NaN and infinities in cotangents, in a product and in the dot of the scale.",
        plan(matmul(4, 3), square, tensor("x", 1, 3), layout="cyclic"),
        cotangents={
            "w": replaced(seeded(42, (4, 4)), i2=INF, i7=0xFFC00001),
            "x": bits(NEG_INF, 0, NEG_INF, shape=(1, 3)),
        },
    )
    table = seeded(43, (2, 4))
    hash_plan = plan(hashed(16, 4, 2), square)
    yield Case(
        "nonfinite_hash",
        "Infinities of a hash table add up to ±inf or NaN.",
        hash_plan,
        given={"pool/table": replaced(table, i0=INF, i5=INF, i7=NAN)},
    )
    yield Case(
        "nonfinite_hash_cotangent",
        "One infinite cotangent makes the whole gradient of a hash table NaN.",
        hash_plan,
        given={"pool/table": table},
        cotangents={"w": replaced(seeded(44, (4, 4)), i9=INF)},
    )
    yield Case(
        "nonfinite_scale",
        "An infinite scale: inf * 0 is NaN, inf * v is ±inf.",
        plan(hashed(16, 4), square),
        given={"pool/table": floats([[0.0, 1.0, -2.0, 0.0]]), "scale/w": bits(INF, shape=())},
    )


def other() -> Iterator[Case]:
    a, b, c = tensor("a", 3, 4), tensor("b", 2, 4), tensor("c", 2, 2)
    yield Case(
        "no_cotangent",
        "A tensor without a cotangent counts as zeros.",
        plan(matmul(5, 2), a, b, c),
        without=("b",),
    )
    fast = plan(matmul(5, 4), a, b, arithmetic="fast")
    yield Case("fast_digest", "The digest is that of the exact product though the plan says fast.", fast)


def cases() -> Iterator[Case]:
    """All cases; gains are as written in them."""
    groups = (inner_dimensions, chunk_sums, pools, combined_pools, layouts, scales, modifiers_and_views)
    for group in (*groups, gains, initial, extremes, ties, not_finite, other):
        yield from group()
