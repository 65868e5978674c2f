"""What tests of the rate share: a model's shapes, its data, and the rate's gradient in plain NumPy."""

import numpy as np

import smh

OPTIONS = {"ratio": 0.6, "exponents": "fixed", "optimizer": "adam"}
WEIGHT = 1e-3
STEPS = 60


def data():
    """Return inputs and targets of a linear problem."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 20)).astype(np.float32)
    return x, (x @ random.normal(0.0, 0.2, (20, 30))).astype(np.float32)


def expected_gradients(plan, variables):
    """Return the gradient of the rate for each array of a matmul pool."""
    found = {}
    for name, exponent in zip(("left", "right"), plan.pool.exponents, strict=True):
        y = np.asarray(variables[f"pool/{name}"], dtype=np.float64) / 2.0 ** (exponent - 7)
        below, width = np.floor(np.abs(y)), np.abs(y).mean() + 2.0**-10
        slope = 2.0 * np.log2((below + 1.0 + width) / (below + width))
        found[f"pool/{name}"] = np.sign(y) * slope / 2.0 ** (exponent - 7)
    return found


def assert_gradients(plan, variables, found):
    """Compare gradients with the formula; float32 logarithms of up to 2**8 keep 1e-4 of them."""
    for name, expected in expected_gradients(plan, variables).items():
        np.testing.assert_allclose(np.asarray(found[name]), expected, rtol=1e-4, err_msg=name)


def packed_bits(plan, variables):
    """Return the entropy of the integers of a matmul pool and the estimate of the tables, in bits."""
    total = 0.0
    stored = smh.core.generate.on_grid(smh.core.kernels.Kernels(np), plan, variables)
    for name in ("pool/left", "pool/right"):
        counts = np.unique(stored[name], return_counts=True)[1]
        total += 16 + 26 * np.log2(len(counts)) + np.sum(counts * np.log2(counts.sum() / counts))
    return float(total)
