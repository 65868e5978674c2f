"""Files, digests, plans, and the time to start: over raw copies, SHA-256 and `import numpy`."""

import hashlib
import importlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import smh
from cost.context import Figure, Job
from cost.frameworks import FRAMEWORKS, Framework
from cost.shapes import MODELS
from cost.timing import Timer, Times, quartiles, ratio
from smh import checkpoint

_HELP = "import sys; from smh.cli import main; sys.argv = ['smh', '--help']; main()"


def measure(job: Job) -> Iterator[Figure]:
    """Iterate over all figures; ``job["model"]`` is saved. Plans and starts know no framework: NumPy has them."""
    timer = Timer(job["rounds"], job["clock"])
    yield from _of_files(FRAMEWORKS[job["backend"]](), job["model"], job["ratios"][0], timer)
    if job["backend"] == "numpy":
        yield from _of_plans(job["tensors"], timer)
        yield from _of_starts(timer)


def _of_files(framework: Framework, model: str, share: float, timer: Timer) -> Iterator[Figure]:
    plan = smh.Plan.build(MODELS[model](), ratio=share)
    backend = smh.get_backend(framework.backend)
    named = smh.initialize(plan)
    variables = {name: backend.asarray(x) for name, x in named.items()}
    weights = np.concatenate([w.reshape(-1) for w in smh.materialize(plan, named).values()])
    functions = smh if framework.backend == "numpy" else importlib.import_module(f"smh.backends.{framework.backend}")
    with tempfile.TemporaryDirectory() as folder:
        path, copied = Path(folder, "model.safetensors"), Path(folder, "copy")
        digest = functions.save(path, plan, variables)
        data = path.read_bytes()
        runs = {
            "copy": lambda: _copy(data, copied),
            "sha": lambda: hashlib.sha256(weights).hexdigest(),
            "read": lambda: hashlib.sha256(copied.read_bytes()).hexdigest(),
            "build": lambda: framework.wait(backend.materialize(plan, variables)),
            "digest": lambda: functions.digest(plan, variables),
            "save": lambda: functions.save(path, plan, variables),
            "write": lambda: checkpoint.write(path, plan, named, {}, digest),
            "load": lambda: functions.load(path),
        }
        times = timer.interleave(runs)
    copy, sha, build = times["copy"], times["sha"], times["build"]
    about = {"model": model, "pool": "matmul", "ratio": share, "variant": framework.backend}
    about["extra"] = {"file_bytes": len(data), "weight_bytes": weights.nbytes}
    over = (
        # operation, whose time, baseline, its time, the least time there is
        ("digest, over SHA-256", "digest", "SHA-256 of the weights", sha, sha + build),
        ("digest, over SHA-256 and a build", "digest", "SHA-256 of the weights + build", sha + build, sha + build),
        ("save, over a copy", "save", "copy with fsync", copy, sha + build + copy),
        ("save, over SHA-256, a build and a copy", "save", "the three", sha + build + copy, sha + build + copy),
        ("save without the digest, over a copy", "write", "copy with fsync", copy, copy),
        ("load, over a copy", "load", "copy with fsync", copy, None),
        ("load, over a read and its SHA-256", "load", "read + SHA-256 of the file", times["read"], times["read"]),
    )
    for operation, name, baseline, base, least in over:
        yield about | _timed(operation, baseline, times, name, base, least)


def _timed(operation: str, baseline: str, times: Times, name: str, base: np.ndarray, least: Any) -> Figure:
    floor = None if least is None else float(np.median(least / base))
    return {"operation": operation, "baseline": baseline, "floor": floor} | ratio(times, name, base)


def _copy(data: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _of_plans(count: int, timer: Timer) -> Iterator[Figure]:
    shapes = {f"layers.{i}.weight": (64 + i % 7, 3, 3, 64) for i in range(count)}
    weights = sum(map(math.prod, shapes.values()))
    times = timer.interleave({"plan": lambda: smh.Plan.build(shapes, ratio=0.1)})
    yield _absolute(f"plan of {count} tensors", "ms", 1e3 * times["plan"]) | {"extra": {"weights": weights}}


def _of_starts(timer: Timer) -> Iterator[Figure]:
    """Start interpreters by turns; the time of one that does nothing is taken off imports, not off the command."""
    programs = {"nothing": "pass", "numpy": "import numpy", "smh": "import smh", "help": _HELP}
    wall = Timer(timer.rounds)  # the work is in other processes, whose time this one's clock does not count
    times = wall.interleave({name: _starter(program) for name, program in programs.items()})
    bare = times["nothing"]
    imports = {"numpy": times["numpy"] - bare, "smh": times["smh"] - bare}
    yield _absolute("import smh", "s", imports["smh"])
    yield {
        **_absolute("import smh", "times", imports["smh"]),
        "baseline": "import numpy",
        "operation": "import smh, over import numpy",
        **ratio(imports, "smh", imports["numpy"]),
    }
    yield _absolute("smh --help", "s", times["help"])


def _starter(program: str) -> Callable[[], Any]:
    return lambda: subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def _absolute(operation: str, unit: str, values: np.ndarray) -> Figure:
    """Return a figure that is a time, not a ratio."""
    return {
        "model": None,
        "pool": None,
        "ratio": None,
        "operation": operation,
        "variant": "numpy",
        "baseline": None,
        "baseline_ms": None,
        "floor": None,
        "extra": {},
        "unit": unit,
        **quartiles(values),
    }
