"""Small models of the shape of well-known PyTorch families, as users write them, and what they are called with.

Every model has so many weights that a pool of a fiftieth of them exists (see ``FAMILIES``), and runs in milliseconds.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrizations

F = nn.functional


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape, below=50):
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(1))


def conv_norm(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def head(channels, classes=10):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    """The sum of two branches, and what comes after it."""

    def __init__(self, branch, shortcut=None, after=None):
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x):
        return self.after(self.branch(x) + self.shortcut(x))


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 96),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(96, 96),
        nn.GELU(),
        nn.Linear(96, 10),
    )


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 16, 60)
        self.fc2 = nn.Linear(60, 30)
        self.fc3 = nn.Linear(30, 10)

    def forward(self, x):
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.tanh(self.fc1(torch.flatten(x, 1)))
        return F.log_softmax(self.fc3(torch.tanh(self.fc2(x))), dim=1)


class VGG(nn.Module):
    def __init__(self, widths=(8, "M", 16, 24, "M", 32, "M")):
        super().__init__()
        layers, inputs = [], 3
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 4, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def resnet_basic():
    def block(inputs, outputs, stride):
        second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        branch = nn.Sequential(conv_norm(inputs, outputs, 3, stride), second)
        return Residual(branch, down if stride > 1 else None, nn.ReLU(inplace=True))

    return nn.Sequential(conv_norm(3, 12), block(12, 12, 1), block(12, 24, 2), head(24))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, planes, stride=1, groups=1):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

        nn.init.constant_(self.bn3.weight, 0.5)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + identity)


def resnet_bottleneck():
    return nn.Sequential(conv_norm(3, 8), Bottleneck(8, 12), Bottleneck(48, 12), Bottleneck(48, 16, 2), head(64))


def resnext():
    blocks = (Bottleneck(8, 16, groups=4), Bottleneck(64, 16, groups=4), Bottleneck(64, 24, 2, groups=8))
    return nn.Sequential(conv_norm(3, 8), *blocks, head(96))


class DenseNet(nn.Module):
    def __init__(self, growth=12, layers=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        width = 2 * growth
        for _ in range(layers):
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, 2 * growth, 1, bias=False),
                    nn.BatchNorm2d(2 * growth),
                    nn.ReLU(),
                    nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
                )
            )
            width += growth
        self.transition = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 24, 1), nn.AvgPool2d(2))
        self.head = head(24)

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(self.transition(torch.cat(found, 1)))


def mobilenet_v2():
    def inverted(inputs, outputs, stride, expand):
        hidden = inputs * expand
        layers = nn.Sequential(
            conv_norm(inputs, hidden, 1, act=nn.ReLU6),
            conv_norm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        return Residual(layers) if stride == 1 and inputs == outputs else layers

    return nn.Sequential(
        conv_norm(3, 16, 3, 2, act=nn.ReLU6),
        inverted(16, 16, 1, 4),
        inverted(16, 24, 2, 6),
        inverted(24, 24, 1, 4),
        conv_norm(24, 64, 1, act=nn.ReLU6),
        head(64),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


def efficientnet():
    def mbconv(width, expand, kernel):
        hidden = width * expand
        return Residual(
            nn.Sequential(
                conv_norm(width, hidden, 1, act=nn.SiLU),
                conv_norm(hidden, hidden, kernel, groups=hidden, act=nn.SiLU),
                SqueezeExcite(hidden, width // 2),
                nn.Conv2d(hidden, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )
        )

    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
    return nn.Sequential(
        conv_norm(3, 20, 3, 2, act=nn.SiLU),
        mbconv(20, 4, 3),
        mbconv(20, 4, 5),
        conv_norm(20, 64, 1, act=nn.SiLU),
        last,
    )


def shufflenet():
    def unit(width, groups):
        middle = width // 2
        branch = nn.Sequential(
            conv_norm(width, middle, 1, groups=groups),
            nn.ChannelShuffle(groups),
            nn.Conv2d(middle, middle, 3, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, width, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
        )
        return Residual(branch, after=nn.ReLU())

    return nn.Sequential(conv_norm(3, 96, 3, 2), unit(96, 2), unit(96, 4), unit(96, 3), head(96))


class Inception(nn.Module):
    def __init__(self, inputs=24):
        super().__init__()
        self.stem = conv_norm(3, inputs)
        self.branches = nn.ModuleDict(
            {
                "1x1": conv_norm(inputs, 16, 1),
                "3x3": nn.Sequential(conv_norm(inputs, 16, 1), conv_norm(16, 24)),
                "5x5": nn.Sequential(conv_norm(inputs, 8, 1), conv_norm(8, 16, 5)),
                "asymmetric": nn.Sequential(nn.Conv2d(inputs, 16, (1, 7), padding=(0, 3)), nn.Conv2d(16, 16, (7, 1))),
                "pool": nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_norm(inputs, 8, 1)),
            }
        )
        self.head = nn.Linear(80, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([branch(x).mean((2, 3)) for branch in self.branches.values()], 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = conv_norm(1, 8)
        self.down2 = conv_norm(8, 16)
        self.bottom = conv_norm(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.merge2 = conv_norm(32, 16)
        self.up1 = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1)
        self.merge1 = conv_norm(16, 8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.bottom(F.max_pool2d(two, 2))
        y = self.merge2(torch.cat((self.up2(y), two), 1))
        y = self.merge1(torch.cat((self.up1(y), one), 1))
        return self.last(y)


def video():
    return nn.Sequential(
        nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1)),
        nn.Conv3d(12, 16, (3, 1, 1), padding=(1, 0, 0)),  # the two halves of R(2+1)D
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose3d(24, 4, 2, stride=2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


class WaveNet(nn.Module):
    def __init__(self, width=24, layers=4):
        super().__init__()
        self.first = nn.Conv1d(2, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(layers))
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(layers))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.last = nn.Conv1d(width, 8, 1)

    def forward(self, x):
        x = self.first(x)
        skips = 0
        for filter_, gate, residual in zip(self.filters, self.gates, self.residuals, strict=True):
            padded = F.pad(x, (filter_.dilation[0], 0))
            y = residual(torch.tanh(filter_(padded)) * torch.sigmoid(gate(padded)))
            x, skips = x + y, skips + y
        return self.last(F.relu(skips))


def tcn():
    """Causal dilated convolutions; those of the first block have weight norm, which stays."""

    def block(inputs, outputs, dilation, normed):
        conv = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        conv = parametrizations.weight_norm(conv) if normed else conv
        return nn.Sequential(nn.ConstantPad1d((2 * dilation, 0), 0.0), conv, nn.ReLU(), nn.Dropout(0.1))

    return nn.Sequential(
        block(4, 32, 1, True),
        Residual(block(32, 32, 2, True)),
        *(Residual(block(32, 32, 2**i, False)) for i in range(4)),
        nn.Conv1d(32, 3, 1),
    )


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-2 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, stride=4), ConvNeXtBlock(24), ConvNeXtBlock(24), ConvNeXtBlock(24), head(24)
    )


class ViT(nn.Module):
    def __init__(self, width=24, patch=4, size=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embedding
        return self.head(self.encoder(x)[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, patches, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_patches = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.over_channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        x = x + self.over_patches(self.norm1(x).mT).mT
        return x + self.over_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).flatten(2).mT).mean(1))


class CausalAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.dropout = 0.1

    def forward(self, x):
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self.c_attn(x).chunk(3, 2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """A decoder whose last layer is tied to its embedding by assignment."""

    def __init__(self, vocabulary=50, context=12, width=24):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList()
        for _ in range(2):
            mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))
            parts = {"ln_1": nn.LayerNorm(width), "attn": CausalAttention(width, 4), "ln_2": nn.LayerNorm(width)}
            self.h.append(nn.ModuleDict({**parts, "mlp": mlp}))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"](block["ln_2"](x))
        return self.lm_head(self.ln_f(x))


class BERT(nn.Module):
    """An encoder that reads the weight of its embedding again for its output, and masks padding."""

    def __init__(self, vocabulary=60, width=24):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(12, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 3 * width, dropout=0.1, activation="gelu", batch_first=True)
            for _ in range(2)
        )
        self.transform = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, ids, kinds):
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.kinds(kinds))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ids == 0)
        return F.linear(F.gelu(self.transform(x)), self.words.weight, self.bias)


class PaddedEncoder(nn.Module):
    """``nn.TransformerEncoder`` on padded sequences, which it packs into nested tensors when it does not train."""

    def __init__(self, width=24):
        super().__init__()
        self.embedding = nn.EmbeddingBag(60, width, mode="mean", padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.out = nn.Linear(width, 20)

    def forward(self, ids):
        x = self.embedding(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        return self.out(self.encoder(x, src_key_padding_mask=(ids == 0).all(2)))


class Llama(nn.Module):
    """RMS norm, rotary positions, fewer heads for keys than for queries, gated linear units; no biases."""

    def __init__(self, vocabulary=50, width=32, heads=4, shared=2):
        super().__init__()
        self.heads, self.shared = heads, shared
        self.embed = nn.Embedding(vocabulary, width)
        size = width // heads
        self.layers = nn.ModuleList()
        for _ in range(2):
            linear = {
                "q": (width, width),
                "k": (width, size * shared),
                "v": (width, size * shared),
                "o": (width, width),
                "gate": (width, 2 * width),
                "up": (width, 2 * width),
                "down": (2 * width, width),
            }
            parts = {name: nn.Linear(*shape, bias=False) for name, shape in linear.items()}
            self.layers.append(nn.ModuleDict({**parts, "norm1": nn.RMSNorm(width), "norm2": nn.RMSNorm(width)}))
        self.head = nn.Linear(width, vocabulary, bias=False)
        angles = torch.outer(torch.arange(12.0), 100.0 ** -(torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotated(self, x):
        even, odd = x[..., ::2], x[..., 1::2]
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        return torch.cat((even * cos - odd * sin, even * sin + odd * cos), -1)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            y = layer["norm1"](x)
            q = layer["q"](y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            k, v = (layer[name](y).unflatten(2, (self.shared, -1)).transpose(1, 2) for name in "kv")
            k, v = (z.repeat_interleave(self.heads // self.shared, 1) for z in (self.rotated(k), v))
            y = F.scaled_dot_product_attention(self.rotated(q), k, v, is_causal=True)
            x = x + layer["o"](y.transpose(1, 2).flatten(2))
            y = layer["norm2"](x)
            x = x + layer["down"](F.silu(layer["gate"](y)) * layer["up"](y))
        return self.head(x)


class Translator(nn.Module):
    """``nn.Transformer`` with one embedding for both sides and for the output."""

    def __init__(self, vocabulary=50, width=16):
        super().__init__()
        self.shared = nn.Embedding(vocabulary, width)
        self.transformer = nn.Transformer(width, 2, 2, 2, 48, dropout=0.1, batch_first=True)
        self.width = width

    def forward(self, source, target):
        source, target = (self.shared(ids) * math.sqrt(self.width) for ids in (source, target))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        y = self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True)
        return y @ self.shared.weight.T


class Perceiver(nn.Module):
    """Learned queries that look at inputs of another width."""

    def __init__(self, width=32, inputs=20):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, width))
        self.cross = nn.MultiheadAttention(width, 4, kdim=inputs, vdim=inputs, batch_first=True, add_bias_kv=True)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        y, weights = self.cross(self.latents.expand(len(x), -1, -1), x, x)
        return self.head(self.block(y).mean(1)), weights


class LSTMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 32, num_layers=2, batch_first=True, dropout=0.2, proj_size=20)
        self.fc = nn.Linear(20, 5)

    def forward(self, ids, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(h[-1])


class BidirectionalGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(12, 32, bidirectional=True, batch_first=True)
        self.rnn = nn.RNN(64, 32, batch_first=True)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        y, _ = self.gru(x)
        y, _ = self.rnn(y)
        return self.fc(y)


class Cells(nn.Module):
    """Recurrent cells in a loop, as in a decoder that is fed what it said."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTMCell(10, 36)
        self.decoder = nn.GRUCell(10, 36)
        self.out = nn.Linear(36, 10)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 36)
        for step in x.unbind(1):
            h, c = self.encoder(step, (h, c))
        y, said = x[:, -1], []
        for _ in range(2):
            h = self.decoder(y, h)
            y = self.out(h)
            said.append(y)
        return torch.stack(said, 1)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 12, 4, 2, 1), nn.ELU(), nn.Conv2d(12, 24, 4, 2, 1), nn.ELU())
        self.mean = nn.Linear(24 * 16, 8)
        self.log_variance = nn.Linear(24 * 16, 8)
        self.decoder = nn.Sequential(
            nn.Linear(8, 24 * 16),
            nn.Unflatten(1, (24, 4, 4)),
            nn.ConvTranspose2d(24, 12, 4, 2, 1),
            nn.ELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 1, 3, padding=1),
        )

    def forward(self, x):
        h = self.encoder(x).flatten(1)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return {"image": torch.sigmoid(self.decoder(z)), "latent": (mean, log_variance)}


def discriminator(spectral_norm):
    """Of a GAN: its first layer and its last have a spectral norm, and stay."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 12, 4, 2, 1)),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(12, 24, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(24, affine=True),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(24, 32, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Flatten(),
        spectral_norm(nn.Linear(32 * 4, 1)),
    )


def generator():
    """Of a GAN (DCGAN)."""
    return nn.Sequential(
        nn.ConvTranspose2d(16, 24, 4, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(True),
        nn.ConvTranspose2d(24, 12, 4, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(True),
        nn.ConvTranspose2d(12, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


class DLRM(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for rows in (50, 120, 200))
        self.top = nn.Sequential(nn.Linear(width + 6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense, ids, offsets):
        x = self.bottom(dense)
        t = torch.stack([x, *(table(ids, offsets) for table in self.tables)], 1)
        rows, columns = torch.tril_indices(4, 4, -1)
        return torch.sigmoid(self.top(torch.cat((x, (t @ t.mT)[:, rows, columns]), 1)))


class GraphNet(nn.Module):
    """Graph convolutions, with the weight on the left as in the papers: bare parameters, adjacency as a buffer."""

    def __init__(self, nodes=9, features=48, hidden=120):
        super().__init__()
        around = torch.eye(nodes) + torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(-1, 0)
        self.register_buffer("adjacency", around / 3)
        self.w1 = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, hidden)))
        self.w2 = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, 48)))
        self.attend = nn.Bilinear(8, 8, 4)
        self.out = nn.Linear(48, 8)

    def forward(self, x):
        x = torch.relu(self.adjacency @ (x @ self.w1))
        x = self.out(torch.relu(self.adjacency @ torch.matmul(x, self.w2)))
        return self.attend(x, x.roll(1, 1))


class Hyper(nn.Module):
    """A matrix makes the weights of a layer from a code; the codes are in a dict of parameters."""

    def __init__(self, tasks=("a", "b"), inputs=12, outputs=10, code=8):
        super().__init__()
        self.shape = (outputs, inputs)
        self.make = nn.Parameter(torch.randn(outputs * inputs, code) / 10)
        self.codes = nn.ParameterDict({task: torch.randn(1, code) for task in tasks})
        self.mixers = nn.ParameterList([torch.randn(outputs, 96) / 10, torch.randn(96, 96) / 10])

    def forward(self, x):
        found = []
        for code in self.codes.values():
            weight = (self.make @ code[0]).view(self.shape)
            y = F.linear(x, weight)
            for mixer in self.mixers:
                y = torch.tanh(y @ mixer)
            found.append(y)
        return torch.stack(found)


class StandardizedConv2d(nn.Conv2d):
    """Computes with its weight before it convolves."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


def group_norm():
    return nn.Sequential(
        StandardizedConv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.Mish(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.GroupNorm(8, 32),
        nn.PReLU(32),
        StandardizedConv2d(32, 32, 3, padding=1, bias=False),
        nn.GroupNorm(1, 32),
        head(32),
    )


class MaskedConv2d(nn.Conv2d):
    """Sees what is above and to the left only (PixelCNN)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mask = torch.ones(self.kernel_size)
        mask[self.kernel_size[0] // 2, self.kernel_size[1] // 2 + 1 :] = 0
        mask[self.kernel_size[0] // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def pixelcnn():
    layers = [MaskedConv2d(1, 16, 5, padding=2), nn.ReLU(), MaskedConv2d(16, 24, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(24, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 1))


class Siamese(nn.Module):
    """One tower, under two names, called twice."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 80))
        self.other = self.tower
        self.compare = nn.Linear(80, 1)

    def forward(self, a, b):
        return self.compare((self.tower(a) - self.other(b)).abs())


class Universal(nn.Module):
    """One block, called three times, as in models that share weights over depth."""

    def __init__(self, width=40):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 40)

    def forward(self, x):
        for _ in range(3):
            x = x + self.block(self.norm(x))
        return self.head(x)


class Nested(nn.Module):
    """Lists and dicts of modules inside of one another, chosen by name when called."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict()
        for name in ("left", "right"):
            stages = (nn.ModuleDict({"act": nn.Tanh(), "fc": nn.Linear(48, 48)}) for _ in range(3))
            self.parts[name] = nn.ModuleList(stages)
        self.heads = nn.ModuleDict({"x": nn.Linear(48, 4), "y": nn.ModuleList([nn.Linear(48, 4)])})

    def forward(self, x, *, order=("right", "left")):
        for name in order:
            for stage in self.parts[name]:
                x = stage["act"](stage["fc"](x))
        return self.heads["x"](x), self.heads["y"][0](x)


class Experts(nn.Module):
    """A mixture of experts, whose weights lie in one tensor; a frozen router."""

    def __init__(self, experts=4, width=32):
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False).requires_grad_(False)
        self.up = nn.Parameter(torch.randn(experts, width, 64) / 6)
        self.down = nn.Parameter(torch.randn(experts, 64, width) / 8)

    def forward(self, x):
        share, chosen = self.router(x).softmax(-1).topk(2)
        gate = torch.zeros(len(x), len(self.up)).scatter(1, chosen, share)
        h = F.relu(torch.einsum("bi,eih->ebh", x, self.up))
        return torch.einsum("ebh,eho,be->bo", h, self.down, gate)


def images(channels=3, size=16, rows=4):
    return lambda: (noise(rows, channels, size, size),)


def words():
    return (tokens(4, 10),)


FAMILIES = {
    "mlp": (mlp, images(1, 8)),
    "lenet": (LeNet, images(1, 24)),
    "vgg_bn": (VGG, images()),
    "resnet_basic": (resnet_basic, images()),
    "resnet_bottleneck": (resnet_bottleneck, images()),
    "resnext": (resnext, images()),
    "densenet": (DenseNet, images(size=8)),
    "mobilenet_v2": (mobilenet_v2, images()),
    "efficientnet": (efficientnet, images()),
    "shufflenet": (shufflenet, images(size=12)),
    "inception": (Inception, images(size=8)),
    "unet": (UNet, images(1)),
    "video": (video, lambda: (noise(2, 3, 4, 8, 8),)),
    "wavenet": (WaveNet, lambda: (noise(3, 2, 20),)),
    "tcn": (tcn, lambda: (noise(3, 4, 20),)),
    "convnext": (convnext, images()),
    "vit": (ViT, images()),
    "mixer": (Mixer, images()),
    "gpt": (GPT, words),
    "bert": (BERT, lambda: (tokens(4, 10) * (torch.arange(10) < 7), tokens(4, 10, below=3) - 1)),
    "encoder_padded": (
        PaddedEncoder,
        lambda: (tokens(3, 8, 4) * (torch.arange(8)[:, None] < torch.tensor([8, 5, 3])[:, None, None]),),
    ),
    "llama": (Llama, words),
    "translator": (Translator, lambda: (tokens(3, 8), tokens(3, 6))),
    "perceiver": (Perceiver, lambda: (noise(3, 9, 20),)),
    "lstm": (LSTMClassifier, lambda: (tokens(3, 8), torch.tensor([8, 5, 2]))),
    "gru_bidirectional": (BidirectionalGRU, lambda: (noise(3, 6, 12),)),
    "cells": (Cells, lambda: (noise(3, 4, 10),)),
    "vae": (VAE, images(1)),
    "gan_discriminator": (lambda: discriminator(parametrizations.spectral_norm), images()),
    "gan_discriminator_old": (lambda: discriminator(nn.utils.spectral_norm), images()),
    "gan_generator": (generator, lambda: (noise(4, 16, 1, 1),)),
    "dlrm": (DLRM, lambda: (noise(4, 13), tokens(9), torch.tensor([0, 2, 2, 6]))),
    "graph": (GraphNet, lambda: (noise(2, 9, 48),)),
    "hypernetwork": (Hyper, lambda: (noise(4, 12),)),
    "group_norm": (group_norm, images(size=8)),
    "pixelcnn": (pixelcnn, images(1, 10)),
    "siamese": (Siamese, lambda: (noise(4, 40), noise(4, 40) * 2)),
    "universal": (Universal, lambda: (noise(4, 40),)),
    "nested": (Nested, lambda: (noise(4, 48),)),
    "experts": (Experts, lambda: (noise(5, 32),)),
}
"""Name: (what makes the model, what makes the arguments of a call). A pool with a ratio of 0.02 exists from 10,000
generated weights on."""
