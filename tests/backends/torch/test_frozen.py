"""Frozen models: integers in buffers in the place of the pool, and the same weights everywhere."""

import copy
import pickle

import pytest

import smh
from conformance.bits import assert_same_bits
from smh import pools

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

POOLS = {
    "matmul": (pools.Matmul(), "int8"),
    "nibbles": (pools.Matmul(bits=4), "uint8"),
    "wide": (pools.Matmul(bits=12), "int16"),
    "kronecker": (pools.Kronecker(), "int8"),
    "hash": (pools.Hash(bits=3), "uint8"),
    "sum": (pools.Sum(pools.Matmul(bits=5), pools.Hash(bits=9)), "int16"),
    "product": (pools.Product(pools.Matmul(), pools.Kronecker(bits=2)), "uint8"),
}


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 7))


def compressed(pool="matmul", **options):
    return smh.compress(plain(), ratio=0.5, pool=POOLS[pool][0], **options)


def same_weights(found, expected):
    found, expected = (smh.materialize(model).state_dict() for model in (found, expected))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].numpy().tobytes() == x.numpy().tobytes(), name


@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_pool_is_of_integers_and_gives_the_same_weights(pool):
    model = compressed(pool)
    frozen, plan = smh.freeze(model), smh.plan_of(model)
    state = {name: x for name, x in frozen.state_dict().items() if name.startswith(("pool_", "smh_"))}
    assert POOLS[pool][1] in {str(x.dtype).removeprefix("torch.") for x in state.values()}
    scales = sum(tensor.learn_scale for tensor in plan.tensors) * 4
    held = {name: x.nbytes for name, x in frozen.named_buffers() if name.startswith("pool")}
    assert sum(held.values()) == plan.file_bytes - scales
    assert not any(x.requires_grad for x in frozen.parameters())
    same_weights(frozen, model)
    assert smh.digest(frozen) == smh.digest(model)
    assert smh.plan_of(frozen) == plan
    x = torch.linspace(-1, 1, 36).reshape(3, 12)
    assert_same_bits(frozen(x).numpy(), model.eval()(x).detach().numpy())


@pytest.mark.parametrize("residency", ["cached", "layer"])
@pytest.mark.parametrize("pool", ["matmul", "nibbles", "sum"])
def test_residencies_build_the_same_weights(pool, residency):
    model = compressed(pool, residency=residency)
    frozen = smh.freeze(model)
    x = torch.ones(2, 12)
    with torch.no_grad():
        assert_same_bits(frozen(x).numpy(), model.eval()(x).numpy())
        assert_same_bits(frozen[0].weight.numpy(), model[0].weight.numpy())


@pytest.mark.parametrize("pool", ["matmul", "nibbles", "sum"])
def test_files_load_frozen(tmp_path, pool):
    path, model = tmp_path / "model", compressed(pool)
    digest = smh.save(path, model, training=True)
    frozen = smh.freeze(model)
    with torch.device("meta"):
        meta = plain()
    loaded = [
        smh.load(path, plain(), frozen=True),
        smh.load(path, meta, frozen=True),
        smh.load(path, smh.freeze(compressed(pool, init_seed=5))),
        smh.load(smh.torch.load(path, frozen=True), smh.freeze(compressed(pool, init_seed=5))),
    ]
    smh.save(path, model)
    for found in loaded:
        same_weights(found, model)
        assert smh.digest(found) == digest
        smh.save(tmp_path / "again", found)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
        assert [x.dtype for x in found.state_dict().values()] == [x.dtype for x in frozen.state_dict().values()]
    with pytest.raises(smh.PlanError, match="freezes this one"):
        smh.load(path, model, frozen=True)
    with pytest.raises(smh.PlanError, match="this model needs integers"):
        smh.load(smh.torch.load(path), frozen)
    with pytest.raises(smh.PlanError, match="this model needs float32 variables"):
        smh.load(smh.torch.load(path, frozen=True), model)
    with pytest.raises(smh.CheckpointError, match="another plan"):
        smh.load(path, smh.freeze(compressed(pool, seed=4)))


def test_loading_frozen_holds_no_float32_pool(tmp_path):
    path = tmp_path / "model"
    smh.save(path, compressed("nibbles"))
    found = smh.torch.load(path, frozen=True)
    assert sorted(found.variables) == ["scale/0.weight", "scale/3.weight"]
    assert {x.dtype for x in found.integers.arrays.values()} == {torch.uint8}


def test_states_are_of_frozen_models_of_the_same_plan():
    model, other = compressed(), compressed(init_seed=3)
    frozen, target = smh.freeze(model), smh.freeze(other)
    target.load_state_dict(frozen.state_dict())
    same_weights(target, model)
    with torch.no_grad():
        model.pool_left.mul_(8.0)  # another exponent
    shifted = smh.freeze(model)
    target.load_state_dict(shifted.state_dict())
    same_weights(target, model)
    with pytest.raises(smh.CheckpointError, match="another plan"):
        smh.freeze(compressed(seed=4)).load_state_dict(frozen.state_dict())
    with pytest.raises(smh.CheckpointError, match="this model is frozen"):
        target.load_state_dict(model.state_dict())
    with pytest.raises(smh.CheckpointError, match="this model is not frozen"):
        model.load_state_dict(frozen.state_dict())


def test_frozen_models_are_for_inference():
    frozen = smh.freeze(compressed())
    with pytest.raises(smh.SmhError, match="frozen"):
        frozen.requires_grad_(True)
    for use in (lambda: smh.fit(frozen, ratio=0.5), lambda: smh.compress(frozen, ratio=0.5)):
        with pytest.raises(smh.PlanError, match="compressed already"):
            use()
    with pytest.raises(smh.PlanError, match="a frozen model cannot be frozen again"):
        smh.freeze(frozen)
    with pytest.raises(smh.PlanError, match="no training values"):
        smh.save("nowhere", frozen, training=True)
    with pytest.raises(smh.PlanError, match="frozen"):
        smh.rate(smh.freeze(smh.compress(plain(), ratio=0.5, exponents="fixed")))
    broken = compressed()
    with torch.no_grad():
        broken.pool_left.fill_(float("nan"))
    with pytest.raises(smh.VariableError, match="not finite"):
        smh.freeze(broken)


def test_frozen_models_are_copied_and_pickled():
    model = compressed("nibbles")
    frozen = smh.freeze(model)
    for other in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
        same_weights(other, model)
        assert smh.digest(other) == smh.digest(model)


def test_the_model_does_not_change():
    model = compressed()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    smh.freeze(model)
    assert all(x.requires_grad for x in model.parameters())
    assert model.training
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])


def test_reports_say_that_nothing_is_trained():
    model = compressed()
    report, frozen = smh.report(model), smh.report(smh.freeze(model))
    assert (report.frozen, frozen.frozen) == (False, True)
    assert (report.num_trained > 0, frozen.num_trained) == (True, 0)
    assert "The model is frozen" in str(frozen)
    assert "frozen" in repr(smh.freeze(model))
    assert "frozen" not in str(report) + repr(model)
