"""Which layers of one shape belong together: what names tell, what is left alone, and what order tells."""

import numpy as np
import pytest

from smh.porting import match

torch = pytest.importorskip("torch", reason="pairs of layers need torch")
jax = pytest.importorskip("jax", reason="pairs of layers need JAX")
linen = pytest.importorskip("flax.linen", reason="pairs of layers need Flax")
transformers = pytest.importorskip("transformers", reason="pairs of layers need transformers")

from torch import nn  # noqa: E402

from tests.porting.models.faces import Torch, randomised  # noqa: E402


def dense(*names):
    """Return dense layers of one shape, by name."""
    tree = {}
    for name in names:
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = {"kernel": np.ones((4, 4), np.float32)}
    return tree


def pairs(found):
    return {
        target.rpartition("/")[0]: entry.sources[0].name.rpartition("/")[0]
        for target, entry in found.proposed.tensors.items()
    }


CERTAIN = {
    "the last one is alone": (
        ("layer2_0_bn1", "layer2_0_bn2", "layer2_1_bn1", "layer2_0_down_bn"),
        ("layer2/0/bn1", "layer2/0/bn2", "layer2/0/down/1", "layer2/1/bn1"),
        {
            "layer2/0/bn1": "layer2_0_bn1",
            "layer2/0/bn2": "layer2_0_bn2",
            "layer2/1/bn1": "layer2_1_bn1",
            "layer2/0/down/1": "layer2_0_down_bn",
        },
    ),
    "a series is alone": (
        ("block0/intermediate", "block0/q_proj", "block1/intermediate", "block1/q_proj"),
        ("layers/0/mlp_in", "layers/0/query", "layers/1/mlp_in", "layers/1/query"),
        {
            "layers/0/mlp_in": "block0/intermediate",
            "layers/0/query": "block0/q_proj",
            "layers/1/mlp_in": "block1/intermediate",
            "layers/1/query": "block1/q_proj",
        },
    ),
    "what is certain helps what is not": (
        ("a/fc", "b/fc"),
        ("fc", "a/fc"),
        {"fc": "b/fc", "a/fc": "a/fc"},
    ),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_what_names_settle(case):
    sources, targets, expected = CERTAIN[case]
    found = match(dense(*sources), dense(*targets))
    assert not found.ambiguous
    assert pairs(found) == expected


OPEN = {
    "a series that begins elsewhere": (("fc1", "fc2"), ("fc2", "fc3"), {"fc2", "fc3"}),
    "a longer one": (("fc1", "fc2", "fc3", "out"), ("fc0", "fc1", "fc2", "out"), {"fc0", "fc1", "fc2"}),
    "numbers of other things": (("0", "2", "4"), ("dense", "dense_1", "dense_2"), {"dense", "dense_1", "dense_2"}),
    "another order of numbers": (("up1", "up2"), ("dec2", "dec1"), {"dec1", "dec2"}),
    "two that are left": (("q_proj", "up", "down"), ("query", "left", "right"), {"left", "right"}),
    "too few": (("a", "b"), ("a", "b", "c"), {"a", "b", "c"}),
}


@pytest.mark.parametrize("case", OPEN)
def test_what_names_leave_open(case):
    sources, targets, expected = OPEN[case]
    found = match(dense(*sources), dense(*targets))
    (question,) = found.ambiguous
    assert set(question.targets) == expected
    assert not expected & set(pairs(found))


def test_only_what_is_left_has_to_come_in_order():
    found = match(dense("q_proj", "up", "down"), dense("wide", "query", "narrow"), in_order=True)
    assert pairs(found) == {"query": "q_proj", "wide": "up", "narrow": "down"}


class Block(linen.Module):
    @linen.compact
    def __call__(self, x):
        y = linen.Conv(4, (3, 3))(linen.relu(linen.Conv(4, (3, 3))(x)))
        return x + linen.BatchNorm(use_running_average=True)(y)


class Stack(linen.Module):
    """More than ten layers: in alphabetical order, Block_10 comes before Block_2."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), name="stem")(x)
        for _ in range(12):
            x = Block()(x)
        return linen.Dense(3)(x.mean((1, 2)))


class TorchStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "one": nn.Conv2d(4, 4, 3, padding=1),
                    "two": nn.Conv2d(4, 4, 3, padding=1),
                    "norm": nn.BatchNorm2d(4),
                }
            )
            for _ in range(12)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["norm"](block["two"](block["one"](x).relu()))
        return self.head(x.mean((2, 3)))


def test_flax_linen_numbers_layers_in_the_order_in_which_it_makes_them():
    source, module = Torch(TorchStack()), Stack()
    randomised(source)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 2)).astype(np.float32)
    target = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    # The keys of dictionaries are in alphabetical order after that.
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), target)
    mapping = match(source.model, target, in_order=True).mapping
    for k in range(12):
        for own, name in {"Conv_0/kernel": "one", "Conv_1/kernel": "two"}.items():
            assert mapping.tensors[f"params/Block_{k}/{own}"].sources[0].name == f"blocks.{k}.{name}.weight"
        assert mapping.tensors[f"params/Block_{k}/BatchNorm_0/scale"].sources[0].name == f"blocks.{k}.norm.weight"


def test_a_vision_transformer_matches_by_names_and_numbers():
    config = transformers.ViTConfig(
        **{"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 8, "patch_size": 4},
    )
    source = transformers.ViTModel(config, add_pooling_layer=False)
    block = {f"attention/{name}": (8, 8) for name in ("query", "key", "value", "out")}
    block |= {"mlp/up": (8, 16), "mlp/down": (16, 8)}
    target = {"patches/kernel": (4, 4, 3, 8), "patches/bias": (8,), "cls": (1, 1, 8), "position": (1, 5, 8)}
    for k in range(3):
        target |= {f"blocks/{k}/{name}/kernel": shape for name, shape in block.items()}
        target |= {f"blocks/{k}/{name}/bias": shape[1:] for name, shape in block.items()}
        target |= {f"blocks/{k}/{n}/{w}": (8,) for n in ("ln_before", "ln_after") for w in ("scale", "bias")}
    target |= {f"ln/{which}": (8,) for which in ("scale", "bias")}
    tree = {}
    for name, shape in target.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = np.ones(shape, np.float32)
    mapping = match(source, tree).mapping
    for k in range(3):
        for own, name in {
            "attention/out": "attention.o_proj",
            "mlp/up": "mlp.fc1",
            "mlp/down": "mlp.fc2",
            "attention/key": "attention.k_proj",
        }.items():
            assert mapping.tensors[f"blocks/{k}/{own}/kernel"].sources[0].name == f"layers.{k}.{name}.weight"
        assert mapping.tensors[f"blocks/{k}/ln_after/scale"].sources[0].name == f"layers.{k}.layernorm_after.weight"
