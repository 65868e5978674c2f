"""Compressed PyTorch models whose layers are replaced, removed or moved afterwards: no file names them wrongly."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from smh.models.compression import RESIDENCIES  # noqa: E402

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def plain():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), body, nn.Linear(6, 4))


def compressed(**options):
    return smh.compress(plain(), ratio=0.9, **options)


def swap(model):
    model[0], model[2][0] = model[2][0], model[0]


def reverse(model):
    model[2] = nn.Sequential(*list(model[2])[::-1])


EDITS = {
    "replaced": lambda m: m.__setitem__(3, nn.Linear(6, 7)),
    "replaced by its like": lambda m: m.__setitem__(3, nn.Linear(6, 4)),
    "replaced by a plain copy": lambda m: m.__setitem__(3, copy.deepcopy(m[3])),
    "replaced by a compressed one": lambda m: m.__setitem__(3, smh.compress(nn.Linear(6, 4), ratio=0.9)),
    "replaced by an identity": lambda m: m.__setitem__(3, nn.Identity()),
    "set to None": lambda m: m.register_module("3", None),
    "removed": lambda m: m.__delitem__(3),
    "removed before others": lambda m: m.__delitem__(1),
    "popped": lambda m: m.pop(3),
    "inserted before others": lambda m: m.insert(1, nn.ReLU()),
    "part replaced": lambda m: m.set_submodule("2.0", nn.Linear(6, 6)),
    "block replaced": lambda m: m.set_submodule("2", nn.Linear(6, 6)),
    "swapped": swap,
    "reversed": reverse,
    "deleted": lambda m: delattr(m, "3"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_names_layers_is_refused_where_they_are_gone(edit, tmp_path):
    model = compressed()
    path = tmp_path / "before.safetensors"
    smh.save(path, model)
    state = copy.deepcopy(model.state_dict())
    EDITS[edit](model)
    held = [x.clone() for x in (*model.parameters(), *model.buffers())]
    for attempt in (
        lambda: smh.save(tmp_path / "after.safetensors", model),
        lambda: smh.digest(model),
        lambda: smh.report(model),
        lambda: smh.load(path, model),
        model.state_dict,
        lambda: model.load_state_dict(state),
        lambda: model.load_state_dict(state, strict=False),
        lambda: nn.ModuleDict({"inside": model}).load_state_dict({f"inside.{k}": x for k, x in state.items()}),
        nn.ModuleDict({"inside": model}).state_dict,
    ):
        with pytest.raises(PlanError, match=r"replaced, removed or moved.*materialize_\(model\)"):
            attempt()
    assert not (tmp_path / "after.safetensors").exists()
    now = (*model.parameters(), *model.buffers())
    assert all(torch.equal(x, before) for x, before in zip(now, held, strict=True))


@pytest.mark.parametrize("options", [{"residency": r} for r in RESIDENCIES] + [{"pool": "hash"}])
def test_no_state_names_layers_that_were_swapped(options):
    model = compressed(**options)
    other = copy.deepcopy(model)
    swap(model)
    with pytest.raises(PlanError, match="replaced, removed or moved"):
        other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="state_dict of a part") as found:
        assert model[0].state_dict()
    assert found[0].filename == __file__
    swap(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_no_state_of_a_frozen_model_names_layers_that_were_swapped():
    model = smh.freeze(compressed())
    model.state_dict()
    swap(model)
    with pytest.raises(PlanError, match="replaced, removed or moved"):
        model.state_dict()


@pytest.mark.parametrize("edit", [name for name in EDITS if name not in ("set to None", "block replaced", "reversed")])
def test_an_edited_model_runs_and_can_be_turned_back(edit, tmp_path):
    model = compressed()
    EDITS[edit](model)
    y = model(X)
    y.sum().backward()
    assert torch.equal(smh.materialize_(model)(X), y)
    if "compressed" not in edit:
        assert smh.save(tmp_path / "again.safetensors", smh.compress(model, ratio=0.9))


class Adapted(nn.Module):
    """A layer with something added, as adapters do it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.more = inner, nn.Linear(6, inner.out_features)

    def forward(self, x):
        return self.inner(x) + self.more(x)


def wrap(model):
    for parent, name in ((model, 0), (model[2], 2)):
        parent[name] = Adapted(parent[name])
    return model


def test_layers_that_others_are_put_around_keep_their_names(tmp_path):
    model = wrap(compressed())
    digest = smh.save(tmp_path / "a.safetensors", model)
    other = wrap(compressed())
    with torch.no_grad():
        other.pool_left.zero_()
    assert smh.digest(smh.load(tmp_path / "a.safetensors", other)) == digest
    assert torch.equal(other(X), model(X))
    third = wrap(compressed(init_seed=1))
    third.load_state_dict(model.state_dict())
    assert smh.digest(third) == digest
    with pytest.raises(PlanError, match="does not have"):
        smh.load(tmp_path / "a.safetensors", wrap(plain()))


def test_kept_layers_may_be_replaced_or_added(tmp_path):
    model, other = (smh.compress(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), ratio=0.9) for _ in range(2))
    for one in (model, other):
        one[1] = nn.BatchNorm1d(6)
        one.append(nn.Linear(6, 2))
    smh.save(tmp_path / "a.safetensors", model)
    assert torch.equal(smh.load(tmp_path / "a.safetensors", other)(X), model(X))


def test_added_layers_without_shapes_are_refused_by_files(tmp_path):
    model, other = (smh.compress(nn.Sequential(nn.Linear(6, 6)), ratio=0.9) for _ in range(2))
    for one in (model, other):
        one.append(nn.LazyBatchNorm1d())
    with pytest.raises(PlanError, match="the shape of '1.weight' is not known yet: call the model once"):
        smh.save(tmp_path / "a", model)
    assert not list(tmp_path.iterdir())
    model(X)
    smh.save(tmp_path / "a", model)
    with pytest.raises(PlanError, match="the shape of '1.weight' is not known yet: call the model once"):
        smh.load(tmp_path / "a", other)
    other(X)
    assert torch.equal(smh.load(tmp_path / "a", other).eval()(X), model.eval()(X))


def test_a_tied_weight_keeps_its_first_name():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    first, second = (smh.compress(model, ratio=0.9) for _ in range(2))
    second[1] = nn.Linear(6, 6)
    assert smh.digest(second) == smh.digest(first)
    first[0] = nn.Linear(6, 6)
    with pytest.raises(PlanError, match=r"generates '0\.weight'"):
        smh.digest(first)
