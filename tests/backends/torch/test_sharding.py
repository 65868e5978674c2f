"""Variables in pieces: what trains in several processes, with the bits of one, and what is refused."""

import os
import socket
import warnings
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from smh.models.compression import RESIDENCIES  # noqa: E402

if not dist.is_available() or os.name == "nt":
    pytest.skip("processes over gloo", allow_module_level=True)

X = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
LEARN_SCALE = (True, False)
PLACES = ("model", "layers", "around")
"""What is sharded: the model, each of its layers too, or only a module around it."""


class Again(nn.Sequential):
    """Layers that the backward pass runs again."""

    def forward(self, x):
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def compressed(kind=nn.Sequential, **options):
    torch.manual_seed(0)
    model = kind(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 25), nn.ReLU(), nn.Linear(25, 4))
    return smh.compress(model, ratio=0.3, **options)


def train(model, optimizer=None, steps=4):
    """Train, with the same rows in every process, so that the mean of gradients has the bits of each."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            model(X)  # leaves whole what a pass gathered
    return model(X).detach().numpy()


def shard(model, place, **options):
    from torch.distributed.fsdp import fully_shard

    if place == "layers":
        for layer in (model[0], model[1], model[2], model[4]):
            fully_shard(layer, **options)
    return fully_shard(nn.Sequential(model) if place == "around" else model, **options)


def refused(run):
    try:
        run()
    except PlanError as error:
        return str(error)
    return "it was not"


def worker(rank, port, folder):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for case in product(RESIDENCIES, LEARN_SCALE, PLACES):
        residency, learn_scale, place = case
        model = compressed(residency=residency, learn_scale=learn_scale)
        y = train(shard(model, place))
        found[case] = y, smh.digest(model)
    for residency in RESIDENCIES:
        model = compressed(Again, residency=residency)
        found["again", residency] = train(shard(model, "model")), smh.digest(model)
    path = f"{folder}/{rank}.safetensors"
    model, single = shard(compressed(), "layers"), compressed()
    train(model)
    saved = smh.save(path, model)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        single.load_state_dict(state)
    again = shard(compressed(), "layers")
    smh.load(path, again)
    found["files"] = saved, smh.digest(smh.load(path, compressed())), smh.digest(again), train(again, steps=1)
    found["state"] = smh.digest(single)
    found["materialize"] = refused(lambda: smh.materialize(model))
    found["materialize_"] = refused(lambda: smh.materialize_(model))
    found["compress"] = refused(lambda: smh.compress(shard(nn.Sequential(nn.Linear(20, 30)), "model"), ratio=0.3))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    found["half"] = refused(lambda: train(shard(compressed(), "model", mp_policy=half)))
    model.set_gradient_divide_factor(1.0)
    found["divide"] = refused(lambda: train(model))
    mesh = init_device_mesh("cpu", (2,))
    found["tensor"] = refused(lambda: train(parallelize_module(compressed(), mesh, {"0": ColwiseParallel()})))
    flat = FullyShardedDataParallel(compressed(), device_id=torch.device("cpu"))
    found["flat"] = refused(lambda: train(flat))
    found["flat digest"] = refused(lambda: smh.digest(flat))
    parallel = nn.parallel.DistributedDataParallel(compressed())
    found["parallel"] = train(parallel), smh.digest(parallel)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """Return what one process finds, with and without scales that learn."""
    return {
        learn_scale: (train(model), smh.digest(model))
        for learn_scale in LEARN_SCALE
        for model in [compressed(learn_scale=learn_scale)]
    }


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("learn_scale", LEARN_SCALE)
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_fully_sharded_models_train_with_the_bits_of_one_process(found, alone, residency, learn_scale, place, rank):
    y, digest = found[rank][residency, learn_scale, place]
    y_alone, digest_alone = alone[learn_scale]
    assert np.array_equal(y.view(np.uint32), y_alone.view(np.uint32))
    assert digest == digest_alone


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_layers_are_run_again(found, alone, residency):
    for here in found:
        y, digest = here["again", residency]
        assert np.array_equal(y.view(np.uint32), alone[True][0].view(np.uint32))
        assert digest == alone[True][1]


def test_fully_sharded_models_are_saved_and_loaded(found, alone, tmp_path):
    digest = alone[True][1]
    for here in found:
        assert here["files"][:3] == (digest,) * 3
    assert found[0]["state"] == digest
    model = compressed()
    train(model)
    smh.save(tmp_path / "a.safetensors", model)
    y = train(smh.load(tmp_path / "a.safetensors", compressed()), steps=1)
    assert np.array_equal(found[0]["files"][3].view(np.uint32), y.view(np.uint32))


@pytest.mark.parametrize("rank", [0, 1])
def test_data_parallel_models_train_with_the_bits_of_one_process(found, alone, rank):
    y, digest = found[rank]["parallel"]
    y_alone, digest_alone = alone[True]
    assert np.array_equal(y.view(np.uint32), y_alone.view(np.uint32))
    assert digest == digest_alone


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("materialize", r"cut into pieces cannot be materialized: smh.save\(path, model\) in all processes"),
        ("materialize_", "cut into pieces cannot be materialized"),
        ("compress", "it is cut into pieces: compress the model first, then shard it"),
        ("half", "would round the variables of .* to torch.bfloat16: leave out param_dtype"),
        ("divide", "leave out set_gradient_divide_factor"),
        ("tensor", r"DTensors, but not by fully_shard.*smh.materialize_\(model\) before tensor parallelism"),
        ("flat", "FullyShardedDataParallel.*Use torch.distributed.fsdp.fully_shard"),
        ("flat digest", "FullyShardedDataParallel.*Use torch.distributed.fsdp.fully_shard"),
    ],
)
def test_what_cannot_be_sharded_is_refused(found, how, message):
    for here in found:
        with pytest.raises(PlanError, match=message):
            raise PlanError(here[how])
