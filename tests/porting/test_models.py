"""Whole models, trained in one framework and served in another: the same bits of weights, and the same answers."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

import smh
from conformance.bits import Tally
from smh.core.views import View
from smh.porting import Entry, Mapping, doubts, match

torch = pytest.importorskip("torch", reason="models of torch need torch")
pytest.importorskip("jax", reason="models of JAX need JAX")
pytest.importorskip("tensorflow", reason="models of Keras need TensorFlow")
for library in ("equinox", "flax", "optax", "sklearn"):
    pytest.importorskip(library, reason=f"models that are ported need {library}")

from tests.porting.models import ARCHITECTURES, digits, jax_models, keras_models, numpy_models, torch_models  # noqa: E402
from tests.porting.models.matched import FRAMEWORKS, matched, options_for  # noqa: E402

STEPS = 10
"""Of training, where answers need not be good."""
TOLERANCE = 1e-5
"""Of logits, relative to the largest. A port that goes wrong changes them by far more."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Run on one thread: where others use the machine too, threads of so small models mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A compressed model, the file that it was saved to, and what it computes from."""

    model: object
    path: object
    digest: str
    tensors: dict

    @classmethod
    def of(cls, framework, model, folder):
        models = FRAMEWORKS[framework]
        path = folder / "source.safetensors"
        return cls(model, path, models.save(path, model), models.tensors(models.materialize(model)))


def trained_in(framework, architecture, folder, steps=120):
    images, _, labels, _ = digits()
    models = FRAMEWORKS[framework]
    model = models.train(models.compress(models.make(architecture), 0.2), images, labels, steps)
    return Saved.of(framework, model, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return what trains an architecture in PyTorch for a few steps, once."""
    folder = tmp_path_factory.mktemp
    return functools.cache(lambda architecture: trained_in("torch", architecture, folder(architecture), STEPS))


def randomised(framework, architecture):
    """Return a plain model in which every tensor counts: no bias is zero, no scale and no variance is one."""
    rng = np.random.default_rng(1)
    models = FRAMEWORKS[framework]
    model = models.make(architecture)
    tensors = {}
    for name, x in models.tensors(model).items():
        random = rng.uniform(0.2, 1, x.shape) if "var" in name else x + rng.normal(0, 0.2, x.shape)
        tensors[name] = random.astype(np.float32) if x.dtype.kind == "f" else x
    return models.put(model, tensors)


def ported(path, mapping, digest, new_path):
    """Port a file to another one, and return its path."""
    checkpoint = smh.port(smh.load(path), mapping)
    assert smh.save(new_path, checkpoint.plan, checkpoint.variables, checkpoint.dense) == digest
    return new_path


def without_carried(tensors):
    return {name: x for name, x in tensors.items() if not name.startswith("carried/")}


def shapes_of(tensors):
    return {name: x.shape for name, x in tensors.items()}


def assert_same_answers(got, expected, what):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=what)
    (flipped,) = np.nonzero(got.argmax(1) != expected.argmax(1))
    two = np.sort(expected[flipped], axis=1)[:, -2:]
    assert not len(flipped), f"{what}: other answers for images {flipped}, whose two largest logits are {two}"


def assert_other_answers(got, expected):
    assert np.abs(got - expected).max() > 1000 * TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("source", FRAMEWORKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_models_agree(architecture, source):
    models, model = FRAMEWORKS[source], randomised(source, architecture)
    expected = models.logits(model, digits()[1])
    for target, others in FRAMEWORKS.items():
        if target == source:
            continue
        other = others.make(architecture)
        tensors = matched(source, model, target, other).apply(models.tensors(model))
        got = others.logits(others.put(other, without_carried(tensors)), digits()[1])
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=target)


# One test for all that takes a trained model, so that no other process trains it again.
@pytest.mark.parametrize("source", FRAMEWORKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_model_is_served_elsewhere(architecture, source, tmp_path):
    start = trained_in(source, architecture, tmp_path)
    _, images, _, labels = digits()
    logits = FRAMEWORKS[source].logits(start.model, images)
    # Answers of a model that has learned nothing would agree whatever was ported.
    assert (logits.argmax(1) == labels).mean() > 0.5

    for target, others in FRAMEWORKS.items():
        if target == source:
            continue
        fresh = others.make(architecture)
        mapping = matched(source, start.model, target, fresh)
        mapping.check(shapes_of(start.tensors), shapes_of(others.tensors(fresh)))
        model = others.load(ported(start.path, mapping, start.digest, tmp_path / target), fresh)
        assert others.digest(model) == start.digest
        expected = without_carried(mapping.apply(start.tensors))
        Tally().all_same(others.tensors(others.materialize(model)), expected, target)
        assert_same_answers(others.logits(model, images), logits, target)

    found = smh.load(start.path)
    assert smh.digest(found.plan, found.variables) == start.digest
    tensors = {**smh.materialize(found.plan, found.variables), **found.dense}
    Tally().all_same(tensors, start.tensors, "numpy")
    if architecture in numpy_models.MODELS:
        if source != "torch":
            tensors = matched(source, start.model, "torch", torch_models.make(architecture)).apply(tensors)
        assert_same_answers(numpy_models.MODELS[architecture](tensors, images), logits, "numpy")


def round_trip(start, first, tmp_path):
    """Port a file through all frameworks and back to the first, by mappings that were files as well."""
    names = list(FRAMEWORKS)
    names = names[names.index(first) :] + names[: names.index(first)]
    models = {name: FRAMEWORKS[name].make(start.model.architecture) for name in names[1:]} | {first: start.model}
    path = start.path
    for source, target in itertools.pairwise([*names, first]):
        mapping = matched(source, models[source], target, models[target])
        mapping.save(tmp_path / "mapping.json")
        path = ported(path, Mapping.load(tmp_path / "mapping.json"), start.digest, tmp_path / f"to_{target}")
    return path


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "lstm"])
def test_a_round_trip_from_torch(architecture, trained, tmp_path):
    start = trained(architecture)
    path = round_trip(start, "torch", tmp_path)
    assert path.read_bytes() == start.path.read_bytes()
    # That includes the numbers of batches, which the others do not know.
    counts = [x for name, x in smh.load(path).dense.items() if name.endswith(".num_batches_tracked")]
    norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in start.model.modules())
    assert counts == [STEPS] * norms


@pytest.mark.parametrize("first", ["jax", "keras"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_round_trip_from_elsewhere(architecture, first, tmp_path):
    start = Saved.of(first, FRAMEWORKS[first].compress(randomised(first, architecture), 0.2), tmp_path)
    before, after = smh.load(start.path), smh.load(round_trip(start, first, tmp_path))
    assert after.plan == before.plan
    Tally().all_same(after.variables, before.variables, "variables")
    Tally().all_same(without_carried(after.dense), before.dense, "kept")
    carried = set(after.dense) - set(before.dense)
    assert all(name.endswith(".num_batches_tracked") for name in carried)


def test_a_round_trip_adds_the_two_biases_of_a_torch_lstm(trained, tmp_path):
    start = trained("lstm")
    before, after = smh.load(start.path), smh.load(round_trip(start, "torch", tmp_path))
    assert after.plan == before.plan
    Tally().all_same(after.variables, before.variables, "variables")
    input_bias, hidden_bias = (before.dense[f"rnn.bias_{x}_l0"] for x in ("ih", "hh"))
    assert hidden_bias.any()
    expected = {"rnn.bias_ih_l0": input_bias + hidden_bias, "rnn.bias_hh_l0": np.zeros_like(hidden_bias)}
    Tally().all_same(after.dense, {**before.dense, **expected}, "kept")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressed_parameters_match_as_their_modules_do(architecture):
    # By names and shapes alone: parameters of Flax do not know their layers.
    model, fresh = jax_models.make(architecture), torch_models.make(architecture)
    params = jax_models.compress(model, 0.2).params
    found = match(fresh, params, **options_for(architecture, "torch", "jax"))
    assert found.mapping.tensors == matched("torch", fresh, "jax", model).tensors


def test_two_biases_that_are_generated_as_one_do_not_move(tmp_path):
    fresh = torch_models.make("gru")
    small = keras_models.compress(keras_models.make("gru"), 0.2, include=["*kernel", "gru_cell/bias"])
    keras_models.save(tmp_path / "gru.safetensors", small)
    mapping = matched("keras", small, "torch", fresh)
    with pytest.raises(smh.PortError, match="'gru/gru_cell/bias' is generated and must become one whole tensor"):
        smh.port(smh.load(tmp_path / "gru.safetensors"), mapping)


def exchanged(mapping, one, other):
    return {**mapping.tensors, one: mapping.tensors[other], other: mapping.tensors[one]}


def turned(mapping, name, view):
    source = dataclasses.replace(mapping.tensors[name].sources[0], view=view)
    return {**mapping.tensors, name: Entry((source,))}


WRONG = {
    "layers exchanged": ("mlp", lambda m: exchanged(m, "dense2/kernel", "dense3/kernel")),
    "not transposed": ("mlp", lambda m: turned(m, "dense2/kernel", None)),
    "scale and variance exchanged": ("separable", lambda m: exchanged(m, "bn/gamma", "bn/moving_variance")),
    "channels and multiplier exchanged": (
        "separable",
        lambda m: turned(m, "block1_depthwise/kernel", View("(m c) 1 h w -> h w c m", (("m", 2),))),
    ),
    "height and width exchanged": ("resnet", lambda m: turned(m, "conv/kernel", View("o i h w -> w h i o"))),
    "gates in another order": ("gru", lambda m: turned(m, "gru/gru_cell/kernel", View("o i -> i o"))),
    "query and key of another layer": (
        "transformer",
        lambda m: exchanged(m, "layer_0_attention/query/kernel", "layer_1_attention/query/kernel"),
    ),
    "heads inside": (
        "transformer",
        lambda m: turned(m, "layer_0_attention/query/kernel", View("(d h) i -> i h d", (("h", 4),))),
    ),
}
"""Mappings that fit all shapes, by what is wrong with them: values and logits tell."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_mapping_of_the_right_shapes_shows_in_values(wrong, trained, tmp_path):
    architecture, change = WRONG[wrong]
    start, fresh = trained(architecture), keras_models.make(architecture)
    logits = torch_models.logits(start.model, digits()[1])
    right = matched("torch", start.model, "keras", fresh)
    mapping = Mapping(change(right))
    mapping.check(shapes_of(start.tensors), shapes_of(keras_models.tensors(fresh)))
    path = ported(start.path, mapping, start.digest, tmp_path / "wrong.safetensors")  # the digest cannot tell

    got, expected = mapping.apply(start.tensors), right.apply(start.tensors)
    differs = {name for name, x in expected.items() if not np.array_equal(got[name], x)}
    assert differs == {name for name in right.tensors if mapping.tensors[name] != right.tensors[name]} != set()
    assert_other_answers(keras_models.logits(keras_models.load(path, fresh), digits()[1]), logits)


def test_an_image_that_is_not_reordered_shows_in_logits(trained, tmp_path):
    start, fresh = trained("cnn"), jax_models.make("cnn")
    logits = torch_models.logits(start.model, digits()[1])
    mapping = match(start.model, jax_models.module_of(fresh), flatten={"linear": None}).mapping
    path = ported(start.path, mapping, start.digest, tmp_path / "wrong.safetensors")
    assert_other_answers(jax_models.logits(jax_models.load(path, fresh), digits()[1]), logits)


def test_exchanged_layers_are_doubted():
    right = matched("torch", torch_models.make("mlp"), "keras", keras_models.make("mlp"))
    assert doubts(right) == []
    (doubt,) = doubts(Mapping(exchanged(right, "dense2/kernel", "dense3/kernel")))
    assert "'dense2/kernel' comes from 'fc3.weight'" in doubt


def test_shapes_that_differ_are_refused():
    fresh = keras_models.make("mlp")
    right = matched("torch", torch_models.make("mlp"), "keras", fresh)
    target = shapes_of(keras_models.tensors(fresh))
    with pytest.raises(smh.PortError, match=r"'dense1/kernel' of the target has the shape \(64, 80\)"):
        Mapping(turned(right, "dense1/kernel", None)).check(target=target)


@pytest.mark.parametrize("name", ["bn/moving_variance", "block1_pointwise/kernel"])
def test_what_is_missing_is_refused(name, trained):
    start, fresh = trained("separable"), keras_models.make("separable")
    right = matched("torch", start.model, "keras", fresh)
    mapping = Mapping({target: entry for target, entry in right.tensors.items() if target != name})
    with pytest.raises(smh.PortError, match=f"not filled by the mapping: '{name}'"):
        mapping.check(target=shapes_of(keras_models.tensors(fresh)))
    with pytest.raises(smh.PortError, match=f"not used by the mapping: '{right.tensors[name].sources[0].name}'"):
        smh.port(smh.load(start.path), mapping)


def test_what_needs_hints_is_ambiguous_without_them():
    torch_model, keras_model = torch_models.make("mlp"), keras_models.make("mlp")
    module = jax_models.module_of(jax_models.make("mlp"))
    assert not match(torch_model, keras_model).ambiguous
    found = match(torch_model, module)
    assert [case.targets for case in found.ambiguous] == [("layers/1", "layers/2")]
    with pytest.raises(smh.PortError, match="in_order=True"):
        _ = found.mapping
    by_hints = match(torch_model, module, hints={"layers/1": "fc2", "layers/2": "fc3"})
    assert by_hints.mapping.tensors == match(torch_model, module, in_order=True).mapping.tensors
