"""Models of every framework with one face: tensors by name, and outputs for arrays of NumPy."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from flax import nnx

from smh.backends.jax import pytrees
from smh.backends.tensorflow import keras_tensors

RNG = np.random.default_rng(5)


def values(*shape):
    return RNG.normal(size=shape).astype(np.float32)


class Torch:
    """A module; images come as NHWC and sequences as NLC, and go out so."""

    def __init__(self, module, images=True):
        self.model, self.images = module.eval(), images

    def tensors(self):
        return {name: x.detach().numpy() for name, x in self.model.state_dict().items()}

    def put(self, tensors):
        self.model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()})

    def __call__(self, *inputs):
        with torch.no_grad():
            if self.images:
                inputs = [np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim > 2 else x for x in inputs]
            y = self.model(*(torch.from_numpy(x) for x in inputs))
            y = y[0] if isinstance(y, tuple) else y
            return np.moveaxis(y.numpy(), 1, -1) if self.images and y.ndim > 2 else y.numpy()


class Keras:
    """A layer, or several, as a sequential model."""

    def __init__(self, shape, *layers, model=None, dtype="float32"):
        self.model = model or keras.Sequential([keras.Input(shape, dtype=dtype), *layers])

    def tensors(self):
        names = keras_tensors.names_of(self.model)
        return {name: np.asarray(x) for name, x in zip(names, self.model.weights, strict=True)}

    def put(self, tensors):
        for name, x in zip(keras_tensors.names_of(self.model), self.model.weights, strict=True):
            x.assign(tensors[name])

    def __call__(self, *inputs):
        return np.asarray(self.model(inputs[0] if len(inputs) == 1 else list(inputs), training=False))


class Jax:
    """A module of NNX or Equinox, and how it is called."""

    def __init__(self, module, call=lambda module, x: module(x)):
        self.model, self.call = module, call

    def named(self):
        only = (nnx.Param, nnx.BatchStat)
        tree = nnx.state(self.model, only) if isinstance(self.model, nnx.Module) else self.model
        return pytrees.flatten(tree)

    def tensors(self):
        return {name: np.asarray(x) for name, x in self.named()[1].items() if hasattr(x, "shape")}

    def put(self, tensors):
        treedef, named = self.named()
        tree = jax.tree.unflatten(treedef, [jnp.asarray(tensors[n]) if n in tensors else x for n, x in named.items()])
        if isinstance(self.model, nnx.Module):
            nnx.update(self.model, tree)
        else:
            self.model = tree

    def __call__(self, *inputs):
        return np.asarray(self.call(self.model, *inputs))


def randomised(model):
    """Give a model tensors that are all different, variances positive; torch's counters stay counters."""
    new = {}
    for name, x in model.tensors().items():
        random = values(*x.shape)
        new[name] = x if x.dtype.kind in "iu" else np.abs(random) + np.float32(0.5) if "var" in name else random
    model.put(new)


def carry(source, target, mapping):
    """Put the tensors of one model into another one."""
    ported = mapping.apply(source.tensors())
    target.put({name: x for name, x in ported.items() if not name.startswith("carried/")})


def assert_same_outputs(source, target, inputs):
    expected, got = source(*inputs), target(*inputs)
    assert expected.shape == got.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
