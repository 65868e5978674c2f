"""Models of transformers: files, tied embeddings, vocabularies, the Trainer; and what adapters make of them."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
transformers = pytest.importorskip("transformers", reason="its models")
from torch import nn  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import CheckpointError, PlanError, VariableError  # noqa: E402
from smh.models.compression import RESIDENCIES  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SMALL),
    "llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "tie_word_embeddings": True}),
    "bert": ("BertForSequenceClassification", "BertConfig", {**SMALL, "num_labels": 3}),
    "bert, tied": ("BertForMaskedLM", "BertConfig", SMALL),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**SMALL, "num_key_value_heads": 2, "num_local_experts": 2}),
}
IDS = torch.arange(10)[None]


def plain(name="llama", **options):
    model, config, sizes = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes, **options)).eval()


def compressed(name="llama", **options):
    model = smh.compress(plain(name), ratio=0.3, **options)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.01)  # not on a grid, as after training
    return model


def inputs(model):
    return {"input_ids": IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})}


def logits(model):
    with torch.no_grad():
        return model(**inputs(model)).logits


def assert_unchanged(model, state, y):
    now = model.state_dict()
    assert list(now) == list(state)
    for name, x in state.items():
        assert torch.equal(x, now[name]), name
    assert torch.equal(logits(model), y)


def snapshot(model):
    return {name: x.clone() for name, x in model.state_dict().items()}, logits(model)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_library_does_to_its_models_changes_nothing(name):
    model = compressed(name)
    before = snapshot(model)
    model.tie_weights()
    model.init_weights()
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()
    model.resize_token_embeddings()
    model.resize_token_embeddings(model.config.vocab_size)
    assert_unchanged(model, *before)


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("find", ["get_parameter", "get_parameter_or_buffer"])
def test_weights_are_found_by_name(find, residency):
    model = compressed("llama, tied", residency=residency)
    for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"):
        found = getattr(model, find)(name)
        assert torch.equal(found, smh.materialize(model).get_parameter(name))
        with pytest.raises(VariableError, match=r"smh.materialize_\(model\) first"):
            found.zero_()
    assert getattr(model, find)("model.norm.weight") is model.model.norm.weight
    assert model.model.get_parameter("embed_tokens.weight").shape == (64, 32)
    with pytest.raises(AttributeError):
        getattr(model, find)("model.norm.other")


def test_ties_that_would_change_weights_are_refused():
    model = compressed()
    before = snapshot(model)
    model.config.tie_word_embeddings = True
    with pytest.raises(VariableError, match=r"'lm_head.weight' cannot be tied .*smh.materialize_\(model\) first"):
        model.tie_weights()
    assert_unchanged(model, *before)
    kept = compressed(exclude=["lm_head", "embed_tokens"])
    kept.config.tie_word_embeddings = True
    kept.tie_weights()
    assert kept.lm_head.weight is kept.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["llama", "llama, tied", "t5", "gpt2"])  # BERT keeps the row of its padding
def test_generated_embeddings_are_not_resized(name):
    model = compressed(name)
    before = snapshot(model)
    for arguments in ((70,), (None, 48)):
        with pytest.raises(VariableError, match=r"cannot be resized: smh.materialize_\(model\) first"):
            model.resize_token_embeddings(*arguments)
    assert_unchanged(model, *before)
    assert model.config.vocab_size == 64
    assert smh.materialize_(model).resize_token_embeddings(70).weight.shape == (70, 32)


def test_kept_embeddings_are_resized():
    model = compressed(exclude=["lm_head", "embed_tokens"])
    digest = smh.digest(model)
    model.resize_token_embeddings(70, mean_resizing=False)
    assert logits(model).shape == (1, 10, 70)
    assert smh.digest(model) == digest


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in MODELS), ("mixtral", torch.bfloat16)])
def test_round_trip(name, dtype, tmp_path):
    model = compressed(name)
    for x in model.parameters():
        x.data = x.data.to(dtype)
    if model.can_generate():
        model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    assert not hasattr(model.config, "smh_plan")
    dense = sum(x.numel() * x.element_size() for x in plain(name).to(dtype).parameters())
    assert os.path.getsize(tmp_path / "model.safetensors") < 0.6 * dense + 10_000
    again = smh.from_pretrained(type(plain(name)), tmp_path)
    assert type(again).__name__ == type(model).__name__
    assert not again.training
    assert not hasattr(again.config, "smh_plan")
    assert smh.digest(again) == smh.digest(model)
    assert smh.plan_of(again) == smh.plan_of(model)
    before = snapshot(model)
    assert_unchanged(again, *before)
    again.init_weights()
    again.tie_weights()
    assert_unchanged(again, *before)
    if model.can_generate():
        assert again.generation_config.max_new_tokens == 7
    again.train()
    again(
        input_ids=IDS, **({"decoder_input_ids": IDS} if again.config.is_encoder_decoder else {})
    ).logits.sum().backward()
    assert again.pool_left.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_is_never_taken_for_a_plain_model(name, tmp_path):
    compressed(name).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(plain(name)).from_pretrained(tmp_path)


def test_auto_classes(tmp_path):
    model = compressed()
    model.save_pretrained(tmp_path)
    again = smh.from_pretrained(transformers.AutoModelForCausalLM, tmp_path)
    assert smh.digest(again) == smh.digest(model)
    with pytest.raises(PlanError, match="the plan generates tensors that the model does not have"):
        smh.from_pretrained(transformers.AutoModel, tmp_path)


def test_plain_directories_are_refused(tmp_path):
    plain().save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"no plan of a compressed model: LlamaForCausalLM.from_pretrained loads plain"):
        smh.from_pretrained(transformers.LlamaForCausalLM, tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_class_of_a_compressed_model_loads_plain_directories(name, tmp_path):
    dense = plain(name)
    dense.save_pretrained(tmp_path)
    model = type(compressed(name)).from_pretrained(tmp_path)
    assert_unchanged(model, *snapshot(dense))
    with pytest.raises(PlanError, match="not compressed"):
        smh.digest(model)
    model.train()(input_ids=IDS).logits.sum().backward()
    assert {n for n, x in model.named_parameters() if x.grad is None} == set()


def test_a_materialized_model_is_saved_as_a_plain_one(tmp_path):
    model = compressed()
    model.save_pretrained(tmp_path / "compressed")
    dense = smh.materialize(model)
    dense.save_pretrained(tmp_path / "dense")
    assert torch.equal(logits(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense")), logits(model))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            lambda model, path: model.model.save_pretrained(path),
            "LlamaModel is a part of a compressed LlamaForCausalLM",
        ),
        (
            lambda model, path: model.save_pretrained(path, max_shard_size="1KB"),
            r"in one file.*more than max_shard_size='1KB'",
        ),
        (lambda model, path: model.save_pretrained(path, variant="a"), "in one file.*leave out variant"),
    ],
)
def test_what_could_not_be_read_is_not_saved(save, message, tmp_path):
    with pytest.raises(PlanError, match=message):
        save(compressed(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("size", ["50GB", "1MB", 10**6])
def test_a_size_of_shards_is_taken_if_one_is_enough(size, tmp_path):
    model = compressed()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert smh.digest(smh.from_pretrained(transformers.LlamaForCausalLM, tmp_path)) == smh.digest(model)


def test_push_to_hub(monkeypatch, tmp_path):
    from transformers.utils import hub

    class Api:
        def create_repo(self, name, **options):
            return SimpleNamespace(repo_id=name)

    class Card:
        def save(self, path):
            pass

    model = compressed()
    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **options: Card())
    monkeypatch.setattr(
        type(model),
        "_upload_modified_files",
        lambda self, directory, *args, **options: shutil.copytree(directory, tmp_path, dirs_exist_ok=True),
    )
    model.push_to_hub("a/b")
    assert smh.digest(smh.from_pretrained(transformers.LlamaForCausalLM, tmp_path)) == smh.digest(model)


def swap_layers(model):
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "edit", [swap_layers, lambda model: model.set_input_embeddings(nn.Embedding(64, 32))], ids=["swapped", "replaced"]
)
def test_save_pretrained_refuses_a_model_whose_layers_are_elsewhere(edit, given, name, tmp_path):
    model = compressed(name)
    options = {"state_dict": model.state_dict()} if given else {}
    edit(model)
    with pytest.raises(PlanError, match="replaced, removed or moved"):
        model.save_pretrained(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["llama", "llama, tied", "t5", "gpt2"])  # BERT keeps the row of its padding
def test_no_file_is_written_after_a_generated_embedding_was_replaced(name, tmp_path):
    model = compressed(name)
    model.set_input_embeddings(nn.Embedding(64, 32))
    with pytest.raises(PlanError, match="generates '.*(embed_tokens|shared|wte).weight'.*replaced, removed or moved"):
        smh.save(tmp_path / "a", model)
    assert not list(tmp_path.iterdir())


def test_save_pretrained_of_other_libraries_is_refused(tmp_path):
    from huggingface_hub import PyTorchModelHubMixin

    class Net(nn.Linear, PyTorchModelHubMixin):
        pass

    model = smh.compress(Net(20, 30), ratio=0.3)
    with pytest.raises(PlanError, match=r"save_pretrained of Net does not write the plan.*smh.save\(path, model\)"):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def trainer(model, folder, steps):
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    rows = [{"input_ids": IDS[0], "labels": IDS[0].roll(i)} for i in range(8)]
    arguments = transformers.TrainingArguments(
        folder, max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, seed=1
    )
    return transformers.Trainer(model, arguments, train_dataset=rows)


def test_checkpoints_of_the_trainer(tmp_path):
    whole = compressed("llama, tied")
    trainer(whole, tmp_path / "a", 4).train()
    resumed = compressed("llama, tied")
    trainer(resumed, tmp_path / "b", 4).train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-2")
    loaded = smh.from_pretrained(transformers.LlamaForCausalLM, tmp_path / "a" / "checkpoint-4")
    assert smh.digest(resumed) == smh.digest(loaded) == smh.digest(whole)
    assert np.array_equal(logits(resumed.eval()).numpy(), logits(loaded).numpy())
    other = compressed("llama, tied", seed=1)
    with pytest.raises(CheckpointError, match="of a model with another plan"):
        trainer(other, tmp_path / "c", 4).train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-2")
