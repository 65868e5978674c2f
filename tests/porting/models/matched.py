"""What :func:`smh.porting.match` has to be told of the architectures."""

from smh.core.views import View
from smh.porting import Entry, Source, match
from tests.porting.models import jax_models, keras_models, torch_models

FRAMEWORKS = {"torch": torch_models, "jax": jax_models, "keras": keras_models}

_OPTIONS = {
    ("mlp", "jax"): {"in_order": True},  # layers of a list, which elsewhere have names
}
"""By architecture and one of the two frameworks."""

_SHORTCUTS = {"torch": "layer{}.shortcut.1", "jax": "layer{}/shortcut/layers/1", "keras": "layer{}/shortcut_bn"}
"""The norms of shortcuts: numbered in two frameworks, named in the third."""
_SWAPPED = ({"g": 3}, {"g": (1, 0, 2)})
"""Sizes and order of a view from gates r z n to z r n, and back."""
_CELL = {
    "torch": {
        **{f"cell/weight_{x}": (f"rnn.weight_{x}_l0", "(g h) i -> (g h) i", *_SWAPPED) for x in ("ih", "hh")},
        **{f"cell/bias_{x}": (f"rnn.bias_{x}_l0", "(g h) -> (g h)", *_SWAPPED) for x in ("ih", "hh")},
    },
    "keras": {
        "cell/weight_ih": ("gru/gru_cell/kernel", "i o -> o i"),
        "cell/weight_hh": ("gru/gru_cell/recurrent_kernel", "i o -> o i"),
        **{
            f"cell/bias_{x}": Entry((Source("gru/gru_cell/bias", (2, 168), View("1 o -> o"), part=(k, 2)),))
            for k, x in enumerate(("ih", "hh"))
        },
    },
}
"""For the tensors of a cell of the user's own, which no rule knows."""


def options_for(architecture, source, target):
    """Return the options of a match."""
    options = _OPTIONS.get((architecture, source), {}) | _OPTIONS.get((architecture, target), {})
    if architecture == "gru" and target == "jax":
        options = {"hints": _CELL[source]}
    if architecture == "cnn" and "keras" not in (source, target):  # Keras tells by itself
        options = {"flatten": {"linear": (32, 4, 4)}}
    if architecture == "resnet":
        options = {**options, "hints": {_SHORTCUTS[target].format(k): _SHORTCUTS[source].format(k) for k in (2, 3)}}
    return options


def matched(source, source_model, target, target_model):
    """Return the mapping between two models of one architecture, given the names of their frameworks."""
    architecture = source_model.architecture
    if architecture == "gru" and source == "jax":  # the hints are for the other direction
        return matched(target, target_model, source, source_model).inverse()
    modules = (FRAMEWORKS[source].module_of(source_model), FRAMEWORKS[target].module_of(target_model))
    found = match(*modules, **options_for(architecture, source, target))
    assert not found.notes, found.notes  # the models have the same epsilons and momenta
    return found.mapping
