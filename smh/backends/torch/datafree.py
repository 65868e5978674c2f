"""Inputs made from a trained PyTorch model, for fine-tuning without data.

The running mean and variance of each batch norm describe the data that a model was trained on. Inputs whose
activations have these statistics can stand in for the data where a compressed model is fine-tuned to the outputs of
the original. The idea is DeepInversion (Yin et al. 2020, arXiv 1912.08795).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from smh.backends.torch.store import find_store
from smh.core.arguments import explained_in
from smh.errors import PlanError, VariableError
from smh.models.progress import Progress

__all__ = ["samples"]


@explained_in("smh.datafree")
def samples(
    model: nn.Module,
    n: int,
    shape: Sequence[int],
    *,
    labels: Sequence[int] | torch.Tensor | None = None,
    steps: int = 500,
    batch: int = 100,
    lr: float = 0.05,
    class_weight: float = 0.1,
    variation_weight: float = 0.01,
    seed: int = 0,
    progress: bool | None = None,
) -> torch.Tensor:
    """Return inputs whose statistics are those that the batch norms of a trained model have stored.

    Images start as Gaussian noise. Adam minimizes the difference between the statistics of a batch and the running
    ones, summed with two smaller terms: a cross-entropy, which gives each image a class, and the variation between
    neighboring pixels.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model with at least one batch norm that has running statistics; it may be compressed. It runs in
        evaluation mode and is afterwards as it was, also after an error.
    n : int
        The number of inputs.
    shape : sequence of int
        The shape of one input, such as ``(3, 32, 32)``. The first axis is that of channels.
    labels : sequence of int or torch.Tensor, optional
        The class of each input. By default input ``k`` has class ``k % classes`` if the model returns a tensor
        ``[batch, classes]`` with at least two classes; the outputs of other models are not used.
    steps : int
        The number of steps of Adam for each batch.
    batch : int
        The largest number of inputs made together. Their common statistics are compared, so a few inputs alone cannot
        vary much. Batches are about equally large.
    lr : float
        The learning rate, for inputs with a deviation of about 1. It falls to 0 as a cosine.
    class_weight : float
        The weight of the cross-entropy; 0 for none. The weight of the statistics is 1.
    variation_weight : float
        The weight of the mean squared difference between neighboring pixels; 0 for none.
    seed : int
        The seed of the initial noise. Equal arguments give equal inputs on one machine. The global generator of PyTorch
        is not used.
    progress : bool, optional
        Whether to show progress on stderr; by default on a terminal, for work of more than two seconds.

    Returns
    -------
    torch.Tensor
        The inputs, shape ``(n, *shape)``, float32, on the device of the model. They are scaled as the training data
        was when the model saw it.

    Raises
    ------
    PlanError
        If the model is not a module, has no batch norm with running statistics, does not run on the shape, or if
        another argument is wrong.
    VariableError
        If the loss is not finite, because of the weights of the model or of a learning rate that is too large.

    Notes
    -----
    The difference between statistics is the Kullback-Leibler divergence of normal distributions with the mean and
    variance of each channel, as a mean over channels and batch norms. It does not depend on the scale of activations.

    Examples
    --------
    >>> import torch
    >>> import smh
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> smh.datafree.samples(model, 4, (3, 16, 16), steps=2).shape
    torch.Size([4, 3, 16, 16])
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    n, steps, batch = _count("n", n), _count("steps", steps), _count("batch", batch)
    shape = _shape(shape)
    for name, value in {"lr": lr, "class_weight": class_weight, "variation_weight": variation_weight}.items():
        if not isinstance(value, Real) or not 0.0 <= value < math.inf:
            raise PlanError(f"{name} must be a number of at least 0; got {value!r}")
    norms = [x for x in model.modules() if isinstance(x, _BatchNorm) and x.running_mean is not None]
    if not norms:
        raise PlanError(
            "the model needs a batch norm with running statistics, which describe its training data; got a "
            f"{type(model).__name__} without one"
        )
    targets = None if labels is None else _labels(labels, n)
    like = norms[0].running_mean
    generator = torch.Generator().manual_seed(_seed(seed))
    count = -(-n // batch)
    made = []
    with (
        Progress(progress) as bars,
        torch.inference_mode(False),
        torch.enable_grad(),
        _evaluated(model),
        _differences(norms) as differences,
    ):
        for k in range(count):
            first, last = k * n // count, (k + 1) * n // count
            noise = torch.randn(last - first, *shape, generator=generator)
            loss = _Loss(model, differences, first, targets, class_weight, variation_weight)

            def tick(share: float, k: int = k) -> None:
                bars.tick("making samples", (k + share) / count)

            made.append(_minimized(loss, noise.to(like.device), steps, lr, tick))
    return torch.cat(made)


class _Loss:
    """The loss of a batch whose first input has number ``first``."""

    def __init__(
        self,
        model: nn.Module,
        differences: list[torch.Tensor],
        first: int,
        labels: torch.Tensor | None,
        class_weight: float,
        variation_weight: float,
    ) -> None:
        self.model = model
        self.differences = differences
        self.first = first
        self.labels = labels
        self.weights = class_weight, variation_weight
        floating = (x.dtype for x in (*model.parameters(), *model.buffers()) if x.is_floating_point())
        self.dtype = next(floating)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        self.differences.clear()
        try:
            outputs = self.model(x.to(self.dtype))
        except (RuntimeError, IndexError, TypeError) as error:
            what = f"the model does not run on inputs of shape {tuple(x.shape)}, (batch, *shape)"
            raise PlanError(f"{what}: {error}") from error
        if not self.differences:
            raise PlanError("the model has batch norms, but calls none of them: pass the module that is trained itself")
        loss = torch.stack(self.differences).mean()
        class_weight, variation_weight = self.weights
        if class_weight and (labels := self._classes(outputs)) is not None:
            loss = loss + class_weight * functional.cross_entropy(outputs.float(), labels)
        if variation_weight and (terms := list(_variations(x))):
            loss = loss + variation_weight * torch.stack(terms).sum()
        return loss

    def _classes(self, outputs: Any) -> torch.Tensor | None:
        """Return the labels of the batch, or None if the outputs are not those of a classifier."""
        is_tensor = isinstance(outputs, torch.Tensor)
        classes = outputs.shape[1] if is_tensor and outputs.ndim == 2 else 0
        if self.labels is None:
            if classes < 2:
                return None
            return torch.arange(self.first, self.first + len(outputs), device=outputs.device) % classes
        if not classes or int(self.labels.max()) >= classes:
            what = f"a tensor {tuple(outputs.shape)}" if is_tensor else type(outputs).__name__
            raise PlanError(
                f"labels up to {int(self.labels.max())} need a model that returns a tensor [batch, classes] with more "
                f"classes; got {what}"
            )
        return self.labels[self.first : self.first + len(outputs)].to(outputs.device)


def _minimized(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    steps: int,
    lr: float,
    tick: Callable[[float], None],
) -> torch.Tensor:
    """Return inputs after some steps of Adam, or raise VariableError."""
    x.requires_grad_()
    optimizer = torch.optim.Adam([x])
    for step in range(steps):
        tick(step / steps)
        loss = loss_of(x)
        if not math.isfinite(loss.item()):
            raise VariableError(
                f"the loss must be finite; got {loss.item()} in step {step + 1} of {steps}: look for weights or "
                f"running statistics that are not finite, or lower lr, which is {lr:g}"
            )
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
    return x.detach()


def _variations(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Iterate over the mean squared differences of neighbors along each axis after that of channels."""
    for axis in range(2, x.ndim):
        if x.shape[axis] > 1:
            yield x.diff(dim=axis).square().mean()


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluate a model without gradients of parameters; afterwards modes, parameters and buffers are as before."""
    modes = [(x, x.training) for x in model.modules()]
    trained = [x for x in model.parameters() if x.requires_grad and not x.is_inference()]
    buffers = [(x, x.detach().clone()) for x in model.buffers()]
    store = find_store(model)
    try:
        for module, _ in modes:
            module.training = False
        for x in trained:
            x.requires_grad = False
        with store.built() if store else nullcontext():  # generated weights are built once
            yield
    finally:
        for module, training in modes:
            module.training = training
        for x in trained:
            x.requires_grad = True
        with torch.no_grad():
            for x, value in buffers:
                if not torch.equal(x, value):  # some layers count their calls
                    x.copy_(value)


@contextmanager
def _differences(norms: Sequence[_BatchNorm]) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each pass appends how far the inputs of batch norms are from their running statistics."""
    found: list[torch.Tensor] = []

    def hook(norm: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(_difference(norm, inputs[0].float()))

    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _difference(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Return the divergence of the statistics of activations ``[batch, channels, ...]`` from the running ones."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    correction = min(1, x.numel() // x.shape[1] - 1)  # as running variances are made
    variance, mean = torch.var_mean(x, dim=axes, correction=correction)
    wanted = norm.running_var.float() + norm.eps
    ratio = (variance + norm.eps) / wanted
    shift = (mean - norm.running_mean.float()).square() / wanted
    return 0.5 * (ratio + shift - 1.0 - ratio.log()).mean()


def _count(name: str, value: Any) -> int:
    """Return a positive integer, or raise PlanError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise PlanError(f"{name} must be an integer of at least 1; got {value!r}")
    return number


def _seed(value: Any) -> int:
    """Return a seed that PyTorch takes, or raise PlanError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 2**64
    if not -(2**63) <= number < 2**64:
        raise PlanError(f"seed must be an integer from -2**63 to 2**64 - 1; got {value!r}")
    return number


def _shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an input, or raise PlanError."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    try:
        return tuple(_count("shape", size) for size in sizes) or (_count("shape", 0),)
    except PlanError:
        what = "shape must be that of one input, without the batch, such as (3, 32, 32)"
        raise PlanError(f"{what}; got {shape!r}") from None


def _labels(labels: Any, n: int) -> torch.Tensor:
    """Return labels as a tensor, or raise PlanError."""
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"labels must be {n} integers of at least 0, one for each input: {error}") from error
    is_integer = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.shape != (n,) or not is_integer or int(found.min()) < 0:
        raise PlanError(
            f"labels must be {n} integers of at least 0, one for each input; got shape {tuple(found.shape)}, "
            f"{found.dtype}" + (f", least {found.min().item()}" if found.numel() and is_integer else "")
        )
    return found.to(torch.int64)
