"""Families of transformers, from compression over training and files to plain models, bit for bit."""

import copy
import fnmatch
import functools

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from torch import nn  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

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
from tests.zoo.learning import assert_keeps_up  # noqa: E402
from tests.zoo.transformers_models import FAMILIES, FAN_IN, NO_MATRICES, images, masked, tokens  # noqa: E402

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


LEARNING = {
    "clip": {"inputs": lambda: masked() | images(16, 3)()},
    "dinov2": {"rate": 1e-2},
    "encodec": {"rate": 2e-2, "steps": 60, "fall": 0.8},
    "perceiver": {"rate": 1e-2},
    "t5": {"scale": "match"},
}
"""What differs for a family; T5 starts with deviations that take the place of the scale of its attention."""
OUTPUTS = ("logits", "logits_per_text", "prediction_outputs", "audio_values", "last_hidden_state")


def task(name, inputs):
    """Return the loss of a model on a batch, whose classes or numbers are drawn at random, to be learned by heart."""
    generator, goals = torch.Generator().manual_seed(3), []

    def loss(model):
        outputs = model(**inputs)
        key = next(key for key in OUTPUTS if key in outputs)
        y = outputs[key].movedim(1, -1) if outputs[key].ndim == 4 else outputs[key]
        classes = key.startswith("logits") and name != "electra"  # whose logits are one for each token
        if not goals:
            draw = functools.partial(torch.randint, y.shape[-1]) if classes else torch.randn
            goals.append(draw(y.shape[:-1] if classes else y.shape, generator=generator))
        if classes:
            return nn.functional.cross_entropy(y.flatten(0, -2), goals[0].flatten())
        return nn.functional.mse_loss(y, goals[0])

    return loss


def trained(model, loss, rate, steps):
    """Return the first and the last loss of a model that is trained on one batch."""
    torch.manual_seed(5)
    optimizer, losses = torch.optim.AdamW(model.parameters(), rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(loss(model.train()))
        losses[-1].backward()
        optimizer.step()
    return losses[0].item(), losses[-1].item()


@pytest.mark.parametrize("name", FAMILIES)
def test_learning_keeps_up_with_the_dense_model(name):
    special = {"inputs": FAMILIES[name][2], "rate": 5e-3, "steps": 40, "scale": "fan_in"} | LEARNING.get(name, {})
    plain, loss = made(name)[0], task(name, special["inputs"]())
    dense = trained(copy.deepcopy(plain), loss, special["rate"], special["steps"])
    model = smh.compress(plain, ratio=0.5, optimizer="adam", scale=special["scale"])
    compressed = trained(model, loss, special["rate"], special["steps"])
    assert_keeps_up(dense, compressed, special.get("fall", 0.5))


LAYERS = nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d


def check_signals(model, call):
    """Check the size of what each layer hands on, which is that of what it takes, over the root of three.

    So it is whatever the shape of a layer, if the deviation of its weights is that of its fan-in. Of few outputs the
    size is left to chance.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, LAYERS)}
    generated = {tensor.name for tensor in smh.plan_of(model).tensors}
    measured = {}

    def measure(module, inputs, output):
        weight, power = module.weight, inputs[0].square()
        if not isinstance(module, nn.Linear | Conv1D):  # at the edges of an image there is less
            power = module._conv_forward(power, torch.ones_like(weight) / weight[0].numel(), None)
            output = output.movedim(1, -1)
        if output.shape[-1] >= 8:
            own = output - (0 if module.bias is None else module.bias)
            measured[names[module]] = float((3 * own.square().mean() / power.mean()).sqrt())

    hooks = [module.register_forward_hook(measure) for module, name in names.items() if f"{name}.weight" in generated]
    with torch.no_grad():
        call(model.train())
    for hook in hooks:
        hook.remove()
    for name, size in measured.items():
        assert 0.4 < size < 2.5, f"{name} hands on {size:.2f} times what it should"
    return measured


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"encodec"}))
def test_layers_keep_the_size_of_signals(name):
    plain, call = made(name)
    assert len(check_signals(smh.compress(plain, ratio=0.5), call)) > 2


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "vit"])
def test_wrong_initial_values_show(name):
    plain, call = made(name)
    model, loss = smh.compress(plain, ratio=0.5, optimizer="adam"), task(name, FAMILIES[name][2]())
    scales = [scale for key, scale in model.named_parameters() if key.endswith("weight_scale")]
    with torch.no_grad():
        scales[len(scales) // 2].mul_(4)
        with pytest.raises(AssertionError, match="hands on"):
            check_signals(model, call)
        for scale in scales:
            scale.mul_(30)
    with pytest.raises(AssertionError, match="the loss"):
        assert_keeps_up(trained(plain, loss, 5e-3, 40), trained(model, loss, 5e-3, 40))
