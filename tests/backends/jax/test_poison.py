"""Poisoned variables of a pytree: weights are NaN, as transformations need it; what writes and tells names them."""

import dataclasses

import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")

import smh  # noqa: E402


@pytest.mark.parametrize("name", ["pool/left", "scale/w"])
def test_what_writes_and_tells_names_it(name, tmp_path):
    sound = smh.compress({"w": jax.numpy.ones((20, 30)), "v": jax.numpy.ones((10, 30))}, ratio=0.3)
    bad = dataclasses.replace(sound, variables=sound.variables | {name: sound.variables[name] * jax.numpy.nan})
    match = f"training has diverged: '{name}' .*learning rate is too high"
    for use in (smh.digest, lambda params: smh.save(tmp_path / "m", params)):
        use(sound)
        with pytest.raises(smh.VariableError, match=match):
            use(bad)
    with pytest.warns(UserWarning, match=match) as found:
        smh.report(bad)
    assert found[0].filename == __file__
    smh.report(sound)
    for build in (smh.materialize, jax.jit(smh.materialize)):
        weights = build(bad)
        assert jax.numpy.isnan(weights["w"]).all()
        assert jax.numpy.isnan(weights["v"]).any() == name.startswith("pool/")
