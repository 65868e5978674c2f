"""The cost of exact arithmetic in NumPy: ratios to the raw float32 product, measured interleaved in one process.

    OPENBLAS_NUM_THREADS=1 python benchmarks/exact_product.py [--rounds 7] [--sides 2300 4612]

For every side n and ratio r the table gives the median over rounds of (exact time / raw time), forward
(``left @ right``) and backward (both gradients), and the thread count. float64 arithmetic has half the rate of float32,
so 2.0 is the floor where arithmetic is the bound.
"""

import argparse
import os
import time

import numpy as np

from smh import exact
from smh.backends.numpy import NumpyOps


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[2300, 4612])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.02, 0.1, 0.5])
    arguments = parser.parse_args()
    ops = NumpyOps()
    rng = np.random.default_rng(0)
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "unset")
    print(f"OPENBLAS_NUM_THREADS={threads}, {arguments.rounds} interleaved rounds, medians of exact/raw")
    print("    n  ratio     m  forward  backward")
    for n in arguments.sides:
        for ratio in arguments.ratios:
            m = int(ratio * n / 2)
            left = rng.standard_normal((n, m)).astype(np.float32)
            right = rng.standard_normal((m, n)).astype(np.float32)
            cotangent = rng.standard_normal((n, n)).astype(np.float32)
            pairs = {
                "forward": (
                    lambda left=left, right=right: exact.product(ops, left, right),
                    lambda left=left, right=right: left @ right,
                ),
                "backward": (
                    lambda left=left, right=right, g=cotangent: (
                        exact.product(ops, g, right.T),
                        exact.transposed_product(ops, left, g),
                    ),
                    lambda left=left, right=right, g=cotangent: (g @ right.T, left.T @ g),
                ),
            }
            medians = {}
            for name, (exactly, raw) in pairs.items():
                seconds(exactly), seconds(raw)
                medians[name] = np.median([seconds(exactly) / seconds(raw) for _ in range(arguments.rounds)])
            print(f"{n:5d}  {ratio:5.2f}  {m:4d}  {medians['forward']:7.2f}  {medians['backward']:8.2f}", flush=True)


if __name__ == "__main__":
    main()
