"""The rate in JAX: value and gradients, under transformations, and training towards small files."""

import dataclasses
import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.rates import (  # noqa: E402
    OPTIONS,
    STEPS,
    WEIGHT,
    WIDTHS,
    assert_gradients,
    assert_kept_gradient,
    data,
    kept_bits_in,
    kept_values,
    packed_bits,
)


def compressed(**options):
    return smh.compress({"w": jnp.ones((20, 30))}, **(OPTIONS | options))


def in_numpy(params):
    return {name: np.asarray(x) for name, x in params.variables.items()}


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("x64", [False, True])
def test_value_and_gradients(wrap, x64):
    params = compressed()
    with jax.enable_x64(x64):
        rate, gradients = wrap(jax.value_and_grad(smh.rate))(params)
    assert (rate.dtype, rate.shape) == (jnp.float32, ())
    assert float(rate) == pytest.approx(packed_bits(smh.plan_of(params), in_numpy(params)), rel=1e-4)
    assert_gradients(smh.plan_of(params), in_numpy(params), in_numpy(gradients))
    assert float(gradients.variables["scale/w"]) == 0.0


def test_training_with_the_rate_takes_fewer_bits():
    x, y = data()

    def loss(params, weight):
        return jnp.mean((x @ smh.materialize(params)["w"] - y) ** 2) + weight * smh.rate(params)

    @jax.jit
    def step(params, momentum, weight):
        momentum = jax.tree.map(lambda m, g: 0.9 * m + jnp.sign(g), momentum, jax.grad(loss)(params, weight))
        return jax.tree.map(lambda p, m: p - 0.003 * m, params, momentum), momentum

    found = {}
    for weight in (0.0, WEIGHT):
        params = compressed()
        momentum = jax.tree.map(jnp.zeros_like, params)
        for _ in range(STEPS):
            params, momentum = step(params, momentum, weight)
        found[weight] = packed_bits(smh.plan_of(params), in_numpy(params))
    assert found[WEIGHT] < 0.7 * found[0.0]


def network(dtype=jnp.float32):
    """Return the compressed parameters of a network with batch norms."""
    params, channels = {}, 3
    for layer, (width, values) in enumerate(zip(WIDTHS, kept_values().values(), strict=True)):
        kernel = jnp.ones((3, 3, channels, width), dtype)
        norm = {name: jnp.asarray(x, dtype) for name, x in zip(("scale", "bias", "mean", "var"), values, strict=True)}
        params[f"layer{layer}"] = {"kernel": kernel, "norm": norm}
        channels = width
    return smh.compress(params | {"steps": jnp.asarray(300), "key": jax.random.key(0)}, **OPTIONS)


def kept_rate(params, bits):
    return smh.rate(params, kept_bits=bits) - smh.rate(params)


@pytest.mark.parametrize("bits", [8, 16])
def test_kept_arrays_count_as_in_a_packed_file(tmp_path, bits):
    params = network()
    rate, gradients = jax.jit(jax.value_and_grad(lambda params: kept_rate(params, bits), allow_int=True))(params)
    assert (rate.dtype, rate.shape) == (jnp.float32, ())
    smh.save(tmp_path / "model", params, packed=True, kept_bits=bits)
    assert float(rate) == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
    rounded = smh.load(tmp_path / "model").rounded
    for name in ("layer1/norm/mean", "layer1/norm/bias", "layer2/norm/bias"):
        one = rounded[name]
        assert_kept_gradient(params.kept[name], one.exponent, one.bits, gradients.kept[name])
    assert not np.any(gradients.kept["layer1/norm/scale"])  # which has no negative values
    assert not np.any(gradients.kept["layer0/norm/bias"])  # 16 values, which are not coded


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_kept_arrays_in_half_precision(tmp_path, dtype):
    params = network(dtype)
    rate, gradients = jax.jit(jax.value_and_grad(lambda params: kept_rate(params, 8), allow_int=True))(params)
    smh.save(tmp_path / "model", params, packed=True, kept_bits=8)
    assert float(rate) == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
    assert jnp.count_nonzero(gradients.kept["layer1/norm/bias"]) > 100


def test_training_makes_kept_arrays_small(tmp_path):
    params = network()
    before = kept = {name: x for name, x in params.kept.items() if name not in ("steps", "key")}

    @jax.jit
    def step(kept):
        def loss(kept):
            moved = sum(jnp.sum((x - before[name]) ** 2) for name, x in kept.items())
            return moved + 0.1 * smh.rate(with_kept(kept), kept_bits=8)

        gradients = jax.grad(loss)(kept)
        return jax.tree.map(lambda x, g: x - 0.01 * jnp.sign(g), kept, gradients)

    def with_kept(kept):
        return dataclasses.replace(params, kept={**params.kept, **kept})

    found = []
    for _ in range(STEPS + 1):
        smh.save(tmp_path / "model", with_kept(kept), packed=True, kept_bits=8)
        found.append(kept_bits_in(tmp_path / "model"))
        kept = step(kept)
    assert found[-1] < 0.9 * found[0]


def test_a_kept_array_that_is_not_finite_has_no_rate():
    params = network()
    params.kept["layer0/norm/var"] = params.kept["layer0/norm/var"].at[3].set(jnp.nan)
    assert jnp.isnan(jax.jit(functools.partial(smh.rate, kept_bits=8))(params))
    assert jnp.isfinite(smh.rate(params))


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="kept_bits must be 8 or 16, or None to store kept tensors as they are; got 4"):
        smh.rate(compressed(), kept_bits=4)
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate({"w": jnp.ones((20, 30))})
