"""One plan and one set of variables in the models of three frameworks: the same weights, and the same training."""

import dataclasses

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from smh import pools
from smh.core.views import View

torch = pytest.importorskip("torch", reason="models of torch need torch")
jax = pytest.importorskip("jax", reason="models of JAX need JAX")
tf = pytest.importorskip("tensorflow", reason="models of Keras need TensorFlow")

import keras  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends import tensorflow as smh_tf  # noqa: E402
from smh.backends import torch as smh_torch  # noqa: E402

INPUTS, OUTPUTS = 6, {"first": 5, "second": 4}
# Small integers: cotangents of weights are then exact sums, whoever adds them.
X = (np.arange(3 * INPUTS).reshape(3, INPUTS) % 5).astype(np.float32)
Y = {name: (np.arange(3 * n).reshape(3, n) % 7 - 3).astype(np.float32) for name, n in OUTPUTS.items()}
POOLS = {
    "matmul": pools.Matmul(),
    "kronecker": pools.Kronecker(),
    "hash": pools.Hash(hashes=2),
    "sum": pools.Sum(pools.Matmul(), pools.Hash(hashes=1)),
}


def renamed(plan, names, view=None):
    """Return a plan of the same weights for a model that has other names, and another order of axes."""
    tensors = (
        dataclasses.replace(tensor, name=names[tensor.name], view=View.make(view) if view else None)
        for tensor in plan.tensors
    )
    return dataclasses.replace(plan, tensors=tuple(tensors))


class Torch:
    """A torch module of two linear layers, whose weights are `o i`."""

    def __init__(self, plan, variables, residency):
        self.plan = plan
        layers = {name: torch.nn.Linear(INPUTS, n, bias=False) for name, n in OUTPUTS.items()}
        own = renamed(plan, {name: f"{name}.weight" for name in OUTPUTS}, "i o -> o i")
        self.model = smh_torch.compress(torch.nn.ModuleDict(layers), plan=own, residency=residency)
        self.model.forward = lambda x: {name: layer(x) for name, layer in self.model.items()}
        named = dict(self.model.named_parameters())
        self.parameters = [named[f"pool_{name}".replace("/", "_")] for name in plan.pool.variable_shapes()]
        self.parameters += [named[f"{name}.weight_scale"] for name in OUTPUTS]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, variables, strict=True):
                parameter.copy_(torch.from_numpy(value))

    def weights(self):
        return {name: layer.weight.detach().numpy().T for name, layer in self.model.items()}

    def digest(self):
        return smh_torch.digest(self.model)

    def gradients(self):
        self.model.zero_grad()
        outputs = self.model(torch.from_numpy(X))
        sum((outputs[name] * torch.from_numpy(y)).sum() for name, y in Y.items()).backward()
        shapes = self.plan.variable_shapes.values()  # scales have one axis in PyTorch
        return [x.grad.numpy().reshape(shape) for x, shape in zip(self.parameters, shapes, strict=True)]


class Jax:
    """A dictionary of two kernels."""

    def __init__(self, plan, variables, residency):
        params = {name: jax.numpy.zeros((INPUTS, n)) for name, n in OUTPUTS.items()}
        compressed = smh_jax.compress(params, plan=plan, residency=residency)
        values = {name: jax.numpy.asarray(x) for name, x in zip(plan.variable_shapes, variables, strict=True)}
        self.compressed = dataclasses.replace(compressed, variables=values)

    def weights(self):
        return {name: np.asarray(w) for name, w in smh_jax.materialize(self.compressed).items()}

    def digest(self):
        return smh_jax.digest(self.compressed)

    @staticmethod
    @jax.jit
    @jax.grad
    def gradient(compressed):
        params = smh_jax.materialize(compressed)
        return sum(((X @ params[name]) * y).sum() for name, y in Y.items())

    def gradients(self):
        return [np.asarray(g) for g in self.gradient(self.compressed).variables.values()]


class Keras:
    """A functional model of two dense layers."""

    def __init__(self, plan, variables, residency):
        x = keras.Input((INPUTS,))
        outputs = {name: keras.layers.Dense(n, use_bias=False, name=name)(x) for name, n in OUTPUTS.items()}
        own = renamed(plan, {name: f"{name}/kernel" for name in OUTPUTS})
        self.model = smh_tf.compress(keras.Model(x, outputs), plan=own, residency=residency)
        for variable, value in zip(self.variables(), variables, strict=True):
            variable.assign(value)

    def variables(self):
        return list(self.model.smh_source.variables.values())

    def weights(self):
        dense = smh_tf.materialize(self.model)
        return {name: dense.get_layer(name).kernel.numpy() for name in OUTPUTS}

    def digest(self):
        return smh_tf.digest(self.model)

    def gradients(self):
        with tf.GradientTape() as tape:
            outputs = self.model(tf.constant(X))
            loss = tf.add_n([tf.reduce_sum(outputs[name] * y) for name, y in Y.items()])
        return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, self.variables())]


@pytest.mark.parametrize(
    ("pool", "residency"),
    [("matmul", "full"), ("matmul", "cached"), ("matmul", "layer")]
    + [("kronecker", "full"), ("hash", "cached"), ("sum", "layer")],
)
def test_weights_and_two_steps(pool, residency):
    plan = smh.Plan.build({name: (INPUTS, n) for name, n in OUTPUTS.items()}, ratio=0.7, pool=POOLS[pool])
    variables = list(smh.initialize(plan).values())
    for _ in range(2):
        named = dict(zip(plan.variable_shapes, variables, strict=True))
        weights, digest = smh.materialize(plan, named), smh.digest(plan, named)
        gradients = smh.vjp(plan, named, {name: X.T @ y for name, y in Y.items()})
        assert all(g.any() for g in gradients.values())
        for framework in (Torch, Jax, Keras):
            model = framework(plan, variables, residency)
            assert model.digest() == digest
            for name, w in model.weights().items():
                assert_same_bits(w, weights[name], f"{framework.__name__} {name}")
            for (name, g), found in zip(gradients.items(), model.gradients(), strict=True):
                assert_same_bits(found, g, f"{framework.__name__} gradient of {name}")
        variables = [np.asarray(x - np.float32(0.01) * g) for x, g in zip(variables, gradients.values(), strict=True)]
