"""Many sets of variables of one plan, held in memory and put into one model by one call each."""

import dataclasses

import numpy as np
import pytest

import smh


def torch_model():
    nn = pytest.importorskip("torch").nn
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 10))


def keras_model():
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(30, name="a"), keras.layers.BatchNormalization(name="norm")]
    return keras.Sequential([keras.Input((20,)), *layers, keras.layers.Dense(10, name="b")])


def jax_model():
    jnp = pytest.importorskip("jax").numpy
    return {"a": {"w": jnp.ones((20, 30)), "b": jnp.zeros(30)}, "b": {"w": jnp.ones((30, 10))}}


MODELS = {"torch": torch_model, "keras": keras_model, "jax": jax_model}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """A compressed model, and the paths of two others of its plan with other variables and kept tensors."""
    make = MODELS[request.param]
    model = smh.compress(make(), ratio=0.3)
    paths = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.safetensors"
        smh.save(path, smh.compress(make(), plan=smh.plan_of(model), init_seed=seed))
        found = smh.load(path)
        kept = {name: x + np.asarray(seed, x.dtype) for name, x in found.dense.items()}
        smh.save(path, found.plan, found.variables, kept)
        paths.append(path)
    return model, paths


def test_a_checkpoint_in_memory_loads_as_its_file_does(saved, tmp_path):
    model, paths = saved
    held = [smh.load(path) for path in paths]
    for k in (0, 1, 0):
        model = smh.load(held[k], model)
        assert smh.digest(model) == held[k].digest
        smh.save(tmp_path / "again.safetensors", model)
        assert (tmp_path / "again.safetensors").read_bytes() == paths[k].read_bytes()
    assert held[0].digest != held[1].digest


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_checkpoint_has_arrays_of_any_backend_of_the_model(name, tmp_path):
    model = smh.compress(MODELS[name](), ratio=0.3)
    smh.save(tmp_path / "x.safetensors", model)
    held = getattr(smh, name).load(tmp_path / "x.safetensors")
    assert smh.digest(smh.load(held, MODELS[name]())) == held.digest


def test_training_does_not_change_what_is_held(tmp_path):
    torch = pytest.importorskip("torch")
    model = smh.compress(torch_model(), ratio=0.3)
    smh.save(tmp_path / "x.safetensors", model)
    held, again = (smh.load(tmp_path / "x.safetensors") for _ in range(2))
    for target in (torch_model(), model):
        with torch.no_grad():
            for x in [*smh.load(held, target).parameters(), *target.buffers()]:
                x.add_(1)
    for name, x in {**again.variables, **again.dense}.items():
        assert np.array_equal({**held.variables, **held.dense}[name], x), name


def test_a_checkpoint_that_does_not_fit_changes_nothing(saved):
    model, paths = saved
    held = smh.load(paths[0])
    before = smh.digest(model)
    name = "pool/left"
    wrong = {
        "missing": {k: x for k, x in held.variables.items() if k != name},
        "shape": {**held.variables, name: held.variables[name][1:]},
        "finite": {**held.variables, name: held.variables[name] * np.float32(np.nan)},
    }
    for variables in wrong.values():
        with pytest.raises(smh.VariableError, match=name):
            smh.load(dataclasses.replace(held, variables=variables), model)
    with pytest.raises(smh.CheckpointError, match="does not fit the model"):
        smh.load(dataclasses.replace(held, dense={}), model)
    with pytest.raises(smh.CheckpointError, match="another plan"):
        smh.load(dataclasses.replace(held, plan=dataclasses.replace(held.plan, seed=9)), model)
    assert smh.digest(model) == before


def test_a_checkpoint_needs_a_model():
    plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    with pytest.raises(smh.PlanError, match="needs a model"):
        smh.load(smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64))


def test_swapped_arguments_are_told_as_such(saved):
    model, (path, _) = saved
    for given in (path, smh.load(path)):
        with pytest.raises(smh.PlanError, match="wrong order|the path comes first"):
            smh.load(model, given)


def test_other_variables_do_not_compile_a_function_of_jax_again():
    jax = pytest.importorskip("jax")
    model = smh.compress(jax_model(), ratio=0.3)
    traced = []

    @jax.jit
    def product(compressed):
        traced.append(1)
        return smh.materialize(compressed)["a"]["w"].sum()

    sums = {float(product(smh.compress(jax_model(), plan=smh.plan_of(model), init_seed=seed))) for seed in range(3)}
    assert (len(sums), len(traced)) == (3, 1)
