"""Training and testing a model, with one function for all methods."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments import data, improvements, methods, sizes
from experiments.cells import describe
from experiments.data import Data, Images
from experiments.errors import ExperimentError
from experiments.improvements import Average
from experiments.method import Hook, Made
from experiments.saved import Saved
from experiments.settings import Settings
from experiments.stored import ROUNDINGS, all_coded_bytes, round_
from smh.errors import VariableError

MOMENTUM = 0.9
_TEST_BATCH = 1000


def run(
    settings: Settings, folder: Path | None = None, device: str = "cpu", unfinished: Path | None = None
) -> dict[str, Any]:
    """Train a model and test it.

    Parameters
    ----------
    settings : Settings
        All settings of the run, with a learning rate.
    folder : Path, optional
        The folder of the data.
    device : str
        The device to train on. Equal settings give equal results on the CPU only.
    unfinished : Path, optional
        A file for the state after every epoch. If it exists, the run continues from it; at the end it is removed.

    Returns
    -------
    dict
        Accuracies in percent, the loss of the last epoch, seconds, and the numbers of stored variables.
    """
    begun = time.perf_counter()
    loaded = data.load(settings.data, folder, settings.training, settings.validation)
    teacher = _teacher(settings.dense, loaded, device, unfinished) if settings.teacher else None
    made, losses, trainings = _train(settings, loaded, device, Saved(unfinished), teacher)
    seconds = trainings.seconds
    last = losses[-trainings.per_epoch :]
    loss = sum(last) / len(last)
    outcome = {
        "test_accuracy": accuracy(made.model, loaded.test, device),
        "validation_accuracy": accuracy(made.model, loaded.validation, device),
        "training_loss": loss if math.isfinite(loss) else None,
        "diverged": not math.isfinite(loss),
        "stored": made.stored.total,
        "stored_parts": asdict(made.stored),
        "dense": methods.size(settings, loaded.shape, loaded.classes).dense,
        "about": made.about | ({} if teacher is None else {"teacher": accuracy(teacher, loaded.test, device)}),
        "seconds": time.perf_counter() - begun,
        "training_seconds": seconds,
        "interruptions": trainings.saved.interruptions,
    }
    outcome["bytes"] = _bytes(made, settings, loaded, device) if math.isfinite(loss) else []
    trainings.saved.remove()
    return outcome


def _train(
    settings: Settings, loaded: Data, device: str, saved: Saved, teacher: nn.Module | None = None
) -> tuple[Made, list[float], _Trainings]:
    """Return the trained model of a method, with the losses of the last training."""
    torch.manual_seed(settings.seed)
    trainings = _Trainings(settings, loaded.training, device, saved)
    if settings.method == "fit":
        first = round(trainings.steps * settings.fit_share)
        base = settings.dense
        made = methods.make(base, loaded.shape, loaded.classes)
        made.model.to(device)
        trainings.train(made, first, base)
        made = methods.make(settings, loaded.shape, loaded.classes, dense=made.model.cpu())
        made.model.to(device)
        losses = trainings.train(made, trainings.steps - first, settings, teacher)
    elif settings.first_bits:
        first = round(trainings.steps * settings.fit_share)
        before = methods.make(settings.replace(bits=settings.first_bits), loaded.shape, loaded.classes)
        before.model.to(device)
        trainings.train(before, first, settings, teacher)
        made = methods.make(settings, loaded.shape, loaded.classes)
        made.model.to(device)
        improvements.copy_(made.model, before.model)
        losses = trainings.train(made, trainings.steps - first, settings, teacher)
    else:
        made = methods.make(settings, loaded.shape, loaded.classes)
        made.model.to(device)
        losses = trainings.train(made, trainings.steps, settings, teacher)
    if settings.average and math.isfinite(losses[-1]):
        with contextlib.suppress(VariableError):  # as in accuracy
            improvements.estimate_norms(made.model, loaded.training, device)
    return made, losses, trainings


def _teacher(settings: Settings, loaded: Data, device: str, unfinished: Path | None) -> nn.Module:
    """Return the trained dense model of some settings. It is trained once and kept in a file beside ``unfinished``."""
    path = improvements.place_of_teacher(settings, unfinished)
    model = methods.make(settings, loaded.shape, loaded.classes).model.to(device)
    if not improvements.restore(model, path, device):
        made, _, trainings = _train(settings, loaded, device, Saved(path and path.with_suffix(".part")))
        model = made.model
        improvements.keep(model, path)
        trainings.saved.remove()
    return model.eval()


def _bytes(made: Made, settings: Settings, loaded: Data, device: str) -> list[dict[str, Any]]:
    """Return the bytes of a model with integers; of another one, bytes and accuracies after rounding its weights.

    Everything else, as scales, biases and batch norm, is counted as float32.
    """
    stored = made.stored
    if made.integers is not None:
        rest = 4 * (stored.scales + stored.kept)
        return [{"bits": settings.bits, "bytes": rest + all_coded_bytes(made.integers(), settings.bits)}]
    weights = made.weights or ()
    exact = [x.detach().clone() for x in weights]
    outcomes = []
    for bits in ROUNDINGS:
        with torch.no_grad():
            for x, saved in zip(weights, exact, strict=True):
                x.copy_(saved)
        size = 4 * (stored.scales + stored.kept) + round_(weights, bits)
        accuracies = {
            "test_accuracy": accuracy(made.model, loaded.test, device),
            "validation_accuracy": accuracy(made.model, loaded.validation, device),
        }
        outcomes.append({"bits": bits, "bytes": size} | accuracies)
    return outcomes


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, device: str = "cpu") -> float:
    """Return the percentage of images that a model classifies correctly, or 0 if its weights are not finite."""
    model.eval()
    right = 0
    for indices in torch.arange(len(images)).split(_TEST_BATCH):
        x, y = images.batch(indices)
        try:
            right += int((model(x.to(device)).argmax(1) == y.to(device)).sum())
        except VariableError:
            return 0.0
    return 100 * right / len(images)


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step, counted from 0, relative to its peak."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class _Epochs:
    """Prints a line after each epoch, flushed, so that a pipe or a log file shows the progress of a run."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.begun = time.perf_counter()

    def show(self, losses: list[float], steps: int) -> None:
        """Print the mean loss of an epoch, if the last step ended one or the training."""
        done = len(losses)
        if done % self.steps == 0 or done == steps:
            last = losses[-((done - 1) % self.steps + 1) :]
            text = f"epoch {done / self.steps:g} of {steps / self.steps:g}  loss {sum(last) / len(last):.4f}"
            print(f"    {text}  {time.perf_counter() - self.begun:7.1f} s  {self.name}", flush=True)


class _Trainings:
    """The trainings of one run, which share the batches. After every epoch, their state is saved."""

    def __init__(self, settings: Settings, images: Images, device: str, saved: Saved) -> None:
        self.per_epoch = len(images) // settings.batch
        self.steps = settings.epochs * self.per_epoch
        self.saved = saved
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._batches = _batches(images, settings, device, self._generator)
        self._epochs = _Epochs(describe(settings), self.per_epoch)
        self._done = self._number = 0  # steps of all trainings, and trainings that have ended
        self._clock = time.process_time()

    @property
    def seconds(self) -> float:
        """The processor time so far, with the time before an interruption."""
        return self.saved.seconds + time.process_time() - self._clock

    def train(self, made: Made, steps: int, s: Settings, teacher: nn.Module | None = None) -> list[float]:
        """Train a model, and return the loss of every step. A loss or weight that is not finite ends the training."""
        model, hook = made.model.train(), made.hook
        forward, guide = (torch.compile(x) if x is not None and s.compile else x for x in (model, teacher))
        average = Average(model, steps, s.average)
        optimizer = _optimizer(model, s)
        peaks = [group["lr"] for group in optimizer.param_groups]
        penalised = list(sizes.layers(model).values()) if s.decay == "weights" and s.weight_decay else []
        losses = self._restored(model, optimizer, hook, average)
        for step in range(len(losses), steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step, steps, s.warmup)
            x, y = next(self._batches)
            try:
                loss = improvements.loss(forward, x, y, s.precision, guide)
            except VariableError:  # a compressed model says so where a plain one gives NaN
                return [*losses, math.nan]
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            for layer in penalised:
                loss = loss + 0.5 * s.weight_decay * layer.weight.square().sum()
            if made.rate is not None and s.rate:
                loss = loss + s.rate * made.rate()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if hook is not None:
                hook.after_step(step + 1, steps)
            average.after_step(step + 1)
            self._epochs.show(losses, steps)
            if (self._done + step + 1) % self.per_epoch == 0 or step + 1 == steps:
                self._keep(model, optimizer, hook, average, losses)
        average.finish()
        if hook is not None and s.average:
            hook.after_step(steps, steps)  # a mean of a weight that was pruned while averaging is not 0
        self._done += steps
        self._number += 1
        return losses

    def _restored(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, hook: Hook | None, average: Average
    ) -> list[float]:
        """Put model, optimiser and batches into their saved state, if there is one, and return the losses so far."""
        state = self.saved.get(self._number)
        if state is None:
            return []
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if hook is not None:
            hook.restore(state["hook"])
        average.restore(state["average"])
        self._generator.set_state(state["generator"])
        return list(state["losses"])

    def _keep(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        hook: Hook | None,
        average: Average,
        losses: list[float],
    ) -> None:
        """Save the state at the end of an epoch, where the order of the next images is still to be drawn.

        A training that ends within an epoch is saved with the next one, at the end of the epoch.
        """
        state = {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
        state |= {"losses": list(losses), "generator": self._generator.get_state(), "average": average.state}
        self.saved.put(self._number, state | ({} if hook is None else {"hook": hook.state}))
        if (self._done + len(losses)) % self.per_epoch == 0:
            self.saved.write(self.seconds)


def _optimizer(model: nn.Module, s: Settings) -> torch.optim.Optimizer:
    """Return the optimiser, with separate rates for pools and scales. Vectors and scalars do not decay."""
    if s.lr is None:
        raise ExperimentError(f"a run needs a learning rate; got {s}")
    pool = {id(x) for x in methods.pool_parameters(model).values()}
    rest_lr = s.rest_lr if s.rest_lr is not None and pool else s.lr
    scales = {}
    if s.scale_rate == "relative":
        scales = {id(x): s.lr * abs(x.item()) for x in methods.scale_parameters(model)}
    decay = s.weight_decay if s.decay == "variables" else 0.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for x in model.parameters():
        if x.requires_grad:
            lr = s.lr if id(x) in pool else scales.get(id(x), rest_lr)
            setting = lr, decay if x.ndim >= 2 else 0.0
            groups.setdefault(setting, []).append(x)
    options = [{"params": xs, "lr": lr, "weight_decay": decay} for (lr, decay), xs in groups.items()]
    return torch.optim.SGD(options, momentum=MOMENTUM) if s.optimizer == "sgd" else torch.optim.AdamW(options)


def _batches(
    images: Images, s: Settings, device: str, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over batches without end, in the order of a generator. Incomplete batches are dropped."""
    while True:
        order = torch.randperm(len(images), generator=generator)
        for indices in order[: len(order) // s.batch * s.batch].split(s.batch):
            x, y = images.batch(indices)
            yield (augmented(x, generator) if s.augment else x).to(device), y.to(device)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images shifted by up to four pixels in each direction and padded with zeros, half of them mirrored."""
    count, _, height, width = x.shape
    padded = functional.pad(x, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    across = torch.arange(width).expand(count, width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = (right + torch.where(mirrored, across.flip(1), across))[:, None, None, :]
    numbers = torch.arange(count)[:, None, None, None]
    channels = torch.arange(x.shape[1])[None, :, None, None]
    return padded[numbers, channels, rows, columns]
