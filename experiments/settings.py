"""What decides the outcome of a run, all of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from experiments.errors import ExperimentError

OPTIMIZERS = ("adamw", "sgd")
DECAYS = ("variables", "weights")
INCLUDES = ("all", "convolutions", "inner")
SCALE_RATES = ("relative", "same")


@dataclass(frozen=True)
class Settings:
    """The settings of one run. Two runs with equal settings, on one machine, give equal results.

    Parameters
    ----------
    data, model, method : str
        Names of :mod:`experiments.data`, :mod:`experiments.models` and :mod:`experiments.methods`.
    ratio : float or None
        Stored variables, all of them, over those of the dense model, at most; None for the dense model itself.
    lr : float or None
        The learning rate at its peak; None stands for the tuned one.
    seed : int
        Of initial values and of the order of images.
    rest_lr : float or None
        The rate of all but the variables of a pool and its scales: biases, norms; None for the same.
    scale_rate : str
        The rate of scales: the ``same`` as that of the rest, for which the plan stores them; or ``relative``, ``lr``
        times what each is stored as, so that a step of Adam changes it by that share of itself.
    dense_lr : float or None
        The rate of the dense model that method ``fit`` starts with; None stands for the tuned one.
    training, validation, epochs, batch : int
        How much is trained on, and how.
    optimizer : str
        ``adamw``, or ``sgd`` with a momentum of 0.9.
    weight_decay : float
        How much.
    decay : str
        Of what: ``variables``, by the optimiser, decoupled from the rate of Adam; ``weights``, as a penalty of half the
        sum of squares of all weights that layers use, generated or not.
    warmup : float
        The share of steps in which the rate rises to its peak; after it, it falls as a cosine to 0.
    augment : bool
        Whether images are flipped and shifted by up to four pixels while training.
    bits, scale, learn_scale
        Of :func:`smh.torch.compress`, which is given ``optimizer`` as well.
    include : str
        What is generated: ``all`` weights of layers, those of ``convolutions``, or ``inner``: all but the first and
        the last.
    initial : str
        The distribution of initial variables, ``normal`` or ``uniform``.
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

    def __post_init__(self) -> None:
        """Refuse what no run can mean."""
        for what, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("decay", self.decay, DECAYS),
            ("include", self.include, INCLUDES),
            ("scale_rate", self.scale_rate, SCALE_RATES),
        ):
            if value not in allowed:
                raise ExperimentError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")
        if (self.ratio is None) != (self.method == "dense"):
            raise ExperimentError(f"every method but 'dense' has a ratio, and 'dense' has none; got {self}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ExperimentError(f"ratio must lie between 0 and 1; got {self.ratio!r}")
        for what in ("training", "validation", "epochs", "batch"):
            if getattr(self, what) < 1:
                raise ExperimentError(f"{what} must be at least 1; got {getattr(self, what)!r}")
        if self.training < self.batch:
            raise ExperimentError(f"{self.training} images do not make a batch of {self.batch}")

    @property
    def key(self) -> str:
        """The settings as canonical JSON: what tells runs apart."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def replace(self, **changes: Any) -> Settings:
        """Return other settings."""
        return dataclasses.replace(self, **changes)


FIELDS = tuple(field.name for field in dataclasses.fields(Settings))


def from_dict(fields: dict[str, Any], where: str) -> Settings:
    """Return settings, or raise :class:`ExperimentError` for keys that do not exist or are missing."""
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ExperimentError(f"{where} has settings that do not exist: {', '.join(unknown)}; there are: {FIELDS}")
    try:
        return Settings(**fields)
    except TypeError as error:
        raise ExperimentError(f"{where}: {error}") from error
