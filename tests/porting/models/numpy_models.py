"""Some of the architectures in plain NumPy, for serving: functions of tensors with the names of PyTorch."""

import numpy as np


def mlp(tensors, images):
    x = images.reshape(len(images), 64)
    for name in ("fc1", "fc2", "fc3"):
        x = np.maximum(_linear(tensors, name, x), 0)
    return _linear(tensors, "head", x)


def gru(tensors, images):
    state = np.zeros((len(images), 56), np.float32)
    for row in images.transpose(1, 0, 2):
        r, z, n = np.split(row @ tensors["rnn.weight_ih_l0"].T + tensors["rnn.bias_ih_l0"], 3, axis=1)
        hidden_r, hidden_z, hidden_n = np.split(
            state @ tensors["rnn.weight_hh_l0"].T + tensors["rnn.bias_hh_l0"], 3, axis=1
        )
        update = _sigmoid(z + hidden_z)
        state = update * state + (1 - update) * np.tanh(n + _sigmoid(r + hidden_r) * hidden_n)
    return _linear(tensors, "fc", state)


def lstm(tensors, images):
    state = cell = np.zeros((len(images), 48), np.float32)
    for row in images.transpose(1, 0, 2):
        gates = row @ tensors["rnn.weight_ih_l0"].T + state @ tensors["rnn.weight_hh_l0"].T
        gates += tensors["rnn.bias_ih_l0"] + tensors["rnn.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4, axis=1)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        state = _sigmoid(o) * np.tanh(cell)
    return _linear(tensors, "fc", state)


MODELS = {"mlp": mlp, "gru": gru, "lstm": lstm}


def _linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
