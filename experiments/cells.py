"""A configuration and the cells of its tables, in the order of their runs.

A *cell* is one entry of a table, with its settings. Most cells leave the learning rate open, and it is tuned: the same
settings are run with one seed and with every rate of a list, at the nearest of a few ratios. The rate with the best
accuracy on validation images is used. Cells with equal settings share one run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import data, methods
from experiments.errors import CannotReachError, ExperimentError
from experiments.settings import FIELDS, Settings, from_dict


@dataclass(frozen=True)
class Cell:
    """An entry of a table.

    Parameters
    ----------
    id : str
        The name of the cell.
    group : str
        The model of a table, or the name of a question.
    label : str
        The row.
    settings : Settings
        The settings; ``lr`` is None if it is tuned.
    tuned_as : Settings or None
        The settings whose tuning gives the rate, with ``lr`` None.
    tuning : bool
        Whether the cell is a tuning run.
    """

    id: str
    group: str
    label: str
    settings: Settings
    tuned_as: Settings | None = None
    tuning: bool = False


@dataclass(frozen=True)
class Question:
    """A small table that answers a question. ``note`` describes the runs, ``answer`` the outcome."""

    name: str
    title: str
    note: str
    answer: str


@dataclass(frozen=True)
class Page:
    """The page of a configuration: file name, title, and whether it compares the claims of the paper."""

    name: str
    title: str = "Accuracy"
    claims: bool = False


@dataclass(frozen=True)
class Config:
    """The content of a TOML file. ``tables`` are the groups of its tables; other groups are questions."""

    name: str
    cells: tuple[Cell, ...]
    questions: tuple[Question, ...]
    rates: Mapping[str, tuple[float, ...]]
    folder: Path | None
    page: Page
    tables: tuple[str, ...]

    def tuning_of(self, settings: Settings) -> list[Settings]:
        """Return the tuning runs of settings."""
        return [settings.replace(lr=lr) for lr in self.rates[settings.optimizer]]


def read(path: Path, folder: Path | None = None) -> Config:
    """Read a configuration.

    Parameters
    ----------
    path : Path
        The TOML file.
    folder : Path, optional
        The folder of the data.

    Raises
    ------
    ExperimentError
        If the file is missing, not TOML, or has unknown keys or values, or two cells with one name.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path} cannot be read as a configuration: {error}") from error
    _check_keys(path.name, content, ("page", "run", "tuning", "table", "question"))
    _check_keys(f"{path.name}, [page]", content.get("page", {}), ("name", "title", "claims"))
    tuning = content.get("tuning", {})
    _check_keys(f"{path.name}, [tuning]", tuning, ("seed", "ratios", "rates"))
    maker = _Maker(
        base=content.get("run", {}),
        ratios=tuple(tuning.get("ratios", ())),
        seed=tuning.get("seed", 0),
        rates={name: tuple(map(float, rates)) for name, rates in tuning.get("rates", {}).items()},
        folder=folder,
    )
    cells = [cell for table in content.get("table", []) for cell in maker.table(table)]
    asked = [(question, maker.question(question)) for question in content.get("question", [])]
    questions = tuple(Question(q["name"], q["title"], q.get("note", ""), q.get("answer", "")) for q, _ in asked)
    ordered = [
        *maker.tuning(cells),
        *sorted(cells, key=lambda cell: cell.settings.seed),
        *maker.tuning([cell for _, made in asked for cell in made]),
        *sorted((cell for _, made in asked for cell in made), key=lambda cell: cell.settings.seed),
    ]
    tables = tuple(dict.fromkeys(cell.group for cell in cells))
    for name in {question.name for question in questions} & set(tables):
        raise ExperimentError(f"{path.name} has a question and a table of the name {name}: rename the question")
    page = Page(**{"name": f"{path.stem}.md", **content.get("page", {})})
    return Config(path.stem, _unique(path.name, ordered), questions, maker.rates, folder, page, tables)


def _unique(where: str, cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return each cell once, or raise an error if cells of one name have different settings."""
    found: dict[str, Cell] = {}
    for cell in cells:
        known = found.setdefault(cell.id, cell).settings
        differ = [name for name in FIELDS if getattr(known, name) != getattr(cell.settings, name)]
        if differ:
            values = (f"{name} ({getattr(known, name)!r} and {getattr(cell.settings, name)!r})" for name in differ)
            raise ExperimentError(
                f"{where} has two cells {cell.id} that differ in {', '.join(values)}: move one table to a "
                "separate configuration, or give the variants of a question different labels"
            )
    return tuple(found.values())


@functools.cache
def reachable(settings: Settings, folder: Path | None) -> CannotReachError | None:
    """Return None, or the error of a method without a model within the budget."""
    shape, classes = data.describe(settings.data, folder)
    try:
        methods.size(settings, shape, classes)
    except CannotReachError as error:
        return error
    return None


def describe(settings: Settings) -> str:
    """Return the name of a run: data, model, method, ratio, and all settings that differ from the defaults."""
    parts = [settings.data, settings.model, settings.method]
    if settings.ratio is not None:
        parts.append(f"{settings.ratio:g}")
    named = ("data", "model", "method", "ratio", "lr", "seed")
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.name not in named and value != field.default:
            parts.append(f"{field.name}={value}")
    if settings.lr is not None:
        parts.append(f"lr={settings.lr:g}")
    return "/".join((*parts, f"seed={settings.seed}"))


@dataclass(frozen=True)
class _Maker:
    """Makes the cells of a configuration."""

    base: dict[str, Any]
    ratios: tuple[float, ...]
    seed: int
    rates: dict[str, tuple[float, ...]]
    folder: Path | None

    def table(self, table: dict[str, Any]) -> Iterator[Cell]:
        """Iterate over the cells of a table of methods by ratios and by weights of the size penalty."""
        special = ("methods", "ratios", "rates", "seeds", "only")
        _check_keys("a table", table, (*special, *FIELDS))
        fixed = {key: value for key, value in table.items() if key not in special}
        only = table.get("only", {})
        _check_keys("'only' of a table", only, table["methods"])
        for seed in table["seeds"]:
            for method in table["methods"]:
                ratios = only.get(method, table["ratios"]) if methods.has_ratio(method) else [None]
                for ratio, rate in itertools.product(ratios, table.get("rates", [0.0])):
                    settings = self.settings({**fixed, "method": method, "ratio": ratio, "rate": rate, "seed": seed})
                    yield self.of_table(settings)

    def question(self, question: dict[str, Any]) -> list[Cell]:
        """Return the cells of a question."""
        special = ("name", "title", "note", "answer", "seeds", "tune", "variant")
        _check_keys("a question", question, (*special, *FIELDS))
        missing = sorted({"name", "title", "seeds", "variant"} - set(question))
        if missing:
            raise ExperimentError(f"a question needs {', '.join(missing)}; got {question}")
        fixed = {key: value for key, value in question.items() if key not in special}
        cells = []
        for seed in question["seeds"]:
            for variant in question["variant"]:
                _check_keys(f"a variant of {question['name']}", variant, ("label", *FIELDS))
                own = {key: value for key, value in variant.items() if key != "label"}
                settings = self.settings({"method": "matmul", **fixed, **own, "seed": seed})
                tuned_as = None
                if not question.get("tune"):
                    tuned_as = self.settings(
                        {"method": settings.method, **fixed, "ratio": settings.ratio, "seed": seed}
                    )
                name = "/".join((question["name"], variant["label"], *_share(settings)))
                cells.append(self.cell(name, question["name"], variant["label"], settings, tuned_as))
        return cells

    def settings(self, fields: dict[str, Any]) -> Settings:
        """Return settings, with the defaults of ``[run]``."""
        merged = {**self.base, **fields}
        if not methods.has_ratio(merged.get("method", "")):
            merged["ratio"] = None
        settings = from_dict(merged, "the configuration")
        methods.check(settings)
        return settings

    def of_table(self, settings: Settings) -> Cell:
        """Return a cell of a table. Its label is the method, and what a table may vary."""
        varied = {what: getattr(settings, what) for what in ("bits", "rate", "teacher", "include", "activation")}
        changed = {what: x for what, x in varied.items() if x != getattr(Settings, what)}
        special = [f"{what}={x}" if isinstance(x, str) else f"{what}={x:g}" for what, x in changed.items()]
        name = "/".join((settings.model, settings.method, *_share(settings), *special))
        return self.cell(name, settings.model, ", ".join((settings.method, *special)), settings)

    def cell(self, name: str, group: str, label: str, settings: Settings, tuned_as: Settings | None = None) -> Cell:
        """Return a cell, tuned by its own settings unless ``tuned_as`` is given."""
        name = f"{name}/seed={settings.seed}"
        if settings.lr is not None:
            return Cell(name, group, label, settings)
        if settings.optimizer not in self.rates:
            raise ExperimentError(
                f"there is no learning rate for {settings.optimizer}: add [tuning.rates] with "
                f"{settings.optimizer} = [...], or set lr in [run]"
            )
        return Cell(name, group, label, settings, self.tuned(settings if tuned_as is None else tuned_as))

    def tuned(self, settings: Settings) -> Settings:
        """Return settings with the tuning seed and the nearest tuning ratio that the method can reach.

        Method ``fit`` uses the rate of the same pool trained from the start.
        """
        method = "matmul" if settings.method == "fit" else settings.method
        fixed = settings.replace(method=method, seed=self.seed, lr=None)
        if settings.ratio is None:
            return fixed
        asked = math.log(settings.ratio)
        for ratio in sorted(self.ratios, key=lambda ratio: abs(math.log(ratio) - asked)):
            if reachable(fixed.replace(ratio=ratio), self.folder) is None:
                return fixed.replace(ratio=ratio)
        return fixed

    def tuning(self, cells: list[Cell]) -> Iterator[Cell]:
        """Iterate over the tuning runs of cells, including those of the dense models for ``fit``."""
        for base in dict.fromkeys(wanted for cell in cells for wanted in tunings(cell)):
            if reachable(base, self.folder) is None:
                for lr in self.rates[base.optimizer]:
                    settings = base.replace(lr=lr)
                    yield Cell(f"tuning/{describe(settings)}", base.model, base.method, settings, tuning=True)


def tunings(cell: Cell) -> list[Settings]:
    """Return the settings whose tuning a cell needs: its own, and those of the dense model for ``fit`` or a teacher."""
    if cell.tuned_as is None:
        return []
    needed = [cell.tuned_as]
    if (cell.settings.method == "fit" or cell.settings.teacher) and cell.settings.dense_lr is None:
        needed.append(cell.settings.dense.replace(lr=None, seed=cell.tuned_as.seed))
    return needed


def _share(settings: Settings) -> list[str]:
    """Return the ratio as a part of a name; nothing if there is none."""
    return [] if settings.ratio is None else [f"{settings.ratio:g}"]


def _check_keys(where: str, table: Mapping[str, Any], allowed: Iterable[str]) -> None:
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise ExperimentError(
            f"{where} has unknown keys: {', '.join(map(repr, unknown))}; expected some of {', '.join(allowed)}"
        )
