"""What a compressed model costs in PyTorch, over the plain one: training step, inference, peak memory.

    python benchmarks/models.py [--threads 1] [--rounds 7] [--cells step inference memory]

The model has ResNet-34's shapes for images of 32 x 32. Times are ratios to the plain model's, measured interleaved in
one process: the median over rounds, and the quartiles. Peak memory (Linux) is that of a fresh process over what it had
after its imports; it loads a model and runs it forward once, with batch 1.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smh.backends import torch as smh

CELLS = ("step", "inference", "memory")


class Block(nn.Module):
    """Two convolutions of 3 x 3 around which the input goes, projected where the width changes."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet34():
    """Return the model for small images: a first layer of 3 x 3, no pooling, 1000 classes."""
    layers, before = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()], 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def compressed(plain, ratio, arithmetic="exact", residency="full"):
    return smh.compress(plain, ratio=ratio, arithmetic=arithmetic, residency=residency)


def quartiles(label, runs, rounds):
    """Print how long the second and later functions take over the first one."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    base, *others = runs
    for name in others:
        low, median, high = np.percentile(np.divide(times[name], times[base]), [25, 50, 75])
        plain_ms = 1e3 * np.median(times[base])
        print(f"{label:10s} {name:24s} {median:5.2f}  ({low:.2f} to {high:.2f})  plain {plain_ms:7.1f} ms", flush=True)


def measure_step(rounds):
    def step(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)

        def run():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        return run

    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 32, 32), torch.randint(1000, (32,))
    plain = resnet34()
    models = {(a, ratio): compressed(plain, ratio, a) for ratio in (0.1, 0.02) for a in ("fast", "exact")}
    for ratio in (0.1, 0.02):
        runs = {"plain": step(plain), **{f"{a} {ratio}": step(models[a, ratio]) for a in ("fast", "exact")}}
        quartiles("step", runs | {f"raw products alone {ratio}": products(models["fast", ratio])}, rounds)


def products(model):
    """Return what computes only the float32 products that a step cannot do without."""
    left, right = model.pool_left.detach(), model.pool_right.detach()
    g = torch.randn(left.shape[0], right.shape[1])
    return lambda: (left @ right, g @ right.mT, left.mT @ g)


def measure_inference(rounds):
    torch.manual_seed(0)
    plain = resnet34().eval()
    for batch in (1, 32):
        x = torch.randn(batch, 3, 32, 32)
        models = {f"{r} 0.1, batch {batch}": compressed(plain, 0.1, residency=r) for r in ("cached", "layer", "full")}

        def infer(model, x=x):
            @torch.no_grad()
            def run():
                model(x)

            return run

        quartiles(
            "inference", {"plain": infer(plain), **{name: infer(model) for name, model in models.items()}}, rounds
        )


def peak(kind):
    """Return the peak of a process that builds a model and runs it once, over what it had before."""
    torch.set_num_threads(1)
    path = os.environ["SMH_MODEL"]
    status = Path("/proc/self/status")

    def field(name):
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    with torch.no_grad():
        torch.nn.Conv2d(3, 4, 3)(torch.randn(1, 3, 32, 32))  # loads and starts what any model needs
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = field("VmRSS")
        model = torch.load(path, weights_only=False)
        if kind != "plain":
            smh.set_residency(model, kind)
        model(torch.randn(1, 3, 32, 32))
    return field("VmHWM") - before


def measure_memory():
    torch.manual_seed(0)
    plain = resnet34().eval()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("plain", "layer", "full", "cached"):
            path = Path(folder, "model.pt")
            torch.save(plain if kind == "plain" else compressed(plain, 0.1), path)
            command = [sys.executable, __file__, "--peak", kind]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(sys.path[1:]),
                "SMH_MODEL": str(path),
                "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
            }
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[kind] = int(done.stdout)
            print(f"memory     {kind:24s} {found[kind] / found['plain']:5.2f}  {found[kind] / 1e6:.0f} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak))
        return
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} thread(s), {arguments.rounds} interleaved rounds, over the plain model")
    if "step" in arguments.cells:
        measure_step(arguments.rounds)
    if "inference" in arguments.cells:
        measure_inference(arguments.rounds)
    if "memory" in arguments.cells:
        measure_memory()


if __name__ == "__main__":
    main()
