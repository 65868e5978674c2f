"""The settings that determine the outcome of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from experiments.errors import ExperimentError

OPTIMIZERS = ("adamw", "sgd")
DECAYS = ("variables", "weights")
INCLUDES = ("all", "convolutions", "inner")
SCALE_RATES = ("relative", "same")
ACTIVATIONS = ("relu", "segments")
PRECISIONS = ("float32", "channels_last", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The settings of one run. Equal settings on one machine give equal results.

    Parameters
    ----------
    data, model, method : str
        Names in :mod:`experiments.data`, :mod:`experiments.models` and :mod:`experiments.methods`.
    ratio : float or None
        The maximum number of stored variables, divided by that of the dense model; None for a method without a size.
    lr : float or None
        The peak learning rate; None for the tuned rate.
    seed : int
        The seed of initial values and of the order of images.
    rest_lr : float or None
        The rate of all variables outside the pool; None for ``lr``.
    scale_rate : str
        The rate of scales: ``same``, the rate of the rest; or ``relative``, ``lr`` times the stored initial value of
        each scale, with which a step of Adam changes a scale by that share of its value.
    dense_lr : float or None
        The rate of the dense model in method ``fit`` and of the teacher; None for the tuned rate, or for ``lr`` if
        that is given.
    training, validation, epochs, batch : int
        The numbers of training images, validation images and epochs, and the batch size.
    optimizer : str
        ``adamw``, or ``sgd`` with a momentum of 0.9.
    weight_decay : float
        The strength of the decay.
    decay : str
        The target of the decay: ``variables``, by the optimiser (decoupled in AdamW); or ``weights``, a penalty of half
        the sum of squares of all weights of layers, generated or not.
    warmup : float
        The share of steps in which the rate rises to its peak. It then decays to 0 along a cosine.
    augment : bool
        Whether training images are mirrored and shifted by up to four pixels.
    bits, scale, learn_scale
        Options of :func:`smh.torch.compress`, which also receives ``optimizer``.
    include : str
        The layers to generate: ``all``, ``convolutions``, or ``inner``, all except the first and the last.
    initial : str
        The distribution of initial variables, ``normal`` or ``uniform``.
    teacher : bool
        Whether the loss is half the cross entropy and half the divergence from a dense model that was trained alike, at
        a temperature of 4 (distillation; Hinton, Vinyals and Dean 2015).
    average : float
        The share of the last steps whose variables are averaged at the end; then batch norms are estimated again
        (Izmailov et al. 2018). 0 for the variables of the last step.
    fit_share : float
        The share of the steps that train the dense model in method ``fit``, or the pool with ``first_bits``.
    activation : str
        ``relu``, or ``segments``, a learned function in its place (:class:`experiments.students.Segments`).
    channel_scale : bool
        Whether layers without a norm behind them have a learned scale for each output.
    first_bits : int
        The bits of the pool in the first ``fit_share`` of the steps; 0 for ``bits``.
    precision : str
        ``float32``; ``channels_last``, the same arithmetic with the channels of images last in memory; or
        ``bfloat16``, which adds PyTorch's autocast. Tests always use float32.
    compile : bool
        Whether training uses ``torch.compile``. Tests never do.
    rate : float
        The weight, per bit, of :func:`smh.rate` in the loss. With a weight, pools have fixed exponents.
    """

    data: str
    model: str
    method: str
    ratio: float | None = None
    lr: float | None = None
    seed: int = 0
    rest_lr: float | None = None
    scale_rate: str = "same"
    dense_lr: float | None = None
    training: int = 20_000
    validation: int = 5_000
    epochs: int = 5
    batch: int = 100
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    decay: str = "variables"
    warmup: float = 0.05
    augment: bool = False
    bits: int = 8
    scale: str = "fan_in"
    learn_scale: bool = True
    include: str = "all"
    initial: str = "normal"
    teacher: bool = False
    average: float = 0.0
    fit_share: float = 0.5
    activation: str = "relu"
    channel_scale: bool = False
    first_bits: int = 0
    precision: str = "float32"
    compile: bool = False
    rate: float = 0.0

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for what, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("decay", self.decay, DECAYS),
            ("include", self.include, INCLUDES),
            ("scale_rate", self.scale_rate, SCALE_RATES),
            ("activation", self.activation, ACTIVATIONS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise ExperimentError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ExperimentError(f"ratio must be between 0 and 1; got {self.ratio!r}")
        if not 0 <= self.average <= 1:
            raise ExperimentError(f"average must be a share from 0 to 1; got {self.average!r}")
        if not 0 < self.fit_share < 1:
            raise ExperimentError(f"fit_share must be between 0 and 1; got {self.fit_share!r}")
        for what in ("training", "validation", "epochs", "batch"):
            if getattr(self, what) < 1:
                raise ExperimentError(f"{what} must be at least 1; got {getattr(self, what)!r}")
        if self.training < self.batch:
            raise ExperimentError(f"{self.training} training images do not make a batch of {self.batch}")

    @property
    def key(self) -> str:
        """The settings as canonical JSON, which identifies a run."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def file_name(self) -> str:
        """A name for files of a run, from what differs from the defaults, so that a new setting leaves it as it is."""
        changed = {f.name: x for f in dataclasses.fields(self) if (x := getattr(self, f.name)) != f.default}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def dense(self) -> Settings:
        """The settings of the dense model for ``fit`` and distillation; ``lr`` is None while it is to be tuned."""
        shared = {name: getattr(self, name) for name in _OF_DENSE}
        return Settings(method="dense", lr=self.lr if self.dense_lr is None else self.dense_lr, **shared)

    def replace(self, **changes: Any) -> Settings:
        """Return a copy with some settings replaced."""
        return dataclasses.replace(self, **changes)


_OF_DENSE = (
    *("data", "model", "seed", "training", "validation", "epochs", "batch", "optimizer"),
    *("weight_decay", "decay", "warmup", "augment", "precision", "compile"),
)
FIELDS = tuple(field.name for field in dataclasses.fields(Settings))


def from_dict(fields: dict[str, Any], where: str) -> Settings:
    """Return settings, or raise :class:`ExperimentError` for unknown or missing keys."""
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ExperimentError(
            f"{where} has unknown settings: {', '.join(unknown)}; expected some of {', '.join(FIELDS)}"
        )
    try:
        return Settings(**fields)
    except TypeError as error:
        raise ExperimentError(f"{where}: {error}") from error
