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
