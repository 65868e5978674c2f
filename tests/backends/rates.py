"""What tests of the rate share: a model's shapes, its data, and the rate's gradient in plain NumPy."""

import numpy as np
from safetensors.numpy import load_file

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


# --- Kept tensors

WIDTHS = (16, 128, 256)
"""Channels of a small network of convolutions and batch norms."""


def kept_values():
    """Return values for kept tensors of such a network, as after training: three to a layer, and variances."""
    random = np.random.default_rng(0)
    found = {}
    for layer, width in enumerate(WIDTHS):
        draws = random.normal(1, 0.2, width), random.normal(0, 0.3, width), random.normal(0, 1, width)
        found[layer] = [x.astype(np.float32) for x in (*draws, random.gamma(4, 1, width))]
    return found


def kept_bits_in(path):
    """Return the bits of all kept tensors of floats in a file, from its bytes."""
    tensors = {
        name: x for name, x in load_file(path).items() if name.startswith(("dense/", "rounded/", "coded/rounded/"))
    }
    return 8 * sum(x.nbytes for name, x in tensors.items() if name[:6] != "dense/" or x.dtype.kind not in "biu")


def assert_kept_gradient(x, exponent, bits, found):
    """Compare the gradient of one kept tensor with the formula for units of the grid in a file."""
    unit = 2.0 ** (exponent - bits + 1)
    y = np.asarray(x, dtype=np.float64) / unit
    below, width = np.floor(np.abs(y)), np.abs(y).mean() + 2.0**-10
    expected = np.sign(y) * 2.0 * np.log2((below + 1.0 + width) / (below + width)) / unit
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-3 if bits == 8 else 0.1)
