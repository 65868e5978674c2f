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


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Sequential()
        if stride > 1:
            self.down.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).add(self.down(x)).relu()


class TorchResNet(nn.Module):
    """With the names of torchvision, and stages of one width, so that shapes tell little."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        for k in range(1, 4):
            setattr(self, f"layer{k}", nn.Sequential(*(TorchBlock(4, 4, 2 if k > j + 1 else 1) for j in range(2))))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class LinenBlock(linen.Module):
    outputs: int
    stride: int
    named: bool

    @linen.compact
    def __call__(self, x):
        def unit(x, size, stride, conv, norm):
            conv, norm = (conv, norm) if self.named else (None, None)
            pads = "SAME" if size == 1 else 1
            x = linen.Conv(self.outputs, (size, size), stride, pads, use_bias=False, name=conv)(x)
            return linen.BatchNorm(use_running_average=True, name=norm)(x)

        y = unit(linen.relu(unit(x, 3, self.stride, "conv1", "bn1")), 3, 1, "conv2", "bn2")
        return linen.relu(y + (unit(x, 1, self.stride, "down_conv", "down_bn") if self.stride > 1 else x))


class LinenResNet(linen.Module):
    named: bool

    @linen.compact
    def __call__(self, x):
        names = ("conv1", "bn1", "fc") if self.named else (None, None, None)
        x = linen.Conv(4, (3, 3), padding=1, use_bias=False, name=names[0])(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name=names[1])(x))
        for k in range(1, 4):
            for j in range(2):
                name = f"layer{k}_{j}" if self.named else None
                x = LinenBlock(4, 2 if k > j + 1 else 1, self.named, name=name)(x)
        return linen.Dense(5, name=names[2])(x.mean((1, 2)))


@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
def test_a_residual_network_matches_by_names_or_by_one_hint(named):
    source, module = Torch(TorchResNet()), LinenResNet(named)
    randomised(source)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    options, back = {}, {}
    if not named:  # nothing tells whether the root's BatchNorm_0 comes before LinenBlock_0
        found = match(source.model, variables, in_order=True)
        assert ["BatchNorm_0" in question.targets for question in found.ambiguous] == [True]
        assert "give hints={target: source} for one of them" in found.ambiguous[0].why
        options = {"in_order": True, "hints": {"BatchNorm_0": "bn1"}}
        back = {"in_order": True, "hints": {"bn1": "BatchNorm_0"}}
    mapping = match(source.model, variables, **options).mapping
    arrays = mapping.apply(source.tensors())
    ported = jax.tree_util.tree_map_with_path(lambda path, _: arrays["/".join(str(key.key) for key in path)], variables)
    np.testing.assert_allclose(module.apply(ported, x), source(x), rtol=1e-4, atol=1e-4)
    assert match(variables, source.model, **back).mapping.tensors.keys() == source.tensors().keys()
