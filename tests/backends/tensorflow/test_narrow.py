"""TensorFlow without float64: no graph has one, and no bit changes."""

import numpy as np
import pytest

from conformance.bits import assert_same_bits
from conformance.cases import Case, cotangents_for, golden_plans, variables_for
from conformance.own_laws import mixed
from smh.backends.float64 import without_float64
from smh.core import pools
from smh.core.plan import Plan

tf = pytest.importorskip("tensorflow")

from smh.backends import tensorflow as smh_tf  # noqa: E402
from smh.backends.tensorflow import backend, narrow  # noqa: E402


def tensors(arrays):
    return {name: backend.asarray(x, "CPU:0") for name, x in arrays.items()}


def first(case, variables):
    with tf.GradientTape() as tape:
        tape.watch(variables)
        weights = smh_tf.materialize(case.plan, variables)
    cotangents = {name: tf.constant(g) for name, g in case.cotangents.items()}
    zeros = {name: tf.zeros_like(w) for name, w in weights.items()}
    return tape.gradient(weights, variables, zeros | cotangents)


def second(case, variables):
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss = sum(tf.reduce_sum(x**2) for x in first(case, variables).values())
    return tape.gradient(loss, variables)


def types(call, case):
    """Return the types of all values in the graph of a call, and in the functions that it calls."""
    traced = tf.function(call, autograph=False).get_concrete_function(case, tensors(case.variables))
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    found = {x.dtype for op in traced.graph.get_operations() for x in op.outputs}
    return found | {tf.as_dtype(value.type) for node in nodes for value in node.attr.values() if value.type}


@pytest.mark.parametrize(
    "call", [lambda case, x: smh_tf.materialize(case.plan, x), first, second], ids=["weights", "first", "second"]
)
def test_no_graph_has_float64(call):
    with without_float64():
        found = types(call, mixed())
    assert tf.float32 in found
    assert tf.float64 not in found


def test_the_check_above_can_fail():
    assert tf.float64 in types(first, mixed())


def assert_bits(run, case):
    with without_float64():
        results = run(tensors(case.variables), tensors(case.cotangents))
    for found, expected in zip(results, (case.weights, case.gradients), strict=True):
        for name, x in expected.items():
            assert_same_bits(found[name].numpy(), np.asarray(x), f"{case.name}: {name}")


def results_of(plan):
    return lambda variables, cotangents: (
        backend.materialize(plan, variables),
        backend.vjp(plan, variables, cotangents),
    )


def test_golden_plans_have_their_bits():
    for case in golden_plans(6):
        assert_bits(results_of(case.plan), case)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("pool", [pools.Matmul(n=6, m=600, bits=12), pools.Hash(size=9, capacity=20)], ids=repr)
def test_graphs_have_the_same_bits(pool, xla):
    layout = "cyclic" if pool.kind == "hash" else "basic"
    plan = Plan.build({"a": (3, 4), "b": (5, 3)}, ratio=10**9, pool=pool, layout=layout, include=lambda name: True)
    run = tf.function(results_of(plan), autograph=False, jit_compile=xla)
    for seed, kind in enumerate(("normal", "wide", "special", "ties")):
        assert_bits(run, Case(kind, plan, variables_for(plan, seed, kind), cotangents_for(plan, seed, kind), seed))


def test_tpus_have_no_float64(monkeypatch):
    assert narrow.kernels() is narrow.KERNELS
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind] if kind == "TPU" else [])
    assert narrow.kernels() is narrow.NARROW
    assert narrow.kernels(smooth=True).smooth
