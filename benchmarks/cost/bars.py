"""What the project wants to hold: an upper bound for some figures, on one thread."""

from cost.context import Figure

SPEED = 1 / 0.6
"""Time over the baseline's at 60 % of its speed."""

_EXACT = {"numpy": 2.1, "torch": 2.1, "jax": 2.3, "tf.function": 2.5}
_STEP = {
    ("resnet34", 0.1): (1.12, 1.28),
    ("resnet34", 0.02): (1.05, 1.10),
    ("efficientnet_b0", 0.1): (1.12, 1.3),
    ("efficientnet_b0", 0.02): (1.05, 1.12),
}
_FILES = {
    "digest, over SHA-256": SPEED,
    "digest, over SHA-256 and a build": SPEED,
    "save, over a copy": SPEED,
    "save, over SHA-256, a build and a copy": SPEED,
    "plan of 300 tensors": 10.0,
    "import smh": 0.2,
    "smh --help": 0.5,
}


def bar(figure: Figure) -> float | None:
    """Return the most that a figure shall be, or None where nothing was said."""
    if figure["threads"] != 1 or figure["model"] == "tiny":
        return None
    return _OF_CELL[figure["cell"]](figure) if figure["cell"] in _OF_CELL else None


def _numeric(figure: Figure) -> float | None:
    if figure["pool"] != "matmul":
        return None
    if figure["operation"] == "build all":
        if figure["variant"] == "fast":
            return 1.05
        if figure["variant"] != "exact":
            return None
        large = figure["model"] in ("resnet34", "square4612") and figure["ratio"] >= 0.1
        return _EXACT.get(figure["backend"]) if large else None
    if figure["operation"] == "gradients":
        return 1.1 if figure["variant"] == "fast" else 2.4
    return None


def _step(figure: Figure) -> float | None:
    if figure["variant"] == "fast over plain and raw":
        return 1.1 if figure["model"] == "mlp" else None
    found = _STEP.get((figure["model"], figure["ratio"]))
    return dict(zip(("fast", "exact"), found, strict=True)).get(figure["variant"]) if found else None


def _inference(figure: Figure) -> float | None:
    if figure["variant"].startswith("cached"):
        return 1.03
    layer = figure["variant"] == "layer, exact" and figure["ratio"] == 0.1
    return 1.25 if layer and "batch 32" in figure["operation"] else None


def _memory(figure: Figure) -> float | None:
    if figure["operation"] == "build all":
        return 1.2
    if figure["operation"].startswith("inference"):
        return 0.45 if figure["variant"] == "layer, exact" else None
    return 1.25 if figure["variant"].startswith("full") else None


_OF_CELL = {
    "numeric": _numeric,
    "step": _step,
    "inference": _inference,
    "memory": _memory,
    "files": lambda figure: _FILES.get(figure["operation"]),
}
