"""Bytes of exported files: dense, with the pool as integers, and as the runtime quantizes the dense model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import smh
import smh.export
from benchmarks.measure import Row

DENSE, POOL, QUANTIZED = "dense", "pool", "int8"
"""What is exported: the dense model, the compressed one, and the dense one as the runtime quantizes it."""
FILE, PACKED = "smh file", "smh file, packed"
_TOOLS = {
    "torch": ("torch", "onnxscript", "onnxruntime"),
    "tensorflow": ("tensorflow", "keras", "ai-edge-litert"),
}


def measure(backend: str, names: Iterable[str], ratios: Iterable[float]) -> Iterator[Row]:
    """Iterate over bytes of files, which are exact, also relative to those of the dense model."""
    write = {"torch": write_onnx, "tensorflow": write_litert}[backend]
    tools = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _TOOLS[backend])
    for name in names:
        for ratio in ratios:
            with tempfile.TemporaryDirectory() as folder:
                sizes = write(name, ratio, Path(folder))
            of = {"network": name, "ratio": ratio, "mode": "ONNX" if backend == "torch" else "LiteRT"}
            for what, size in sizes.items():
                yield of | {"what": what, "value": round(size / sizes[DENSE], 5), "bytes": size, "tools": tools}


def write_onnx(name: str, ratio: float, folder: Path) -> dict[str, int]:
    """Write a network of PyTorch for ONNX Runtime. Return the bytes of each file."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from benchmarks.torch_networks import network
    from smh.backends.torch.exports import quiet

    model = network(name.split()[0] if " " in name and name != "language model" else name).eval()
    with torch.no_grad():  # fresh biases are equal, and tools store equal tensors once
        for x in (*model.parameters(), *model.buffers()):
            if x.ndim == 1 and x.is_floating_point():
                x.uniform_(0.5, 1.5)
    args, kwargs = _inputs(name)
    dense, quantized, pool = (folder / f"{kind}.onnx" for kind in (DENSE, QUANTIZED, POOL))
    with torch.no_grad(), quiet():
        torch.onnx.export(
            model, args, dense, kwargs=kwargs, dynamo=True, external_data=False, verbose=False, opset_version=20
        )
    quantize_dynamic(dense, quantized, weight_type=QuantType.QUInt8)
    compressed = smh.compress(model, ratio)
    smh.export.onnx(pool, compressed, args, kwargs)
    return {DENSE: _bytes(dense), QUANTIZED: _bytes(quantized), POOL: _bytes(pool), **_files(compressed, folder)}


def _inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a network of PyTorch: one image, or 16 tokens."""
    import torch

    if name == "language model":
        return (), {"input_ids": torch.arange(16)[None], "use_cache": False}
    size = int(name.rpartition("x")[2])
    return (torch.zeros(1, 1 if size == 28 else 3, size, size),), {}


def write_litert(name: str, ratio: float, folder: Path) -> dict[str, int]:
    """Write a network of keras.applications for LiteRT. Return the bytes of each file."""
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
    compressed = smh.compress(model, ratio=ratio)
    pool = smh.export.litert(folder / "pool.tflite", compressed)
    return {**sizes, POOL: pool.file, **_files(compressed, folder)}


def _files(model: Any, folder: Path) -> dict[str, int]:
    """Return the bytes of a compressed model's own files."""
    paths = {FILE: folder / "model.safetensors", PACKED: folder / "packed.safetensors"}
    for what, path in paths.items():
        smh.save(path, model, packed=what == PACKED)
    return {what: _bytes(path) for what, path in paths.items()}


def _bytes(path: Path) -> int:
    return path.stat().st_size
