"""Inputs from running statistics: they have these statistics, and the model stays as it was."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import smh  # noqa: E402
from smh.datafree import samples  # noqa: E402

SHAPE = (3, 8, 8)


def images(n):
    return 0.3 * torch.randn(n, *SHAPE).cumsum(2) + 1.0


class Trained(nn.Sequential):
    """A classifier of four classes with running statistics of smooth images, with one layer in evaluation mode."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 40, 3),
            nn.BatchNorm2d(40),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(40, 4),
        )
        for _ in range(40):
            self(images(50))
        self[1].eval()
        self[0].bias.requires_grad_(False)
        self(torch.ones(2, *SHAPE)).square().sum().backward()


@pytest.fixture(params=["plain", "compressed"])
def model(request):
    if request.param == "plain":
        return Trained()
    with pytest.warns(UserWarning, match="most of the model is lost"):
        return smh.fit(Trained(), ratio=0.3)[0]


def state(model):
    """Return all that a call could change."""
    return (
        [(name, x.detach().clone(), x.requires_grad) for name, x in model.named_parameters()],
        [None if x.grad is None else x.grad.clone() for x in model.parameters()],
        [(name, x.clone()) for name, x in model.named_buffers()],
        [(type(x), x.training, len(x._forward_pre_hooks), len(x._forward_hooks)) for x in model.modules()],
        torch.get_rng_state(),
    )


def differs(before, after):
    """Say whether two states differ, bit by bit."""
    if isinstance(before, torch.Tensor):
        same = before.shape == after.shape and before.dtype == after.dtype and before.numpy().tobytes()
        return same is False or same != after.numpy().tobytes()
    if isinstance(before, (list, tuple)):
        return len(before) != len(after) or any(map(differs, before, after))
    return before != after


def gap(model, x):
    """Return how far the statistics of activations are from the running ones, by another measure than the library's."""
    gaps, model = [], model.eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm2d):
                rows = x.transpose(0, 1).flatten(1)
                deviation = layer.running_var.sqrt()
                gaps += [(rows.mean(1) - layer.running_mean) / deviation, rows.std(1) / deviation - 1.0]
            x = layer(x)
    return torch.cat(gaps).square().mean().item()


def test_statistics_are_those_of_the_model():
    model = Trained()
    made = samples(model, 40, SHAPE, steps=100, batch=20)
    assert made.shape == (40, *SHAPE)
    assert made.dtype == torch.float32
    assert not made.requires_grad
    noise = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert gap(model, made) < 0.05 * gap(model, noise)
    assert gap(model, made[:20]) < 0.05 * gap(model, noise[:20])


def test_inputs_of_a_compressed_model():
    model = smh.compress(Trained(), ratio=0.3)
    model.train()
    for _ in range(40):
        model(images(50))
    noise = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert gap(model, samples(model, 20, SHAPE, steps=100)) < 0.2 * gap(model, noise)


def test_the_model_stays_as_it_was(model):
    model(torch.ones(2, *SHAPE)).sum().backward()
    before = state(model)
    samples(model, 6, SHAPE, steps=3)
    assert not differs(before, state(model))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1.0
    assert differs(before, state(model))


@pytest.mark.parametrize("step", [1, 5])
def test_the_model_stays_as_it_was_after_an_error(model, step):
    calls = []

    def fail(module, inputs, output):
        calls.append(module.training)
        if len(calls) == step:
            raise KeyboardInterrupt

    model[-2].register_forward_hook(fail)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        samples(model, 6, SHAPE, steps=3, batch=3)
    assert calls == [False] * step
    assert not differs(before, state(model))


def test_layers_that_count_their_calls_are_set_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1.0
            return x

    model = nn.Sequential(Counting(), nn.BatchNorm2d(3))
    samples(model, 2, SHAPE, steps=2)
    assert model[0].calls == 0.0


def test_equal_seeds_give_equal_inputs():
    model = Trained()
    torch.manual_seed(1)
    first = samples(model, 5, SHAPE, steps=4, batch=3, seed=7)
    torch.manual_seed(2)
    with torch.inference_mode():
        second = samples(model, 5, SHAPE, steps=4, batch=3, seed=7)
    assert torch.equal(first, second)
    assert not torch.equal(first, samples(model, 5, SHAPE, steps=4, batch=3, seed=8))


def test_inputs_have_their_classes():
    model = Trained()
    for labels in (None, [3, 3, 1, 0, 2, 1] * 5):
        made = samples(model, 30, SHAPE, steps=60, batch=16, class_weight=10.0, labels=labels)
        wanted = torch.tensor(labels or [k % 4 for k in range(30)])
        assert (model.eval()(made).argmax(1) == wanted).float().mean() > 0.9  # by chance 0.25


def test_smoother_images_cost_variation():
    model = Trained()
    rough, smooth = (
        samples(model, 8, SHAPE, steps=50, variation_weight=weight).diff(dim=3).square().mean() for weight in (0, 10)
    )
    assert smooth < 0.5 * rough


def test_other_shapes_and_outputs():
    vectors = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    assert samples(vectors, 3, [6], steps=2).shape == (3, 6)
    assert samples(vectors, 1, (6,), steps=2).isfinite().all()
    half = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16()
    assert samples(half, 3, SHAPE, steps=2).dtype == torch.float32

    class Named(nn.Sequential):
        def forward(self, x):
            return {"logits": super().forward(x)}

    named = Named(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 4))
    assert samples(named, 2, SHAPE, steps=2).shape == (2, *SHAPE)
    with pytest.raises(smh.PlanError, match="labels up to 1 need a model that returns a tensor .*; got dict"):
        samples(named, 2, SHAPE, labels=[0, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"w": 1}, 4, SHAPE), {}, r"model must be a torch.nn.Module; got dict"),
        ((nn.Linear(2, 2), 4, SHAPE), {}, "needs a batch norm with running statistics, .*; got a Linear without"),
        ((nn.BatchNorm2d(3, track_running_stats=False), 4, SHAPE), {}, "got a BatchNorm2d without"),
        ((0, SHAPE), {}, "n must be an integer of at least 1; got 0"),
        ((2.5, SHAPE), {}, "n must be an integer of at least 1; got 2.5"),
        ((4, 3), {}, r"shape must be that of one input, .*; got 3$"),
        ((4, ()), {}, r"shape must be that of one input, .*; got \(\)"),
        ((4, (3, 0, 8)), {}, r"shape must be that of one input, .*; got \(3, 0, 8\)"),
        ((4, (5, 8, 8)), {}, r"the model does not run on inputs of shape \(4, 5, 8, 8\)"),
        ((4, (3, 2, 2)), {}, r"the model does not run on inputs of shape \(4, 3, 2, 2\)"),
        ((4, SHAPE), {"steps": 0}, "steps must be an integer of at least 1; got 0"),
        ((4, SHAPE), {"batch": True}, "batch must be an integer of at least 1; got True"),
        ((4, SHAPE), {"lr": -1.0}, "lr must be a number of at least 0; got -1.0"),
        ((4, SHAPE), {"class_weight": float("nan")}, "class_weight must be a number of at least 0; got nan"),
        ((4, SHAPE), {"lr": None}, "lr must be a number of at least 0; got None"),
        ((4, SHAPE), {"class_weight": "1"}, "class_weight must be a number of at least 0; got '1'"),
        ((4, SHAPE), {"seed": 1.5}, "seed must be an integer .*; got 1.5"),
        ((4, SHAPE), {"seed": 2**64}, "seed must be an integer .*; got 18446744073709551616"),
        ((4, SHAPE), {"labels": "abcd"}, "labels must be 4 integers of at least 0"),
        ((4, SHAPE), {"labels": [[0], [1, 2]]}, "labels must be 4 integers of at least 0"),
        ((4, SHAPE), {"labels": [None] * 4}, "labels must be 4 integers of at least 0"),
        ((4, SHAPE), {"labels": [1j] * 4}, "labels must be 4 integers of at least 0, .*, torch.complex64"),
        ((4, SHAPE), {"labels": [0, 1]}, r"labels must be 4 integers of at least 0, .*; got shape \(2,\)"),
        ((4, SHAPE), {"labels": [0, 1, -1, 0]}, "labels must be 4 integers .*, least -1"),
        ((4, SHAPE), {"labels": [0, 1, 4, 0]}, r"labels up to 4 need a model .* got a tensor \(4, 4\)"),
    ],
)
def test_mistakes_are_explained(arguments, options, message):
    if isinstance(arguments[0], (int, float)):
        arguments = (Trained(), *arguments)
    with pytest.raises(smh.PlanError, match=message):
        samples(*arguments, **options)


def test_parameters_made_in_inference_mode_are_refused_and_stay():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(smh.PlanError, match="does not run"):
        samples(model, 2, SHAPE)
    assert all(x.requires_grad for x in model.parameters())


def test_batch_norms_that_do_not_run_are_noticed():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return x.mean((2, 3))

    with pytest.raises(smh.PlanError, match="has batch norms, but calls none of them"):
        samples(Unused(), 2, SHAPE)


def test_a_loss_that_is_not_finite_is_an_error():
    model = Trained()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = float("inf")
    before = state(model)
    with pytest.raises(smh.VariableError, match="the loss must be finite; got nan in step 1 of 500"):
        samples(model, 2, SHAPE)
    assert not differs(before, state(model))


def test_smh_alone_imports_no_framework():
    program = "import sys, smh\nassert 'torch' not in sys.modules\nsmh.datafree\nassert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
