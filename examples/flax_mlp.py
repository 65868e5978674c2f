"""Train a Flax NNX network on handwritten digits with a tenth of the variables, save it and load it.

pip install "structured-multi-hashing[jax,demo]" flax optax
python examples/flax_mlp.py
"""

import os
import tempfile

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import smh

EPOCHS, BATCH = 30, 64


class Mlp(nnx.Module):
    """A plain network with two hidden layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(64, 256, rngs=rngs)
        self.hidden2 = nnx.Linear(256, 256, rngs=rngs)
        self.out = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return self.out(nnx.relu(self.hidden2(nnx.relu(self.hidden1(x)))))


def main() -> float:
    """Train, save and load the model; return its accuracy on test images."""
    digits = load_digits()
    arrays = train_test_split((digits.data / 16).astype("float32"), digits.target, test_size=0.2, random_state=0)
    train_x, test_x, train_y, test_y = map(jax.numpy.asarray, arrays)

    graph, params = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param)
    params = smh.compress(params, ratio=0.1, optimizer="adam")  # variables instead of weights from here on
    optimizer = optax.adam(3e-3)

    def model(params, x):
        return nnx.merge(graph, smh.materialize(params))(x)

    @jax.jit
    def epoch(params, state, order):
        def step(carry, batch):
            params, state = carry

            def loss(params):
                logits = model(params, train_x[batch])
                return optax.softmax_cross_entropy_with_integer_labels(logits, train_y[batch]).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), order)[0]

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), EPOCHS):
        order = jax.random.permutation(key, len(train_x))[: len(train_x) // BATCH * BATCH]
        params, state = epoch(params, state, order.reshape(-1, BATCH))

    accuracy = float((model(params, test_x).argmax(-1) == test_y).mean())
    print(smh.report(params))
    print(f"accuracy on {len(test_x)} test images: {accuracy:.1%}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "digits.safetensors")
        digest = smh.save(path, params)
        loaded = smh.load(path, nnx.state(Mlp(nnx.Rngs(1)), nnx.Param))
        same = "the same" if smh.digest(loaded) == digest else "different"
        print(f"saved in {os.path.getsize(path):,} bytes; loaded, the weights are {same}")
    return accuracy


if __name__ == "__main__":
    main()
