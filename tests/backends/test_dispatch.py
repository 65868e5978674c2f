"""The public functions of ``smh`` go to the framework of the model, and pass on everything that they are given."""

import contextlib
import dataclasses
import inspect
import subprocess
import sys
import types

import numpy as np
import pytest

import smh
from smh.api import Api
from smh.models import api as models_api
from smh.models.adapter import ModelAdapter, adapter_of
from smh.models.api import ModelApi
from smh.models.compression import Compression, ModelTensor

FRAMEWORKS = {"torch": "torch", "jax": "jax", "keras": "tensorflow"}
"""Modules of smh, and the backends behind them, in the order in which one process can load them."""


def backend_module(name):
    pytest.importorskip(FRAMEWORKS[name])
    return getattr(smh, name), sys.modules[f"smh.backends.{FRAMEWORKS[name]}"]


# --- With stand-ins, no framework


class Model:
    """A model of the stand-in for a framework."""


class Adapter(ModelAdapter):
    """Takes any plain model for one of a single tensor, and an integer for a compressed one."""

    backend = smh.get_backend("numpy")
    tensors_ = (ModelTensor("w", (30, 40), 4800),)

    def compression(self, model):
        return model if isinstance(model, Compression) else None

    def tensors(self, model, plan=None):
        return self.tensors_

    def values(self, model, plan=None):
        return {"w": np.ones((30, 40), dtype=np.float32)}

    def install(self, model, compression):
        return compression

    def variables(self, model):
        return smh.initialize(model.plan)

    def rate(self, model, kept_bits):
        return 3.0 if kept_bits is None else float(kept_bits)

    def kept(self, model, plan):
        return {}

    def assign(self, model, variables, kept):
        return model

    def materialize(self, model):
        return "a plain model"

    def built(self, model):
        return contextlib.nullcontext()


@pytest.fixture(params=list(FRAMEWORKS))
def stand_in(request, monkeypatch):
    """Put stand-ins in the places of one framework and of its adapter; return the adapter."""
    for name in FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    runs = types.SimpleNamespace(backend=lambda: "tensorflow")
    framework = types.SimpleNamespace(nn=types.SimpleNamespace(Module=Model), Layer=Model, backend=runs)
    monkeypatch.setitem(sys.modules, request.param, framework)
    module = f"smh.backends.{FRAMEWORKS[request.param]}"
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace())
    adapter = Adapter()
    monkeypatch.setitem(sys.modules, f"{module}.models", types.SimpleNamespace(adapter=adapter))
    return adapter


def test_models_go_to_the_adapter_of_their_framework(stand_in, monkeypatch):
    assert adapter_of(Model()) is stand_in


@pytest.fixture
def options():
    """Return a value of its own for each option of compress."""
    parameters = list(inspect.signature(smh.compress).parameters)
    return {name: object() for name in parameters if name not in ("model", "ratio", "residency", "gradients")}


def test_compress_passes_every_option_on(options, monkeypatch):
    """A function that left one out would take it, and do something else."""
    asked = {}
    plan = options["plan"] = smh.Plan.build({"w": (30, 40)}, ratio=0.25)
    monkeypatch.setattr(models_api, "plan_for", lambda tensors, **given: asked.update(given) or plan)
    seeds = []
    monkeypatch.setattr(models_api, "initial_variables", lambda plan, init_seed: seeds.append(init_seed))
    api = ModelApi(lambda model: Adapter())
    made = api.compress(Model(), 0.25, residency="layer", gradients="fast", **options)
    assert asked.pop("layers")() == {}
    assert seeds == [options.pop("init_seed")]
    assert asked == {**options, "ratio": 0.25, "values": None}
    noted = tuple(dataclasses.replace(tensor, note="all its values were 1") for tensor in Adapter.tensors_)
    assert made == Compression(plan, noted, "layer", 0.25, "fast")
    api.compress(Model(), scale="match")
    assert list(asked["values"]) == ["w"]


def test_fit_passes_every_option_on(options):
    del options["init_seed"]  # a fit has no random values
    assert set(inspect.signature(smh.fit).parameters) == {
        *options, "model", "ratio", "residency", "gradients", "progress"
    }  # fmt: skip

    class Api(ModelApi):
        def compress(self, *arguments, **given):
            raise Passed(arguments, given)

    class Passed(Exception):  # noqa: N818
        pass

    model = Model()
    with pytest.raises(Passed) as caught:
        Api(lambda model: Adapter()).fit(model, 0.25, residency="layer", gradients="fast", **options, progress=True)
    assert caught.value.args == ((model, 0.25), {**options, "residency": "layer", "gradients": "fast"})


def test_arguments_of_plans_do_not_go_with_models(tmp_path):
    api = Api(lambda: smh.get_backend("numpy"), lambda model: Adapter())
    model = api.compress(Model(), 0.25)
    assert api.materialize(model) == "a plain model"
    assert api.rate(model) == 3.0
    assert api.rate(model, kept_bits=16) == 16.0
    with pytest.raises(smh.PlanError, match="kept_bits must be 8 or 16, or None .*; got 4"):
        api.rate(model, kept_bits=4)
    with pytest.raises(smh.PlanError, match="variables= needs a Plan, not a model; got Compression"):
        api.digest(model, {})
    with pytest.raises(smh.PlanError, match="variables= and dense= need a Plan"):
        api.save(tmp_path / "x", model, {}, {})
    with pytest.raises(smh.PlanError, match="names= and max_bytes= need a Plan"):
        api.materialize(model, names=["w"], max_bytes=3)
    for call in (
        api.digest,
        api.materialize,
        api.report,
        api.plan_of,
        api.rate,
        lambda model: api.save(tmp_path / "x", model),
    ):
        with pytest.raises(smh.PlanError, match="the model is not compressed"):
            call(Model())
    with pytest.raises(smh.PlanError, match="this backend has arrays only: .*; got Model"):
        smh.numpy.digest(Model())
    assert not (tmp_path / "x").exists()


def test_a_model_brings_its_device():
    with pytest.raises(smh.PlanError, match="leave out device, or the model; got device='cpu'"):
        smh.load("path", Model(), device="cpu")


def test_what_is_often_taken_for_a_model_is_told():
    torch = pytest.importorskip("torch")
    for wrong, message in (
        (torch.nn.Linear, r"not its class: make one, as in Linear\(\); got type"),
        ("model.safetensors", r"not a file: smh\.load\(path, model\) reads a file into one; got str"),
        (
            torch.nn.Linear(3, 2).state_dict(),
            r"not a state_dict: pass the torch\.nn\.Module it belongs to; got OrderedDict",
        ),
    ):
        for call in (smh.digest, smh.report, lambda model: smh.compress(model, ratio=0.5)):
            with pytest.raises(smh.PlanError, match=message):
                call(wrong)


@pytest.mark.parametrize("model", [3, None, {"w": np.ones((4, 4))}, Model()], ids=lambda model: type(model).__name__)
def test_models_of_no_framework_are_refused(model, monkeypatch):
    for name in FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    hint = ": for a pytree of other arrays, use smh.jax" if isinstance(model, dict) else ""
    for call in (smh.compress, smh.fit):
        with pytest.raises(smh.PlanError, match=rf"got {type(model).__name__}{hint}$"):
            call(model, 0.1)
    with pytest.raises(smh.PlanError, match="a model is (a torch.nn.Module|needed)"):
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
def test_signatures_are_the_same_everywhere(name):
    module, _ = backend_module(name)
    shared = {function for function in set(module.__all__) & set(smh.__all__) if callable(getattr(smh, function))}
    assert shared >= {"compress", "fit", "digest", "save", "load", "materialize", "report", "vjp", "initialize"}
    for function in shared - {"Plan", "Checkpoint"}:
        assert inspect.signature(getattr(module, function)) == inspect.signature(getattr(smh, function)), function
    assert inspect.signature(smh.compress_) == inspect.signature(smh.compress)


def test_no_public_function_hides_its_options():
    for name in smh.__all__:
        function = getattr(smh, name)
        if inspect.isroutine(function) or name == "Plan":
            kinds = {p.kind for p in inspect.signature(getattr(function, "build", function)).parameters.values()}
            assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, name


@pytest.mark.parametrize("name", ["", "numpy", *FRAMEWORKS])
def test_dir_shows_public_names_only(name):
    pytest.importorskip(FRAMEWORKS.get(name, "numpy"))
    module = getattr(smh, name) if name else smh
    modules = set() if name else {"datafree", "export", "numpy", *FRAMEWORKS}
    assert set(dir(module)) == {*module.__all__, *modules}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_only_models_of_pytorch_change_in_place(name):
    plain = models()[name]()
    if name == "torch":
        compressed = smh.compress_(plain, ratio=0.2)
        assert compressed is plain
        assert smh.materialize_(compressed) is plain
        assert [parameter.shape for parameter in plain.parameters()] == [(40, 30), (40,)]
        return
    compressed = smh.compress(plain, ratio=0.2)
    for call in (lambda: smh.compress_(plain, ratio=0.2), lambda: smh.materialize_(compressed)):
        with pytest.raises(smh.PlanError, match=r"only a torch.nn.Module changes in place; got .*: use smh.compress"):
            call()
    assert not hasattr(getattr(smh, name), "compress_")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_other_initial_values_of_the_same_plan(name):
    plain = models()[name]()
    made = [smh.compress(plain, ratio=0.2, pool="hash", init_seed=seed) for seed in (None, 0, 1, 2)]
    plans = {smh.plan_of(model) for model in made}
    assert len(plans) == 1
    (plan,) = plans
    assert len({smh.digest(model) for model in made}) == 3  # the seed of the plan is 0
    digests = [smh.digest(plan, smh.initialize(plan, init_seed=seed)) for seed in (None, 0, 1, 2)]
    assert [smh.digest(model) for model in made] == digests
    with pytest.raises(smh.PlanError, match="init_seed must be an integer from 0 to 4294967295; got -1"):
        smh.compress(plain, plan=plan, init_seed=-1)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_arguments_in_the_wrong_order_are_told(name, tmp_path):
    plain = models()[name]()
    compressed, path = smh.compress(plain, ratio=0.2), tmp_path / "x"
    kind = type(compressed).__name__
    calls = {
        rf"write smh.save\(path, model\); got \({kind}, PosixPath\)": lambda: smh.save(compressed, path),
        rf"write smh.load\(path, model\); got \({kind}, str\)": lambda: smh.load(compressed, str(path)),
        r"write smh.compress\(model, ratio\); got \(float, ": lambda: smh.compress(0.1, plain),
        r"write smh.fit\(model, ratio\); got \(float, ": lambda: smh.fit(0.1, plain),
    }
    for message, call in calls.items():
        with pytest.raises(smh.PlanError, match=message):
            call()
    assert not path.exists()


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
    assert adapter_of(plain) is behind.models.adapter
    first = smh.compress(plain, ratio=0.2, seed=3)
    second = module.compress(plain, ratio=0.2, seed=3)
    assert adapter_of(first) is behind.models.adapter
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
        "from smh.models.adapter import adapter_of\n"
        "try:\n    adapter_of([1])\nexcept smh.PlanError:\n    pass\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
