"""Families of transformers, from compression over training and files to plain models, bit for bit."""

import copy
import fnmatch

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from smh import VariableError  # noqa: E402
from smh import torch as smh  # noqa: E402
from tests.backends.torch.checks import (  # noqa: E402
    assert_same,
    check_file,
    check_plain,
    check_step,
    quiet,
    step,
)
from tests.zoo.transformers_models import FAMILIES, FAN_IN, NO_MATRICES, noise, tokens  # noqa: E402

# Where most of a small model is kept, as of encodec's parametrised layers.
pytestmark = pytest.mark.filterwarnings("ignore:only .* numbers are generated:UserWarning")

RESIDENCIES = ("full", "cached", "layer")


def made(name, seed=0):
    """Return a model of a family, and what calls it."""
    torch.manual_seed(seed)
    kind, config, inputs = FAMILIES[name]
    kind = getattr(transformers, kind)
    inputs = inputs()
    return kind(kind.config_class(**config)), lambda model: model(**inputs)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"rwkv"}))
def test_family(name, tmp_path):
    fresh, call = made(name)
    before = {key: x.clone() for key, x in fresh.state_dict().items()}
    model = smh.compress(fresh, ratio=0.3)
    kept = {key: x for key, x in model.state_dict().items() if key in before}
    assert kept
    for key, x in kept.items():
        assert torch.equal(x, before[key]), key

    # Every residency gives the outputs and gradients of the first, cached weights also after they were used.
    y = quiet(model, call)
    z, gradients = step(copy.deepcopy(model), call)
    for residency in RESIDENCIES[1:]:
        other = copy.deepcopy(model)
        smh.set_residency(other, residency)
        for _ in range(2):
            assert_same(quiet(other, call), y, residency)
        output, found = step(other, call)
        assert_same(output, z, f"{residency}, training")
        assert found.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert_same(found[key], gradient, f"{residency}, {key}")
        torch.optim.SGD(other.parameters(), 0.1).step()
        plain = smh.materialize_(copy.deepcopy(other))
        assert_same(quiet(other, call), quiet(plain, call), f"{residency}, after a step")

    check_step(model, call)
    check_file(tmp_path / "model.safetensors", model, made(name, seed=1)[0], call)
    check_plain(model, fresh, call)
    for key, x in fresh.state_dict().items():
        assert torch.equal(x, before[key]), f"the model that was given has changed: {key}"


WRITERS = ("CausalLM", "LMHead", "ForConditionalGeneration", "MarianMT")
GENERATE = [name for name, (kind, _, _) in FAMILIES.items() if any(x in kind for x in WRITERS) and name != "rwkv"]


@pytest.mark.parametrize(("name", "residency"), [(name, RESIDENCIES[i % 3]) for i, name in enumerate(GENERATE)])
def test_generate(name, residency):
    model = smh.compress(made(name)[0], ratio=0.3, residency=residency).eval()
    plain = smh.materialize_(copy.deepcopy(model))
    first = {"input_ids": tokens(2, 4)}
    if name == "whisper":
        first = {"input_features": FAMILIES[name][2]()["input_features"]}
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    found, expected = (m.generate(**first, **options) for m in (model, plain))
    assert torch.equal(found.sequences, expected.sequences)
    assert_same(found.logits, expected.logits, name)


def test_a_model_that_changes_its_weights_is_refused_when_it_does():
    model, call = made("rwkv")  # which divides weights of its layers in its first forward pass of inference
    with torch.no_grad(), pytest.raises(VariableError, match="div_ cannot change a generated weight in place"):
        call(smh.compress(model, ratio=0.3).eval())


@pytest.mark.parametrize("name", NO_MATRICES)
def test_what_is_no_weight_matrix_is_kept(name):
    fresh, _ = made(name)
    before, kept = fresh.state_dict(), smh.compress(fresh, ratio=0.3).state_dict()
    for pattern in NO_MATRICES[name]:
        names = fnmatch.filter(before, pattern)
        assert names, pattern
        for key in names:
            assert key in kept, key
            assert torch.equal(kept[key], before[key])


@pytest.mark.parametrize("name", FAN_IN)
def test_weights_start_with_the_deviation_of_their_fan_in(name):
    weights = dict(smh.materialize_(smh.compress(made(name)[0], ratio=0.9)).named_parameters())
    for pattern, inputs in FAN_IN[name].items():
        names = fnmatch.filter(weights, pattern)
        assert names, pattern
        for key in names:
            assert float(weights[key].detach().std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.15), key


def writing():
    ids = tokens(8, 8)
    return {"input_ids": ids, "labels": ids}


def translating():
    return {"input_ids": tokens(8, 8), "labels": tokens(8, 8).flip(1)}


def images(size):
    return lambda: {"pixel_values": noise(16, 3, size, size), "labels": torch.arange(16) % 2}


TASKS = {
    "bert": writing,
    "gpt2": writing,
    "llama": writing,
    "mamba": writing,
    "t5": translating,
    "vit": images(16),
    "resnet": images(32),
}
"""Family: what makes a batch to learn by heart."""
OPTIONS = {"t5": {"scale": "match"}}
"""T5 does not scale its attention, so its weights start with deviations that take the place of it."""


@pytest.mark.parametrize("name", TASKS)
def test_learning_keeps_up_with_the_dense_model(name):
    def trained(model):
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        batch, losses = TASKS[name](), []
        for _ in range(30):
            optimizer.zero_grad()
            losses.append(model.train()(**batch).loss)
            losses[-1].backward()
            optimizer.step()
        return losses[0].item(), losses[-1].item()

    plain, _ = made(name)
    start, dense = trained(copy.deepcopy(plain))
    first, last = trained(smh.compress(plain, ratio=0.5, optimizer="adam", **OPTIONS.get(name, {})))
    assert dense < start / 2
    assert first < 1.5 * start
    assert last < dense + (start - dense) / 3
