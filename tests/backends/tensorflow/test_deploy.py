"""Frozen Keras models and their exports, which run in their own runtimes."""

import contextlib

import numpy as np
import pytest

import smh
import smh.export
from conformance.bits import assert_same_bits

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
layers = keras.layers
X = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def net():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="deep"),
            layers.Flatten(),
            layers.Dense(64, use_bias=False, activation="relu", name="hidden"),
            layers.Dense(10, activation="relu", name="out"),
        ]
    )


def compressed(**options):
    keras.utils.set_random_seed(7)
    return smh.compress(net(), ratio=0.1, **options)


def expected(model):
    """Return the weights that NumPy builds."""
    variables = {name: x.numpy() for name, x in model.smh_source.values().items()}
    return {f"weight:{name}": w for name, w in smh.materialize(smh.plan_of(model), variables).items()}


def assert_same_weights(found, model):
    for name, w in expected(model).items():
        assert_same_bits(np.asarray(found[name]), w)


@pytest.mark.parametrize(("bits", "dtype"), [(8, "int8"), (4, "uint8"), (12, "int16")])
def test_a_frozen_model_has_the_bits_of_the_model(bits, dtype, tmp_path):
    model = compressed(bits=bits)
    frozen = smh.freeze(model)
    assert frozen.smh_pool.weights[0].dtype == dtype
    for residency in ("full", "layer", "cached"):
        frozen.residency = residency
        assert_same_bits(frozen(X).numpy(), model(X).numpy())
    assert smh.digest(frozen) == smh.digest(model)
    smh.save(tmp_path / "a", model)
    smh.save(tmp_path / "b", frozen)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert smh.digest(smh.load(tmp_path / "a", net(), frozen=True)) == smh.digest(model)
    frozen.save(tmp_path / "m.keras")
    assert smh.digest(keras.saving.load_model(tmp_path / "m.keras")) == smh.digest(model)


def test_a_frozen_model_does_not_train(tmp_path):
    model = compressed()
    frozen = smh.freeze(model)
    assert frozen.trainable_variables == []
    for train in (lambda: frozen.fit(X, X), lambda: frozen.train_on_batch(X, X), lambda: smh.freeze(frozen)):
        with pytest.raises(smh.PlanError, match="for inference only"):
            train()
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(smh.CheckpointError, match="frozen"):
        frozen.load_weights(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("pool", ["matmul", "hash"])
def test_a_saved_model_builds_the_weights(pool, tmp_path):
    model = compressed(pool=pool)
    sizes = smh.export.saved_model(tmp_path / "m", model, weights=True)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_allclose(loaded.serve(X), model(X), rtol=1e-5, atol=1e-6)
    assert_same_weights(loaded.signatures["weights"](), model)
    assert sizes.file <= 1.1 * (sizes.integers + sizes.kept + sizes.graph)


@pytest.mark.parametrize(("pool", "bits"), [("matmul", 8), ("kronecker", 4)])
@pytest.mark.parametrize("delegate", [True, False])
def test_a_litert_file_builds_the_weights(pool, bits, delegate, tmp_path):
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    model = compressed(pool=pool, bits=bits)
    sizes = smh.export.litert(tmp_path / "m.tflite", model, weights=True)
    assert sizes.file == (tmp_path / "m.tflite").stat().st_size < 40_000  # the dense weights take 267 kB
    kinds = runtime.OpResolverType
    kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    run = runtime.Interpreter(str(tmp_path / "m.tflite"), experimental_op_resolver_type=kind).get_signature_runner()
    found = run(input_0=X)
    np.testing.assert_allclose(found["output_0"], model(X), rtol=1e-4, atol=1e-5)
    assert found["output_0"].min() >= 0  # the activations are there
    assert_same_weights(found, model)


@pytest.mark.parametrize("options", [{"pool": "hash"}, {"bits": 12}])
def test_litert_refuses_pools_by_name(options, tmp_path):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(smh.ExportError, match="saved_model"):
        smh.export.litert(tmp_path / "m.tflite", compressed(**options))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def application():
    """A small model of keras.applications, compressed, and images."""
    keras.utils.set_random_seed(7)
    sizes = {"input_shape": (32, 32, 3), "alpha": 0.5, "minimalistic": True}
    model = keras.applications.MobileNetV3Small(**sizes, weights=None, classes=10, include_preprocessing=False)
    return smh.compress(model, ratio=0.1), np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)


def check_bytes(sizes):
    """Check that a file holds little besides integers, kept tensors and the graph."""
    assert sizes.file <= 1.1 * (sizes.integers + sizes.kept + sizes.graph)
    assert sizes.held <= 1.1 * (sizes.integers + sizes.kept)


def test_a_keras_application_in_a_saved_model(application, tmp_path):
    model, x = application
    sizes = smh.export.saved_model(tmp_path / "m", model, weights=True)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-4, atol=1e-6)
    assert_same_weights(loaded.signatures["weights"](), model)
    check_bytes(sizes)


def run_litert(path, **inputs):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_signature_runner()(**inputs)


def test_a_keras_application_in_litert(application, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model, x = application
    sizes = smh.export.litert(tmp_path / "m.tflite", model, weights=True)
    found = run_litert(tmp_path / "m.tflite", input_0=x)
    np.testing.assert_allclose(found["output_0"], model(x), rtol=1e-3, atol=1e-5)
    assert_same_weights(found, model)
    check_bytes(sizes)


def test_keras_models_in_onnx_are_refused_by_name(application, tmp_path):
    with pytest.raises(smh.ExportError, match="cannot be exported as 'onnx'"):
        application[0].export(tmp_path / "m.onnx", format="onnx")
    with pytest.raises(smh.PlanError, match=r"takes a torch\.nn\.Module; got a keras\.Model, CompressedFunctional"):
        smh.export.onnx(tmp_path / "m.onnx", application[0], (application[1],))
    assert not list(tmp_path.iterdir())


def test_an_lstm_in_litert_needs_a_batch_size(tmp_path):
    pytest.importorskip("ai_edge_litert")
    keras.utils.set_random_seed(7)
    model = smh.compress(keras.Sequential([keras.Input((8, 16)), layers.LSTM(32), layers.Dense(10)]), ratio=0.1)
    x, path = np.random.default_rng(0).normal(size=(1, 8, 16)).astype(np.float32), tmp_path / "m.tflite"
    with pytest.raises(smh.ExportError, match="batch=1"):
        smh.export.litert(path, model)
    assert not list(tmp_path.iterdir())
    smh.export.litert(path, model, batch=1, weights=True)
    found = run_litert(path, input_0=x)
    np.testing.assert_allclose(found["output_0"], model(x), rtol=1e-4, atol=1e-5)
    assert_same_weights(found, model)
