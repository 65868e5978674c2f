"""Peak memory in fresh processes (Linux): building all weights, training steps, inference by residency.

A process does once, on something small, what loads and starts the framework. Then the kernel is asked to count the peak
of the resident size anew. glibc is told to give freed blocks of a megabyte back at once; by default it keeps more and
more of them, which says more of it than of what is measured.
"""

import ctypes
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import smh
from cost import models
from cost.context import Figure, Job, fresh
from cost.frameworks import FRAMEWORKS
from cost.shapes import MODELS

_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
_RESIDENCIES = ("cached", "layer", "full")
_ENDINGS = {"torch": ".pt", "jax": ".pickle", "tf.eager": ".keras", "tf.function": ".keras", "tf.xla": ".keras"}


def peak(run: Callable[[], Any]) -> int:
    """Return by how many bytes the resident size grows at most while a function runs, its result included."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = run()
    grown = _status("VmHWM") - before
    del result
    return grown


def measure(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of one backend; every one has processes of its own."""
    for model in job["models"]:
        for share in job["ratios"]:
            yield _of_building(job, model, share)
    for what, batch in job["runs"]:
        yield from _of_model(job | {"what": what, "batch": batch})


def _of_building(job: Job, model: str, share: float) -> Figure:
    (found,) = fresh(job | {"cell": "peak", "what": "build", "model": model, "ratio": share}, **_GIVE_BACK)
    size = found["weight_bytes"]
    return {
        "model": model,
        "pool": "matmul",
        "ratio": share,
        "operation": "build all",
        "variant": "exact",
        "baseline": "bytes of the weights",
        "baseline_mb": size / 1e6,
        "floor": 1.0,
        "extra": {"peak_bytes": found["peak_bytes"], "compiling": job["backend"].startswith("tf")},
        **_only(found["peak_bytes"] / size),
    }


def _of_model(job: Job) -> Iterator[Figure]:
    what, share = job["what"], job["ratios"][len(job["ratios"]) // 2]
    with tempfile.TemporaryDirectory() as folder:
        base = job | {"cell": "peak", "path": str(Path(folder, f"model{_ENDINGS[job['backend']]}")), "ratio": share}

        def grown(residency: str, arithmetic: str) -> int:
            one = base | {"residency": residency, "arithmetic": arithmetic}
            list(fresh(one | {"what": f"make {what}"}))
            (found,) = fresh(one, **_GIVE_BACK)
            return int(found["peak_bytes"])

        plain = grown("plain", "exact")
        variants = [(r, "exact") for r in _RESIDENCIES if what == "inference" or r != "cached"]
        variants += [("layer" if what == "inference" else "full", "fast")]
        for residency, arithmetic in variants:
            found = grown(residency, arithmetic)
            yield {
                "model": job["model"],
                "pool": "matmul",
                "ratio": share,
                "operation": models.about(job),
                "variant": f"{residency}, {arithmetic}",
                "baseline": "plain model",
                "baseline_mb": plain / 1e6,
                "floor": None,
                "extra": {"peak_bytes": found, "compiling": job["backend"].startswith("tf")},
                **_only(found / plain),
            }


def measure_peak(job: Job) -> Iterator[Figure]:
    """Give the peak of this process, or prepare the file of another."""
    if job["what"] == "build":
        yield _peak_of_building(job)
    elif job["what"].startswith("make"):
        _make_file(job)
    else:
        yield {"peak_bytes": _peak_of_model(job)}


def _peak_of_building(job: Job) -> Figure:
    framework = FRAMEWORKS[job["backend"]]()
    runner = smh.get_backend(framework.backend).in_mode(framework.mode)

    def builder(shapes: dict[str, tuple[int, ...]], share: float) -> tuple[smh.Plan, Callable[[], Any]]:
        plan = smh.Plan.build(shapes, ratio=share)
        variables = {name: runner.asarray(x) for name, x in smh.initialize(plan).items()}
        return plan, lambda: framework.wait(runner.materialize(plan, variables))

    builder({"a": (40, 40)}, 0.5)[1]()
    plan, build = builder(MODELS[job["model"]](), job["ratio"])
    if framework.backend != "tensorflow":  # which keeps what it frees, so there tracing and compiling count
        build()
    return {"peak_bytes": peak(build), "weight_bytes": 4 * plan.num_weights}


def _make_file(job: Job) -> None:
    makers = models.of(FRAMEWORKS[job["backend"]]())
    model = makers.make(job["model"], job["size"])
    if job["residency"] != "plain":
        model = makers.compress(model, job["ratio"], job["arithmetic"], job["residency"])
    makers.save(job["path"], model)


def _peak_of_model(job: Job) -> int:
    """Return the peak of loading a model and running it once."""
    framework = FRAMEWORKS[job["backend"]]()
    makers, mode = models.of(framework), framework.mode
    data = makers.inputs(job["model"], job["size"], job["batch"])

    def run_once(model: Any, x: Any, y: Any) -> Any:
        run = makers.train(mode, model, x, y) if job["what"] == "step" else makers.infer(mode, model, x)
        return run, run()

    def run() -> Any:
        return run_once(makers.load(job["path"]), *data)

    # What any model needs is loaded and started before; JAX compiles before too, TensorFlow as part of the run.
    run_once(makers.make("small", 8), *makers.inputs("small", 8, 1))
    if framework.backend == "jax":
        run()
    return peak(run)


def _only(value: float) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "baseline_ms": None}


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise KeyError(field)
