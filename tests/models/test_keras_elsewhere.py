"""A Keras model that its framework's backend cannot take is refused by name: nothing is taken for a plain module."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import keras, numpy as np
import smh
from smh import {module} as backend
model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(64, name="a")], name="mine")
before = model.get_weights()[0].tobytes()
uses = [backend.compress, smh.compress, backend.fit]
uses = [lambda m, use=use: use(m, ratio=0.1) for use in uses]
uses += [backend.digest, smh.report, lambda m: smh.porting.match(m, m), lambda m: smh.load("/nowhere", m)]
if "{module}" == "torch":
    import torch
    around = torch.nn.Sequential(torch.nn.Linear(20, 20), model)
    uses.append(lambda m: backend.compress(around, ratio=0.1))
for place, use in enumerate(uses):
    try:
        use(model)
    except smh.BackendError as error:
        assert "'mine' is a Sequential of Keras" in str(error), error
        assert "{advice}" in str(error), error
    else:
        raise SystemExit(f"use {{place}} was not refused")
assert model.get_weights()[0].tobytes() == before
"""


@pytest.mark.parametrize(
    ("keras_on", "module", "advice"),
    [
        ("torch", "torch", "runs on torch here and must run on TensorFlow: set KERAS_BACKEND=tensorflow"),
        ("jax", "jax", "runs on jax here and must run on TensorFlow: set KERAS_BACKEND=tensorflow"),
    ],
)
def test_keras_on_another_framework_is_refused(keras_on, module, advice):
    pytest.importorskip("keras")
    pytest.importorskip(keras_on)
    program = PROGRAM.format(module=module, advice=advice)
    environment = {**os.environ, "KERAS_BACKEND": keras_on, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["torch", "jax"])
def test_a_keras_model_is_none_of_another_backend(module):
    smh = pytest.importorskip("smh")
    pytest.importorskip(module)
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(64)], name="mine")
    with pytest.raises(smh.BackendError, match="'mine' is a Sequential of Keras: use smh.keras"):
        getattr(smh, module).compress(model, ratio=0.1)
