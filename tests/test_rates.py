"""Learning rates of scales: factors from plans, groups for PyTorch, pytrees for JAX."""

import dataclasses

import numpy as np
import pytest

import smh
from smh.pools import Hash
from smh.rates import rate_multipliers

SHAPES = {"first": (40, 30), "second": (30, 20)}


def test_a_scale_has_the_factor_that_it_starts_with_and_a_pool_has_one():
    plan = smh.Plan.build(SHAPES, ratio=0.2, scale={"first": 0.25, "second": 2.0})
    assert rate_multipliers(plan) == {"pool/left": 1.0, "pool/right": 1.0, "scale/first": 0.25, "scale/second": 2.0}


def test_factors_are_those_of_the_initial_variables():
    plan = smh.Plan.build(SHAPES, ratio=0.2, pool=Hash(hashes=2))
    factors, variables = rate_multipliers(plan), smh.initialize(plan)
    assert list(factors) == list(variables)
    assert all(factors[name] == float(value) for name, value in variables.items() if name.startswith("scale/"))


def test_scales_that_are_fixed_have_no_factor():
    plan = smh.Plan.build(SHAPES, ratio=0.2, learn_scale=False)
    assert rate_multipliers(plan) == {"pool/left": 1.0, "pool/right": 1.0}


class TestTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="PyTorch is not installed")

    @pytest.fixture
    def model(self, torch):
        torch.manual_seed(0)
        return self.compress(torch)

    def compress(self, torch, **options):
        from smh.backends import torch as smh_torch

        layers = torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 20)
        return smh_torch.compress(torch.nn.Sequential(*layers), ratio=0.2, gain="adam", **options)

    def groups(self, model, lr):
        from smh.backends.torch import parameter_groups

        return parameter_groups(model, lr)

    def test_every_parameter_is_in_one_group(self, model):
        found = [id(x) for group in self.groups(model, 0.1) for x in group["params"]]
        assert sorted(found) == sorted(id(x) for x in model.parameters())

    def test_a_step_of_adam_changes_a_scale_by_the_share_lr(self, torch, model):
        scales = {name: x for name, x in model.named_parameters() if name.endswith("_scale")}
        before = {name: x.item() for name, x in scales.items()}
        pool = model.pool_left.detach().clone()
        optimizer = torch.optim.AdamW(self.groups(model, 0.02), weight_decay=0.5, eps=1e-20)
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
        assert len(scales) == 2
        for name, x in scales.items():
            assert abs(x.item() / before[name] - 1) == pytest.approx(0.02, rel=1e-4)
        # the pool decays, and moves by the whole rate
        moved = (model.pool_left.detach() - pool * (1 - 0.02 * 0.5)).abs()
        assert moved.max().item() == pytest.approx(0.02, rel=1e-3)

    def test_without_learnable_scales_there_is_one_group(self, torch):
        (group,) = self.groups(self.compress(torch, learn_scale=False), 0.1)
        assert group["lr"] == 0.1

    def test_the_rates_of_a_loaded_model_are_those_of_the_saved_one(self, torch, model, tmp_path):
        from smh.backends import torch as smh_torch

        with torch.no_grad():
            for name, x in model.named_parameters():
                if name.endswith("_scale"):
                    x.mul_(3)
        smh_torch.save(tmp_path / "model.safetensors", model)
        loaded = smh_torch.load(tmp_path / "model.safetensors", self.compress(torch))
        assert [g["lr"] for g in self.groups(loaded, 0.1)] == [g["lr"] for g in self.groups(model, 0.1)]

    def test_a_plain_model_is_refused(self, torch):
        with pytest.raises(smh.PlanError, match="not compressed"):
            self.groups(torch.nn.Linear(3, 2), 0.1)


class TestJax:
    @pytest.fixture
    def jax(self):
        return pytest.importorskip("jax", reason="JAX is not installed")

    def test_updates_are_multiplied_leaf_by_leaf(self, jax):
        from smh.backends import jax as smh_jax

        params = {"kernel": jax.numpy.ones((40, 30)), "bias": jax.numpy.zeros(30)}
        params = smh_jax.compress(params, ratio=0.2, scale=0.25)
        factors = smh_jax.rate_multipliers(params)
        ones = jax.tree.map(jax.numpy.ones_like, params)
        updates = jax.jit(lambda tree: jax.tree.map(lambda u, m: u * m, tree, factors))(ones)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert np.unique(updates.variables["scale/kernel"]) == [0.25]
        assert np.unique(updates.variables["pool/left"]) == np.unique(updates.kept["bias"]) == [1.0]

    def test_present_scales_do_not_matter(self, jax):
        from smh.backends import jax as smh_jax

        params = smh_jax.compress({"kernel": jax.numpy.ones((40, 30))}, ratio=0.2)
        later = dataclasses.replace(params, variables={name: 3 * x for name, x in params.variables.items()})
        assert smh_jax.rate_multipliers(later).variables == smh_jax.rate_multipliers(params).variables

    def test_plain_parameters_are_refused(self, jax):
        from smh.backends import jax as smh_jax

        with pytest.raises(smh.PlanError, match="not compressed"):
            smh_jax.rate_multipliers({"kernel": jax.numpy.ones((4, 3))})
