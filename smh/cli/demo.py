"""``smh demo``: a classifier of handwritten digits, trained dense and from a pool a tenth the size of its weights.

Both run in NumPy, with the same shapes, loss, optimizer and batches; the compressed one only adds ``smh.materialize``
before the forward pass and ``smh.vjp`` after the backward pass. Accuracy is measured after saving and loading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.progress import Progress
from safetensors.numpy import save_file

from smh.backends import numpy as smh
from smh.cli.compress import Bits, Pool, check_seed, parse_ratio
from smh.cli.output import AsJson, Force, Listing, Quiet, check_out, emit, marked, progress, valid
from smh.cli.summary import plan_lines
from smh.errors import BackendError, PlanError, install_line
from smh.files.atomic import replacing
from smh.files.compare import compare
from smh.files.dense import DenseFile

Arrays = dict[str, np.ndarray]
Labelled = tuple[np.ndarray, np.ndarray]  # images and labels

_BATCH = 64
_RATE = 0.01
_LAYERS = ("fc1", "fc2", "fc3")


def run_demo(
    ratio: float = typer.Option(
        0.1, metavar="RATIO", parser=parse_ratio, help="Pool variables per weight, at most: 0.1 or 10%."
    ),
    bits: int = Bits,
    epochs: int = typer.Option(30, min=1, help="Passes over the training images."),
    hidden: int = typer.Option(256, min=1, help="Units in each of the two hidden layers."),
    pool: str = Pool,
    seed: int = typer.Option(0, help="Seed of the hash functions and all initial values.", callback=valid(check_seed)),
    out: Path = typer.Option(
        Path("digits.safetensors"),
        "--out",
        "-o",
        metavar="FILE",
        help="The checkpoint to write. The dense file is written beside it, as digits-dense.safetensors.",
    ),
    force: bool = Force,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Train a digit classifier twice, dense and compressed; save and load both, and compare accuracy and bytes."""
    shapes = dict(zip(_LAYERS, ((64, hidden), (hidden, hidden), (hidden, 10)), strict=True))
    dense_out = out.with_name(f"{out.stem}-dense{out.suffix}")
    for path in (out, dense_out):
        check_out(path, force=force)
    try:
        plan = smh.Plan.build(shapes, ratio=ratio, bits=bits, pool=pool, optimizer="adam", seed=seed)
    except PlanError as error:  # without a file, only the options can be wrong
        raise typer.BadParameter(str(error), param_hint="--ratio") from error
    (images, labels), test = _digits()
    rng = np.random.default_rng(seed)
    dense, biases = {}, {}
    for name, (fan_in, fan_out) in shapes.items():
        dense[name] = rng.uniform(-1, 1, (fan_in, fan_out)).astype(np.float32) / np.float32(np.sqrt(fan_in))
        biases[f"{name}.bias"] = np.zeros(fan_out, dtype=np.float32)
    names = plan.variable_shapes
    with progress(quiet) as bars:
        train = functools.partial(_train, images, labels, epochs, bars)
        dense = train("dense", dense | biases, lambda x: x, lambda x, g: g)
        trained = train(
            "from a pool",
            smh.initialize(plan) | biases,
            lambda x: smh.materialize(plan, _part(x, names)) | _part(x, biases),
            lambda x, g: smh.vjp(plan, _part(x, names), _part(g, shapes)) | _part(g, biases),
        )
    variables = _part(trained, names)

    with replacing(dense_out) as temporary:
        save_file(dense, temporary)
    with DenseFile(dense_out) as file:
        dense_again = {name: file[name] for name in file}
    weights = smh.materialize(plan, variables)
    digest = smh.save(out, plan, variables, dense=_part(trained, biases))
    loaded = smh.load(out)
    again = smh.materialize(loaded.plan, loaded.variables)
    different = sum(compare(name, again[name], weights[name]).bits for name in weights)
    same = not different and smh.digest(loaded.plan, loaded.variables) == digest
    result = {
        "weights": plan.num_weights,
        "biases": sum(bias.size for bias in biases.values()),
        "dense": _row(plan.num_weights, dense_again, test, dense_out),
        "pool": _row(plan.num_variables, again | loaded.dense, test, out),
        "plan": plan.to_dict(),
        "digest": digest,
        "bits_different": different,
        "same": same,
    }
    emit(result, as_json, _shown(plan, pool, result), same, quiet=quiet)


def _digits() -> tuple[Labelled, Labelled]:
    """Return the images of scikit-learn, scaled to [0, 1], with their labels: 1,437 to train on, 360 to test on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BackendError(f"the demo needs scikit-learn ({error}): {install_line('demo')}") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images / 16.0).astype(np.float32)[order], labels[order]
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def _row(variables: int, network: Arrays, test: Labelled, path: Path) -> dict[str, Any]:
    images, labels = test
    accuracy = float(np.mean(_forward(network, images)[-1].argmax(axis=1) == labels))
    return {"variables": variables, "accuracy": accuracy, "bytes": path.stat().st_size, "out": str(path)}


def _shown(plan: smh.Plan, pool: str, result: dict[str, Any]) -> Iterator[RenderableType]:
    yield from plan_lines(plan)
    yield ""
    columns = ("", "weights", "trained variables", "test accuracy", "bytes on disk")
    listing = Listing(*columns, title="Handwritten digits, 8x8 pixels, 10 classes")
    for name, row in (("dense", result["dense"]), (f"{pool} pool", result["pool"])):
        listing.add(name, result["weights"], row["variables"], f"{row['accuracy']:.1%}", row["bytes"])
    yield listing
    share = result["pool"]["bytes"] / result["dense"]["bytes"]
    yield f"The compressed file has {share:.1%} of the bytes. Both keep {result['biases']} biases in float32."
    yield f"files  {result['dense']['out']} and {result['pool']['out']}"
    yield f"digest {result['digest']}"
    verified = "verified" if result["same"] else "not verified, the weights changed on the way through the file"
    line = (
        f"{verified}: {result['weights']:,} weights rebuilt from the file, {result['bits_different']:,} bits different"
    )
    yield marked(line, "" if result["same"] else "red")


def _part(arrays: Arrays, names: Iterable[str]) -> Arrays:
    return {name: arrays[name] for name in names}


def _train(
    images: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    bars: Progress,
    label: str,
    trained: Arrays,
    build: Callable[[Arrays], Arrays],
    pull: Callable[[Arrays, Arrays], Arrays],
) -> Arrays:
    """Train variables by Adam with a linear decay; ``build`` makes weights and biases of them, ``pull`` goes back."""
    moments = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in trained.items()}
    rng = np.random.default_rng(1)
    step, steps = 0, epochs * -(-len(labels) // _BATCH)
    for _ in bars.track(range(epochs), description=label):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            gradients = pull(trained, _backward(build(trained), images[batch], labels[batch]))
            decayed = _RATE * (1 - step / steps)
            step += 1
            rate = np.float32(decayed * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
            for name, gradient in gradients.items():
                mean, square = moments[name]
                mean += np.float32(0.1) * (gradient - mean)
                square += np.float32(0.001) * (gradient * gradient - square)
                trained[name] = trained[name] - rate * mean / (np.sqrt(square) + np.float32(1e-8))
    return trained


def _forward(network: Arrays, images: np.ndarray) -> list[np.ndarray]:
    """Return the input of every layer, and the logits."""
    activations = [images]
    for name in _LAYERS:
        x = activations[-1] @ network[name] + network[f"{name}.bias"]
        activations.append(np.maximum(x, 0) if name != _LAYERS[-1] else x)
    return activations


def _backward(network: Arrays, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return the gradients of the mean cross-entropy with respect to weights and biases."""
    *activations, logits = _forward(network, images)
    g = np.exp(logits - logits.max(axis=1, keepdims=True))
    g /= g.sum(axis=1, keepdims=True)
    g[np.arange(len(labels)), labels] -= 1
    g /= np.float32(len(labels))
    gradients: Arrays = {}
    for name, x in zip(reversed(_LAYERS), reversed(activations), strict=True):
        gradients[name] = x.T @ g
        gradients[f"{name}.bias"] = g.sum(axis=0)
        g = (g @ network[name].T) * (x > 0)
    return gradients
