"""Arguments of a wrong type are refused by an SmhError that says what was received, in every framework."""

import numpy as np
import pytest

import smh

MODULES = {"torch": "torch", "jax": "jax", "keras": "tensorflow"}
PLAN = smh.Plan.build({"a": (40, 30)}, ratio=0.5)
VARIABLES = smh.initialize(PLAN)


def refused(module, call):
    if module in MODULES:
        pytest.importorskip(MODULES[module])
    with pytest.raises(smh.SmhError) as caught:
        call(smh if module == "smh" else getattr(smh, module))
    return str(caught.value)


def expanded(module):
    return lambda api: api.compress(model_of(module), ratio=2, allow_expansion="no")


def model_of(module):
    if module == "torch":
        return pytest.importorskip("torch").nn.Linear(40, 30)
    if module == "jax":
        return {"w": pytest.importorskip("jax").numpy.ones((40, 30))}
    keras = pytest.importorskip("keras")
    return keras.Sequential([keras.Input((40,)), keras.layers.Dense(30)])


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in MODULES for name in ("compress", "fit")] + [("torch", "compress_")],
)
@pytest.mark.parametrize("plan", [3, "x", {}])
def test_what_is_no_plan(module, name, plan):
    message = refused(module, lambda api: getattr(api, name)(model_of(module), plan=plan))
    assert message == f"plan must be a smh.Plan; got {type(plan).__name__}"


def sparse(api):
    import torch

    variables = {name: torch.from_numpy(x) for name, x in VARIABLES.items()}
    return api.vjp(PLAN, variables, {"a": torch.ones(40, 30).to_sparse()})


@pytest.mark.parametrize(
    ("module", "call", "wanted"),
    [
        ("torch", sparse, "the cotangent of 'a' must be a dense tensor"),
        ("torch", lambda api: api.from_pretrained(3, "folder"), "write from_pretrained(cls, path)"),
        ("torch", lambda api: api.from_pretrained("folder", object), "write from_pretrained(cls, path)"),
        ("numpy", lambda api: api.vjp(PLAN, VARIABLES, None), "cotangents must be a mapping"),
        ("numpy", lambda api: api.save("f", PLAN, VARIABLES, training="no"), "training must be True or False"),
        ("numpy", lambda api: api.save("f", PLAN, VARIABLES, packed=0), "packed must be True or False; got 0"),
        ("numpy", lambda api: api.load("f", frozen="no"), "frozen must be True or False; got 'no'"),
        ("torch", lambda api: smh.export.onnx("f", model_of("torch"), weights="no"), "weights must be True or False"),
        ("torch", lambda api: smh.porting.match(*2 * [model_of("torch")], in_order="no"), "in_order must be True or"),
        *(
            (
                module,
                lambda api, m=module: api.compress(model_of(m), ratio=2, allow_expansion="no"),
                "allow_expansion must",
            )
            for module in MODULES
        ),
    ],
)
def test_other_arguments(module, call, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wanted in refused(module, call)
    assert not list(tmp_path.iterdir())


def test_flags_of_numpy_are_flags(tmp_path):
    smh.save(tmp_path / "f", PLAN, VARIABLES, training=np.bool_(False))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["report", "compress", "plan_of", "freeze"])
def test_models_of_another_framework_name_its_module(module, name):
    for other in {*MODULES} - {module}:
        message = refused(module, lambda api, other=other: getattr(api, name)(model_of(other)))
        assert "is not compressed" not in message
        assert f"use smh.{other}" in message


@pytest.mark.parametrize(
    ("kind", "export", "instead"),
    [
        (
            "torch",
            lambda model: smh.export.litert("o", model),
            "use smh.export.onnx, torch_export, aot_inductor or executorch",
        ),
        (
            "torch",
            lambda model: smh.export.saved_model("o", model),
            "use smh.export.onnx, torch_export, aot_inductor or executorch",
        ),
        ("keras", lambda model: smh.export.onnx("o", model), "use smh.export.saved_model or litert instead"),
        ("jax", lambda model: smh.export.torch_export("o", model), "use smh.export.stablehlo instead"),
        ("keras", lambda model: smh.export.stablehlo("o", len, model), "use smh.export.saved_model or litert instead"),
    ],
)
def test_exports_of_another_framework_name_its_own(kind, export, instead, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compressed = smh.compress(model_of(kind), ratio=0.5)
    assert instead in refused("smh", lambda api: export(compressed))
    assert not list(tmp_path.iterdir())


def test_ports_tell_what_they_take(tmp_path):
    model = model_of("torch")
    compressed = smh.compress(model, ratio=0.5)
    smh.save(tmp_path / "x", compressed)
    found, match = smh.load(tmp_path / "x"), smh.porting.match(model, model)
    calls = {
        "got Match: pass match(...).mapping": lambda: smh.port(found, match),
        "mapping must be a smh.porting.Mapping; got dict": lambda: smh.port(found, {}),
        "port takes a checkpoint, as smh.numpy.load(path) returns it; got dict": lambda: smh.port({}, found),
        "port takes a checkpoint, as smh.numpy.load(path) returns it; got Linear": lambda: smh.port(compressed, model),
        "port takes a checkpoint, as smh.numpy.load(path) returns it; got str": lambda: smh.port("x", {}),
        "wrong order: write smh.port(checkpoint, mapping)": lambda: smh.port(match.mapping, found),
        "tensors must be a mapping from targets to sources; got Plan": lambda: smh.porting.Mapping.build(PLAN, {}),
        "source must be a Checkpoint, or a mapping": lambda: smh.porting.Mapping.build({}, PLAN),
        "the entry of 'a' must be the name of its source": lambda: smh.porting.Mapping.build({"a": 3}, {"a": (3,)}),
        "hints must be a mapping by the names of layers; got int": lambda: smh.porting.match(model, model, hints=3),
    }
    for message, call in calls.items():
        with pytest.raises(smh.SmhError) as caught:
            call()
        assert message in str(caught.value)


def test_the_wrong_order_is_told_by_other_functions_too():
    model = model_of("torch")
    compressed = smh.compress(model, ratio=0.5)
    calls = {
        "write smh.sweep(model, ratios); got (list, Linear)": lambda: smh.sweep([0.1], model),
        "write smh.torch.set_residency(model, residency)": lambda: smh.torch.set_residency("cached", compressed),
        "write smh.torch.set_gradients(model, gradients)": lambda: smh.torch.set_gradients("fast", compressed),
        "write smh.export.onnx(path, model, args)": lambda: smh.export.onnx(compressed, "o.onnx", ()),
        "write smh.compress_(model, ratio); got (float, Linear)": lambda: smh.compress_(0.5, model),
    }
    for message, call in calls.items():
        with pytest.raises(smh.PlanError) as caught:
            call()
        assert message in str(caught.value)


@pytest.mark.parametrize("wrong", [None, [1], iter([1])], ids=["None", "list", "iterator"])
def test_what_has_no_arrays_is_not_sent_to_jax(wrong):
    for call in (smh.report, smh.digest, lambda model: smh.compress(model, 0.1)):
        with pytest.raises(smh.SmhError) as caught:
            call(wrong)
        assert "other arrays" not in str(caught.value)
    assert f"got {type(wrong).__name__}" in refused("smh", lambda api: api.report(wrong))


class AdamW:
    """Stands in for an optimizer."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "5 kB"}, "ratio must be a number above 0, or text such as '10%'; got '5 kB': write size='5 kB'"),
        ({"ratio": PLAN}, "got a Plan: pass it as plan="),
        ({"ratio": True}, "ratio must be a number above 0, or text such as '10%'; got True"),
        ({"ratio": "%"}, "got '%'"),
        ({"ratio": "0%"}, "got '0%'"),
        ({"size": 0.1}, "got 0.1: write ratio=0.1"),
        ({"size": "10%"}, "got '10%': write ratio='10%'"),
        ({"ratio": 0.1, "optimizer": "AdamW"}, "optimizer must be one of 'sgd', 'adam'; got 'AdamW': use 'adam'"),
        ({"ratio": 0.1, "optimizer": AdamW}, "got AdamW: use 'adam'"),
        ({"ratio": 0.1, "optimizer": AdamW()}, "got AdamW(...): use 'adam'"),
        ({"ratio": 0.1, "pool": "Hash"}, "got 'Hash': use 'hash'"),
        ({"ratio": 0.1, "pool": smh.pools.Hash}, "got Hash: use 'hash'"),
    ],
)
def test_values_of_another_option_are_told(options, message):
    for build in (
        lambda api: api.Plan.build({"a": (40, 30)}, **options),
        lambda api: api.compress(model_of("torch"), **options),
    ):
        assert message in refused("smh", build)


def test_ratios_and_sizes_may_be_text():
    def build(**options):
        return smh.Plan.build({"a": (40, 30)}, **options)

    assert build(ratio="10%") == build(ratio="0.1") == build(ratio=0.1)
    assert build(size="1 kb") == build(size="1KB") == build(size="1 kB") == build(size=1000)
    assert build(size="1kib") == build(size="1 KiB")
    model = smh.compress(model_of("torch"), "10%")
    assert smh.report(model).ratio_asked == 0.1
    assert smh.plan_of(model) == smh.plan_of(smh.compress(model_of("torch"), 0.1))


def test_progress_is_a_flag():
    assert "progress must be True, False or None; got 'yes'" == refused(
        "smh", lambda api: api.fit(model_of("torch"), 0.1, progress="yes")
    )


def with_buffers():
    nn = pytest.importorskip("torch").nn
    return nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.Linear(30, 20))


def test_reasons_to_keep_tensors_are_told_where_they_matter():
    def told(**options):
        return refused("smh", lambda api: api.compress(with_buffers(), 0.1, **options))

    for options in ({"include": 3}, {"exclude": "typo"}, {"include": "typo"}):
        assert "not to be generated" not in told(**options)
    assert told(include="1.running_mean").endswith("(not to be generated: '1.running_mean': it is a buffer)")


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_layer_itself_is_no_selector(option):
    model = with_buffers()

    def told(call, selector, model):
        ratio = [0.1] if call == "sweep" else 0.1
        return refused("smh", lambda api: getattr(api, call)(model, ratio, **{option: selector}))

    for call in ("compress", "sweep"):
        message = f"{option} takes names and classes, not a Linear itself: pass its name, '0'"
        assert told(call, model[0], model) == told(call, ["2", model[0]], model) == message
        assert "not a Parameter itself: pass its name, '2.weight'" in told(call, model[2].weight, model)
        assert told(call, with_buffers()[0], model).endswith("and functions of a name; got Linear(...)")
    keras_model = model_of("keras")
    message = told("compress", keras_model.layers[0], keras_model)
    assert f"not a Dense itself: pass its name, {keras_model.layers[0].name!r}" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_compressed_first():
    torch = pytest.importorskip("torch")
    compiled = torch.compile(model_of("torch"))
    for name in ("compress", "compress_"):
        message = refused("torch", lambda api, name=name: getattr(api, name)(compiled, 0.1))
        assert message == "the model comes from torch.compile: compress the original, then compile the result"
    inside = torch.nn.Sequential(compiled, torch.nn.ReLU())
    assert "compress the model first, then compile" in refused("torch", lambda api: api.compress(inside, 0.1))


def test_a_digest_needs_values():
    jax, tensorflow = pytest.importorskip("jax"), pytest.importorskip("tensorflow")
    pytree, model = smh.compress(model_of("jax"), 0.5), smh.compress(model_of("keras"), 0.5)
    assert "call it outside of jax.jit" in refused("jax", lambda api: jax.jit(api.digest)(pytree))
    traced = tensorflow.function(lambda: smh.digest(model), autograph=False)
    assert "call it outside of tf.function" in refused("keras", lambda api: traced())


def test_a_checkpoint_has_a_short_representation(tmp_path):
    smh.save(tmp_path / "x", PLAN, VARIABLES, {"b": np.ones(3)})
    text = repr(smh.load(tmp_path / "x"))
    assert text.startswith(f"Checkpoint({PLAN!r}, 3 variables, 1 kept tensor, digest=")
    assert "array" not in text
