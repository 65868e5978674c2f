"""``include`` and ``exclude`` by classes of layers, and by all names of tied tensors, in every framework."""

import re

import equinox
import jax
import jax.numpy as jnp
import keras
import pytest
import torch
from flax import nnx
from torch import nn

import smh


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(20, 30)
        self.out = nn.Linear(30, 20)


class Tied(nn.Module):
    """An embedding whose weight is that of the head, too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 20)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv1d(20, 10, 3)
        self.norm = nn.LayerNorm(20)
        self.attention = nn.MultiheadAttention(20, 2)
        self.head = nn.Linear(20, 40, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3))


class Nnx(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(40, 20, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(20, 30, rngs=nnx.Rngs(1))
        self.conv = nnx.Conv(20, 10, 3, rngs=nnx.Rngs(2))


class Eqx(equinox.Module):
    embed: equinox.nn.Embedding
    layers: list

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.embed = equinox.nn.Embedding(40, 20, key=keys[0])
        self.layers = [equinox.nn.Linear(20, 30, key=keys[1]), {"conv": equinox.nn.Conv1d(20, 10, 3, key=keys[2])}]


def keras_model():
    inputs = keras.Input((8, 20))
    inner = keras.Sequential([keras.Input((8, 20)), keras.layers.Dense(30, name="fc")], name="inner")
    outer = [inner(inputs), keras.layers.Conv1D(10, 3, name="conv")(inputs)]
    return keras.Model(inputs, outer)


BLOCKS = ["blocks.0.fc.weight", "blocks.0.out.weight", "blocks.1.fc.weight", "blocks.1.out.weight"]
PARTS = [f"attention.in_proj_weight.{part}" for part in ("query", "key", "value")] + ["attention.out_proj.weight"]


@pytest.mark.parametrize(
    ("make", "options", "names"),
    [
        (Tied, {}, ["embed.weight", *BLOCKS, "conv.weight", *PARTS]),
        (Tied, {"exclude": nn.Linear}, ["conv.weight", *PARTS[:3]]),  # the tied weight is of a Linear, too
        (Tied, {"exclude": [nn.modules.conv._ConvNd, "head"]}, [*BLOCKS, *PARTS]),
        (Tied, {"exclude": [Block, "embed", nn.MultiheadAttention]}, ["conv.weight"]),
        (Tied, {"exclude": ["mask", "*norm*", re.compile(".*weight.*(key|query|value)"), "blocks"]},
         ["embed.weight", "conv.weight", PARTS[3]]),
        (Tied, {"include": [Block, lambda name: name == "conv.weight"], "exclude": "fc"},
         ["blocks.0.out.weight", "blocks.1.out.weight", "conv.weight"]),
        (Nnx, {"exclude": nnx.Conv}, ["embed/embedding", "fc/kernel"]),
        (Nnx, {"exclude": [nnx.Linear, nnx.Embed]}, ["conv/kernel"]),
        (Eqx, {"exclude": equinox.nn.Conv}, ["embed/weight", "layers/0/weight"]),
        (Eqx, {"include": [equinox.nn.Linear]}, ["layers/0/weight"]),
        (keras_model, {"exclude": keras.layers.Conv1D}, ["inner/fc/kernel"]),
        (keras_model, {"include": [keras.Sequential]}, ["inner/fc/kernel"]),
    ],
)  # fmt: skip
def test_classes_select_what_their_layers_hold(make, options, names):
    compressed = smh.compress(make(), ratio=0.5, **options)
    found = [tensor.name for tensor in smh.plan_of(compressed).tensors]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Tied, {"exclude": nn.Conv2d}, r"exclude=<class '.*Conv2d'> matches no tensor: did you mean 'Conv1d'"),
        (Tied, {"include": nn.Linear(3, 3)}, "include takes names, globs, classes and functions of a name; got Linear"),
        (lambda: {"fc": {"kernel": jnp.ones((20, 30))}}, {"exclude": nnx.Linear}, "has the class Linear.* no layers"),
        (lambda: nnx.state(Nnx()), {"exclude": [nnx.Linear]}, "has the class Linear.* no layers"),
        (keras_model, {"exclude": keras.layers.LSTM}, "matches no tensor: .*'Conv1D'"),
    ],
)
def test_classes_that_match_nothing_are_refused(make, options, message):
    with pytest.raises(smh.PlanError, match=message):
        smh.compress(make(), ratio=0.5, **options)


def test_axes_of_the_user_are_those_by_names_and_globs():
    plan = smh.plan_of(smh.compress(Tied(), ratio=0.5, axes={"blocks.*": "i o", "blocks.1.fc.weight": "o i"}))
    axes = {tensor.name: tensor.axes for tensor in plan.tensors}
    assert [axes[name] for name in BLOCKS] == ["i o", "i o", "o i", "i o"]
    assert axes["embed.weight"] == "o i"
