"""Threads and processes that share plans, models and files: the bits are those of one thread alone."""

import importlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import smh
from conformance.bits import raw_bits
from conformance.cases import cotangents_for, variables_for
from smh.pools import Hash, Kronecker, Matmul, Product, Sum
from trust import orders

THREADS = 4
ROOT = Path(__file__).parent.parent
SHAPES = {"a": (40, 30), "b": (3, 3, 20, 10), "c": (30, 7)}
POOLS = {
    "matmul": {"pool": "matmul", "views": {"b": "h w i o -> o i h w"}},
    "cyclic": {"pool": Matmul(n=40), "layout": "cyclic", "modifiers": {"a": ["relu"], "b": [], "c": ["sign"]}},
    "kronecker": {"pool": Kronecker(), "learn_scale": False},
    "hash": {"pool": Hash(hashes=3), "layout": "basic"},
    "sum": {"pool": Sum(Matmul(), Product(Hash(), "kronecker"))},
}
# The names of frameworks in the order in which one process can load them.
BACKENDS = ["numpy", "torch", "jax", "tensorflow"]


@pytest.fixture(autouse=True)
def _often():
    """Let threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*work):
    """Call functions in threads that start together, and return their results in order."""
    barrier = threading.Barrier(len(work))

    def start(call):
        barrier.wait(timeout=60)
        return call()

    with ThreadPoolExecutor(len(work)) as threads:
        return [future.result() for future in [threads.submit(start, call) for call in work]]


def bits(arrays):
    return {name: raw_bits(np.asarray(x)).tobytes() for name, x in arrays.items()}


def fresh(name):
    """Return a plan that nobody has used yet, so that whatever is computed once is computed now."""
    return smh.Plan.from_json(smh.Plan.build(SHAPES, ratio=0.4, seed=3, **POOLS[name]).to_json())


def worked(module, plan, seed, path):
    """Return the bits of all that the public functions make of one plan and seeded arrays."""
    host = {"backend": module.backend} if hasattr(module, "backend") else {"backend": smh.get_backend("numpy")}
    backend = host["backend"]
    variables = {name: backend.asarray(x, None) for name, x in variables_for(plan, seed, "normal").items()}
    cotangents = {name: backend.asarray(x, None) for name, x in cotangents_for(plan, seed, "wide").items()}
    weights = module.materialize(plan, variables)
    gradients = module.vjp(plan, variables, cotangents)
    digest = module.save(path, plan, variables, {"kept": backend.asarray(np.full(9, seed, np.float32), None)})
    assert module.digest(plan, variables) == digest
    found = module.load(path)
    return [
        bits({name: backend.to_numpy(x) for name, x in arrays.items()})
        for arrays in (weights, gradients, found.variables, found.dense)
    ] + [digest, found.digest, Path(path).read_bytes()]


@pytest.mark.parametrize("name", BACKENDS)
def test_threads_get_the_bits_of_one_thread(name, tmp_path):
    """All of them work with the same plans, from first use on; each with variables of its own."""
    pytest.importorskip(name)
    module = importlib.import_module(f"smh.backends.{name}")
    pools = list(POOLS) if name in ("numpy", "torch") else ["cyclic"]  # the others compile for seconds
    alone = {(pool, k): worked(module, fresh(pool), k, tmp_path / "alone") for pool in pools for k in range(THREADS)}
    plans = {pool: fresh(pool) for pool in pools}

    def work(k):
        turn = pools[k % len(pools) :] + pools[: k % len(pools)]
        return {(pool, k): worked(module, plans[pool], k, tmp_path / f"{pool}{k}") for pool in turn}

    together = at_once(*(lambda k=k: work(k) for k in range(THREADS)))
    assert {case: x for found in together for case, x in found.items()} == alone


def test_threads_that_save_at_one_path_leave_one_of_their_files(tmp_path):
    plan = fresh("matmul")
    path = tmp_path / "x"
    variables = [variables_for(plan, k, "normal") for k in range(THREADS)]
    digests = {smh.digest(plan, x) for x in variables}
    loaded = []

    def save(k):
        for _ in range(10):
            smh.save(path, plan, variables[k])
            found = smh.load(path)
            assert smh.digest(found.plan, found.variables) == found.digest
            loaded.append(found.digest)

    at_once(*(lambda k=k: save(k) for k in range(THREADS)))
    assert set(loaded) <= digests
    assert len(loaded) == 10 * THREADS
    assert os.listdir(tmp_path) == ["x"]


def test_threads_that_ask_for_the_first_backend_get_the_same_one():
    code = """
import sys, threading
import smh
sys.setswitchinterval(5e-6)
barrier, found = threading.Barrier(8), []
def ask():
    barrier.wait()
    plan = smh.Plan.build({"w": (9, 9)}, ratio=0.5)
    found.append((smh.get_backend("numpy"), smh.initialize(plan)["pool/left"].sum()))
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(found) == 8, found
assert len(set(found)) == 1, found
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- Models


def torch_model(residency):
    torch = pytest.importorskip("torch")
    from smh.backends import torch as smh_torch

    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 20), torch.nn.Linear(20, 5)
    )
    return torch, smh_torch, smh_torch.compress(plain, ratio=0.3, residency=residency)


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_threads_share_a_torch_model(residency, tmp_path):
    torch, smh_torch, model = torch_model(residency)
    inputs = torch.randn(THREADS, 16, 30, generator=torch.Generator().manual_seed(1))

    def work(k):
        found = []
        for turn in range(3):
            with torch.no_grad():
                found.append(model(inputs[k]).numpy().tobytes())
            loss = model(inputs[k]).square().sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            found += [x.numpy().tobytes() for x in gradients]
            found.append(model[0].weight.detach().numpy().tobytes())
            found.append(smh_torch.save(tmp_path / f"{k}{turn}", model))
            found.append(smh_torch.digest(model))
        return found

    alone = [work(k) for k in range(THREADS)]
    assert alone[0] != alone[1]
    assert at_once(*(lambda k=k: work(k) for k in range(THREADS))) == alone


@pytest.mark.parametrize("residency", ["full", "layer"])
def test_gradients_may_be_taken_in_another_thread(residency):
    torch, _, model = torch_model(residency)
    x = torch.randn(16, 30, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    alone = [g.numpy().tobytes() for g in torch.autograd.grad(model(x).square().sum(), parameters)]
    losses = at_once(*[lambda: model(x).square().sum()] * THREADS)
    (found,) = at_once(lambda: [torch.autograd.grad(loss, parameters) for loss in losses])
    assert [[g.numpy().tobytes() for g in gradients] for gradients in found] == [alone] * THREADS


@pytest.mark.parametrize("residency", ["full", "cached"])
def test_threads_share_a_jax_pytree(residency):
    jax = pytest.importorskip("jax")
    from smh.backends import jax as smh_jax

    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    compressed = smh_jax.compress(params, ratio=0.3, residency=residency)
    xs = np.random.default_rng(0).standard_normal((THREADS, 40), dtype=np.float32)

    @jax.jit
    def gradient(compressed, x):
        return jax.grad(lambda c: (x @ smh_jax.materialize(c)["a"]).sum())(compressed)

    def work(k):
        found = [np.asarray(g).tobytes() for g in jax.tree.leaves(gradient(compressed, xs[k]))]
        return [*found, *bits(smh_jax.materialize(compressed)).values(), smh_jax.digest(compressed)]

    together = at_once(*(lambda k=k: work(k) for k in range(THREADS)))  # traced and compiled by all at once
    assert together == [work(k) for k in range(THREADS)]
    assert together[0] != together[1]


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_threads_share_a_keras_model(residency):
    pytest.importorskip("torch")
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    from smh.backends import tensorflow as smh_tensorflow

    layers = [keras.Input((30,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(5)]
    model = smh_tensorflow.compress(keras.Sequential(layers), ratio=0.3, residency=residency)
    xs = np.random.default_rng(0).standard_normal((THREADS, 8, 30), dtype=np.float32)

    def work(k):
        with tf.GradientTape() as tape:
            y = model(xs[k])
            loss = tf.reduce_sum(y**2)
        gradients = tape.gradient(loss, model.trainable_variables)
        return [x.numpy().tobytes() for x in (y, *gradients)] + [smh_tensorflow.digest(model)]

    alone = [work(k) for k in range(THREADS)]
    assert alone[0] != alone[1]
    assert at_once(*(lambda k=k: work(k) for k in range(THREADS))) == alone


# --- Processes

VECTORS = ["matmul_chunks", "hash_signed", "sum_two"]
PROCESSES = """
import importlib, json, multiprocessing, sys
from trust.orders import fingerprint

if __name__ == "__main__":
    name, method, vectors = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
    if name == "torch":
        importlib.import_module("torch").set_num_threads(1)
    before = fingerprint(name, vectors)
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
        found = pool.starmap(fingerprint, [(name, vectors)] * 4, chunksize=1)
    print(json.dumps([before, *found, fingerprint(name, vectors)]))
"""


# JAX and TensorFlow run threads of their own, which a fork does not have.
@pytest.mark.parametrize(
    ("name", "method"),
    [("numpy", "fork"), ("numpy", "spawn"), ("torch", "fork"), ("torch", "spawn"), ("jax", "spawn")],
)
def test_processes_get_the_same_bits(name, method):
    """Also those that are forked after the parent has used the backend."""
    pytest.importorskip(name)
    vectors = VECTORS[-1:] if name == "jax" else VECTORS
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, name, method, ",".join(vectors)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [orders.stored(vectors)] * 6


@pytest.mark.parametrize("seed", orders.HASH_SEEDS)
def test_hash_seeds_do_not_show(seed):
    names = orders.vectors()
    assert orders.within((), names, seed) == {"numpy": orders.stored(names)}


@pytest.mark.parametrize("order", [("torch", "jax"), ("jax", "torch")])
def test_orders_of_import_do_not_show(order):
    """With TensorFlow, there are six: ``python -m trust orders``."""
    for name in order:
        pytest.importorskip(name)
    assert orders.within(order, VECTORS[-1:]) == dict.fromkeys(("numpy", *order), orders.stored(VECTORS[-1:]))


def test_the_fingerprint_sees_every_vector():
    names = orders.vectors()
    assert len({orders.stored(names[:k]) for k in range(len(names) + 1)}) == len(names) + 1
