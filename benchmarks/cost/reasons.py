"""Why a figure is above its bar: the paragraphs of the findings that say it."""

from cost.context import Figure

_FAST = dict.fromkeys(("numpy", "torch", "torch.compile"), "Many tensors")
_COMPILED = ("torch.compile", "jax", "tf.function", "tf.xla")


def reasons(figure: Figure) -> list[str]:
    """Return headings of the findings, the weightiest first."""
    return _OF_CELL[figure["cell"]](figure)


def _numeric(figure: Figure) -> list[str]:
    if figure["variant"] == "fast":
        compiled = figure["backend"] == "torch.compile" and figure["operation"] == "gradients"
        return ["Compiled programs" if compiled else _FAST.get(figure["backend"], "Copies in graphs")]
    return (["A third product"] if figure["operation"] == "gradients" else []) + _exact(figure)


def _step(figure: Figure) -> list[str]:
    return ["Small images", *(_exact(figure) if figure["variant"] == "exact" else [])]


def _inference(figure: Figure) -> list[str]:
    if figure["variant"].startswith("cached"):
        return ["Cached weights"]
    return ["One tensor alone", *_exact(figure)]


def _exact(figure: Figure) -> list[str]:
    found = ["Products in float64"] if figure["backend"].startswith("tf.") else []
    found += ["Passes around exact products"]
    return found + (["Compiled programs"] if figure["backend"] in _COMPILED else [])


_OF_CELL = {
    "numeric": _numeric,
    "step": _step,
    "inference": _inference,
    "memory": lambda figure: ["Compiled programs"],
    "files": lambda figure: ["Names of bits" if figure["unit"] == "times" else "Other processors"],
}
