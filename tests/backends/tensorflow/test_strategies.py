"""Training on several devices: the same pool on each, and the training of one device."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

MIRRORED = """
    import keras
    import numpy as np
    import tensorflow as tf
    from smh import keras as smh

    x, y = np.random.default_rng(0).standard_normal((64, 20)).astype(np.float32), np.arange(64) % 3
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

    def train(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
            model = smh.compress(model, ratio=0.3)
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        before = smh.digest(model)
        losses = model.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False).history["loss"]
        assert smh.digest(model) != before
        return model, before, losses

    two, *start = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    one, *expected = train(tf.distribute.get_strategy())
    assert two.distribute_strategy.num_replicas_in_sync == 2
    assert start[0] == expected[0]
    np.testing.assert_allclose(start[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(two.predict(x, verbose=0), one(x), atol=1e-6)
    for variable in two.smh_pool.weights:
        first, second = variable.value.values
        assert np.array_equal(first, second), variable.path
    print("trained")
"""


def test_a_mirrored_strategy_trains_the_pool_on_two_devices():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED)], env=os.environ, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip().endswith("trained"), result.stderr
