"""Tables of figures, as Markdown; no figure is typed by hand."""

from collections.abc import Callable, Iterable
from pathlib import Path

from cost.context import Figure
from cost.reasons import reasons

PLOT = "results/growth.svg"
_FINDINGS = Path(__file__).parent / "findings.md"
_IDENTITY = ("cell", "backend", "model", "pool", "ratio", "operation", "variant", "unit", "threads", "clock")
_NAMES = {"resnet34": "ResNet-34", "efficientnet_b0": "EfficientNet-B0", "mlp": "MLP, 3 x 4096"}
_NAMES |= {"transformer": "transformer", "square2300": "2300 x 2300", "square4612": "4612 x 4612", None: ""}
FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch", "torch.compile": "PyTorch, torch.compile", "jax": "JAX, jit"}
FRAMEWORKS |= {"tf.eager": "TensorFlow, eager", "tf.function": "TensorFlow, tf.function", "tf.xla": "TensorFlow, XLA"}

_HEAD = """# What it costs

<!-- Written by `python benchmarks/run.py report`; changes by hand are lost. -->

Every figure is a ratio to a raw baseline of the same framework: the two run by turns in one process, and the table
gives the median over rounds and, in brackets, the quartiles. Where a number is a time, its unit stands with it. The
*floor* is what arithmetic alone asks for: exact products are computed in float64, at half the rate of float32, so 2.0.
A ratio can be below it where the baseline is bound by something else, such as memory that is new to the process. The
*bar* is what the project wants to hold; ✓ and ✗ say whether the median does. What was measured more than once stands
here as it was measured last; the file of figures has all of it. All is for one thread, unless a table says otherwise.
"""
_INTROS = {
    "numeric": """## Building weights, and gradients

`build all` is `materialize` of every tensor, `build one` of one of them, `gradients` is `vjp` with cotangents for all.
The baseline is the float32 product `left @ right` of the same sizes, for one tensor of the rows that it needs, and for
gradients the products `g @ right.T` and `left.T @ g`. Exact gradients of learnable scales need the virtual weights,
which are built once more, so their floor is three products in float64 over two in float32. `raw product in float64` is
the framework's own, which in some takes more than twice as long as its float32 product. For hash pools the baseline is
a gather from an index that was made beforehand and is stored, four bytes a weight, or sums by that index; smh computes
the index each time and stores none.
""",
    "step": """## Training steps

Forward, backward and plain gradient descent, over the same step of the plain model in the same framework: a module and
an optimiser in PyTorch, one jitted function in JAX, `train_on_batch` in Keras. The floor is 1 and the raw products of a
step (one forward, two backward), once for fast arithmetic, twice for exact. It leaves out that the plain step also
updates every weight, by which a compressed one can be a little faster. The last row of each ratio has the sum of the
plain step and the raw products as its baseline.
""",
    "inference": """## Inference

A forward pass without gradients by residency, over the plain model's: `predict_on_batch` in TensorFlow's graphs, a call
of the model where it runs eagerly. The floor is that of a cached weight, or 1 and the raw product of all weights, twice
for exact arithmetic.
""",
    "memory": """## Peak memory

Growth of the resident size in a fresh process, at its peak. Building: over the bytes of the weights, which count, the
second build in a process (in TensorFlow the first, tracing and compiling included, for it keeps what it frees). Models:
loading one and running it, over the plain model; the second time in JAX, which has compiled by then, the first in
TensorFlow, for which that counts. glibc is told to return freed blocks.
""",
    "files": """## Files, plans, starting

`save` computes the digest, for which all weights are built; so does `digest`. Copies are flushed to the disk (fsync),
as `save` does. Times of imports are those of fresh processes without that of an interpreter that does nothing.
""",
    "growth": f"""## Growth

Tensors of 316 x 316, as many as make the number of weights, a matmul pool at a ratio of 0.1, NumPy. Memory is the peak
beyond the variables. From 10⁹ weights on only one tensor is built.

![Time and memory over the number of weights]({PLOT})
""",
}


def latest(figures: Iterable[Figure]) -> list[Figure]:
    """Return the last of the figures that measure the same, in the order of the first."""
    return list({tuple(map(figure.get, _IDENTITY)): figure for figure in figures}.values())


def line(figure: Figure) -> str:
    """Return a figure as a line for people who wait."""
    share = "" if figure["ratio"] is None else f"{figure['ratio']:g}"
    names = (figure["backend"], figure["model"] or "", figure["pool"] or "", share, figure["operation"])
    return "  ".join((*names, figure["variant"], _value(figure), f"floor {_floor(figure)}", f"bar {_bar(figure)}"))


def page(figures: list[Figure]) -> str:
    """Return the whole page."""
    parts = [_HEAD, _conditions(figures), _bars(figures), _FINDINGS.read_text()]
    for cell, intro in _INTROS.items():
        of_cell = [figure for figure in figures if figure["cell"] == cell]
        if of_cell:
            parts.append(f"{intro}\n{_table(of_cell, _COLUMNS | _MORE.get(cell, {}))}")
    return "\n".join(parts)


def _conditions(figures: list[Figure]) -> str:
    machines = dict.fromkeys(f"{f['machine']['cpu']}, {f['machine']['cores']} cores" for f in figures)
    threads = dict.fromkeys(str(f["threads"]) for f in figures)
    rounds = dict.fromkeys(str(f["rounds"]) for f in figures)
    versions = dict.fromkeys(f"{name} {found}" for f in figures for name, found in f["versions"].items() if found)
    commits = dict.fromkeys(f"{f['commit']}{' with changes' if f['changed'] else ''}" for f in figures)
    loads = [f["machine"]["load"][0] for f in figures]
    load = f"{min(loads):g} to {max(loads):g}" if loads else "unknown"
    return (
        f"{'; '.join(machines)}; {', '.join(threads)} thread(s); {', '.join(rounds)} rounds; load at the start {load}; "
        f"{', '.join(versions)}; commit {', '.join(commits)}.\n"
    )


def _bars(figures: list[Figure]) -> str:
    held = [figure for figure in figures if figure["bar"] is not None]
    missed = [figure for figure in held if not _met(figure)]
    text = f"## Bars\n\n{len(held) - len(missed)} of {len(held)} bars are met."
    if not missed:
        return f"{text}\n"
    below = sum(figure["floor"] is not None and figure["bar"] < figure["floor"] for figure in missed)
    text += f" Those in the table are missed; {below} of these ask for less than the floor.\n\n"
    columns = {"cell": lambda f: f["cell"]} | _COLUMNS | {"over the bar": lambda f: f"{_excess(f):+.0%}", "why": _why}
    return f"{text}{_table(sorted(missed, key=_excess, reverse=True), columns)}"


def _table(figures: list[Figure], columns: dict[str, Callable[[Figure], str]]) -> str:
    rows = [[column(figure) for column in columns.values()] for figure in figures]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[list(columns)[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _met(figure: Figure) -> bool:
    return bool(figure["value"] <= figure["bar"])


def _why(figure: Figure) -> str:
    return ", ".join(f"[{name}](#{name.lower().replace(' ', '-')})" for name in reasons(figure))


def _excess(figure: Figure) -> float:
    return float(figure["value"] / figure["bar"] - 1)


def number(x: float) -> str:
    """Return three digits, or a whole number."""
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _value(figure: Figure) -> str:
    unit = "" if figure["unit"] == "times" else f" {figure['unit']}"
    spread = f" ({number(figure['low'])} to {number(figure['high'])})" if figure["low"] is not None else ""
    return f"{number(figure['value'])}{unit}{spread}"


def _floor(figure: Figure) -> str:
    return "" if figure["floor"] is None else f"{figure['floor']:.3g}"


def _bar(figure: Figure) -> str:
    return "" if figure["bar"] is None else f"{figure['bar']:.3g} {'✓' if _met(figure) else '✗'}"


def _baseline(figure: Figure) -> str:
    if figure["baseline_ms"] is not None:
        return f"{figure['baseline']}: {number(figure['baseline_ms'])} ms"
    return f"{figure['baseline']}: {number(figure['baseline_mb'])} MB" if "baseline_mb" in figure else ""


_COLUMNS: dict[str, Callable[[Figure], str]] = {
    "framework": lambda f: FRAMEWORKS.get(f["backend"], f["backend"]),
    "model": lambda f: _NAMES.get(f["model"], f["model"]),
    "pool": lambda f: f["pool"] or "",
    "ratio": lambda f: "" if f["ratio"] is None else f"{f['ratio']:g}",
    "operation": lambda f: f["operation"],
    "variant": lambda f: f["variant"],
    "threads": lambda f: "" if f["threads"] == 1 else str(f["threads"]),
    "times": _value,
    "floor": _floor,
    "bar": _bar,
    "baseline": _baseline,
}
_MORE: dict[str, dict[str, Callable[[Figure], str]]] = {
    "growth": {"peak MB": lambda f: number(f["extra"]["peak_bytes"] / 1e6)},
    "numeric": {"stored index MB": lambda f: f"{f['extra'].get('index_bytes', 0) / 1e6:.3g}".removeprefix("0")},
}
