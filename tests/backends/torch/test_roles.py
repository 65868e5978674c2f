"""What is generated of a module: the weight matrices, by the classes of layers, and nothing else."""

import pytest
import torch
from torch import nn

from smh import torch as smh
from smh.errors import PlanError


def generated(model, **options):
    """Return what is generated of a model, and why the rest is not."""
    lines = smh.report(smh.compress(model, ratio=0.5, **options)).tensors
    return {line.name for line in lines if line.generated}, {
        line.name: line.why for line in lines if not line.generated
    }


def bits(x):
    return x.detach().contiguous().view(torch.int32)


class Around(nn.Module):
    """A layer beside a linear one, so that there is something to generate."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(9, 9)


class TinyRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 5))


NORMS = [
    nn.LayerNorm([8, 4, 4]),
    nn.RMSNorm([8, 4]),
    nn.GroupNorm(2, 8),
    *(cls(8, affine=True) for name, cls in vars(nn).items() if name.startswith(("BatchNorm", "InstanceNorm"))),
    nn.SyncBatchNorm(8),
    nn.PReLU(3),
    TinyRMSNorm(),
]


@pytest.mark.parametrize("layer", NORMS, ids=lambda layer: type(layer).__name__)
def test_norms_are_kept_by_both_ways(layer):
    for x in layer.parameters():
        nn.init.normal_(x)
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    for model in (smh.compress(Around(layer), ratio=0.5), smh.fit(Around(layer), ratio=0.9)[0]):
        after = model.layer.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_all_norms_of_torch_are_tried():
    known = {type(layer).__name__ for layer in NORMS}
    names = {name for name in vars(nn) if name.endswith("Norm") or "Norm" in name.rstrip("123d")[-4:]}
    without = {"CrossMapLRN2d", "LocalResponseNorm"}
    assert {name for name in names if not name.startswith("Lazy")} - without <= known


LAYERS = {
    "Linear": (lambda: nn.Linear(5, 1), {"weight"}),
    "Bilinear": (lambda: nn.Bilinear(5, 4, 3), {"weight"}),
    "Conv1d": (lambda: nn.Conv1d(4, 1, 3), {"weight"}),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=4), {"weight"}),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 3), {"weight"}),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3), {"weight"}),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3), {"weight"}),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 4, 3), {"weight"}),
    "RNN": (lambda: nn.RNN(4, 5), {"weight_ih_l0", "weight_hh_l0"}),
    "LSTM": (lambda: nn.LSTM(4, 5, proj_size=2), {"weight_ih_l0", "weight_hh_l0", "weight_hr_l0"}),
    "GRU": (lambda: nn.GRU(4, 5), {"weight_ih_l0", "weight_hh_l0"}),
    "RNNCell": (lambda: nn.RNNCell(4, 5), {"weight_ih", "weight_hh"}),
    "LSTMCell": (lambda: nn.LSTMCell(4, 5), {"weight_ih", "weight_hh"}),
    "GRUCell": (lambda: nn.GRUCell(4, 5), {"weight_ih", "weight_hh"}),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {"in_proj_weight.query", "in_proj_weight.key", "in_proj_weight.value", "out_proj.weight"},
    ),
    "Embedding": (lambda: nn.Embedding(7, 4), {"weight"}),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 4), {"weight"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_matrices_of_layers_are_generated(name):
    make, wanted = LAYERS[name]
    assert generated(Around(make()))[0] == {f"layer.{x}" for x in wanted} | {"linear.weight"}


def test_all_layers_with_several_parameters_are_tried():
    """Layers made of other layers and norms aside, every class of torch.nn that has two parameters is in a list."""
    arguments = [(4,), (4, 2), (4, 4), (4, 4, 3), (4, 4, 4), (1, 4)]
    known = {*LAYERS, *(type(layer).__name__ for layer in NORMS)}
    for name, cls in vars(nn).items():
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)) or name.startswith(("Lazy", "Transformer")):
            continue
        for given in arguments:
            try:
                layer = cls(*given)
                count = len(layer._parameters)
            except Exception:
                continue
            assert count < 2 or name in known, name


@pytest.mark.parametrize("layer", [nn.Embedding(7, 4, padding_idx=2), nn.EmbeddingBag(7, 4, padding_idx=2)])
def test_rows_that_a_layer_keeps_fixed(layer):
    before = bits(layer.weight)
    model = smh.compress(Around(layer), ratio=0.5)
    assert torch.equal(bits(model.layer.weight), before)
    why = next(line.why for line in smh.report(model).tensors if line.name == "layer.weight")
    assert "keeps row 2 fixed" in why
    assert "padding_idx=2" in why
    asked = smh.compress(Around(layer), ratio=0.5, include=["layer.weight"]).train()
    with pytest.warns(UserWarning, match="row 2 of .* is generated .* Mask padded positions") as found:
        asked.layer(torch.tensor([[2, 3]]))
    assert found[0].filename == __file__
    asked.layer(torch.tensor([[2, 3]]))  # warnings are errors, so it warns once
    assert [tensor.name for tensor in smh.plan_of(asked).tensors] == ["layer.weight"]
    layer.padding_idx = None
    assert "layer.weight" in generated(Around(layer))[0]


def test_vectors_with_several_axes_tokens_and_tables():
    model = Around(nn.Module())
    sizes = {"cls_token": (1, 1, 8), "register_tokens": (1, 4, 8), "scale_of": (8, 1, 1), "A_log": (6, 4)}
    sizes |= {"relative_position_bias_table": (9, 2), "rel_pos_h": (5, 3), "gamma": (1, 3, 4), "logits_bias": (3, 4)}
    for name, shape in sizes.items():
        model.layer.register_parameter(name, nn.Parameter(torch.rand(shape)))
    model.layer.types, model.layer.table = nn.Embedding(1, 8), nn.Parameter(torch.rand(1, 6, 8))
    names, whys = generated(model)
    assert names == {"layer.table", "linear.weight"}
    assert whys["layer.types.weight"] == "fewer than two axes of more than one element"
    assert whys["layer.A_log"] == "its starting values have a meaning"
    assert all(whys.values())
    asked = generated(model, include=["rel_pos_h", "linear.weight"])[0]  # whoever asks for it gets it
    assert asked == {"layer.rel_pos_h", "linear.weight"}


def test_adapters_are_kept():
    model = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "lora_B": nn.Linear(2, 8, bias=False)})
    with pytest.raises(PlanError, match="adapter: compress the model before"):
        smh.compress(model, ratio=0.5)


@pytest.mark.parametrize("turned", [False, True])
def test_experts_start_as_one_layer(turned):
    """Deviations are those of a linear layer, whatever the number of experts."""
    model = Around(nn.Module())
    model.layer.is_transposed = turned
    model.layer.gate_up_proj = nn.Parameter(torch.rand(16, 9, 30) if turned else torch.rand(16, 30, 9))
    plan = smh.plan_of(smh.compress(model, ratio=0.5))
    scales = {tensor.name: tensor.initial_scale for tensor in plan.tensors}
    assert scales["layer.gate_up_proj"] == scales["linear.weight"]


def test_the_linear_layer_of_gpt2_has_inputs_first():
    Conv1D = type("Conv1D", (nn.Module,), {})
    model = Around(Conv1D())
    model.layer.weight = nn.Parameter(torch.rand(9, 30))
    scales = {t.name: t.initial_scale for t in smh.plan_of(smh.compress(model, ratio=0.5)).tensors}
    assert scales["layer.weight"] == scales["linear.weight"]


def test_the_report_tells_of_values_that_were_regular():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    nn.init.zeros_(model[0].weight)
    nn.init.eye_(model[1].weight)
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(1.0, 7.0))
    report = smh.report(smh.compress(model, ratio=0.5))
    notes = {line.name: line.note for line in report.tensors if line.note}
    assert notes == {
        "0.weight": "all its values were 0",
        "1.weight": "83% of its values were 0",
        "2.weight": "its values were the same along axis 0",
    }
    assert "are random now: '0.weight', '1.weight', '2.weight'" in str(report)
