"""``smh demo``: a classifier of handwritten digits, trained dense and from a pool a tenth the size of its weights.

Everything runs in NumPy. Both networks have the same shapes, loss, optimiser and batches; the compressed one only adds
``smh.materialize`` before the forward pass and ``smh.vjp`` after the backward pass. Both are written to files, and read
back before their accuracy is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from smh.backends import numpy as smh
from smh.cli.output import AsJson, ExitCode, Force, check_out, emit, progress
from smh.core.pools.base import BITS
from smh.errors import BackendError
from smh.files.atomic import replacing
from smh.files.compare import compare
from smh.files.dense import DenseFile

Arrays = dict[str, np.ndarray]

_BATCH = 64
_RATE = 0.01


@dataclass(frozen=True)
class Digits:
    """The 1,797 images of scikit-learn's ``load_digits``, split once: 1,437 to train on, 360 to test on."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def load(cls) -> Digits:
        """Read the images that ship with scikit-learn, scaled to [0, 1]."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise BackendError(f"the demo needs scikit-learn ({error}): pip install 'smh[demo]'") from error
        images, labels = load_digits(return_X_y=True)
        images = (images / 16.0).astype(np.float32)
        order = np.random.default_rng(0).permutation(len(images))
        images, labels = images[order], labels[order]
        return cls(images[:1437], labels[:1437], images[1437:], labels[1437:])


def run(
    ratio: float = typer.Option(0.1, help="Pool variables per weight, an upper bound."),
    bits: int = typer.Option(BITS, help="Bits of the integers that are stored and generate weights, 2 to 16."),
    epochs: int = typer.Option(30, min=1, help="Passes over the training images."),
    hidden: int = typer.Option(256, min=1, help="Units in each of the two hidden layers."),
    pool: str = typer.Option("matmul", help="matmul, kronecker or hash."),
    seed: int = typer.Option(0, help="Decides the pool's hash functions and all initial values."),
    out: Path = typer.Option(
        Path("digits.safetensors"),
        "--out",
        "-o",
        metavar="FILE",
        help="The checkpoint to write; the dense file lies beside it, as digits-dense.safetensors.",
    ),
    force: bool = Force,
    as_json: bool = AsJson,
) -> None:
    """Train a digit classifier twice, dense and from a pool; save and load both, and compare accuracy and bytes."""
    digits = Digits.load()
    shapes = {"fc1": (64, hidden), "fc2": (hidden, hidden), "fc3": (hidden, 10)}
    plan = smh.Plan.build(shapes, ratio=ratio, bits=bits, pool=pool, optimizer="adam", seed=seed)
    dense_out = out.with_name(f"{out.stem}-dense{out.suffix}")
    for path in (out, dense_out):
        check_out(path, force=force)
    rng = np.random.default_rng(seed)
    dense_weights = {
        name: rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        for name, shape in shapes.items()
    }
    biases = {f"{name}.bias": np.zeros(shape[1], dtype=np.float32) for name, shape in shapes.items()}

    with progress() as bars:
        tasks = [bars.add_task(name, total=epochs) for name in ("dense", "from a pool")]
        dense, dense_biases = _train(
            digits, dense_weights, biases, lambda w: w, lambda w, g: g, epochs, lambda: bars.advance(tasks[0])
        )
        variables, kept = _train(
            digits,
            smh.initialize(plan),
            biases,
            lambda v: smh.materialize(plan, v),
            lambda v, g: smh.vjp(plan, v, g),
            epochs,
            lambda: bars.advance(tasks[1]),
        )

    with replacing(dense_out) as temporary:
        save_file({**dense, **dense_biases}, temporary)
    with DenseFile(dense_out) as file:
        dense_again = {name: file[name] for name in file}
    weights = smh.materialize(plan, variables)
    digest = smh.save(out, plan, variables, dense=kept)
    found = smh.load(out)
    again = smh.materialize(found.plan, found.variables)
    different = sum(compare(name, again[name], weights[name]).bits for name in weights)
    same = not different and smh.digest(found.plan, found.variables) == digest

    result = {
        "weights": plan.num_weights,
        "biases": sum(bias.size for bias in biases.values()),
        "dense": {
            "variables": plan.num_weights,
            "accuracy": _accuracy(digits, {name: dense_again[name] for name in shapes}, dense_again),
            "bytes": dense_out.stat().st_size,
            "out": str(dense_out),
        },
        "pool": {
            "variables": plan.num_variables,
            "accuracy": _accuracy(digits, again, found.dense),
            "bytes": out.stat().st_size,
            "out": str(out),
        },
        "plan": plan.to_dict(),
        "digest": digest,
        "bits_different": different,
        "same": same,
    }
    emit(result, as_json, lambda console: _show(console, plan, pool, result))
    if not same:
        raise typer.Exit(ExitCode.DIFFERENT)


def _show(console: Console, plan: smh.Plan, pool: str, result: dict[str, Any]) -> None:
    console.print(str(plan), soft_wrap=True)
    console.print()
    table = Table(title="Handwritten digits, 8x8 pixels, 10 classes")
    for column in ("", "weights", "trained variables", "test accuracy", "bytes on disk", "file"):
        table.add_column(column, justify="left" if column in ("", "file") else "right")
    for name, row in (("dense", result["dense"]), (f"{pool} pool", result["pool"])):
        counts = (f"{result['weights']:,}", f"{row['variables']:,}")
        table.add_row(name, *counts, f"{row['accuracy']:.1%}", f"{row['bytes']:,}", row["out"])
    console.print(table)
    share = result["pool"]["bytes"] / result["dense"]["bytes"]
    console.print(f"The compressed file has {share:.1%} of the bytes. Both keep {result['biases']} biases in float32.")
    console.print(f"digest {result['digest']}", soft_wrap=True)
    weights = f"{result['weights']:,} weights rebuilt from the file, {result['bits_different']:,} bits different"
    if result["same"]:
        console.print(f"verified: {weights}", soft_wrap=True)
    else:
        console.print(f"not verified, the weights changed on the way through the file: {weights}", style="red")


def _train(
    digits: Digits,
    variables: Arrays,
    biases: Arrays,
    build: Callable[[Arrays], Arrays],
    pull: Callable[[Arrays, Arrays], Arrays],
    epochs: int,
    advance: Callable[[], object],
) -> tuple[Arrays, Arrays]:
    """Train variables and biases by Adam with a linear decay; ``build`` and ``pull`` lie between."""
    trained = {**variables, **biases}
    mean = {name: np.zeros_like(x) for name, x in trained.items()}
    square = {name: np.zeros_like(x) for name, x in trained.items()}
    total = epochs * -(-len(digits.train_labels) // _BATCH)
    for step, (images, labels) in enumerate(_batches(digits, epochs, advance)):
        current = {name: trained[name] for name in variables}
        gradients, bias_gradients = _backward(build(current), trained, images, labels)
        rate = _RATE * (1 - step / total) * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        for name, gradient in {**pull(current, gradients), **bias_gradients}.items():
            mean[name] += np.float32(0.1) * (gradient - mean[name])
            square[name] += np.float32(0.001) * (gradient * gradient - square[name])
            trained[name] = trained[name] - np.float32(rate) * mean[name] / (np.sqrt(square[name]) + np.float32(1e-8))
    return {name: trained[name] for name in variables}, {name: trained[name] for name in biases}


def _batches(digits: Digits, epochs: int, advance: Callable[[], object]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(digits.train_labels))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            yield digits.train_images[batch], digits.train_labels[batch]
        advance()


def _forward(weights: Arrays, biases: Arrays, images: np.ndarray) -> list[np.ndarray]:
    """Return the input of every layer, and the logits."""
    activations = [images]
    for name in weights:
        x = activations[-1] @ weights[name] + biases[f"{name}.bias"]
        activations.append(np.maximum(x, 0) if name != "fc3" else x)
    return activations


def _backward(weights: Arrays, biases: Arrays, images: np.ndarray, labels: np.ndarray) -> tuple[Arrays, Arrays]:
    """Return the gradients of the mean cross-entropy with respect to weights and biases."""
    *activations, logits = _forward(weights, biases, images)
    g = np.exp(logits - logits.max(axis=1, keepdims=True))
    g /= g.sum(axis=1, keepdims=True)
    g[np.arange(len(labels)), labels] -= 1
    g /= np.float32(len(labels))
    gradients: Arrays = {}
    bias_gradients: Arrays = {}
    for name, x in zip(reversed(list(weights)), reversed(activations), strict=True):
        gradients[name] = x.T @ g
        bias_gradients[f"{name}.bias"] = g.sum(axis=0)
        g = (g @ weights[name].T) * (x > 0)
    return gradients, bias_gradients


def _accuracy(digits: Digits, weights: Arrays, biases: Arrays) -> float:
    logits = _forward(weights, biases, digits.test_images)[-1]
    return float(np.mean(logits.argmax(axis=1) == digits.test_labels))
