"""Peak memory of building all weights, beyond the weights themselves, as a multiple of their bytes.

    python benchmarks/memory.py [--side 4612] [--ratios 0.02 0.1 0.5]

Every cell is a process of its own (Linux): it builds once, so that everything is loaded, traced and compiled, frees the
result, and builds again while the kernel keeps the largest resident size. TensorFlow keeps what it frees, so its cells
count from before the first build, and include tracing and compiling. `one` is one tensor of side times side weights,
`many` are ResNet-34's shapes. glibc is told to give freed blocks of a megabyte back at once; by default it keeps more
and more of them, which says more of it than of what is measured.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CELLS = {
    "numpy": ("eager",),
    "torch": ("eager",),
    "jax": ("eager",),
    "tensorflow": ("eager", "function", "xla"),
}


def status(field):
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def settle():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(backend, mode, shapes, ratio):
    sys.path.insert(0, str(ROOT))
    import smh
    from conformance.real_sizes import resnet34

    plan = smh.Plan.build(resnet34() if shapes == "many" else {"a": (int(shapes),) * 2}, ratio=ratio)
    runner = smh.get_backend(backend).in_mode(mode)
    variables = {name: runner.asarray(x) for name, x in smh.initialize(plan).items()}

    def build():
        weights = runner.materialize(plan, variables)
        for w in weights.values():
            if backend == "jax":
                w.block_until_ready()
        return weights

    small = smh.Plan.build({"a": (40, 40)}, ratio=0.5)
    runner.materialize(small, {name: runner.asarray(x) for name, x in smh.initialize(small).items()})
    before = status("VmRSS")
    weights = build()
    del weights
    settle()
    if backend != "tensorflow":
        before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    weights = build()
    size = 4 * plan.num_weights
    print(json.dumps((status("VmHWM") - before - size) / size))
    del weights


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--side", type=int, default=4612)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.02, 0.1, 0.5])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        backend, mode, shapes, ratio = arguments.child
        measure(backend, mode, shapes, float(ratio))
        return
    print("backend     mode      tensors  " + "  ".join(f"{ratio:5.2f}" for ratio in arguments.ratios))
    environment = (
        os.environ
        | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    )
    for backend in arguments.backends:
        for mode in CELLS[backend]:
            for shapes in ("one", "many"):
                cells = []
                for ratio in arguments.ratios:
                    size = str(arguments.side) if shapes == "one" else shapes
                    command = [sys.executable, __file__, "--child", backend, mode, size, str(ratio)]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    cells.append(float(done.stdout.split()[-1]))
                print(
                    f"{backend:11s} {mode:9s} {shapes:7s}  " + "  ".join(f"{cell:5.2f}" for cell in cells), flush=True
                )


if __name__ == "__main__":
    main()
