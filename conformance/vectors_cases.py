"""The cases that the golden vectors hold; each function is a subject, and a file of that name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from conformance.vectors_build import (
    INF,
    MAX,
    NAN,
    NEG_INF,
    NEG_ZERO,
    SUBNORMAL,
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

_BELOW_120 = (1 - 2.0**-24) * 2.0**-120


def integers() -> Iterator[Case]:
    """Every number of bits, and sums around what float32 adds exactly."""
    for b in range(2, 17):
        about = f"Integers of {b} bits."
        yield Case(f"bits_{b}", about, plan(matmul(3, 4, b), tensor("w", 3, 3), seed=b))
    for b, m in ((9, 256), (9, 257), (10, 70)):
        largest = np.full((1, m), 1 - 2.0 ** (1 - b))
        yield Case(
            f"terms_{m}_of_{b}_bits",
            f"{m} products of largest integers of {b} bits.",
            plan(matmul(1, m, b), tensor("w", 1, 1)),
            given={"pool/left": floats(largest), "pool/right": floats(largest.T)},
        )
    cancelled = np.ones(300) * (1 - 2.0**-7)
    cancelled[150:] *= -1
    cancelled[[0, 299]] = 2.0**-7, -(2.0**-6)
    yield Case(
        "terms_that_cancel",
        "Sums that go up to 2**20 and back to less than 0.",
        plan(matmul(1, 300), tensor("w", 1, 1)),
        given={"pool/left": floats(cancelled[None]), "pool/right": floats(np.full((300, 1), 1 - 2.0**-7))},
    )


def leaves() -> Iterator[Case]:
    """Kinds of leaf pools."""
    dense = tensor("w", 6, 5)
    yield Case("matmul_one", "A pool of one virtual weight.", plan(matmul(1, 1), tensor("w", 1, 1)))
    yield Case("matmul_scalar", "A tensor without axes.", plan(matmul(1, 2), tensor("w")))
    yield Case("kronecker", "Kronecker with d = 3, t = 5.", plan(kronecker(3, 5), dense))
    yield Case("kronecker_one", "Kronecker with d = 1.", plan(kronecker(1, 3, 5), tensor("w", 1)))
    yield Case("hash_signed", "One signed hash.", plan(hashed(30, 20), dense, seed=3))
    yield Case("hash_unsigned", "Three unsigned hashes.", plan(hashed(30, 7, 3, False), dense, seed=3))
    yield Case("hash_four", "Four signed hashes, capacity above N.", plan(hashed(40, 6, 4), dense, seed=2**32 - 1))
    yield Case("hash_one", "A table of one element, of 16 bits.", plan(hashed(30, 1, 1, bits=16), dense))
    for gain in (1, 20):
        yield Case(f"gain_matmul_{gain}", f"Gain {gain}.", plan(matmul(6, 3, 8, gain), dense))
    yield Case("gain_kronecker", "Gain 3 of a kronecker pool.", plan(kronecker(3, 2, 4, 3), dense))
    yield Case("gain_hash", "Gain 3 of a hash pool counts once.", plan(hashed(30, 5, 2, True, gain=3), dense))
    unset = plan(hashed(30, 5, 2, True, gain=3), dense)
    yield Case("initial_uniform", "Uniform initial variables.", unset, start="uniform")


def combined() -> Iterator[Case]:
    """Sums and products of pools."""
    a, b = tensor("a", 4, 5), tensor("b", 3, 2)
    two = joined("sum", matmul(6, 2), hashed(30, 9, 2, gain=2))
    yield Case("sum_two", "Sum of matmul (capacity 36) and hash (30): capacity 30.", plan(two, a, b, seed=11))
    equal = joined("sum", matmul(6, 2, 16), matmul(6, 2, 16))
    yield Case("sum_equal", "Equal parts of a sum have different seeds.", plan(equal, a, b))
    wide = joined("sum", *(matmul(6, 2, 16, gain) for gain in (0, 2, 5)))
    yield Case("sum_three", "Sums of float32 values are taken in float64.", plan(wide, a, b))
    three = joined("product", matmul(6, 2), hashed(35, 9), kronecker(3, 2))
    yield Case("product_three", "Product of three parts, left to right; the others' v in turn.", plan(three, a, b))
    deep = joined("sum", joined("product", matmul(6, 3), hashed(50, 10)), kronecker(3, 2))
    yield Case("sum_of_product", "A product inside a sum.", plan(deep, a, b, seed=5))
    deep = joined("product", joined("sum", hashed(35, 4, 2, False), kronecker(3, 1)), matmul(7, 2))
    yield Case("product_of_sum", "A sum inside a product.", plan(deep, a, b, seed=6))
    single = joined("product", joined("sum", matmul(6, 2)))
    yield Case("one_part", "Combinations of one part have a seed of their own.", plan(single, a, b))
    one = [hashed(4, 1, 1, False, exponents=[e], gain=20) for e in (30, -29, 30)]
    constants = [floats([[2.0**29]]), floats([[2.0**-30]]), floats([[-(2.0**29)]])]
    yield Case(
        "sum_ascending",
        "Parts 2^49 + 2^-10 - 2^49: float64 drops the second.",
        plan(joined("sum", *one), tensor("w", 2, 2)),
        given={f"pool/{p}/table": value for p, value in enumerate(constants)},
    )
    small = hashed(6, 6, exponents=[-29])
    values = floats([[2.0**-30, 2.0**-31, 2.0**-32, 2.0**-33, 3 * 2.0**-33, 5 * 2.0**-34]])
    yield Case(
        "product_floor",
        "Products of virtual weights around 2^-88, which the largest scale shows.",
        plan(joined("product", small, small, small), tensor("w", 3, 2, scale=2.0**29)),
        given={f"pool/{p}/table": values for p in range(3)},
    )


def layouts() -> Iterator[Case]:
    """Layouts: more cells than virtual weights, or fewer."""
    a, b = tensor("a", 4, 4), tensor("b", 3, 3)
    yield Case("basic", "Cells past the last tensor send zeros.", plan(matmul(6, 2), a, b))
    yield Case("cyclic_exact", "Cyclic, N = capacity.", plan(matmul(5, 2), a, b, layout="cyclic"))
    yield Case("cyclic_more", "Cyclic, N = capacity + 1.", plan(matmul(5, 2), a, b, tensor("c", 1, 1), layout="cyclic"))
    yield Case("cyclic_four", "Cyclic, N above 4 capacities.", plan(matmul(2, 2), a, b, layout="cyclic"))
    turns = [tensor(name, 2, 2, scale=1.0) for name in "abc"]
    big = 2.0**60
    for name, values, total in (
        ("rounded", (big, 1.0, -big), "0"),
        ("ascending", (big, -big, 1.0), "1"),
        ("wide", (1.0, 2.0**-40, -1.0), "2^-40"),
    ):
        yield Case(
            f"cyclic_{name}",
            f"Cyclic gradients {', '.join(map(str, values))} of a cell are added in float64, "
            f"ascending, which gives {total}.",
            plan(hashed(4, 2, signed=False), *turns, layout="cyclic"),
            cotangents={t["name"]: floats(np.full((2, 2), value)) for t, value in zip(turns, values, strict=True)},
        )
    fixed = tensor("c", 2, 2, scale=0.5, learn=False)
    yield Case(
        "padding",
        "Cells past the capacity are float32(0.01): no gradient to the pool, but to the scale.",
        plan(matmul(4, 2), a, b, fixed, layout="padding"),
    )
    small = matmul(2, 1, exponents=[-10, -10])
    yield Case(
        "padding_bound",
        "A scale gradient of cells beyond the capacity, above which no bound of the pool lies.",
        plan(small, tensor("w", 3, 3), layout="padding"),
        given={"pool/left": floats(np.full((2, 1), 2.0**-11)), "pool/right": floats(np.full((1, 2), 2.0**-11))},
        cotangents={"w": floats([[0, 0, 0], [0, 1.0, -1.0], [3 * 2.0**-50, 0, 0]])},
    )


def scales() -> Iterator[Case]:
    """Scales: rules, kappas and limits."""
    rules: tuple[str | float, ...] = ("fan_in", "fan_out", "he", "glorot", 0.05)
    shapes: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (2, 2, 3), (2, 1, 3, 1), (1, 2, 1, 2, 1))
    for learn in (True, False):
        tensors = [
            tensor(f"{number}/{len(shape)}", *shape, scale=rule, learn=learn, kappa=number if learn else 0)
            for number, rule in enumerate(rules)
            for shape in shapes
        ]
        name = "learned" if learn else "fixed"
        N = sum(math.prod(shape) for shape in shapes) * len(rules)
        yield Case(f"scales_{name}", f"Each scale rule at ranks 0 to 5, {name}.", plan(hashed(N, 40), *tensors))
    channels = tensor("channels", 4, 3, 2, 1, scale="fan_out", axes="o i h w")
    depthwise = tensor("depthwise", 3, 1, 5, scale="he", axes="h w o")
    yield Case("scales_axes", "Fans follow the axes.", plan(matmul(7, 2), channels, depthwise))
    largest = [2.0**30 * (1 - 2.0**-24), 2.0**30, 2.0**-30, 2.0**-30 * (1 - 2.0**-24), -(2.0**-30), 0.0, math.inf]
    for kappa in (0, 7):
        tensors = [tensor(f"w{k}", 2, kappa=kappa) for k in range(len(largest))]
        yield Case(
            f"scales_limits_{kappa}",
            "A scale below 2^-30 is 0, from 2^30 on NaN.",
            plan(hashed(14, 9), *tensors),
            given={f"scale/w{k}": np.float32(s * 2.0**kappa).reshape(()) for k, s in enumerate(largest)},
        )
    yield Case(
        "scale_cancels",
        "A scale gradient of which three units are left.",
        plan(matmul(2, 1), tensor("w", 2, 2)),
        given={"pool/left": floats(np.ones((2, 1))), "pool/right": floats(np.ones((1, 2)))},
        cotangents={"w": floats([[1.0, -1.0], [3 * 2.0**-48, 2.0**-60]])},
    )


def modifiers_and_views() -> Iterator[Case]:
    """Modifiers in both orders, and views of all kinds."""
    a = tensor("a", 2, 3, modifiers=["relu"])
    b = tensor("b", 2, 3, modifiers=["sign"])
    c = tensor("c", 2, 3, modifiers=["relu", "sign"])
    d = tensor("d", 2, 3, modifiers=["sign", "relu"])
    yield Case("modifiers", "relu, sign, and both in both orders.", plan(matmul(5, 2), a, b, c, d))
    zeros = floats([[0.0, 0.75, -0.5, 0.0, 2.0**-10]])
    yield Case(
        "modifiers_zeros",
        "relu and sign of zeros.",
        plan(hashed(24, 5, 1, False), *[one | {"scale": 1.0, "learn_scale": False} for one in (a, b, c, d)]),
        given={"pool/table": zeros},
    )
    poison = replaced(seeded(3, (1, 5)), i2=NAN)
    yield Case(
        "modifiers_nan",
        "NaN stays NaN; relu lets no gradient pass there.",
        plan(hashed(24, 5), a, b, c, d),
        given={"pool/table": poison},
    )
    permute = tensor("a", 3, 2, 2, 2, axes="o i h w", view={"pattern": "o i h w -> h w i o", "sizes": {}})
    merge = tensor("b", 2, 3, 2, view={"pattern": "a b c -> (c a) b", "sizes": {}})
    split = tensor("c", 2, 12, axes="o i", view={"pattern": "o (c h w) -> (h w c) o", "sizes": {"h": 2, "w": 3}})
    both = tensor("d", 6, 4, view={"pattern": "(a b) (c d) -> d (b c) a", "sizes": {"a": 2, "d": 2}})
    yield Case("views", "Views that permute, merge and split axes.", plan(hashed(84, 30), permute, merge, split, both))
    gates = {"pattern": "i (g h) -> (g h) i", "sizes": {"g": 3}, "order": {"g": [1, 2, 0]}}
    flips = {"pattern": "h w i o -> i o h w", "sizes": {}, "order": {"h": [2, 1, 0], "w": [1, 0]}}
    turned = tensor("b", 3, 2, 2, 1, axes="h w i o", view=flips)
    yield Case(
        "views_order",
        "Views that put gates in another order, and flip kernels.",
        plan(hashed(60, 21), tensor("a", 2, 12, axes="i o", view=gates), turned),
    )


def grids() -> Iterator[Case]:
    """Grids of variables: ties, exponents, fixed exponents, zeros."""
    square = tensor("w", 4, 4, scale=1.0)
    halves = np.arange(-7.5, 8.5) * 2.0**-7
    halves[0] = 0.75
    right = seeded(1, (4, 4))
    for b in (8, 4):
        scaled = halves * 2.0 ** (8 - b)
        scaled[0] = 0.75
        yield Case(
            f"ties_{b}",
            f"Variables half way between integers of {b} bits.",
            plan(matmul(4, 4, b), square),
            given={"pool/left": floats(scaled.reshape(4, 4)), "pool/right": right},
        )
    fraction = 1 - 2.0**-7
    for name, most in (("at", fraction), ("above", fraction + 2.0**-24), ("below", fraction - 2.0**-24), ("one", 1.0)):
        left = replaced(seeded(2, (4, 4), -9, -3), i5=int(np.float32(most).view(np.uint32)))
        yield Case(
            f"exponent_{name}",
            f"The largest variable is {most}: its exponent is the least with which no integer exceeds 127.",
            plan(matmul(4, 4), square),
            given={"pool/left": left, "pool/right": right},
        )
    for e in (-40, -31, -30, -29, 29, 30, 31, 127, -149):
        yield Case(
            f"exponent_{e}",
            f"Variables around 2^{e}: below 2^-30 all integers are 0, above 2^30 an array is poisoned.",
            plan(matmul(4, 4), square),
            given={"pool/left": np.ldexp(seeded(4, (4, 4), -2, -1), e).astype(np.float32)},
        )
    yield Case(
        "exponents_fixed",
        "Fixed exponents: integers are clipped, or few.",
        plan(matmul(4, 3, 8, 1, [-2, 1]), square),
        given={"pool/left": seeded(5, (4, 3), -6, 3), "pool/right": seeded(6, (3, 4), -9, -2)},
    )
    yield Case(
        "exponents_fixed_ends",
        "Fixed exponents at both ends of their range, with values that rounding takes beyond it.",
        plan(joined("sum", hashed(16, 8, exponents=[-29]), kronecker(2, 2, 4, 0, [-29, 30])), square),
        given={"pool/0/table": np.ldexp(seeded(7, (1, 8), -3, 3), -29), "pool/1/right": seeded(8, (2, 2, 2), 20, 33)},
    )
    zeros = floats(np.zeros((4, 4)))
    for name, value in (("zero", 0), ("minus_zero", NEG_ZERO), ("subnormal", SUBNORMAL)):
        yield Case(
            f"all_{name}",
            "An array whose integers are all 0: weights and scale gradients are +0.",
            plan(matmul(4, 4), square),
            given={"pool/left": replaced(zeros, i2=value)},
        )
    yield Case(
        "subnormal_among_others",
        "Subnormal variables beside ordinary ones are 0.",
        plan(matmul(4, 4), square),
        given={"pool/left": replaced(seeded(9, (4, 4)), i0=SUBNORMAL, i4=0x80000001, i7=0x007FFFFF, i8=NEG_ZERO)},
    )


def cotangents() -> Iterator[Case]:
    """Cotangents: floors, limits, ties of their grid, missing ones."""
    square = tensor("w", 4, 4, scale=1.0)
    base = plan(matmul(4, 4), square)
    for e in (-149, -126, -121, -110, -71, -70, 70, 89, 90, 91, 127):
        g = np.ldexp(seeded(11, (4, 4), -2, -1) * np.float32(0.75), e).astype(np.float32)
        yield Case(f"cotangents_{e}", f"Cotangents around 2^{e}.", base, cotangents={"w": g})
    yield Case(
        "cotangents_floor",
        "A cotangent just below its floor, which the largest scale would lift onto the grid.",
        plan(matmul(2, 1), tensor("w", 1, 2)),
        given={
            "pool/left": floats(np.ones((2, 1))),
            "pool/right": floats(np.ones((1, 2))),
            "scale/w": floats((1 - 2.0**-24) * 2.0**30),
        },
        cotangents={"w": floats([[1.25 * 2.0**-100, _BELOW_120]])},
    )
    odd = np.ldexp(2 * np.arange(1, 17) + 1, -24).reshape(4, 4)
    odd[0, 0] = 0.75
    yield Case("cotangents_ties", "Cotangents half way between their integers.", base, cotangents={"w": floats(odd)})
    edge = seeded(12, (4, 4))
    edge[1, 1] = 1 - 2.0**-22
    yield Case("cotangents_edge", "The largest cotangent is that of the grid.", base, cotangents={"w": edge})
    edge = edge.copy()
    edge[1, 1] = 1 - 2.0**-23
    yield Case("cotangents_above", "The largest cotangent needs the next exponent.", base, cotangents={"w": edge})
    yield Case("cotangents_zero", "Zeros.", base, cotangents={"w": bits(*[0, NEG_ZERO] * 8, shape=(4, 4))})
    a, b, c = tensor("a", 3, 4), tensor("b", 2, 4), tensor("c", 2, 2)
    three = plan(matmul(5, 2), a, b, c)
    yield Case("without_one", "A tensor without a cotangent sends nothing.", three, without=("b",))
    yield Case("without_any", "No cotangent at all.", three, without=("a", "b", "c"))
    poison = {"pool/left": replaced(seeded(13, (5, 2)), i3=INF)}
    yield Case("without_one_nan", "... also where variables are not finite.", three, given=poison, without=("b",))
    infinite = {"scale/b": bits(INF, shape=())}
    yield Case("without_one_inf", "... or its scale is not finite.", three, given=infinite, without=("b",))


def not_finite() -> Iterator[Case]:
    """Values that are not finite."""
    square, more = tensor("a", 4, 4), tensor("b", 1, 3)
    two = plan(matmul(4, 3), square, more, layout="cyclic")
    for name, value in (("nan", 0xFFC00001), ("inf", INF), ("minus_inf", NEG_INF)):
        left = replaced(seeded(40, (4, 3)), i6=value)
        yield Case(f"left_{name}", "One such variable poisons all weights.", two, given={"pool/left": left})
        g = replaced(seeded(42, (4, 4)), i7=value)
        yield Case(f"cotangent_{name}", "One such cotangent makes gradients NaN.", two, cotangents={"a": g})
        scale = {"scale/a": bits(value, shape=())}
        yield Case(f"scale_{name}", "Such a scale makes the weights of its tensor NaN.", two, given=scale)
    parts = joined("sum", matmul(5, 2), joined("product", hashed(25, 5), kronecker(3, 1)))
    table = replaced(seeded(43, (1, 5)), i1=NAN)
    yield Case(
        "poisoned_part", "A part that is poisoned leaves others' gradients alone.", plan(parts, square),
        given={"pool/1/0/table": table},
    )  # fmt: skip
    largest = replaced(seeded(44, (4, 3)), i1=MAX)
    yield Case("largest", "The largest float32 poisons an array.", two, given={"pool/right": largest.reshape(3, 4)})
    big = joined("product", *[hashed(16, 4, gain=20, exponents=[30])] * 3)
    tables = {f"pool/{p}/table": seeded(45 + p, (1, 4), 27, 30) for p in range(3)}
    yield Case("overflow", "Products of pools overflow to infinities.", plan(big, square), given=tables)


SUBJECTS: tuple[Callable[[], Iterator[Case]], ...] = (
    integers,
    leaves,
    combined,
    layouts,
    scales,
    modifiers_and_views,
    grids,
    cotangents,
    not_finite,
)
