"""Rounded kept tensors in models: the same values in every framework, also in frozen models."""

import numpy as np
import pytest

import smh


def torch_model():
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 150))
    model(torch.randn(32, 3, 4, 4))  # moving averages
    return model.eval()


def jax_model():
    jax = pytest.importorskip("jax", reason="the jax backend needs jax")
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {"kernel": (20, 30), "bias": (30,), "scale": (200,)}
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, layers.items(), strict=True)}


def keras_model():
    pytest.importorskip("tensorflow", reason="the tensorflow backend needs tensorflow")
    keras = pytest.importorskip("keras", reason="the tensorflow backend needs keras")
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(150, name="last", bias_initializer="glorot_normal")
    layers = [keras.layers.Dense(16, name="first"), keras.layers.BatchNormalization(name="norm"), dense]
    return keras.Sequential([keras.Input((20,)), *layers])


MODELS = {"torch": torch_model, "jax": jax_model, "keras": keras_model}


def numbers(x):
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def kept_of(name, model, names):
    """Return kept tensors of a model by the names in files."""
    if name == "jax":
        model = model.kept if hasattr(model, "kept") else smh.materialize(model)
        return {key: numbers(model[key]) for key in names}
    if name == "torch":
        state = model.state_dict()
        return {key: numbers(state[key]) for key in names}
    found = {x.path: x for layer in model.layers for x in layer.variables}
    return {key: numbers(found[key]) for key in names}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_the_rounded_values(tmp_path, name, packed):
    plain = MODELS[name]()
    model = smh.compress(plain, ratio=0.5)
    one, other = tmp_path / "plain", tmp_path / "rounded"
    digest = smh.save(one, model)
    assert smh.save(other, model, kept_bits=8, packed=packed) == digest
    assert other.stat().st_size < one.stat().st_size
    exact, rounded = smh.load(one), smh.load(other)
    assert len(rounded.rounded) >= 2
    assert any(not np.array_equal(exact.dense[key], rounded.dense[key]) for key in exact.dense)
    before = kept_of(name, model, exact.dense)
    assert all(np.array_equal(before[key], x) for key, x in exact.dense.items())  # saving changes nothing
    compressed, into = smh.load(other, MODELS[name]()), smh.load(other, model)
    frozen = smh.load(other, MODELS[name](), frozen=True)
    for loaded in (compressed, into, frozen):
        assert smh.digest(loaded) == digest
        found = kept_of(name, loaded, rounded.dense)
        for key, x in rounded.dense.items():
            assert np.array_equal(found[key], x), key
    # What was rounded is rounded to itself, and the file of the loaded model is the same.
    for loaded in (compressed, frozen):
        smh.save(tmp_path / "again", loaded, kept_bits=8, packed=packed)
        assert (tmp_path / "again").read_bytes() == other.read_bytes()


def test_half_precision_of_a_model_is_kept(tmp_path):
    model = smh.compress(torch_model().bfloat16(), ratio=0.5)
    smh.save(tmp_path / "x", model, kept_bits=8)
    found = smh.load(tmp_path / "x")
    assert {one.dtype for one in found.rounded.values()} == {"bfloat16"}
    loaded = smh.load(tmp_path / "x", torch_model().bfloat16())
    assert str(loaded[3].bias.dtype) == "torch.bfloat16"
    assert np.array_equal(loaded[3].bias.float().detach().numpy(), found.dense["3.bias"].astype(np.float32))


def test_a_small_variance_of_batch_norm_survives(tmp_path):
    plain = torch_model()
    plain[1].running_var[:] = 1.0
    plain[1].running_var[3] = 1e-7
    model = smh.compress(plain, ratio=0.5)
    smh.save(tmp_path / "x", model, kept_bits=8)
    found = smh.load(tmp_path / "x")
    assert "1.running_var" not in found.rounded
    assert found.dense["1.running_var"][3] == np.float32(1e-7)


def test_a_model_that_is_not_finite_is_refused_by_name(tmp_path):
    model = smh.compress(torch_model(), ratio=0.5)
    model[1].running_mean[0] = float("nan")
    with pytest.raises(smh.VariableError, match=r"'1\.running_mean' cannot be rounded"):
        smh.save(tmp_path / "x", model, kept_bits=8)
    assert not list(tmp_path.iterdir())
