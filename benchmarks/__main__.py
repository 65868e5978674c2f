"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measure

STEP = {
    "torch": ["resnet34 32x32", "resnet34 224x224", "efficientnet_b0 224x224", "cnn 28x28", "mlp 28x28"],
    "jax": ["resnet34 32x32", "mlp 28x28"],
    "tensorflow": ["resnet34 32x32", "mlp 28x28"],
}
INFERENCE = ["resnet34 32x32", "resnet34 224x224", "language model"]
SIZES = {"torch": ["cnn 28x28", "language model"], "jax": ["mlp 28x28"], "tensorflow": ["mobilenet_v3 32x32"]}
LOADING = ["resnet34 224x224", "efficientnet_b0 224x224", "mlp 28x28"]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and record results, or write the page."""
    options = make_parser().parse_args(arguments)
    if options.command == "report":
        from benchmarks import report  # measuring does not need matplotlib

        report.write(options.results, options.output)
        return
    if options.threads:
        measure.limit_threads(options.threads)
    rows: list[measure.Row] = []
    path = None
    for row in run(options):
        spread = f"  ({row['low']:.2f} to {row['high']:.2f}, {row['seconds']:.4f} s)" if "low" in row else ""
        print(*(row[name] for name in ("network", "ratio", "mode", "what")), f"{row['value']:.2f}{spread}", flush=True)
        rows.append(row)  # recorded one by one, so an interrupted run keeps its results
        path = measure.record(options.command, options.backend, options.rounds, rows, options.results)
    print("recorded in", path)


def run(options: argparse.Namespace) -> Iterator[measure.Row]:
    """Iterate over the results of a command. Imports frameworks only now, with their threads limited."""
    names, ratios, rounds = options.shapes, options.ratios, options.rounds
    if options.command == "kernels":
        from benchmarks import kernels

        return kernels.measure(options.backend, names, ratios, rounds, options.modes)
    if options.command == "loading":
        from benchmarks import loading

        return loading.measure(names or LOADING, ratios, rounds)
    if options.command == "sizes":
        from benchmarks import sizes

        return sizes.measure(options.backend, names or SIZES[options.backend], ratios)
    if options.backend != "torch":
        from benchmarks import keras_models

        return keras_models.measure_step(options.backend, names or STEP[options.backend], ratios, rounds)
    from benchmarks import torch_models

    if options.command == "step":
        return torch_models.measure_step(names or STEP["torch"], ratios, rounds)
    return torch_models.measure_inference(names or INFERENCE, ratios[0], rounds)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    abouts = {
        "kernels": "build and gradients of all weights, relative to raw float32 products of the same shapes",
        "step": "a training step with batch 32, relative to the plain model",
        "inference": "a forward pass and generate() in PyTorch, relative to the plain model",
        "loading": "from a file to the first inference in PyTorch, relative to the dense file, in fresh processes",
        "sizes": "bytes of exported files: dense, quantized by the runtime, and with the pool as integers",
        "report": "write docs/performance.md, its plots and docs/results/sizes.md from recorded results",
    }
    every = {name: commands.add_parser(name, help=about, description=about) for name, about in abouts.items()}
    for name, command in every.items():
        command.add_argument("--results", type=Path, default=measure.RESULTS, help="the folder of results")
        if name == "report":
            command.add_argument("--output", type=Path, default=measure.ROOT / "docs", help="the folder of the page")
            continue
        backends = {"kernels": ["numpy", "torch", "jax", "tensorflow"], "step": list(STEP), "sizes": list(SIZES)}
        command.add_argument("--backend", choices=backends.get(name, ["torch"]), default="torch")
        command.add_argument("--rounds", type=int, default=7)
        command.add_argument("--threads", type=int, default=1, help="0 for the default of each framework")
        ratios = {"kernels": [0.02, 0.1, 0.5], "inference": [0.1], "sizes": [0.1]}
        command.add_argument("--ratios", type=float, nargs="+", default=ratios.get(name, [0.1, 0.02]))
        if name == "kernels":
            command.add_argument("--modes", nargs="+", help="such as eager; all of the backend by default")
        shapes = ["resnet34", "efficientnet_b0", "square2300", "square4612"] if name == "kernels" else None
        what = {"kernels": "resnet34, efficientnet_b0 or squareN"}.get(name, 'networks, such as "resnet34 32x32"')
        command.add_argument("--shapes", nargs="+", default=shapes, help=what)
    return parser


if __name__ == "__main__":
    main()
