"""What other libraries save of compressed parameters: it names the plan, and is refused by parameters with another."""

import dataclasses
import pickle

import numpy as np
import pytest

import smh

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402


def params():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((12, 20)), jnp.float32)
    return {"fc": {"kernel": x, "bias": jnp.zeros(20)}, "steps": np.ones(2, np.int64)}


def moved(compressed):
    return jax.tree.map(lambda x: x + x, compressed)


@pytest.fixture(name="trained")
def fixture_trained():
    return moved(smh_jax.compress(params(), ratio=0.5))


def same_arrays(found, expected):
    assert found.plan == expected.plan
    assert smh_jax.digest(found) == smh_jax.digest(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_pickles_bring_their_plan(trained):
    other = smh_jax.compress(params(), ratio=0.5, seed=1)
    found = pickle.loads(pickle.dumps(trained))
    same_arrays(found, trained)
    assert jax.tree.structure(found) == jax.tree.structure(trained) != jax.tree.structure(other)
    with pytest.raises(ValueError, match="pytree"):  # such as the step of an optimizer
        jax.tree.map(lambda x, y: x + y, other, found)


@pytest.fixture(name="flax")
def fixture_flax():
    return pytest.importorskip("flax.serialization", reason="Flax is not installed")


def test_flax_serialization_names_the_plan(flax, trained):
    data = flax.to_bytes(trained)
    fresh = smh_jax.compress(params(), ratio=0.5, residency="layer")
    found = flax.from_bytes(fresh, data)
    same_arrays(found, trained)
    assert found.residency == "layer"
    assert all(isinstance(x, jax.Array) for x in found.variables.values())
    assert isinstance(found.kept["steps"], np.ndarray)
    jax.grad(lambda v: smh_jax.materialize(found.plan, v)["fc/kernel"].sum())(found.variables)
    other = smh_jax.compress(params(), ratio=0.5, seed=1)
    with pytest.raises(smh.CheckpointError, match=f"another plan: its fingerprint is {trained.plan.fingerprint}"):
        flax.from_bytes(other, data)


def test_flax_serialization_of_the_state_of_an_optimizer_names_the_plan(flax, trained):
    optax = pytest.importorskip("optax", reason="Optax is not installed")
    own, other = smh_jax.compress(params(), ratio=0.5), smh_jax.compress(params(), ratio=0.5, bits=7)
    optimizer = optax.adam(0.01)
    data = flax.to_bytes({"params": trained.variables, "optimizer": optimizer.init(own)})
    restored = flax.from_bytes({"params": trained.variables, "optimizer": optimizer.init(own)}, data)
    assert jax.tree.structure(restored["optimizer"]) == jax.tree.structure(optimizer.init(own))
    with pytest.raises(smh.CheckpointError, match="with another plan"):
        flax.from_bytes({"params": other.variables, "optimizer": optimizer.init(other)}, data)


def test_flax_states_that_do_not_fit_are_refused(flax, trained):
    state = flax.to_state_dict(trained)
    cases = {
        r"not that of compressed parameters.*; got \['kept', 'variables'\]": {
            name: x for name, x in state.items() if name != "plan_fingerprint"
        },
        "not that of compressed parameters.*; got list": [1],
        r"the kept arrays of the parameters are .*; got \[\]": {**state, "kept": {}},
        r"'fc/bias' has the shape \(2,\) in the state, \(20,\) here": {
            **state,
            "kept": {**state["kept"], "fc/bias": np.ones(2, np.float32)},
        },
    }
    for message, broken in cases.items():
        with pytest.raises(smh.CheckpointError, match=message):
            flax.from_state_dict(trained, broken)


def test_orbax_refuses_the_state_of_another_plan(tmp_path, trained):
    orbax = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")
    with orbax.StandardCheckpointer() as saver:
        saver.save(tmp_path / "model", trained)
        saver.wait_until_finished()
        same_arrays(saver.restore(tmp_path / "model", smh_jax.compress(params(), ratio=0.5)), trained)
        found = saver.restore(tmp_path / "model")
        name = f"variables_{trained.plan.fingerprint[:16]}"
        assert set(found) == {name, "kept"}
        with pytest.raises(ValueError, match=name):
            saver.restore(tmp_path / "model", smh_jax.compress(params(), ratio=0.5, seed=1))


def test_files_for_training_hold_values_between_the_integers(tmp_path, trained):
    variables = jax.tree.map(lambda x: x * 1.01, trained.variables)
    plan = trained.plan
    for training in (False, True):
        path = tmp_path / f"model-{training}"
        digest = smh_jax.save(path, plan, variables, training=training)
        found = smh_jax.load(path)
        assert found.digest == digest == smh_jax.digest(plan, found.variables)
        kept = [np.array_equal(np.asarray(found.variables[name]), np.asarray(x)) for name, x in variables.items()]
        assert all(kept) is training
    compressed = dataclasses.replace(trained, variables=variables)
    smh_jax.save(tmp_path / "model", compressed, training=True)
    same_arrays(smh_jax.load(tmp_path / "model", smh_jax.compress(params(), ratio=0.5)), compressed)
