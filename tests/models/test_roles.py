"""Roles of tensors by their names and sizes alone, as in files."""

import numpy as np
import pytest

from smh.models.compression import ModelTensor, plan_for
from smh.models.roles import complete, stacks, structure_of


def left(shapes, kept=()):
    """Return the names of what is kept of tensors."""
    tensors = [ModelTensor(name, shape, 4, kept="int8" if name in kept else "") for name, shape in shapes.items()]
    return {tensor.name for tensor in complete(tensors) if tensor.why_kept}


@pytest.mark.parametrize(
    "name",
    [
        "norm.gamma",
        "norm/scale",
        "fc.weight_scale",
        "fc.scales",
        "attn.relative_position_bias_table",
        "attn/cached_key",
        "bn/running_var",
        "block.layer_scale_1",
        "experts.gate_up_proj_bias",
        "mixer.A_log",
        "fc.weight_scale_inv",
        "fc.lora_A.default.weight",
        "attn.bias_k",
        "act/alpha",
        "parts.parametrizations.weight.original1",
    ],
)
def test_names_of_what_is_no_matrix(name):
    assert left({name: (4, 5), "fc/kernel": (4, 5)}) == {name}


@pytest.mark.parametrize("name", ["embed_tokens.weight", "fc.weight", "w", "b", "fc/kernel", "experts.w1", "pos_embed"])
def test_names_of_matrices(name):
    assert left({name: (4, 5)}) == set()


def test_tensors_that_need_another_one():
    assert left({"conv.weight_g": (4, 1, 1), "conv.weight_v": (4, 5, 3)}) == {"conv.weight_g", "conv.weight_v"}
    assert left({"fc.qweight": (4, 5), "fc.outliers": (4, 5), "out.w": (4, 5)}, ["fc.qweight"]) == {
        "fc.qweight",
        "fc.outliers",
    }
    assert left({"norm.weight": (8, 4), "norm.bias": (8, 4)}) == {"norm.weight", "norm.bias"}
    assert left({"linear/w": (4, 5), "linear/b": (3, 5)}) == {"linear/b"}


def test_sizes_of_one():
    assert left({"cls": (1, 1, 8), "types.weight": (1, 8), "table": (1, 9, 8), "out/kernel": (8, 1)}) == {
        "cls",
        "types.weight",
    }


@pytest.mark.parametrize(
    ("shapes", "depth"),
    [
        ({"kernel": (4, 8, 6), "bias": (4, 6)}, 1),
        ({"kernel": (8, 2, 6), "bias": (2, 6)}, 0),  # heads
        ({"weight": (8, 4, 3, 3), "bias": (8, 1, 1)}, 0),  # a convolution of Equinox
        ({"kernel": (3, 4, 8, 6), "bias": (3, 4, 6)}, 2),
        ({"attn/kernel": (4, 8, 6), "norm/scale": (4, 8)}, 1),
        ({"attn/kernel": (4, 8, 6), "norm/scale": (8,)}, 0),
        ({"a": (8, 4), "b": (8, 4)}, 0),
        ({"B": (8, 4), "A_log": (8, 4)}, 0),  # a state space
        ({"experts/w1": (4, 8, 6)}, 1),
        ({"experts/0/conv": (4, 8, 6)}, 0),
    ],
)
def test_stacks_by_names(shapes, depth):
    assert stacks(shapes)[next(iter(shapes))] == depth


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (6, 1)])
@pytest.mark.parametrize("stack", [(), (4,), (3, 4)])
def test_what_one_layer_keeps_a_stack_of_it_keeps(stack, shape):
    layer = {"w": (8, 6), "bias": (6,), "table": (5, 6), "temp": shape}
    assert left({f"l/{name}": (*stack, *inner) for name, inner in layer.items()}) == {"l/bias", "l/temp"}


@pytest.mark.parametrize("layers", [1, 4, 24])
def test_the_deviation_of_a_stack_is_that_of_one_layer(layers):
    named = [ModelTensor("fc/kernel", (layers, 64, 64), 4), ModelTensor("fc/bias", (layers, 64), 4)]
    if layers == 1:
        named = [ModelTensor("fc/kernel", (64, 64), 4), ModelTensor("fc/bias", (64,), 4)]
    plan = plan_for(complete(named), ratio=0.1)
    assert plan.tensors[0].initial_scale == np.float32(1 / np.sqrt(3 * 64))


def test_axes_of_the_caller_win():
    plan = plan_for(complete([ModelTensor("w", (4, 64, 64), 4)]), ratio=0.1, axes={"w": "s i o"})
    assert plan.tensors[0].initial_scale == np.float32(1 / np.sqrt(3 * 64))


def test_structured_values():
    assert structure_of(np.random.default_rng(0).random((5, 5))) == ""
    assert structure_of(np.eye(5)) == "80% of its values were 0"
    assert structure_of(np.ones((1, 1))) == ""
