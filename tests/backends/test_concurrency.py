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
from tests.backends.fingerprints import POOLS, SHAPES, fingerprint, fresh
from tests.core.cases import values

THREADS = 4
ROOT = Path(__file__).parent.parent.parent
BACKENDS = ["numpy", "torch", "jax", "tensorflow"]
"""In the order in which one process can load their frameworks."""


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


def worked(module, plan, seed, path):
    """Return the bits of all that the public functions make of one plan and seeded arrays."""
    backend = module.backend
    variables, cotangents = (
        {name: backend.asarray(x, None) for name, x in arrays.items()}
        for arrays in values(plan, 2 * seed + 1, "normal")
    )
    weights = module.materialize(plan, variables)
    gradients = module.vjp(plan, variables, cotangents)
    dense = {"kept": backend.asarray(np.full(9, seed, np.float32), None)}
    digest = module.save(path, plan, variables, dense, training=bool(seed % 2))
    assert module.digest(plan, variables) == digest
    found = module.load(path)
    return [
        bits({name: backend.to_numpy(x) for name, x in arrays.items()})
        for arrays in (weights, gradients, found.variables, found.dense)
    ] + [digest, found.digest, Path(path).read_bytes()]


# --- Threads


@pytest.mark.parametrize("name", BACKENDS)
def test_threads_get_the_bits_of_one_thread(name, tmp_path):
    """All of them work with the same plans, from first use on; each with variables of its own."""
    pytest.importorskip(name)
    module = importlib.import_module(f"smh.backends.{name}")
    compiles = name in ("jax", "tensorflow")  # for seconds
    pools = ["cyclic"] if compiles else list(POOLS) if name == "numpy" else ["matmul", "cyclic", "sum"]
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
    variables = [values(plan, 2 * k + 1, "normal")[0] for k in range(THREADS)]
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


def process(program, *arguments, **environment):
    """Run a program in a process of its own, and return the JSON that it prints."""
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | quiet | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_threads_that_ask_for_the_first_backend_get_the_same_one():
    program = """
import sys, threading
import smh
sys.setswitchinterval(5e-6)
barrier, found = threading.Barrier(8), []
def ask():
    barrier.wait()
    plan = smh.Plan.build({"w": (9, 9)}, ratio=0.5)
    found.append((id(smh.get_backend("numpy")), float(smh.initialize(plan)["pool/left"].sum())))
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print([len(found), len(set(found))])
"""
    assert process(program) == [8, 1]


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
        for turn in range(2):
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
    pytest.importorskip("torch")  # which has to be loaded before TensorFlow
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

PROCESSES = """
import importlib, json, multiprocessing, sys
from tests.backends.fingerprints import fingerprint

if __name__ == "__main__":
    name, method, pools = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
    if name == "torch":
        importlib.import_module("torch").set_num_threads(1)
    before = fingerprint(name, pools)
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
        found = pool.starmap(fingerprint, [(name, pools)] * 3, chunksize=1)
    print(json.dumps([before, *found, fingerprint(name, pools)]))
"""


@pytest.fixture(scope="module")
def expected():
    """Return the fingerprint that NumPy computes, here, of all plans and of a single one."""
    return {"all": fingerprint("numpy", POOLS), "matmul": fingerprint("numpy", ["matmul"])}


# JAX and TensorFlow run threads of their own, which a fork does not have.
@pytest.mark.parametrize(
    ("name", "method"),
    [("numpy", "fork"), ("numpy", "spawn"), ("torch", "fork"), ("torch", "spawn"), ("jax", "spawn")],
)
def test_processes_get_the_same_bits(name, method, expected):
    """Also those that are forked after the parent has used the backend."""
    pytest.importorskip(name)
    pools = ["matmul"] if name == "jax" else list(POOLS)
    assert process(PROCESSES, name, method, ",".join(pools)) == [expected["matmul" if name == "jax" else "all"]] * 5


@pytest.mark.parametrize("seed", ["0", "1", "31337"])
def test_hash_seeds_of_python_do_not_show(seed, expected):
    program = (
        "import json\n"
        "from tests.backends.fingerprints import POOLS, fingerprint\n"
        "print(json.dumps(fingerprint('numpy', POOLS)))"
    )
    assert process(program, PYTHONHASHSEED=seed) == expected["all"]


def test_the_order_of_import_does_not_show(expected):
    """Everywhere else, PyTorch is loaded before JAX."""
    order = ("jax", "torch")
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "from tests.backends.fingerprints import fingerprint\n"
        "print(json.dumps([fingerprint(name, ['matmul']) for name in ('numpy', *sys.argv[1:])]))"
    )
    for name in order:
        pytest.importorskip(name)
    assert process(program, *order) == [expected["matmul"]] * 3


def test_fingerprints_see_every_plan():
    names = list(POOLS)
    assert len({fingerprint("numpy", names[:k]) for k in range(len(names) + 1)}) == len(names) + 1
