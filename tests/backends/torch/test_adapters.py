"""Adapters of peft and compressed PyTorch models: compress first, then adapt."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="this checks adapters of peft")

X = torch.linspace(-1, 1, 48).reshape(3, 16)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def adapted(model, config, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config(target_modules=["a", "b"], **options))


KINDS = {
    "IA3Config": {"feedforward_modules": []},
    "AdaLoraConfig": {"total_step": 10},
    "MissConfig": {"r": 4},
    "ShiraConfig": {"r": 4},
    "RoadConfig": {"group_size": 4},
    "VBLoRAConfig": {"vector_length": 8},
    "WaveFTConfig": {"n_frequency": 8},
    "C3AConfig": {"block_size": 4},
}


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_every_kind_are_kept():
    checked = []
    for name in dir(peft):
        config = getattr(peft, name)
        if not name.endswith("Config") or "target_modules" not in getattr(config, "__dataclass_fields__", ()):
            continue
        try:
            model = adapted(Net(), config, **KINDS.get(name, {}))
        except (ValueError, TypeError, AttributeError, RuntimeError):
            continue  # one that is not for such models
        trained = [name for name, p in model.named_parameters() if p.requires_grad and p.numel()]
        if not trained:
            continue
        with pytest.raises(PlanError, match="nothing to generate: .*of an adapter: compress a model first"):
            smh.compress(model, ratio=0.9)
        for p in model.base_model.model.parameters():
            if p.is_floating_point():
                p.requires_grad = True
        generated = [tensor.name for tensor in smh.plan_of(smh.compress_(model, ratio=0.9)).tensors]
        assert set(generated).isdisjoint(trained), name
        assert any(name.endswith("head.weight") for name in generated), name
        checked.append(name)
    assert {"LoraConfig", "IA3Config", "LoHaConfig", "OFTConfig", "VeraConfig"} <= set(checked)


@pytest.mark.filterwarnings("ignore")
def test_prompts_are_kept():
    import transformers

    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), prompts)
    with pytest.raises(PlanError, match=r"'prompt_encoder\.default\.embedding\.weight': it is of an adapter"):
        smh.compress(model, ratio=0.5)


def test_a_compressed_model_is_adapted():
    model = smh.compress(Net(), ratio=0.5)
    expected, digest = model(X).detach(), smh.digest(model)
    whole = adapted(model, peft.LoraConfig, r=2, modules_to_save=["head"])
    assert_same_bits(whole(X).detach().numpy(), expected.numpy())  # B of LoRA starts with zeros
    head = whole.base_model.model.head.modules_to_save["default"]
    assert type(head) is nn.Linear
    assert head.weight.requires_grad
    before = copy.deepcopy(whole.state_dict())
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        whole(X).square().sum().backward()
        optimizer.step()
    changed = {name for name, x in whole.state_dict().items() if not torch.equal(x, before[name])}
    kinds = ("lora_A.default.weight", "lora_B.default.weight")
    heads = {f"base_model.model.head.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert changed == heads | {f"base_model.model.{layer}.{kind}" for layer in "ab" for kind in kinds}
    assert smh.digest(model) == digest
    with pytest.raises(PlanError, match=r"has compressed models in it: 'base_model\.model'"):
        smh.digest(whole)
