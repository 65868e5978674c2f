"""Compressed Keras models whose layers are replaced, removed or added afterwards: no file tells of the old ones."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh import keras as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")

layers = keras.layers
X = np.linspace(-1, 1, 18).reshape(3, 6).astype(np.float32)


def plain():
    body = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="in"), layers.LayerNormalization(name="norm")])
    return keras.Sequential([keras.Input((6,)), body, layers.Dense(6, name="hidden"), layers.Dense(4, name="out")])


def compressed():
    return smh.compress(plain(), ratio=0.9)


def head(model, *new):
    model.pop()
    for layer in new:
        model.add(layer)


EDITS = {
    "replaced": lambda m: head(m, layers.Dense(7)),
    "replaced by its like": lambda m: head(m, layers.Dense(4, name="out")),
    "removed": lambda m: head(m),
    "added": lambda m: m.add(layers.Dense(4)),
    "kept layer added": lambda m: m.add(layers.BatchNormalization()),
    "kept layer removed": lambda m: m.layers[0].pop(),
    "part changed": lambda m: head(m.layers[0], layers.LayerNormalization(name="norm")),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_tells_of_layers_is_refused_where_they_are_gone(edit, tmp_path):
    model = compressed()
    path = tmp_path / "before.safetensors"
    smh.save(path, model)
    model.save_weights(tmp_path / "before.weights.h5")
    EDITS[edit](model)
    values = [x.numpy() for x in model.variables]
    for attempt in (
        lambda: smh.save(tmp_path / "after.safetensors", model),
        lambda: smh.digest(model),
        lambda: smh.report(model),
        lambda: smh.load(path, model),
        lambda: smh.materialize(model),
        lambda: smh.freeze(model),
        lambda: model.save(tmp_path / "after.keras"),
        lambda: model.save_weights(tmp_path / "after.weights.h5"),
        lambda: model.load_weights(tmp_path / "before.weights.h5"),
    ):
        with pytest.raises(PlanError, match=r"since compression.*(replaced or removed|came with other layers)"):
            attempt()
    assert not list(tmp_path.glob("after*"))
    assert all(map(np.array_equal, values, (x.numpy() for x in model.variables)))


def test_layers_without_weights_may_be_added_and_an_edit_may_be_undone(tmp_path):
    model = compressed()
    digest = smh.digest(model)
    last = model.layers[-1]
    head(model, layers.ReLU(), last)
    assert smh.save(tmp_path / "a.safetensors", model) == digest
    model.save(tmp_path / "a.keras")
    assert np.array_equal(keras.saving.load_model(tmp_path / "a.keras")(X), model(X))
    assert np.array_equal(smh.materialize(model)(X), model(X))
    model.pop()
    with pytest.raises(PlanError, match="out/kernel"):
        smh.digest(model)
    model.add(last)
    assert smh.digest(model) == digest


def functional():
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(4, name="out")(layers.Dense(6, name="hidden")(x)))


@pytest.mark.parametrize("make", [plain, functional])
def test_a_clone_without_the_pool_is_warned_of_and_a_whole_copy_is_not(make, tmp_path):
    model = smh.compress(make(), ratio=0.5)
    with pytest.warns(UserWarning, match="clone_model returns a plain model") as told:
        keras.models.clone_model(model)
    assert {warning.filename for warning in told} == {__file__}

    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    assert smh.digest(copy) == smh.digest(model)
    model.save(tmp_path / "model.keras")
    assert smh.digest(keras.models.load_model(tmp_path / "model.keras")) == smh.digest(model)
    keras.models.clone_model(smh.materialize(model))
