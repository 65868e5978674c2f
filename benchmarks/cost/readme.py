"""The figures of the README, put between two marks from the same results as the whole page of costs."""

from collections.abc import Callable
from pathlib import Path

from cost.context import Figure
from cost.report import FRAMEWORKS, number

BEGIN, END = "<!-- costs: written by `python benchmarks/run.py report` -->", "<!-- end of costs -->"
_BACKENDS = ("numpy", "torch", "jax", "tf.function")
_RATIOS = (0.02, 0.1, 0.5)
_MODELS = (("resnet34", "ResNet-34", 224), ("efficientnet_b0", "EfficientNet-B0", 224))
_MODELS += (("resnet34", "ResNet-34", 32), ("efficientnet_b0", "EfficientNet-B0", 64))
_WITH_MODELS = ("torch", "jax", "tf.function")
_NOTHING = "–"


def write(figures: list[Figure], path: Path) -> None:
    """Replace what stands between the marks.

    Raises
    ------
    ValueError
        If the file lacks them.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} needs the lines {BEGIN!r} and {END!r}, once each")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{section(figures)}\n{END}{rest.split(END)[1]}")


def section(figures: list[Figure]) -> str:
    """Return tables of what a reader asks first: weights and gradients, a training step, inference, memory."""
    parts = (
        "All weights of ResNet-34 from a matrix product, scales included, over the raw `left @ right`; and the "
        "gradients of all\nvariables, over the two raw products of a gradient, both exact:\n",
        _numeric(figures),
        "A training step at batch 32, over that of the plain model in the same framework, at ratios of 0.1 and 0.02:\n",
        _steps(figures),
        "Inference at ratio 0.1 with exact arithmetic, over the plain model's time:\n",
        _inference(figures),
        "Peak memory of building all weights of ResNet-34, over their own size:\n",
        _memory(figures),
    )
    return "\n".join(parts)


def _numeric(figures: list[Figure]) -> str:
    rows = []
    for backend in _BACKENDS:
        cells = [
            _find(
                figures, cell="numeric", backend=backend, model="resnet34", pool="matmul", ratio=ratio, operation=what
            )
            for what in ("build all", "gradients")
            for ratio in _RATIOS
        ]
        rows.append((FRAMEWORKS[backend], *cells))
    return _table(("", *(f"build, {_RATIOS[0]}", *_RATIOS[1:]), f"gradients, {_RATIOS[0]}", *_RATIOS[1:]), rows)


def _steps(figures: list[Figure]) -> str:
    def cells(backend: str, model: str, size: int) -> list[str]:
        about = {"cell": "step", "backend": backend, "model": model, "operation": f"step, {size} x {size}, batch 32"}
        kinds = [(variant, ratio) for variant in ("fast", "exact", "raw products alone") for ratio in (0.1, 0.02)]
        return [_find(figures, **about, ratio=ratio, variant=variant) for variant, ratio in kinds]

    head = ("fast, 0.1", "0.02", "exact, 0.1", "0.02", "raw products alone, 0.1", "0.02")
    return _by_model(head, cells)


def _inference(figures: list[Figure]) -> str:
    def cells(backend: str, model: str, size: int) -> list[str]:
        about = {"cell": "inference", "backend": backend, "model": model, "ratio": 0.1}
        kinds = [(residency, batch) for residency in ("cached", "layer") for batch in (1, 32)]
        return [
            _find(figures, **about, variant=f"{kind}, exact", operation=f"inference, {size} x {size}, batch {batch}")
            for kind, batch in kinds
        ]

    return _by_model(("`cached`, batch 1", "batch 32", "`layer`, batch 1", "batch 32"), cells)


def _by_model(head: tuple[str, ...], cells: Callable[[str, str, int], list[str]]) -> str:
    """Return a table with a row for each framework and model of which something was measured."""
    rows = []
    for backend in _WITH_MODELS:
        for model, name, size in _MODELS:
            found = cells(backend, model, size)
            if any(x != _NOTHING for x in found):
                rows.append((FRAMEWORKS[backend], f"{name}, {size} x {size}", *found))
    return _table(("", "model, images", *head), rows)


def _memory(figures: list[Figure]) -> str:
    rows = []
    for backend in _BACKENDS:
        about = {"cell": "memory", "backend": backend, "model": "resnet34", "operation": "build all"}
        rows.append((FRAMEWORKS[backend], *(_find(figures, **about, ratio=ratio) for ratio in _RATIOS)))
    return _table(("", *(f"ratio {ratio}" for ratio in _RATIOS)), rows)


def _find(figures: list[Figure], variant: str = "exact", **wanted: object) -> str:
    wanted |= {"variant": variant, "threads": 1}
    found = [f for f in figures if all(f[key] == value for key, value in wanted.items())]
    return number(found[-1]["value"]) if found else _NOTHING


def _table(head: tuple[object, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(map(str, row)) for row in (head, ("---",) * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines)
