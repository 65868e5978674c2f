"""What is told of compressed PyTorch models: in reports, warnings and errors."""

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

import smh as any_smh  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402


def why(model):
    return {line.name: line.why for line in smh.report(model).tensors}


class Buffers(nn.Module):
    """Buffers that are stored and others, one of them under both kinds of names."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(30, 40)
        self.register_buffer("table", torch.ones(50, 20), persistent=False)
        self.register_buffer("mask", torch.ones(7))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("again", self.mask, persistent=False)
        self.inner = nn.Module()
        self.inner.register_buffer("positions", torch.arange(9), persistent=False)


def test_bytes_are_those_of_the_state_dict():
    plain = Buffers()
    report = smh.report(smh.compress(plain, ratio=0.2))
    assert report.bytes_before == sum(x.numel() * x.element_size() for x in plain.state_dict().values())
    assert report.num_kept == 40 + 7 + 1
    assert [line.name for line in report.tensors] == list(plain.state_dict())


def test_a_size_leaves_room_for_what_is_stored_only():
    assert smh.report(smh.compress(Buffers(), size=1000)).bytes_after <= 1000


PATTERNS = {
    "zeros": (nn.init.zeros_, "all its values were 0"),
    "ones": (nn.init.ones_, "all its values were 1"),
    "constant": (lambda w: nn.init.constant_(w, 0.25), "all its values were 0.25"),
    "eye": (nn.init.eye_, "95% of its values were 0"),
    "sparse": (lambda w: nn.init.sparse_(w, 0.9), "90% of its values were 0"),
    "rows": (lambda w: w.copy_(torch.arange(1.0, 13.0).log()), "its values were the same along axis 0"),
    "columns": (lambda w: w.copy_(torch.arange(20.0)[:, None]), "its values were the same along axis 1"),
    "normal": (nn.init.normal_, ""),
    "uniform": (nn.init.uniform_, ""),
    "orthogonal": (nn.init.orthogonal_, ""),
    "kaiming": (nn.init.kaiming_uniform_, ""),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", PATTERNS)
def test_starting_values_with_a_meaning_are_listed(fill, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(12, 20)
    with torch.no_grad():
        PATTERNS[fill][0](layer.weight)
    expected = PATTERNS[fill][1]
    assert why(smh.compress(layer.to(dtype), ratio=0.5))["weight"] == expected


def test_tied_tensors_with_a_meaning_are_both():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = nn.init.zeros_(model[0].weight)
    assert why(smh.compress(model, ratio=0.5))["0.weight"] == "tied with 1.weight; all its values were 0"


def test_the_type_of_most_weights_is_generated():
    plain = nn.Sequential(nn.Linear(20, 20).half(), nn.Linear(200, 200), nn.Linear(20, 20).half())
    model = smh.compress(plain, ratio=0.1)
    assert [tensor.name for tensor in smh.plan_of(model).tensors] == ["1.weight"]
    assert why(model)["0.weight"] == "its type is torch.float16, that of most weights is torch.float32"
    assert smh.report(model).bytes_after < 0.1 * smh.report(model).bytes_before


MOSTLY_KEPT = {
    "types": lambda: [nn.Linear(100, 100).half(), nn.Linear(90, 120), nn.Linear(100, 100).double()],
    "frozen": lambda: [nn.Linear(100, 200).requires_grad_(False), nn.Linear(200, 60)],
    "sparse": lambda: [nn.Embedding(300, 100, sparse=True), nn.Linear(100, 100)],
}


@pytest.mark.parametrize("how", MOSTLY_KEPT)
def test_a_compression_of_less_than_half_is_warned_of(how):
    torch.manual_seed(0)
    plain = nn.Sequential(*MOSTLY_KEPT[how]())
    reasons = {"types": "float16, that of most", "frozen": "requires_grad=False", "sparse": "sparse gradients"}
    for compress in (smh.compress, smh.compress_):
        with pytest.warns(UserWarning, match=f"only .* numbers are generated.*{reasons[how]}") as found:
            model = compress(plain, ratio=0.5)
        if compress is smh.compress:
            assert found[0].filename == __file__
            chosen = [tensor.name for tensor in smh.plan_of(model).tensors]
            smh.compress(plain, ratio=0.5, include=chosen)  # as asked
            smh.compress(plain, plan=smh.plan_of(model))


def test_a_compression_of_most_is_not_warned_of():
    model = nn.Sequential(nn.Linear(100, 110), nn.Linear(100, 100).requires_grad_(False))
    smh.compress(model, ratio=0.5)


@pytest.mark.parametrize("function", [smh.compress, smh.compress_, smh.fit, any_smh.compress, any_smh.fit])
def test_a_mistaken_option_names_itself_and_its_neighbour(function):
    layer = nn.Linear(8, 8)
    for option, near in [("rato", "'ratio'"), ("exlude", "'exclude'"), ("optimiser", "'optimizer'")]:
        with pytest.raises(PlanError, match=f"(compress_?|fit) has no option {option!r}; did you mean {near}"):
            function(layer, **{"ratio": 0.5, option: None})
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda: nn.Linear(8, 8).requires_grad_(False),
            {},
            "'weight', 'bias': it is frozen .*unfreeze them first, and freeze the compressed model",
        ),
        (lambda: nn.LayerNorm(8), {}, r"nothing to generate: 'weight', 'bias': (?!.*None)"),
        (lambda: nn.BatchNorm1d(8), {}, "nothing to generate: (?!.*None)"),
        (Buffers, {"ratio": {"a": 1}}, r"ratio must be a number above 0, .*; got \{'a': 1\}$"),
        (Buffers, {"bits": 1}, "bits must be (?!.*buffer)"),
        (Buffers, {"include": ["mask"]}, "not to be generated: 'mask': it is a buffer"),
    ],
)
def test_errors_say_why_in_few_words(make, options, message):
    with pytest.raises(PlanError, match=message):
        smh.compress(make(), **{"ratio": 0.5, **options})
