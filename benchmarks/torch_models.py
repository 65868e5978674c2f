"""Training steps and inference of compressed models in PyTorch, relative to the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import smh
from benchmarks.measure import (
    Case,
    Row,
    by_turns,
    memory_row,
    over,
    peak_beyond,
    peak_in_fresh_process,
    resident,
    rounds_of,
    steps,
)
from benchmarks.torch_networks import network

MEMORY_NETWORK = "resnet34 32x32"
"""The network whose memory of a step is measured."""
LANGUAGE_MODEL = "language model"
TOKENS = 32
FROZEN = ", frozen"


def measure_step(names: Iterable[str], ratios: Iterable[float], rounds: int) -> Iterator[Row]:
    """Iterate over the results of training steps of 32 images, and of their memory."""
    for name in names:
        yield from steps(step, "eager", [name], ratios, rounds)
        if name == MEMORY_NETWORK:
            plain = peak_in_fresh_process("torch_models.peak_of_step", name, None)
            for ratio in ratios:
                peak = peak_in_fresh_process("torch_models.peak_of_step", name, ratio)
                yield from memory_row(peak, plain, network=name, ratio=ratio, mode="eager", what="memory")


def step(name: str, ratio: float | None, **options: Any) -> Case:
    """Return a training step of 32 images: forward, backward, and SGD with momentum."""
    model = _model(name, ratio, **options).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, labels = inputs(name, 32), torch.arange(32) % 10

    def run() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return lambda: run


def measure_inference(names: Iterable[str], ratio: float, rounds: int) -> Iterator[Row]:
    """Iterate over the results of inference by residency, of ``generate``, and of the memory of ``layer``.

    What ends with ``, frozen`` is that of the frozen model.
    """
    for name in names:
        of: dict[str, Any] = {"ratio": ratio, "mode": "eager"}
        for batch in (32, 1) if name != LANGUAGE_MODEL else (1,):
            cases = {"plain": inference(name, None, batch)}
            cases |= {residency: inference(name, ratio, batch, residency) for residency in ("cached", "layer", "full")}
            cases[f"cached{FROZEN}"] = inference(name, ratio, batch, f"cached{FROZEN}")
            seconds = by_turns(cases, rounds_of(name, rounds))
            label = f"{name}, batch {batch}" if name != LANGUAGE_MODEL else f"{name}, generate()"
            for residency in list(cases)[1:]:
                yield over(seconds[residency], seconds["plain"], network=label, what=residency, **of)
        if name != LANGUAGE_MODEL:  # label is that of one image
            plain = peak_in_fresh_process("torch_models.peak_of_inference", name, None)
            for residency in ("layer", f"layer{FROZEN}"):
                layer = peak_in_fresh_process("torch_models.peak_of_inference", name, ratio, residency)
                yield from memory_row(layer, plain, network=label, what=f"memory of {residency}", **of)


def inference(name: str, ratio: float | None, batch: int, residency: str = "full") -> Case:
    """Return a forward pass, or the generation of some tokens, without gradients."""
    options = {"residency": residency.removesuffix(FROZEN)} if ratio else {}
    model: Any = _model(name, ratio, **options).eval()
    if residency.endswith(FROZEN):
        model = smh.freeze(model)
    if name == LANGUAGE_MODEL:
        prompt = torch.arange(8)[None]
        return lambda: lambda: model.generate(prompt, max_new_tokens=TOKENS, do_sample=False)
    x = inputs(name, batch)
    run: Callable[[], object] = torch.no_grad()(lambda: model(x))
    return lambda: run


def peak_of_step(name: str, ratio: float | None) -> int:
    """Return the peak memory of a step beyond the imported libraries, including model, optimizer and gradients."""
    base = resident()
    return peak_beyond(base, step(name, ratio)())


def peak_of_inference(name: str, ratio: float | None, residency: str = "full") -> int:
    """Return the peak memory for one image beyond the imported libraries, including the model."""
    inference("cnn 28x28", ratio, 1, residency)()()  # so that all code is loaded that libraries import at first use
    base = resident()
    return peak_beyond(base, inference(name, ratio, 1, residency)())


def inputs(name: str, batch: int) -> Any:
    """Return images for a network. The name of the network ends with their size."""
    size = int(name.rpartition("x")[2])
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 1 if size == 28 else 3, size, size, generator=generator)


def _model(name: str, ratio: float | None, **options: Any) -> nn.Module:
    plain = network(name if name == LANGUAGE_MODEL else name.split()[0])
    return plain if ratio is None else smh.torch.compress_(plain, ratio, **options)
