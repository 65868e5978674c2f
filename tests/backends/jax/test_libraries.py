"""Compressed parameters in the hands of other libraries: they work, or an error says what to do."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402


def params():
    x = np.random.default_rng(0).standard_normal((12, 20), dtype=np.float32)
    return {"params": {"kernel": jnp.asarray(x), "bias": jnp.zeros(20)}}


@pytest.fixture(name="compressed")
def fixture_compressed():
    return smh_jax.compress(params(), ratio=0.5, optimizer="adam")


def apply(tree, x):
    return jnp.tanh(x @ tree["params"]["kernel"] + tree["params"]["bias"])


def loss(compressed):
    return (apply(smh_jax.materialize(compressed), jnp.ones((2, 12))) ** 2).mean()


def same_leaves(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(name="optax")
def fixture_optax():
    return pytest.importorskip("optax", reason="Optax is not installed")


def test_train_states_of_flax_train_the_pool(compressed, optax):
    train_state = pytest.importorskip("flax.training.train_state", reason="Flax is not installed")
    tx = optax.sgd(0.5)  # by a power of two, which no compiler rounds in another way
    state = train_state.TrainState.create(apply_fn=apply, params=compressed, tx=tx)
    gradients = jax.grad(loss)(compressed)
    after = jax.jit(lambda state, gradients: state.apply_gradients(grads=gradients))(state, gradients)
    same_leaves(after.params, jax.tree.map(lambda x, g: x - 0.5 * g, compressed, gradients))
    assert (after.params.variables["pool/left"] != compressed.variables["pool/left"]).any()


def test_what_takes_the_parameters_of_a_model_is_told_to_materialize_them(compressed):
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    advice = r"compressed parameters have no .*: smh.materialize\(params\) returns the parameters of the model"
    for use in (
        lambda: linen.Dense(20).apply(compressed, jnp.ones((2, 12))),
        lambda: compressed["params"],
        lambda: compressed.layers,
        lambda: dict(compressed),
        lambda: list(compressed),
    ):
        with pytest.raises(smh.PlanError, match=advice):
            use()
    assert not hasattr(compressed, "items")
    assert "params" not in compressed


def hosted(compressed):
    return {
        "device_get": jax.device_get(compressed),
        "asarray": jax.tree.map(np.asarray, compressed),
        "scalars": jax.tree.map(lambda x: np.asarray(x) * np.float32(1), compressed),
    }


@pytest.mark.parametrize("kind", ["device_get", "asarray", "scalars"])
@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_parameters_on_the_host_have_the_same_weights(tmp_path, compressed, kind, residency):
    host = hosted(compressed.with_residency(residency))[kind]
    expected = smh_jax.materialize(compressed)
    found = smh_jax.materialize(host)
    assert_same_bits(np.asarray(found["params"]["kernel"]), np.asarray(expected["params"]["kernel"]))
    for name, x in host.variables.items():  # what is on the host can change
        host.variables[name] = x * np.float32(2)
    doubled = jax.tree.map(lambda x: x * 2, compressed)
    assert smh_jax.digest(host) == smh_jax.digest(doubled)
    found, expected = smh_jax.materialize(host), smh_jax.materialize(doubled)
    assert_same_bits(np.asarray(found["params"]["kernel"]), np.asarray(expected["params"]["kernel"]))
    smh_jax.save(tmp_path / "model", host)
    assert smh_jax.digest(smh_jax.load(tmp_path / "model", host)) == smh_jax.digest(doubled)


def test_variables_on_the_host_that_hide_something_are_refused(compressed):
    for change in (lambda x: np.ma.array(x, mask=True), lambda x: x.astype(np.float64), lambda x: x.tolist()):
        host = jax.device_get(compressed)
        host.variables["pool/left"] = change(host.variables["pool/left"])
        with pytest.raises(smh.VariableError, match="'pool/left' must be"):
            smh_jax.materialize(host)


def test_exported_programs_take_compressed_parameters(compressed):
    from jax import export

    step = jax.jit(lambda c, x: (jax.tree.map(lambda v: v + v, c), apply(smh_jax.materialize(c), x)))
    x = jnp.ones((2, 12))
    program = export.deserialize(export.export(step)(compressed, x).serialize())
    after, y = program.call(compressed, x)
    expected, expected_y = step(compressed, x)
    assert_same_bits(np.asarray(y), np.asarray(expected_y))
    same_leaves(jax.tree.map(lambda _, x: x, compressed, after), expected)
    again, _ = program.call(after, x)  # its own outputs go in again
    same_leaves(jax.tree.map(lambda _, x: x, compressed, again), jax.tree.map(lambda x: 4 * x, compressed))
    with pytest.raises(smh.PlanError, match="put these into your own parameters"):
        smh_jax.materialize(after)
    with pytest.raises(ValueError, match="same pytree structure"):
        program.call(smh_jax.compress(params(), ratio=0.5, seed=1), x)


IN_ANOTHER_PROCESS = """
    import pathlib, sys
    import numpy as np
    import jax.numpy as jnp
    from jax import export
    from smh import jax as smh

    folder = pathlib.Path(sys.argv[1])
    params = {"params": {"kernel": jnp.ones((12, 20)), "bias": jnp.ones(20)}}
    compressed = smh.load(folder / "model", params)
    program = export.deserialize(bytearray((folder / "program").read_bytes()))
    np.save(folder / "y.npy", np.asarray(program.call(compressed, jnp.ones((2, 12)))))
"""


def test_exported_programs_run_in_another_process(tmp_path, compressed):
    from jax import export

    program = jax.jit(lambda c, x: apply(smh_jax.materialize(c), x))
    smh_jax.save(tmp_path / "model", compressed)
    (tmp_path / "program").write_bytes(export.export(program)(compressed, jnp.ones((2, 12))).serialize())
    code = textwrap.dedent(IN_ANOTHER_PROCESS)
    subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    loaded = smh_jax.load(tmp_path / "model", compressed)
    assert_same_bits(np.load(tmp_path / "y.npy"), np.asarray(program(loaded, jnp.ones((2, 12)))))


def test_parameters_with_several_plans_say_in_what_they_differ(compressed):
    others = {"seed": {"seed": 1}, "layout": {"layout": "cyclic"}, "pool": {"bits": 6}}
    for word, options in others.items():
        other = smh_jax.compress(params(), ratio=0.5, **({"optimizer": "adam"} | options))
        with pytest.raises(ValueError, match=rf"(?s)- {word} .*\+ {word} ") as caught:
            jax.tree.map(lambda x, y: x + y, compressed, other)
        assert len(str(caught.value)) < 2000
    with pytest.raises(ValueError, match=r"(?s)- residency 'full'.*\+ residency 'layer'"):
        jax.tree.map(lambda x, y: x + y, compressed, compressed.with_residency("layer"))
    one, two = (smh_jax.compress(params() | {"steps": steps}, ratio=0.5) for steps in (1, 2))
    with pytest.raises(ValueError, match=r"(?s)- constants {'steps': 1}.*\+ constants {'steps': 2}"):
        jax.tree.map(lambda x, y: x + y, one, two)


@pytest.fixture(name="nnx")
def fixture_nnx():
    return pytest.importorskip("flax.nnx", reason="Flax is not installed")


def net(nnx):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(12, 20, rngs=rngs)
            self.norm = nnx.BatchNorm(20, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(20, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(self.norm(self.hidden(x))))

    return Net(nnx.Rngs(0))


def batch():
    return jnp.asarray(np.random.default_rng(1).standard_normal((8, 12)), jnp.float32)


def test_an_optimizer_of_nnx_that_would_train_nothing_is_refused(nnx, optax):
    model = net(nnx)
    for whole in (model, nnx.state(model), nnx.state(model, nnx.Param), params()):
        compressed = smh_jax.compress(whole, ratio=0.5)
        with pytest.raises(smh.PlanError, match="nnx.Optimizer would train nothing: call the functions of Optax"):
            nnx.Optimizer(compressed, optax.sgd(0.1), wrt=nnx.Param)
        assert nnx.jit(lambda c: c)(compressed).plan == compressed.plan


def test_an_optimizer_of_nnx_without_graphs_is_refused_at_its_first_update(nnx, optax):
    compressed = smh_jax.compress(nnx.state(net(nnx), nnx.Param), ratio=0.5)
    gradients = jax.tree.map(jnp.ones_like, compressed)
    optimizer = nnx.Optimizer(compressed, optax.sgd(0.1), wrt=nnx.Param, graph=False)
    with pytest.raises(smh.PlanError, match="nnx.Optimizer would train nothing: call the functions of Optax"):
        optimizer.update(compressed, gradients)
    with nnx.set_graph_mode(False), pytest.raises(smh.PlanError, match="nnx.Optimizer would train nothing"):
        nnx.Optimizer(compressed, optax.sgd(0.1), wrt=nnx.Param).update(compressed, gradients)


def trained_by_optax(nnx, optax, x, steps):
    """The functional way: parameters and the rest go through a step."""
    graph, values, rest = nnx.split(net(nnx), nnx.Param, ...)
    values, tx = smh_jax.compress(values, ratio=0.5, optimizer="adam"), optax.adam(0.01)

    @jax.jit
    def step(values, state, rest):
        def loss(values):
            model = nnx.merge(graph, smh_jax.materialize(values), rest, copy=True)
            return (model(x) ** 2).mean(), nnx.state(model, nnx.Not(nnx.Param))

        (_, rest), gradients = jax.value_and_grad(loss, has_aux=True)(values)
        updates, state = tx.update(gradients, state, values)
        return optax.apply_updates(values, updates), state, rest

    state = tx.init(values)
    for _ in range(steps):
        values, state, rest = step(values, state, rest)
    return values, rest


def trained_as_a_module(nnx, optax, x, steps):
    """The way of NNX: a module holds the variables, and stays one."""

    class Compressed(nnx.Module):
        def __init__(self, model):
            self.graph, values, rest = nnx.split(model, nnx.Param, ...)
            values = smh_jax.compress(values, ratio=0.5, optimizer="adam")
            self.values, self.rest = nnx.data(jax.tree.map(nnx.Param, values)), nnx.data(rest)

        def __call__(self, x):
            return nnx.merge(self.graph, smh_jax.materialize(nnx.as_pure(self.values)), self.rest)(x)

    model = Compressed(net(nnx))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        _, gradients = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, gradients)

    for _ in range(steps):
        step(model, optimizer, x)
    return nnx.as_pure(model.values), model.rest


def test_modules_with_statistics_and_dropout_train_in_both_ways(nnx, optax):
    before, rest_before = trained_by_optax(nnx, optax, batch(), 0)
    for train in (trained_by_optax, trained_as_a_module):
        values, rest = train(nnx, optax, batch(), 2)
        assert all((values.variables[name] != x).any() for name, x in before.variables.items())
        for kind in (nnx.BatchStat, nnx.RngCount):
            moved = jax.tree.leaves(nnx.filter_state(rest, kind))
            kept = jax.tree.leaves(nnx.filter_state(rest_before, kind))
            assert moved
            assert all((x != y).any() for x, y in zip(moved, kept, strict=True))
        assert values.plan == before.plan
        smh_jax.materialize(values)
