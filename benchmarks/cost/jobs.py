"""What is measured: jobs for processes of their own, from the choices of the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cost.context import Figure, Job

CELLS = ("numeric", "step", "inference", "memory", "files", "growth")
BACKENDS = ("numpy", "torch", "torch.compile", "jax", "tf.eager", "tf.function", "tf.xla")
NUMERIC_MODELS = ("resnet34", "efficientnet_b0", "mlp", "transformer", "square2300", "square4612")
POOLS = ("matmul", "kronecker", "hash")
ARITHMETICS = ("exact", "fast")
RATIOS = (0.5, 0.1, 0.02)
_USUAL = ("numpy", "torch", "torch.compile", "jax", "tf.function", "tf.xla")
_EAGER = ("numpy", "torch")
_COMPILED = ("torch.compile", "tf.xla")
"""Whose compiler takes long, so that the default table has few cases of them."""
_CONTAINERS = ("numpy", "torch", "jax", "tf.function")
"""One for each backend of smh."""
_FUNCTIONS = {
    "numeric": "numeric.measure",
    "step": "models.measure_step",
    "inference": "models.measure_inference",
    "memory": "memory.measure",
    "peak": "memory.measure_peak",
    "files": "files.measure",
    "growth": "growth.measure",
    "growth at": "growth.measure_at",
}
SIZES = (32, 64, 224, 4096)
_STEPS = (
    # model, size of the images or width (of SIZES), batch
    ("resnet34", 32, 32),
    ("efficientnet_b0", 64, 32),
    ("mlp", 4096, 64),
    ("resnet34", 224, 32),
    ("efficientnet_b0", 224, 32),
)
_INFERENCES = (("resnet34", 32), ("efficientnet_b0", 64), ("resnet34", 224), ("efficientnet_b0", 224))


@dataclass(frozen=True)
class Choice:
    """What somebody asked for; empty means what the default table has."""

    cells: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()
    arithmetics: tuple[str, ...] = ARITHMETICS
    sizes: tuple[int, ...] = ()
    threads: int = 1
    rounds: int = 7
    clock: str = "wall"
    quick: bool = False


def make_jobs(choice: Choice) -> Iterator[Job]:
    """Iterate over jobs, the shortest kinds first."""
    common = {"threads": choice.threads, "rounds": choice.rounds, "clock": choice.clock}
    cells = choice.cells or CELLS[:-1]
    makers = {"files": _files, "memory": _memory, "numeric": _numeric}
    makers |= {"inference": _inference, "step": _step, "growth": _growth}
    for cell, make in makers.items():
        if cell in cells:
            for job in make(choice):
                yield {"cell": cell, "backend": "numpy", **common, **job}


def run(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of a job, in this process."""
    module, function = _FUNCTIONS[job["cell"]].split(".")
    yield from getattr(import_module(f"cost.{module}"), function)(job)


def _numeric(choice: Choice) -> Iterator[Job]:
    usual = tuple(backend for backend in _USUAL if not (choice.quick and backend in _COMPILED))
    for backend in choice.backends or usual:
        for model, pool, share in _quick_cases() if choice.quick else _cases(choice, backend):
            case = {"model": model, "pool": pool, "ratio": share}
            yield {"backend": backend, **case, "arithmetics": list(choice.arithmetics)}


def _quick_cases() -> Iterator[tuple[str, str, float]]:
    return (("tiny", pool, 0.1) for pool in POOLS)


def _cases(choice: Choice, backend: str) -> Iterator[tuple[str, str, float]]:
    """Iterate over the usual models, pools and ratios; what was asked for by name counts as usual."""
    for model in choice.models or NUMERIC_MODELS:
        for pool in choice.pools or POOLS:
            for share in choice.ratios or RATIOS:
                asked = ("resnet34" if choice.models else model, "matmul" if choice.pools else pool)
                if _usual(backend, *asked, 0.1 if choice.ratios else share):
                    yield model, pool, share


def _usual(backend: str, model: str, pool: str, share: float) -> bool:
    """Say whether the default table has a case: from ResNet-34 with a matmul pool at 0.1 on, one thing is changed."""
    standard = pool == "matmul" and share == 0.1
    if model == "resnet34":
        return standard or (backend not in _COMPILED and (pool == "matmul" or share == 0.1))
    if model == "square4612":
        return standard and backend not in _COMPILED
    if model == "square2300":
        return pool == "matmul" and backend in _EAGER
    return standard and backend in _EAGER


def _step(choice: Choice) -> Iterator[Job]:
    for backend in _with_models(choice):
        for model, size, batch in (("tiny", 64, 8),) if choice.quick else _STEPS:
            if choice.quick or _asked(choice, backend, model, size):
                yield {
                    "backend": backend,
                    "model": model,
                    "size": size,
                    "batch": batch,
                    "ratios": list(choice.ratios or (0.1, 0.02)),
                    "arithmetics": sorted(choice.arithmetics, reverse=True),
                }


def _inference(choice: Choice) -> Iterator[Job]:
    for backend in _with_models(choice, "tf.eager"):
        for model, size in (("tiny", 64),) if choice.quick else _INFERENCES:
            if choice.quick or _asked(choice, backend, model, size):
                about = {"backend": backend, "model": model, "size": size}
                yield about | {"batches": [1, 32], "ratios": [(choice.ratios or (0.1,))[0]]}


def _with_models(choice: Choice, *more: str) -> tuple[str, ...]:
    """Return the backends that have models, and how they are run: some only where it is asked for."""
    usual = ("torch", "jax", "tf.function", *(() if choice.quick else _COMPILED), *more)
    return tuple(backend for backend in choice.backends or usual if backend != "numpy")


def _asked(choice: Choice, backend: str, model: str, size: int) -> bool:
    """Say whether a model of a size is to be measured; what takes longest is measured in PyTorch only."""
    if choice.models or choice.sizes:
        return (not choice.models or model in choice.models) and (not choice.sizes or size in choice.sizes)
    return backend == "torch" or (size != 224 if backend not in _COMPILED else size == 32)


def _memory(choice: Choice) -> Iterator[Job]:
    ratios = list(choice.ratios or ((0.1,) if choice.quick else sorted(RATIOS)))
    kept, model, size = (["tiny"], "tiny", 64) if choice.quick else (["square4612", "resnet34"], "resnet34", 32)
    usual = (*_CONTAINERS, *(() if choice.quick else ("tf.eager", "tf.xla")))
    for backend in choice.backends or usual:
        yield {
            "backend": backend,
            "models": [] if backend == "tf.eager" else kept,
            "ratios": [0.1] if backend == "tf.xla" and not choice.ratios else ratios,
            "model": model,
            "size": size,
            "runs": _runs(backend),
        }


def _runs(backend: str) -> list[tuple[str, int]]:
    """Return of what the memory is measured besides building: an operation, and how many images it gets."""
    if backend in ("torch", "jax", "tf.function"):
        return [("inference", 1), ("step", 1), ("step", 32)]
    return [("inference", 1)] if backend == "tf.eager" else []


def _files(choice: Choice) -> Iterator[Job]:
    model = "tiny" if choice.quick else "resnet34"
    for backend in choice.backends or _CONTAINERS:
        if backend in _CONTAINERS:
            yield {"backend": backend, "model": model, "ratios": list(choice.ratios or (0.1,)), "tensors": 300}


def _growth(choice: Choice) -> Iterator[Job]:
    yield {"backend": "numpy", "sizes": [10**k for k in ((5,) if choice.quick else range(5, 10))]}


def checked(what: str, given: str, known: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the parts of a comma-separated list.

    Raises
    ------
    ValueError
        If one of them is not known.
    """
    parts = tuple(type(known[0])(part) for part in given.split(",") if part)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ValueError(f"{what} must be some of {', '.join(map(str, known))}; got {', '.join(map(str, unknown))}")
    return parts
