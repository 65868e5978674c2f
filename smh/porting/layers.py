"""The structure of models, in terms that all frameworks share: layers, and the roles of their tensors.

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
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from smh.core.views import View, compose, invert
from smh.errors import PlanError
from smh.porting.entries import Part
from smh.porting.entries import Shape as Shape

DEFAULTS = {"bias": 0.0, "bias_input": 0.0, "bias_hidden": 0.0, "scale": 1.0, "count": 0.0}
"""Neutral values of tensors that the source lacks, by role."""

Layout: TypeAlias = tuple[int, ...] | str | None
"""Of features: channels and sizes of the image that they are, flattened with its channels last; () if all frameworks
have them in one order; why the order is unclear; None if nothing is known."""

CONVOLUTIONS = ("conv", "conv_transpose")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Slot(Part):
    """A tensor of a layer, or a part of one, as a checkpoint names it; its view leads to the neutral layout."""

    dtype: str = "float32"  # for defaults

    def to(self, other: Slot, between: View | None = None, letters: str = "") -> View | None:
        """Return the view from this tensor to another one in the same role.

        ``between`` acts on the neutral layout, whose axes ``letters`` name.
        """
        if self.view is not None:
            letters = self.view.pattern.split("->")[0].strip()
        names = letters.split()
        plain = len(names) == len(self.part_shape) and all(len(name) == 1 and name.isalpha() for name in names)
        turned = compose(self.view, between, self.part_shape)
        return compose(turned, invert(other.view, other.part_shape), self.part_shape, letters if plain else "")


@dataclass(frozen=True)
class Setting:
    """A number that a layer uses and that is not in checkpoints."""

    own: str  # what the framework calls it
    value: float
    complement: bool = False  # whether the framework's value is one minus that of PyTorch, which is the neutral one

    def translated(self, other: Setting) -> float:
        """Return the value of another framework in the sense of this one, without the noise of a subtraction."""
        neutral = 1.0 - other.value if other.complement else other.value
        return round(1.0 - neutral, 12) if self.complement else neutral


@dataclass(frozen=True)
class Layer:
    """A layer that has tensors itself."""

    name: str
    kind: str  # see the module; "norm" is any normalization
    slots: Mapping[str, Slot]  # its tensors, by role
    settings: Mapping[str, Setting] = field(default_factory=dict)  # "epsilon" and "momentum"
    reads: Layout = None  # of its inputs
    gives: Layout = None  # of its outputs
    problem: str = ""  # why only hints can map it, if so

    def letters(self, role: str) -> str:
        """Return names for the axes of a neutral layout, where they are known."""
        if role != "weight" or role not in self.slots:
            return ""
        first = {"dense": "o i", "embedding": "v e", "conv": "o i", "conv_transpose": "i o"}.get(self.kind, "")
        spatial = ("d", "h", "w")[5 - len(self.slots[role].viewed_shape) :] if self.kind in CONVOLUTIONS else ()
        return " ".join([first, *spatial])

    @property
    def outputs(self) -> int:
        """How many features or channels it gives, or 0 where it does not tell."""
        if hidden := self._shape("weight_hidden"):
            return hidden[1]
        if "weight" not in self.slots or self.kind not in ("dense", "embedding", *CONVOLUTIONS):
            return 0
        return self.slots["weight"].viewed_shape[1 if self.kind in ("embedding", "conv_transpose") else 0]

    @property
    def signature(self) -> tuple[str, Shape, Shape]:
        """Family and shapes, which layers must share to correspond."""
        family = "norm" if self.kind == "norm" or self.kind.endswith("_norm") else self.kind
        main = next(filter(None, map(self._shape, ("weight", "weight_input", "value", "mean"))), None)
        return family, main or next(iter(self.slots.values())).viewed_shape, self._shape("weight_hidden")

    def _shape(self, role: str) -> Shape:
        """Return the shape of a tensor, or of separate gates together, or ()."""
        shapes = [slot.viewed_shape for key, slot in self.slots.items() if key.partition(".")[0] == role]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes and shapes[0] else ()

    @property
    def separate(self) -> bool:
        """Whether each gate of a recurrent layer has separate tensors."""
        return "weight_input.0" in self.slots

    def cut(self) -> Layer:
        """Return the layer with a part of its tensors for each gate.

        Raises
        ------
        PlanError
            If the gates do not lie along the first axis.
        """
        gates = GATES[self.kind]
        for slot in self.slots.values():
            if slot.part or slot.view:
                raise PlanError(
                    f"the other model has a matrix for each gate, {2 * gates} in all, and {slot.name!r} holds its "
                    "gates side by side, where it cannot be cut: port to PyTorch first, and from there"
                )
        parts = {(role, k): replace(slot, part=(k, gates)) for role, slot in self.slots.items() for k in range(gates)}
        return replace(self, slots={f"{role}.{k}": slot for (role, k), slot in parts.items()})

    def fits(self, other: Layer) -> bool:
        """Return whether this layer and another one can correspond."""
        return self.signature == other.signature and (self.kind == other.kind or "norm" in (self.kind, other.kind))

    def without(self, names: Container[str]) -> Layer | None:
        """Return the layer without some of its tensors, or None if there are no others."""
        slots = {role: slot for role, slot in self.slots.items() if slot.name not in names}
        return replace(self, slots=slots) if slots else None


@dataclass(frozen=True)
class Structure:
    """The layers of a model in the order in which it holds them."""

    channels_last: bool  # flattened images then have another order
    layers: tuple[Layer, ...]  # every tensor belongs to one
    alphabetical: frozenset[str] = frozenset()  # nodes whose children are in alphabetical order, maybe not their own

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors."""
        return {slot.name: slot.shape for layer in self.layers for slot in layer.slots.values()}


def tensor_layer(name: str, shape: Shape, dtype: str = "float32", kind: str = "tensor") -> Layer:
    """Return the layer of a tensor of which nothing is known but its name and shape."""
    axes = ["1" if size == 1 else f"a{k}" for k, size in enumerate(shape)]
    kept = [axis for axis in axes if axis != "1"]
    view = View(f"{' '.join(axes)} -> {' '.join(kept)}") if len(kept) < len(shape) else None
    return Layer(name, kind, {"value": Slot(name, shape, view, dtype=dtype)})


_KIND = {
    "attention": ("attn", "mha"),
    "batchnorm": ("bn",),
    "dense": ("linear", "fc"),
    "depthwise": ("dw",),
    "embedding": ("emb", "embed", "embeddings"),
    "groupnorm": ("gn",),
    "key": ("k",),
    "layernorm": ("ln",),
    "out": ("output", "o"),
    "pointwise": ("pw",),
    "position": ("pos", "positional"),
    "query": ("q",),
    "value": ("v",),
}
_WORDS = {short: word for word, shorts in _KIND.items() for short in shorts}
_EMPTY = {"layers", "layer", "modules", "cell", "proj", "projection", "params", "model", "self", "multi", "head"}


def words(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the words and the numbers in the name of a layer, the same for all frameworks.

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
    for token in re.findall(r"[a-z]+|\d{1,18}", text):  # longer numbers do not count layers
        if token.isdigit():
            numbers.append(int(token))
            continue
        word = _WORDS.get(token, token)
        if word not in _EMPTY and (not found or found[-1] != word):
            found.append(word)
    return tuple(found), tuple(numbers)


def same_words(one: str, other: str) -> bool:
    """Say whether two names have the same numbers, and the words of one are the last words of the other."""
    (first, first_numbers), (second, second_numbers) = words(one), words(other)
    short, long = sorted((first, second), key=len)
    return first_numbers == second_numbers and long[len(long) - len(short) :] == short and bool(short or not long)


def numbered(one: str, other: str) -> bool:
    """Say whether Flax Linen numbered two layers in the order in which it made them, as ``Conv_0`` and ``Conv_1``."""
    found = [re.fullmatch(r"([A-Z]\w*)_\d+", name) for name in (one, other)]
    return all(found) and len({match[1] for match in found if match}) == 1
