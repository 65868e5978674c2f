"""What models consist of, in words that all frameworks share: layers, and the roles of their tensors.

Every backend describes its models as a :class:`Structure`. Each tensor comes with the view that turns it into a neutral
layout, which is that of PyTorch:

========================  ========================================================================================
kind                      roles and neutral layouts
========================  ========================================================================================
``dense``                 weight ``o i``, bias ``o``
``conv``                  weight ``o i *spatial`` with ``i`` inputs per group, bias ``o``
``conv_transpose``        weight ``i o *spatial`` as the gradient of a convolution reads it (no flip), bias ``o``
``embedding``             weight ``vocabulary features``
``batch_norm``,           scale, bias, mean, var, each ``c``; count
``layer_norm`` and so on
``rnn``, ``gru``,         weight_input ``(g h) i``, weight_hidden ``(g h) i``, bias_input and bias_hidden ``(g h)``, or
``lstm``                  their sum as bias; gates g in the order r z n (gru), i f g o (lstm)
``tensor``                value: any other parameter, without axes of size 1
``state``                 value: what no other framework knows, such as seeds
========================  ========================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from smh.core.views import View, compose, invert

Shape = tuple[int, ...]

DEFAULTS = {"bias": 0.0, "bias_input": 0.0, "bias_hidden": 0.0, "scale": 1.0, "count": 0.0, "value": 0.0}
"""What a tensor of the target is where the source has none, by role: it then does nothing."""

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Slot:
    """A tensor of a layer, or a part of one.

    Attributes
    ----------
    name : str
        The tensor, as a checkpoint names it.
    shape : tuple of int
        Of the whole tensor.
    neutral : View or None
        From the tensor, or the part, to the neutral layout.
    part : tuple of (int, int) or None
        ``(k, n)``: part ``k`` of ``n`` along the first axis.
    dtype : str
        Its type, for defaults.
    """

    name: str
    shape: Shape
    neutral: View | None = None
    part: tuple[int, int] | None = None
    dtype: str = "float32"

    @property
    def part_shape(self) -> Shape:
        """The shape of the part."""
        return self.shape if self.part is None else (self.shape[0] // self.part[1], *self.shape[1:])

    @property
    def neutral_shape(self) -> Shape:
        """The shape in the neutral layout."""
        return self.neutral.shape(self.part_shape) if self.neutral else self.part_shape

    def to(self, other: Slot, between: View | None = None, letters: str = "") -> View | None:
        """Return the view from this tensor to another one in the same role.

        ``between`` acts on the neutral layout, whose axes ``letters`` name.
        """
        if self.neutral is not None:
            letters = self.neutral.pattern.split("->")[0].strip()
        names = letters.split()
        plain = len(names) == len(self.part_shape) and all(len(name) == 1 and name.isalpha() for name in names)
        turned = compose(self.neutral, between, self.part_shape)
        return compose(turned, invert(other.neutral, other.part_shape), self.part_shape, letters if plain else "")


@dataclass(frozen=True)
class Setting:
    """A number that a layer computes with and no checkpoint holds.

    Attributes
    ----------
    own : str
        What the framework calls it.
    value : float
        Its value there.
    complement : bool
        Whether the framework's value is one minus the neutral one.
    """

    own: str
    value: float
    complement: bool = False

    @property
    def neutral(self) -> float:
        """The value in PyTorch's sense."""
        return 1.0 - self.value if self.complement else self.value

    def translated(self, neutral: float) -> float:
        """Return a neutral value in the framework's sense, without the noise of a subtraction."""
        return round(1.0 - neutral, 12) if self.complement else neutral


@dataclass(frozen=True)
class Layer:
    """A layer with tensors of its own.

    Attributes
    ----------
    name : str
        Where it is in the model.
    kind : str
        See :mod:`smh.porting.layers`; ``"norm"`` is any normalisation.
    slots : mapping of str to Slot
        Its tensors, by role.
    settings : mapping of str to Setting
        ``epsilon`` and ``momentum``.
    image : tuple of int or None
        Channels and sizes of the image whose flattened pixels are the inputs, where the model tells.
    problem : str
        Why it can only be mapped by hints, if so.
    """

    name: str
    kind: str
    slots: Mapping[str, Slot]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    image: Shape | None = None
    problem: str = ""

    def letters(self, role: str) -> str:
        """Return names for the axes of a neutral layout, where they are known."""
        if role != "weight" or role not in self.slots:
            return ""
        first = {"dense": "o i", "embedding": "v e", "conv": "o i", "conv_transpose": "i o"}.get(self.kind, "")
        spatial = ("d", "h", "w")[5 - len(self.slots[role].neutral_shape) :] if self.kind.startswith("conv") else ()
        return " ".join([first, *spatial])

    @property
    def signature(self) -> tuple[str, Shape, Shape]:
        """What layers must share to stand for each other: family, and the shapes of what they cannot lack."""
        family = "norm" if self.kind == "norm" or self.kind.endswith("_norm") else self.kind
        main = [self.slots[role] for role in ("weight", "weight_input", "value", "mean") if role in self.slots]
        main = main or list(self.slots.values())
        second = self.slots.get("weight_hidden")
        return family, main[0].neutral_shape, second.neutral_shape if second else ()

    def fits(self, other: Layer) -> bool:
        """Say whether this layer and another one can stand for each other."""
        return self.signature == other.signature and (self.kind == other.kind or "norm" in (self.kind, other.kind))


@dataclass(frozen=True)
class Structure:
    """The layers of a model in the order in which it holds them.

    Attributes
    ----------
    channels_last : bool
        Whether images have their channels last, so that flattening them gives another order.
    layers : tuple of Layer
        All that hold tensors; every tensor belongs to one.
    alphabetical : frozenset of str
        Nodes, by name, whose children are in the order of the alphabet: perhaps not in that of the layers.
    """

    channels_last: bool
    layers: tuple[Layer, ...]
    alphabetical: frozenset[str] = frozenset()

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors."""
        return {slot.name: slot.shape for layer in self.layers for slot in layer.slots.values()}


def tensor_layer(name: str, shape: Shape, dtype: str = "float32", kind: str = "tensor") -> Layer:
    """Return the layer of a tensor of which nothing is known but its name and shape."""
    letters = [chr(ord("a") + k % 26) * (k // 26 + 1) for k in range(len(shape))]
    kept = [letter for letter, size in zip(letters, shape, strict=True) if size != 1]
    before = " ".join(letter if letter in kept else "1" for letter in letters)
    view = View(f"{before} -> {' '.join(kept)}") if len(kept) < len(shape) else None
    return Layer(name, kind, {"value": Slot(name, shape, view, dtype=dtype)})


_KIND = {
    "linear": "dense",
    "fc": "dense",
    "bn": "batchnorm",
    "ln": "layernorm",
    "norm": "norm",
    "emb": "embedding",
    "embed": "embedding",
    "embeddings": "embedding",
    "attn": "attention",
    "mha": "attention",
    "q": "query",
    "k": "key",
    "v": "value",
    "output": "out",
    "o": "out",
    "gn": "groupnorm",
    "dw": "depthwise",
    "pw": "pointwise",
    "pos": "position",
    "positional": "position",
}
_EMPTY = {"layers", "layer", "modules", "cell", "proj", "projection", "params", "model", "self", "multi", "head"}


def words(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return what the name of a layer says in any framework: its words, and its numbers.

    Examples
    --------
    >>> words("encoder.layers.0.self_attn.q_proj")
    (('encoder', 'attention', 'query'), (0,))
    >>> words("encoder/0/multi_head_attention/query")
    (('encoder', 'attention', 'query'), (0,))
    >>> words("batch_normalization_2"), words("bn2")
    ((('batchnorm',), (2,)), (('batchnorm',), (2,)))
    """
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    text = re.sub(r"(batch|layer|group|rms)_?norm(alization)?", r"\1norm", text)
    text = re.sub(r"(?<=[a-z])[123]d(?![a-z])", "", text)
    found: list[str] = []
    numbers = []
    for token in re.findall(r"[a-z]+|\d{1,18}", text):  # what is longer numbers no layer
        if token.isdigit():
            numbers.append(int(token))
            continue
        word = _KIND.get(token, token)
        if word not in _EMPTY and (not found or found[-1] != word):
            found.append(word)
    return tuple(found), tuple(numbers)
