"""Train a small Keras network on handwritten digits with a tenth of the variables, save it and load it.

pip install "structured-multi-hashing[keras,demo]"
python examples/keras_cnn.py
"""

import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import smh


def make_model() -> keras.Model:
    """Return a network for images of 8 x 8 pixels."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def main() -> float:
    """Train, save and load the model; return its accuracy on test images."""
    keras.utils.set_random_seed(0)
    images, digits = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, digits, test_size=360, random_state=0, stratify=digits)

    model = smh.compress(make_model(), ratio=0.1, optimizer="adam")
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=64, epochs=15, verbose=0)
    accuracy = float(model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"])
    print(smh.report(model))

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "digits.safetensors"
        digest = smh.save(path, model)
        print(f"{path.stat().st_size:,} bytes, digest {digest[:16]}...")
        loaded = smh.load(path, make_model())
    if smh.digest(loaded) != digest:
        raise SystemExit("the loaded model has other weights")
    served = smh.materialize(loaded)
    agree = np.mean(served.predict(x_test, verbose=0).argmax(1) == model.predict(x_test, verbose=0).argmax(1))
    print(f"accuracy {accuracy:.1%}; the loaded model has the same weights and gives {agree:.1%} of the same answers")
    return accuracy


if __name__ == "__main__":
    main()
