"""The public functions of ``smh`` go to the framework of the model, and pass on everything that they are given."""

import inspect
import subprocess
import sys
import types

import numpy as np
import pytest

import smh
from smh.models import dispatch

FRAMEWORKS = {"torch": "torch", "jax": "jax", "keras": "tensorflow"}
"""Modules of smh, and the backends behind them, in the order in which one process can load them."""


def backend_module(name):
    pytest.importorskip(FRAMEWORKS[name])
    return getattr(smh, name), sys.modules[f"smh.backends.{FRAMEWORKS[name]}"]


# --- With stand-ins, no framework


class Model:
    """A model of the stand-in for a framework."""


@pytest.fixture(params=list(FRAMEWORKS))
def stand_in(request, monkeypatch):
    """Put a stand-in in the place of one framework and of its backend; return the calls that reach the backend."""
    calls = []

    def record(name):
        def call(*arguments, **options):
            calls.append((name, arguments, options))
            return (Model(), "a report") if name == "fit" else f"{name} was called"

        return call

    for name in FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    framework = types.SimpleNamespace(nn=types.SimpleNamespace(Module=Model), Layer=Model)
    monkeypatch.setitem(sys.modules, request.param, framework)
    functions = types.SimpleNamespace(**{name: record(name) for name in ("compress", "fit", "digest", "save", "load")})
    monkeypatch.setitem(sys.modules, f"smh.backends.{FRAMEWORKS[request.param]}", functions)
    return calls


@pytest.mark.parametrize("function", ["compress", "fit"])
def test_every_option_is_passed_on(function, stand_in):
    """A function that left one out would take it, and do something else."""
    model, call = Model(), getattr(smh, function)
    parameters = list(inspect.signature(call).parameters)
    given = {name: object() for name in parameters if name not in ("model", "ratio")}
    call(model, 0.25, **given)
    assert stand_in == [(function, (model, 0.25), given)]


def test_save_load_and_digest_are_passed_on(stand_in):
    model = Model()
    assert smh.save("path", model, training=True) == "save was called"
    assert smh.load("path", model, max_bytes=7) == "load was called"
    assert smh.digest(model) == "digest was called"
    assert stand_in == [
        ("save", ("path", model), {"training": True}),
        ("load", ("path", model), {"max_bytes": 7}),
        ("digest", (model,), {}),
    ]


def test_a_model_brings_its_device(stand_in):
    with pytest.raises(smh.PlanError, match="leave out device, or the model; got device='cpu'"):
        smh.load("path", Model(), device="cpu")
    assert not stand_in


@pytest.mark.parametrize("model", [3, None, {"w": np.ones((4, 4))}, Model()], ids=lambda model: type(model).__name__)
def test_models_of_no_framework_are_refused(model, monkeypatch):
    for name in FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for call in (smh.compress, smh.fit):
        with pytest.raises(smh.PlanError, match=f"got {type(model).__name__}: for a pytree of other arrays"):
            call(model, 0.1)
    with pytest.raises(smh.PlanError, match="a model is a torch.nn.Module"):
        smh.save("path", model)


# --- Plans need no framework


def test_plans_go_to_the_backend_of_arrays(tmp_path, monkeypatch):
    monkeypatch.delenv("SMH_BACKEND", raising=False)
    plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    variables = smh.initialize(plan)
    path = tmp_path / "x.safetensors"
    digest = smh.save(path, plan, variables, {"kept": np.arange(3)})
    assert digest == smh.digest(plan, variables) == smh.numpy.digest(plan, variables)
    found = smh.load(path)
    assert (found.plan, found.digest, list(found.dense)) == (plan, digest, ["kept"])
    assert smh.digest(found.plan, found.variables) == digest
    with pytest.raises(smh.VariableError, match="'pool/left' is missing"):
        smh.digest(plan)
    with pytest.raises(smh.VariableError, match="'pool/left' is missing"):
        smh.save(tmp_path / "y", plan)
    assert not (tmp_path / "y").exists()


# --- With frameworks


@pytest.mark.parametrize("name", ["numpy", *FRAMEWORKS])
def test_modules_of_frameworks_are_their_backends(name):
    pytest.importorskip(FRAMEWORKS.get(name, "numpy"))
    module = getattr(smh, name)
    behind = __import__(f"smh.backends.{FRAMEWORKS.get(name, 'numpy')}", fromlist=["*"])
    assert module is sys.modules[f"smh.{name}"]
    assert sorted(module.__all__) == sorted(behind.__all__)
    for public in behind.__all__:
        assert getattr(module, public) is getattr(behind, public), public
    assert module.backend is smh.get_backend(FRAMEWORKS.get(name, "numpy"))


def test_other_attributes_are_no_modules():
    with pytest.raises(AttributeError, match="module 'smh' has no attribute 'tensorflow'"):
        smh.tensorflow  # noqa: B018


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("function", ["compress", "fit"])
def test_options_and_defaults_are_those_of_the_backends(name, function):
    def described(call):
        parameters = list(inspect.signature(call).parameters.values())
        return [(parameter.name, parameter.default, parameter.kind) for parameter in parameters]

    module, _ = backend_module(name)
    of_backend, of_smh = described(getattr(module, function)), described(getattr(smh, function))
    assert of_smh[1:] == of_backend[1:]


def models():
    """Return a small model of each framework that is installed."""

    def torch():
        module = pytest.importorskip("torch")
        return module.nn.Linear(30, 40)

    def jax():
        module = pytest.importorskip("jax")
        return {"w": module.numpy.ones((30, 40)), "b": module.numpy.zeros(40)}

    def keras():
        pytest.importorskip("tensorflow")
        module = pytest.importorskip("keras")
        return module.Sequential([module.Input((30,)), module.layers.Dense(40)])

    return {"torch": torch, "jax": jax, "keras": keras}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_model_goes_to_its_framework_and_back(name, tmp_path):
    plain = models()[name]()
    module, behind = backend_module(name)
    assert dispatch.module_of(plain) is behind
    first = smh.compress(plain, ratio=0.2, seed=3)
    second = module.compress(plain, ratio=0.2, seed=3)
    assert dispatch.module_of(first) is behind
    assert type(first) is type(second)
    assert module.plan_of(first) == module.plan_of(second)
    path = tmp_path / "x.safetensors"
    digest = smh.save(path, first)
    assert digest == smh.digest(first) == module.digest(second) == smh.load(path).digest
    other = smh.compress(plain, ratio=0.2, seed=3)
    restored = smh.load(path, other)
    assert smh.digest(restored) == digest
    with pytest.raises(smh.PlanError, match="did you mean 0.1"):
        smh.compress(plain, ratio=10)


def test_the_question_imports_no_framework():
    program = (
        "import sys, smh as smh\n"
        "from smh.models.dispatch import module_of\n"
        "try:\n    module_of([1])\nexcept smh.PlanError:\n    pass\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
