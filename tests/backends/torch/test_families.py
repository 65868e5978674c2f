"""Whole families of PyTorch models, from compression over training and files to plain models, bit for bit."""

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from smh.backends import torch as smh  # noqa: E402
from tests.backends.torch.checks import check_file, check_plain, check_step  # noqa: E402
from tests.backends.torch.families import FAMILIES  # noqa: E402

RATIOS = (0.5, 0.1, 0.02)
RESIDENCIES = ("full", "cached", "layer")
CASES = [
    pytest.param(name, ratio, RESIDENCIES[(i + j) % 3], id=f"{name}-{ratio}-{RESIDENCIES[(i + j) % 3]}")
    for i, name in enumerate(FAMILIES)
    for j, ratio in enumerate(RATIOS)
]
KEPT = {
    "tcn": {
        f"{layer}.parametrizations.weight.{part}": "its layer is parametrized"
        for layer in ("0.1", "1.branch.1")
        for part in ("original0", "original1")
    },
    "gan_discriminator": {f"{layer}.parametrizations.weight.original": "its layer is parametrized" for layer in (0, 8)},
    "gan_discriminator_old": {f"{layer}.weight_orig": "SpectralNorm computes 'weight' from it" for layer in (0, 8)},
    "experts": {"router.weight": "it is frozen"},
    "vit": {"cls_token": "it is a token"},
    "bert": {"words.weight": "its layer keeps row 0 fixed"},
    "encoder_padded": {"embedding.weight": "its layer keeps row 0 fixed"},
    "perceiver": {"cross.bias_k": "it is a bias", "cross.bias_v": "it is a bias"},
    "hypernetwork": {f"codes.{part}": "fewer than two axes of more than one element" for part in "ab"},
}
"""Parameters of two or more axes that stay, and why; all others are generated."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Run on one thread: where others use the machine too, threads of so small models mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name):
    torch.manual_seed(0)
    factory, inputs = FAMILIES[name]
    return factory(), inputs()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which nn.TransformerEncoder uses
@pytest.mark.parametrize(("name", "ratio", "residency"), CASES)
def test_family(name, ratio, residency, tmp_path):
    fresh, inputs = made(name)
    model = smh.compress(fresh, ratio=ratio, residency=residency)
    plan = smh.plan_of(model)
    assert plan.num_weights >= 11_000
    assert plan.ratio <= ratio
    assert type(model) is not type(fresh)
    assert isinstance(model, type(fresh))

    def call(module):
        return module(*inputs)

    check_step(model, call)
    check_file(tmp_path / "model.safetensors", model, FAMILIES[name][0](), call)
    check_plain(model, fresh, call)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept(name):
    model = smh.compress_(made(name)[0], ratio=0.1)
    lines = (line for line in smh.report(model).tensors if len(line.shape) > 1 and not line.generated)
    kept = {line.name: line.why for line in lines if line.why != "it is a buffer"}
    expected = KEPT.get(name, {})
    assert kept.keys() == expected.keys()
    for tensor, reason in expected.items():
        assert reason in kept[tensor], tensor
