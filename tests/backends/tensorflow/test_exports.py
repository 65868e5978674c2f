"""Every export and way of saving of Keras and TensorFlow works and runs, or is refused with a way out."""

import contextlib

import numpy as np
import pytest

import smh as any_smh
from conformance.bits import assert_same_bits

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
layers = keras.layers
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


@pytest.fixture(scope="module", params=["sequential", "functional"])
def model(request):
    keras.utils.set_random_seed(7)
    x = keras.Input((6,))
    stack = [layers.Dense(20, "tanh", name="a"), layers.Dense(3)]
    if request.param == "functional":
        return smh.compress(keras.Model(x, stack[1](stack[0](x))), ratio=0.3)
    return smh.compress(keras.Sequential([x, *stack]), ratio=0.3)


REFUSED = {
    "litert": lambda m, path: m.export(path / "m.tflite", format="litert"),
    "onnx": lambda m, path: m.export(path / "m.onnx", "onnx"),
    "openvino": lambda m, path: m.export(path / "m.xml", format="openvino"),
    "torch": lambda m, path: m.export(path / "m.pt2", format="torch"),
    "h5": lambda m, path: m.save(path / "m.h5"),
    "hdf5": lambda m, path: keras.saving.save_model(m, path / "m.hdf5"),
    "tf.saved_model": lambda m, path: tf.saved_model.save(m, str(path / "m")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_hold_generated_weights_says_so(model, way, tmp_path):
    before, outputs = smh.digest(model), model(X).numpy()
    with pytest.raises(any_smh.ExportError, match=r"smh\.materialize\(model\)"):
        REFUSED[way](model, tmp_path)
    assert smh.digest(model) == before
    assert_same_bits(model(X).numpy(), outputs)


def test_every_format_of_keras_is_tested(model, tmp_path):
    with pytest.raises(any_smh.ExportError):
        model.export(tmp_path / "m", format="of the future")
    with pytest.raises(ValueError, match="format") as error:
        smh.materialize(model).export(tmp_path / "m", format="of the future")
    for known in ("tf_saved_model", "onnx", "openvino", "litert", "torch"):
        assert known in str(error.value)


def test_a_saved_model_runs(model, tmp_path):
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X), model(X), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_the_lite_converter_makes_runs(model):
    interpreter = tf.lite.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert())
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], X.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], X)
    interpreter.invoke()
    np.testing.assert_allclose(interpreter.get_tensor(made["index"]), model(X), rtol=1e-5, atol=1e-6)


def test_a_tape_asked_for_a_generated_weight_says_what_to_ask_for(model):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X))
    with pytest.raises(any_smh.VariableError, match="'a/kernel' is generated.*trainable_variables"):
        tape.gradient(loss, model.get_layer("a").kernel)


def test_dense_weights_are_refused_with_the_way_to_start_from_them(model, tmp_path):
    smh.materialize(model).save_weights(tmp_path / "plain.weights.h5")
    with pytest.raises(any_smh.CheckpointError, match="into that model, and then smh.fit"):
        model.load_weights(tmp_path / "plain.weights.h5")
