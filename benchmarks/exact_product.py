"""The cost of exact arithmetic: ratios to the raw float32 product of the same framework, measured interleaved.

    python benchmarks/exact_product.py --backends numpy torch jax tensorflow --threads 1 --rounds 7 \
        --sides 2300 4612 --ratios 0.02 0.1 0.5 [--clock cpu] [--json FILE]

Every framework runs in a process of its own, as its users run it: NumPy and PyTorch eagerly, JAX under ``jit`` until
the result is ready, TensorFlow in a ``tf.function``. For a pool with matrices of side n and ratio r the table gives the
median over rounds of (exact time / raw time), with the quartiles, and the median time of the raw product. Forward is
``left @ right``, backward both gradients together. float64 arithmetic has half the rate of float32, so 2.0 is the floor
where arithmetic is the bound. ``--clock cpu`` counts processor time, which other processes disturb less.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
LINE = (
    "{backend:9s} {n:5d}  {ratio:5.2f}  {m:4d}  {direction:8s}  {median:5.2f}  ({low:.2f} to {high:.2f}) {raw_ms:7.1f}"
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def numpy_runner():
    """Return what makes an Ops, what prepares a function, and what moves an array in."""
    return importlib.import_module("smh.backends.numpy").NumpyOps, lambda fn: fn, lambda x: x


def torch_runner():
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return importlib.import_module("smh.backends.torch.ops").TorchOps, lambda fn: fn, torch.from_numpy


def jax_runner():
    jax = importlib.import_module("jax")
    ops = importlib.import_module("smh.backends.jax.ops").JaxOps

    def prepare(fn):
        def wide(*args):
            with jax.enable_x64(True):
                return fn(*args)

        compiled = jax.jit(wide)
        return lambda *args: jax.block_until_ready(compiled(*args))

    return ops, prepare, jax.numpy.asarray


def tensorflow_runner():
    tf = importlib.import_module("tensorflow")
    return importlib.import_module("smh.backends.tensorflow.ops").TensorFlowOps, tf.function, tf.constant


RUNNERS = {"numpy": numpy_runner, "torch": torch_runner, "jax": jax_runner, "tensorflow": tensorflow_runner}


def contenders(make_ops):
    """Return pairs of functions of (left, right, cotangent): exact and raw."""
    exact, xp = importlib.import_module("smh.exact"), make_ops().xp
    transposed = xp.matrix_transpose
    return {
        "forward": (
            lambda left, right, g: exact.product(make_ops(), left, right),
            lambda left, right, g: xp.matmul(left, right),
        ),
        "backward": (
            lambda left, right, g: (
                exact.product(make_ops(), g, transposed(right)),
                exact.transposed_product(make_ops(), left, g),
            ),
            lambda left, right, g: (xp.matmul(g, transposed(right)), xp.matmul(transposed(left), g)),
        ),
    }


def seconds(clock, function, arrays):
    start = clock()
    function(*arrays)
    return clock() - start


def measure(arguments):
    """Yield a row per side, ratio and direction."""
    (backend,) = arguments.backends
    try:
        make_ops, prepare, asarray = RUNNERS[backend]()
    except ImportError as error:
        sys.exit(f"the {backend} backend cannot be imported: {error}")
    clock = CLOCKS[arguments.clock]
    rng = np.random.default_rng(0)
    for n in arguments.sides:
        for ratio in arguments.ratios:
            m = int(ratio * n / 2)
            shapes = (n, m), (m, n), (n, n)
            arrays = [asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
            for direction, pair in contenders(make_ops).items():
                exactly, raw = map(prepare, pair)
                seconds(clock, exactly, arrays), seconds(clock, raw, arrays)
                times = [
                    (seconds(clock, exactly, arrays), seconds(clock, raw, arrays)) for _ in range(arguments.rounds)
                ]
                low, median, high = np.percentile([a / b for a, b in times], [25, 50, 75])
                yield {
                    "backend": backend,
                    "n": n,
                    "ratio": ratio,
                    "m": m,
                    "direction": direction,
                    "median": float(median),
                    "low": float(low),
                    "high": float(high),
                    "raw_ms": float(1e3 * np.median([b for _, b in times])),
                }


def environment(threads):
    """Return the environment in which every library uses that many threads."""
    libraries = ("OMP", "OPENBLAS", "MKL", "TF_NUM_INTRAOP", "TF_NUM_INTEROP")
    count = {name + ("_THREADS" if "TF" in name else "_NUM_THREADS"): str(threads) for name in libraries}
    if threads == 1:
        count["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return os.environ | count | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}


def run(backend, arguments):
    """Return the rows of a backend, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", "--backends", backend, "--rounds", str(arguments.rounds)]
    command += ["--clock", arguments.clock, "--sides", *map(str, arguments.sides)]
    command += ["--ratios", *map(str, arguments.ratios)]
    if hasattr(os, "sched_setaffinity") and arguments.threads == 1:
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    done = subprocess.Popen(command, env=environment(arguments.threads), stdout=subprocess.PIPE, text=True)
    for line in done.stdout:
        row = json.loads(line)
        print(LINE.format(**row), flush=True)
        yield row
    if done.wait():
        sys.exit(f"the measurement of {backend} failed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=RUNNERS, default=["numpy"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[2300, 4612])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.02, 0.1, 0.5])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        for row in measure(arguments):
            print(json.dumps(row), flush=True)
        return
    print(f"{arguments.threads} thread(s), {arguments.rounds} interleaved rounds, exact/raw by {arguments.clock} time")
    print("backend        n  ratio     m  direction  median  (quartiles)    raw ms")
    rows = [row for backend in arguments.backends for row in run(backend, arguments)]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(vars(arguments) | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
