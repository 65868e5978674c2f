"""Bytes of exported files: dense, with the pool as integers, and as the runtime quantizes the dense model."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import smh
import smh.export
from benchmarks.measure import Row
from smh.models.exported import Exported

DENSE, QUANTIZED, FLOAT, POOL = "dense", "int8", "pool, float32", "pool"
"""What is exported: the dense model, also quantized by the runtime, and the compressed one; float32 is computed."""
PARTS = ("integers", "kept", "graph")
"""Of the file with the pool."""
FILE, PACKED = "smh file", "smh file, packed"
_TOOLS = {
    "torch": ("torch", "onnxscript", "onnxruntime"),
    "jax": ("jax",),
    "tensorflow": ("tensorflow", "keras", "ai-edge-litert"),
}
Sizes = Iterator[tuple[str, dict[str, int]]]


def measure(backend: str, names: Iterable[str], ratios: Iterable[float]) -> Iterator[Row]:
    """Iterate over bytes of files, which are exact, also relative to those of the dense model."""
    write = {"torch": write_torch, "jax": write_jax, "tensorflow": write_keras}[backend]
    tools = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _TOOLS[backend])
    for name in names:
        for ratio in ratios:
            with tempfile.TemporaryDirectory() as folder:
                for mode, sizes in write(name, ratio, Path(folder)):
                    of = {"network": name, "ratio": ratio, "mode": mode}
                    for what, size in sizes.items():
                        yield of | {"what": what, "value": round(size / sizes[DENSE], 5), "bytes": size, "tools": tools}


def write_torch(name: str, ratio: float, folder: Path) -> Sizes:
    """Write a network of PyTorch for ONNX Runtime, torch.export and AOTInductor; iterate over formats and bytes."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from torch._inductor import aoti_compile_and_package

    from benchmarks.torch_networks import network
    from smh.backends.torch.exports import quiet

    model = network(name.split()[0] if " " in name and name != "language model" else name).eval()
    with torch.no_grad():  # fresh biases are equal, and tools store equal tensors once
        for x in (*model.parameters(), *model.buffers()):
            if x.ndim == 1 and x.is_floating_point():
                x.uniform_(0.5, 1.5)
    args, kwargs = _inputs(name)
    compressed = smh.compress(model, ratio)
    own, count = _files(compressed, folder), _variables(compressed)
    dense, quantized, pool = (folder / f"{kind}.onnx" for kind in (DENSE, QUANTIZED, POOL))
    with torch.no_grad(), quiet():
        torch.onnx.export(
            model, args, dense, kwargs=kwargs, dynamo=True, external_data=False, verbose=False, opset_version=20
        )
        program = torch.export.export(model, args, kwargs, strict=False)
        torch.export.save(program, folder / "dense.pt2")
    quantize_dynamic(dense, quantized, weight_type=QuantType.QUInt8)
    sizes = {DENSE: _bytes(dense), QUANTIZED: _bytes(quantized)}
    yield "ONNX", sizes | _pool(smh.export.onnx(pool, compressed, args, kwargs), count) | own
    found = smh.export.torch_export(folder / "pool.pt2", compressed, args, kwargs)
    yield "torch.export", {DENSE: _bytes(folder / "dense.pt2")} | _pool(found, count)
    try:
        found = smh.export.aot_inductor(folder / "pool.pt2", compressed, args, kwargs)
    except smh.ExportError as error:
        if "C++ compiler" not in str(error):
            raise
        print(error)
        return
    with torch.no_grad(), quiet():
        aoti_compile_and_package(program, package_path=str(folder / "compiled.pt2"))
    yield "AOTInductor", {DENSE: _bytes(folder / "compiled.pt2")} | _pool(found, count)


def _inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a network of PyTorch: one image, or 16 tokens."""
    import torch

    if name == "language model":
        return (), {"input_ids": torch.arange(16)[None], "use_cache": False}
    size = int(name.rpartition("x")[2])
    return (torch.zeros(1, 1 if size == 28 else 3, size, size),), {}


def write_jax(name: str, ratio: float, folder: Path) -> Sizes:
    """Write the MLP as StableHLO; iterate over formats and bytes."""
    import jax
    import jax.export

    if name != "mlp 28x28":
        raise SystemExit(f"the network must be mlp 28x28 with this backend; got {name!r}")
    rng, units = np.random.default_rng(0), (784, 1000, 1000, 10)
    params = {}
    for k, (inputs, outputs) in enumerate(itertools.pairwise(units)):
        params[f"w{k}"] = jax.numpy.asarray(rng.standard_normal((inputs, outputs), dtype=np.float32))
        params[f"b{k}"] = jax.numpy.asarray(rng.standard_normal(outputs, dtype=np.float32))

    def apply(params: Any, x: Any) -> Any:
        for k in range(3):
            x = x @ params[f"w{k}"] + params[f"b{k}"]
            x = jax.nn.relu(x) if k < 2 else x
        return x

    x = jax.numpy.zeros((1, 784))
    dense = jax.export.export(jax.jit(functools.partial(apply, params)))(x).serialize()
    compressed = smh.compress(params, ratio)
    found = smh.export.stablehlo(folder / "pool.stablehlo", apply, compressed, [x])
    count = _variables(compressed)
    yield "StableHLO", {DENSE: len(dense)} | _pool(found, count) | _files(compressed, folder)


def write_keras(name: str, ratio: float, folder: Path) -> Sizes:
    """Write a network of keras.applications for LiteRT and TensorFlow; iterate over formats and bytes."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    kind, size = name.split()[0], int(name.rpartition("x")[2])
    if kind != "mobilenet_v3":
        raise SystemExit(f"the network must be mobilenet_v3 with this backend; got {kind!r}")
    model = keras.applications.MobileNetV3Small(
        (size, size, 3), minimalistic=True, weights=None, classes=10, include_preprocessing=False
    )

    rng = np.random.default_rng(0)
    for x in model.weights:  # fresh biases are equal, and tools store equal tensors once
        if len(x.shape) == 1:
            x.assign(rng.uniform(0.5, 1.5, x.shape))

    def converted(*optimizations: Any) -> int:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = list(optimizations)
        with contextlib.redirect_stdout(io.StringIO()):  # Keras lists all variables
            return len(converter.convert())

    sizes = {DENSE: converted(), QUANTIZED: converted(tf.lite.Optimize.DEFAULT)}
    model.export(folder / "dense", verbose=False)
    compressed = smh.compress(model, ratio=ratio)
    count = _variables(compressed)
    found = smh.export.litert(folder / "pool.tflite", compressed)
    yield "LiteRT", sizes | _pool(found, count) | _files(compressed, folder)
    found = smh.export.saved_model(folder / "pool", compressed)
    yield "SavedModel", {DENSE: _bytes(folder / "dense")} | _pool(found, count)


def _variables(model: Any) -> int:
    """Return the number of variables of the pool of a compressed model."""
    plan = smh.plan_of(model)
    return plan.num_variables - sum(tensor.learn_scale for tensor in plan.tensors)


def _pool(found: Exported, variables: int) -> dict[str, int]:
    """Return the bytes of a file with the pool and of its parts, and what it would take with float32 variables."""
    sizes = {FLOAT: found.file - found.integers + 4 * variables, POOL: found.file}
    return sizes | {part: getattr(found, part) for part in PARTS}


def _files(model: Any, folder: Path) -> dict[str, int]:
    """Return the bytes of a compressed model's own files."""
    paths = {FILE: folder / "model.safetensors", PACKED: folder / "packed.safetensors"}
    for what, path in paths.items():
        smh.save(path, model, packed=what == PACKED)
    return {what: _bytes(path) for what, path in paths.items()}


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
