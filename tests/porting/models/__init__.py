"""Seven architectures for handwritten digits, each as users of PyTorch, JAX and Keras write it.

=============  ======================================================================================================
mlp            three hidden layers of one width: two matrices of the same square shape
cnn            batch norm, and a flattened image before a dense layer
separable      depthwise and pointwise convolutions, a depth multiplier of 2, stride 2 with symmetric padding
resnet         identity and projection shortcuts, global average pooling
gru            a row of pixels is a step; two biases everywhere
lstm           two biases in PyTorch, one elsewhere
transformer    a row is a token; learned positions, pre-norm, separate projections
=============  ======================================================================================================

The modules ``torch_models``, ``jax_models`` and ``keras_models`` have the same functions: ``make``, ``compress``,
``train``, ``logits``, ``materialize``, ``tensors``, ``put``, ``save``, ``load``, ``digest`` and ``module_of``. What no
checkpoint holds (epsilon, padding, the variant of GELU) is set to the values of PyTorch.
"""

import functools

import numpy as np

ARCHITECTURES = ("mlp", "cnn", "separable", "resnet", "gru", "lstm", "transformer")
IMAGES = ("cnn", "separable", "resnet")
"""Those that take images with channels; an MLP takes pixels, the others rows."""
BATCH = 64
RATE = 1e-2
"""The learning rate of Adam."""
STILL_FROM = 60
"""The step from which on the rate is 0, and only the statistics of batch norm move. Inference is made of these: where
weights go on moving, it is chance, and the number of CPUs, how far the statistics are behind."""


@functools.cache
def digits():
    """Return images [n, 8, 8] from 0 to 1 and labels, for training and for tests."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    return train_test_split(images, data.target.astype(np.int32), test_size=360, random_state=0, stratify=data.target)


def batches(images, labels, steps):
    """Yield the batches of some steps, the same in every framework."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(len(images), size=BATCH)
        yield images[chosen], labels[chosen]
