"""Pytrees have no passes: what builds their weights once is one call."""

import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")

import smh as any_smh  # noqa: E402
from smh.backends import jax as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402


def test_built_is_refused_with_advice():
    params = smh.compress({"w": jax.numpy.ones((20, 30))}, ratio=0.3)
    for built in (smh.built, any_smh.built):
        with pytest.raises(PlanError, match=r"smh.materialize\(params\): call it once.*got Compressed"):
            built(params)
    with pytest.raises(PlanError, match="not compressed"):
        smh.built({"w": jax.numpy.ones((20, 30))})
