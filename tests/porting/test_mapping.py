"""Mappings and ports: laws that hold for all of them, files, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import smh
from conformance.bits import assert_same_bits
from smh.core.views import View
from smh.porting import Entry, Mapping, Source, doubts, match
from tests.core.test_views import by_numpy, shapes, views

SHAPES = {"fc.weight": (10, 64), "fc.bias": (10,), "norm.count": (), "q": (4, 4), "k": (4, 4)}


def tensors_of(source_shapes, dtype=np.float32):
    """Return tensors all of whose elements are different."""
    found, start = {}, 0
    for name, shape in source_shapes.items():
        size = int(np.prod(shape))
        found[name] = np.arange(start, start + size).astype(dtype).reshape(shape)
        start += size
    return found


@st.composite
def mappings(draw, prefix="t", given_shapes=None):
    """Draw a mapping: tensors that are renamed and turned, cut into parts, and joined."""
    drawn = draw(st.lists(shapes, min_size=1, max_size=4)) if given_shapes is None else list(given_shapes.values())
    names = [f"s{k}" for k in range(len(drawn))] if given_shapes is None else list(given_shapes)
    entries, rest = {}, list(zip(names, drawn, strict=True))
    while rest:
        name, shape = rest.pop(0)
        target = f"{prefix}{len(entries)}"
        kind = draw(st.sampled_from(["whole", "cut", "join"]))
        cuts = [n for n in (2, 3) if shape[0] % n == 0]
        if kind == "cut" and cuts:
            n = draw(st.sampled_from(cuts))
            part = (shape[0] // n, *shape[1:])
            for k in range(n):
                entries[f"{target}.{k}"] = Entry((Source(name, shape, draw(st.none() | views(part)), (k, n)),))
        elif kind == "join" and rest and rest[0][1] == shape:
            other, _ = rest.pop(0)
            view = draw(st.none() | views(shape))
            entries[target] = Entry((Source(name, shape, view), Source(other, shape, view)), "concat")
        else:
            entries[target] = Entry((Source(name, shape, draw(st.none() | views(shape))),))
    return Mapping(entries)


@given(mappings())
def test_a_mapping_fills_every_target_from_every_source(mapping):
    tensors = tensors_of(mapping.source_shapes)
    found = mapping.apply(tensors)
    assert {name: x.shape for name, x in found.items()} == mapping.shapes
    assert sorted(np.concatenate([x.ravel() for x in found.values()])) == sorted(
        np.concatenate([x.ravel() for x in tensors.values()])
    )
    for target, entry in mapping.tensors.items():
        if entry.whole:
            (source,) = entry.sources
            x = tensors[source.name]
            assert np.array_equal(found[target], by_numpy(source.view, x) if source.view else x)
    mapping.check(mapping.source_shapes, mapping.shapes)


@given(mappings())
def test_the_inverse_undoes_a_mapping(mapping):
    tensors = tensors_of(mapping.source_shapes)
    back = mapping.inverse()
    again = back.apply(mapping.apply(tensors))
    assert again.keys() == tensors.keys()
    for name, x in tensors.items():
        assert np.array_equal(again[name], x)
    assert back.inverse().shapes == mapping.shapes
    for name, x in back.inverse().apply(tensors).items():
        assert np.array_equal(x, mapping.apply(tensors)[name])


@given(st.data(), mappings())
def test_one_mapping_after_another(data, first):
    second = data.draw(mappings("u", first.shapes))
    tensors = tensors_of(first.source_shapes)
    expected = second.apply(first.apply(tensors))
    try:
        both = first.then(second)
    except smh.PortError as error:
        both = None
        assert "ort in two steps" in str(error)  # noqa: PT017
    if both is not None:
        for name, x in both.apply(tensors).items():
            assert np.array_equal(x, expected[name])
    turned = all(entry.whole and not entry.sources[0].view for entry in first.tensors.values())
    assert both is not None or not turned


def test_parts_of_what_unequal_parts_were_joined_into_need_two_steps():
    joined = Entry((Source("a", (1, 2)), Source("b", (3, 2))), "concat")
    halves = {name: Entry((Source("ab", (4, 2), part=(k, 2)),)) for k, name in enumerate(("c", "d"))}
    with pytest.raises(smh.PortError, match="port in two steps"):
        Mapping({"ab": joined}).then(Mapping(halves))


def test_defaults_outlive_a_second_mapping():
    first = Mapping({"b": Entry((Source("a", (2, 3), default=(0.5, "float32")),))})
    both = first.then(Mapping({"c": Entry((Source("b", (2, 3), View("x y -> y x")),))}))
    assert np.array_equal(both.apply({})["c"], np.full((3, 2), 0.5, dtype=np.float32))


@given(mappings())
def test_there_and_back_is_nothing(mapping):
    if all(entry.whole for entry in mapping.tensors.values()):
        for name, entry in mapping.then(mapping.inverse()).tensors.items():
            assert entry == Entry((Source(name, mapping.source_shapes[name]),))


@given(mappings())
def test_mappings_in_json(mapping):
    mapping = Mapping(mapping.tensors, {"bn": {"epsilon": 1e-5}})
    assert Mapping.from_json(mapping.to_json()) == mapping


def test_files(tmp_path):
    mapping = Mapping.build({"a": ("fc.weight", "o i -> i o"), "b": "fc.bias"}, SHAPES)
    mapping.save(tmp_path / "map.json")
    assert Mapping.load(tmp_path / "map.json") == mapping
    (tmp_path / "map.json").write_bytes(b"\xff")
    with pytest.raises(smh.PortError, match="UTF-8"):
        Mapping.load(tmp_path / "map.json")
    with pytest.raises(FileNotFoundError):
        Mapping.load(tmp_path / "none.json")


SOURCE = {"default": None, "name": "q", "part": None, "shape": [4, 4], "view": None}


def one(**changes):
    source = {key: value for key, value in {**SOURCE, **changes}.items() if value is not ...}
    return {"settings": {}, "tensors": {"a": {"join": "", "sources": [source]}}, "version": "1.0"}


@pytest.mark.parametrize(
    "data",
    [
        3,
        [],
        {},
        {**one(), "version": "2.0"},
        {**one(), "more": 1},
        {**one(), "tensors": 3},
        {**one(), "tensors": {"a": 3}},
        {**one(), "tensors": {"a": {"join": "", "sources": []}}},
        {**one(), "tensors": {"a": {"join": "product", "sources": [SOURCE, {**SOURCE, "name": "k"}]}}},
        {**one(), "tensors": {"a": {"join": "sum", "sources": [SOURCE, SOURCE]}}},
        {**one(), "tensors": {"": {"join": "", "sources": [SOURCE]}}},
        {**one(), "settings": {"bn": {"epsilon": "small"}}},
        one(name=3),
        one(name=""),
        one(name=...),
        one(more=1),
        one(shape=3),
        one(shape=[-1]),
        one(shape=["a"]),
        one(shape=[10**6, 10**6]),
        one(shape=[10**30]),
        one(part=[0, 1]),
        one(part=[4, 4]),
        one(part=[0, 3]),
        one(part=3),
        one(view=3),
        one(view={"pattern": "a b -> b a"}),
        one(view={"pattern": "a b -> a", "sizes": {}}),
        one(view={"pattern": "a b -> b a", "sizes": {}, "order": {"a": [0]}}),
        one(default=[0]),
        one(default=["x", "float32"]),
        one(default=[0, "float33"]),
        one(default=[0, "O"]),
    ],
)
def test_json_that_is_no_mapping(data):
    with pytest.raises(smh.PortError):
        Mapping.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5])
def test_text_that_is_no_json(text):
    with pytest.raises(smh.PortError, match="must be JSON"):
        Mapping.from_json(text)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": "fc.wieght"}, "did you mean 'fc.weight'"),
        ({"a": "q", "b": "q"}, "must be used once"),
        ({"a": ("q", "x y -> x")}, "cannot be turned"),
        ({"a": ("q", 3)}, "the entry of 'a' from 'q' is invalid"),
        ({"a": ("fc.weight", "o (c h) -> o c h", {"c": 5})}, "cannot be turned"),
        ({"": "q"}, "nonempty name"),
        ({"a": Entry((Source("q", (4, 4)), Source("fc.bias", (10,))), "concat")}, "do not fit one another"),
        ({"a": Entry((Source("q", (4, 4)), Source("k", (4, 4))))}, "joined by"),
        ({"a": Entry((Source("q", (4, 4), None, (0, 2)),))}, "whole or in all its parts"),
        ({"a": Entry((Source("q", (4, 4)),)), "b": Entry((Source("q", (2, 8), None, (1, 2)),))}, "must be used once"),
    ],
)
def test_mappings_that_cannot_be(tensors, message):
    with pytest.raises(smh.PortError, match=message):
        Mapping.build(tensors, SHAPES)


def test_both_ways_are_checked():
    mapping = Mapping.build({"a": ("fc.weight", "o i -> i o"), "b": "fc.bias"}, SHAPES)
    source = {"fc.weight": (10, 64), "fc.bias": (10,)}
    target = {"a": (64, 10), "b": (10,)}
    mapping.check(source, target)
    mapping.check({**source, "carried/x": (3,)}, target)
    for one_source, one_target, message in [
        ({**source, "bn.mean": (3,)}, target, "of the source are not used by the mapping: 'bn.mean'"),
        ({"fc.weight": (10, 64)}, target, "the source does not have 'fc.bias'"),
        ({**source, "fc.weight": (64, 10)}, target, "'fc.weight' of the source has the shape"),
        (source, {**target, "bn/mean": (3,)}, "of the target are not filled by the mapping: 'bn/mean'"),
        (source, {"a": (64, 10)}, "the target does not have 'b'"),
        (source, {**target, "a": (10, 64)}, "'a' of the target has the shape"),
    ]:
        with pytest.raises(smh.PortError, match=message):
            mapping.check(one_source, one_target)


def test_sums_have_no_inverse():
    mapping = Mapping({"b": Entry((Source("i", (3,)), Source("h", (3,))), "sum")})
    x = mapping.apply({"i": np.float32([1, 2, 3]), "h": np.float32([4, 5, 6])})
    assert x["b"].tolist() == [5, 7, 9]
    with pytest.raises(smh.PortError, match="'b' is a sum of 2"):
        mapping.inverse()


def test_mappings_are_told_to_people():
    mapping = Mapping.build(
        {"fc/kernel": ("fc.weight", "o i -> i o"), "q": "q", "k": "k"}, SHAPES, {"bn": {"eps": 1e-5}}
    )
    assert "fc/kernel <- fc.weight (o i -> i o)" in str(mapping)
    assert "bn: set eps=1e-05" in str(mapping)
    assert mapping.__rich__().row_count == 3


# Ports

POOLS = ["matmul", "kronecker", smh.pools.Hash(hashes=2), smh.pools.Sum(smh.pools.Matmul(), smh.pools.Hash())]
ENTRIES = {
    "fc/kernel": ("fc.weight", "o (c h w) -> (h w c) o", {"c": 4, "h": 4}),
    "conv/kernel": ("conv.weight", "o i h w -> h w i o", {}, {"h": [2, 1, 0], "w": [2, 1, 0]}),
    "fc/bias": "fc.bias",
    "carried/norm.count": "norm.count",
}


def made(pool="matmul", **options):
    """Return a checkpoint of two generated tensors and two kept ones."""
    shapes_of = {"conv.weight": (4, 3, 3, 3), "fc.weight": (10, 64)}
    axes = {"conv.weight": "o i h w", "fc.weight": "o i"}
    plan = smh.Plan.build(shapes_of, ratio=0.5, pool=pool, axes=axes, **options)
    variables = smh.initialize(plan)
    dense = {"fc.bias": np.arange(10, dtype=np.float32), "norm.count": np.int64(7)}
    return smh.Checkpoint(plan, variables, dense, smh.digest(plan, variables))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", ["basic", "cyclic"])
def test_a_port_keeps_variables_weights_and_digest(pool, layout):
    source = made(pool, layout=layout, modifiers=["relu"])
    mapping = Mapping.build(ENTRIES, source)
    before = {name: x.copy() for name, x in source.variables.items()}
    ported = smh.port(source, mapping)
    assert ported.digest == source.digest == smh.digest(ported.plan, ported.variables)
    for one_x, other in zip(source.variables.values(), ported.variables.values(), strict=True):
        assert_same_bits(other, one_x)
    for name, x in before.items():
        assert_same_bits(source.variables[name], x)
    weights = smh.materialize(source.plan, source.variables)
    expected = mapping.apply({**weights, **source.dense})
    found = {**smh.materialize(ported.plan, ported.variables), **ported.dense}
    assert found.keys() == expected.keys()
    assert found.pop("carried/norm.count") == expected.pop("carried/norm.count") == 7
    for name, x in expected.items():
        assert_same_bits(found[name], x, name)
    assert set(ported.plan.variable_shapes) == {
        *(name for name in source.plan.variable_shapes if name.startswith("pool/")),
        "scale/fc/kernel",
        "scale/conv/kernel",
    }


def test_a_port_and_back_gives_the_same_file(tmp_path):
    source = made()
    mapping = Mapping.build(ENTRIES, source)
    smh.save(tmp_path / "a", source.plan, source.variables, source.dense)
    there = smh.port(smh.load(tmp_path / "a"), mapping)
    smh.save(tmp_path / "b", there.plan, there.variables, there.dense)
    assert (tmp_path / "b").read_bytes() != (tmp_path / "a").read_bytes()
    back = smh.port(smh.load(tmp_path / "b"), mapping.inverse())
    smh.save(tmp_path / "c", back.plan, back.variables, back.dense)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_port_keeps_the_integers_and_the_values_of_training(tmp_path):
    source = made(bits=4)
    mapping = Mapping.build(ENTRIES, source)
    for training in (False, True):
        smh.save(tmp_path / "a", source.plan, source.variables, source.dense, training=training)
        there = smh.port(smh.load(tmp_path / "a"), mapping)
        assert there.training == training
        smh.save(tmp_path / "b", there.plan, there.variables, there.dense, training=there.training)
        one, other = (load_file(tmp_path / name) for name in ("a", "b"))
        assert any(name.startswith("training/") for name in other) == training
        assert "dense/carried/norm.count" in other
        for name in one:
            if name.startswith(("pool/", "training/")):
                assert other[name].dtype == one[name].dtype
                assert other[name].tobytes() == one[name].tobytes(), name
        assert there.plan.file_bytes == source.plan.file_bytes
        assert [t.kappa for t in there.plan.tensors] == [t.kappa for t in source.plan.tensors]


def test_what_nobody_asks_for_is_carried_on():
    there = smh.port(made(), Mapping.build(ENTRIES, made()))
    names = {"conv/kernel": "conv/w", "fc/kernel": "fc/w", "fc/bias": "fc/b"}
    further = smh.port(there, Mapping.build({target: name for name, target in names.items()}, there))
    assert further.dense["carried/norm.count"] == 7
    default = Entry((Source("carried/norm.count", (), default=(0, "int64")),))
    entries = {"conv": "conv/w", "fc": "fc/w", "b": "fc/b", "norm.count": default}
    assert smh.port(further, Mapping.build(entries, further)).dense["norm.count"] == 7
    del further.dense["carried/norm.count"]
    found = smh.port(further, Mapping.build(entries, further)).dense["norm.count"]
    assert found == 0
    assert found.dtype == np.int64


def test_ports_that_cannot_be():
    source = made()
    cut = {f"fc.{k}": Entry((Source("fc.weight", (10, 64), None, (k, 2)),)) for k in range(2)}
    for changes, message in [
        (cut, "'fc.weight' is generated and must become one whole tensor"),
        ({"carried/fc": "fc.weight"}, "must become one whole tensor"),
        ({}, "not used by the mapping: 'fc.weight'"),
    ]:
        entries = {name: entry for name, entry in ENTRIES.items() if name != "fc/kernel"} | changes
        with pytest.raises(smh.PortError, match=message):
            smh.port(source, Mapping.build(entries, source))
    without = {name: entry for name, entry in ENTRIES.items() if name != "fc/bias"}
    with pytest.raises(smh.PortError, match=r"not used by the mapping: 'fc\.bias'"):
        smh.port(source, Mapping.build(without, source))
    wrong = smh.Checkpoint(source.plan, source.variables, {**source.dense, "fc.bias": [1.0] * 10}, source.digest)
    with pytest.raises(smh.PortError, match="port needs NumPy arrays; got list"):
        smh.port(wrong, Mapping.build(ENTRIES, source))
    view = View("(a b) c -> a b c", (("a", 5),))
    seen = smh.Plan.build({"w": (10, 4)}, ratio=1, views={"w": ("(a b) c -> (b a) c", {"a": 5})})
    found = smh.Checkpoint(seen, smh.initialize(seen), {}, "0" * 64)
    with pytest.raises(smh.PortError, match="cannot be seen as 'v'"):
        smh.port(found, Mapping({"v": Entry((Source("w", (10, 4), view),))}))


def test_an_exchange_keeps_the_digest_and_is_doubted():
    plan = smh.Plan.build({"up.weight": (4, 4), "down.weight": (4, 4)}, ratio=1)
    source = smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64)
    right = Mapping.build({"up/kernel": "up.weight", "down/kernel": "down.weight"}, source)
    wrong = Mapping.build({"up/kernel": "down.weight", "down/kernel": "up.weight"}, source)
    one_digest, other = (smh.digest(p.plan, p.variables) for p in (smh.port(source, m) for m in (right, wrong)))
    assert one_digest == other  # names are no part of it
    assert not doubts(right)
    assert len(doubts(wrong)) == 1
    ported = smh.port(source, wrong)
    expected = right.apply(smh.materialize(plan, source.variables))
    assert any(
        not np.array_equal(x, expected[name]) for name, x in smh.materialize(ported.plan, ported.variables).items()
    )


# Matches of plain dictionaries, in the names of Flax


def dense(*sizes):
    return {"kernel": np.zeros(sizes, np.float32), "bias": np.zeros(sizes[-1:], np.float32)}


def test_shapes_decide():
    found = match({"a": dense(3, 4), "b": dense(4, 5)}, {"x": dense(4, 5), "y": dense(3, 4)})
    assert {name: entry.sources[0].name for name, entry in found.mapping.tensors.items()} == {
        "x/kernel": "b/kernel",
        "x/bias": "b/bias",
        "y/kernel": "a/kernel",
        "y/bias": "a/bias",
    }


def test_names_decide_where_all_of_them_do():
    source = {"encoder": {"q_proj": dense(4, 4), "k_proj": dense(4, 4)}}
    mapping = match(source, {"query": dense(4, 4), "key": dense(4, 4)}).mapping
    assert mapping.tensors["query/kernel"].sources[0].name == "encoder/q_proj/kernel"
    assert mapping.tensors["key/bias"].sources[0].name == "encoder/k_proj/bias"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (["fc1", "fc2"], ["dense", "dense_1"]),  # Keras counts from nothing
        (["a", "b"], ["x", "y"]),
        (["fc1", "fc2"], ["fc1", "other"]),
    ],
)
def test_what_names_leave_open_is_listed(source, target):
    models = [{name: dense(4, 4) for name in reversed(names)} for names in (source, target)]
    found = match(*models)
    assert len(found.ambiguous) == 1
    assert set(found.ambiguous[0].targets) == set(target)
    assert set(found.ambiguous[0].sources) == set(source)
    with pytest.raises(smh.PortError, match="pass hints"):
        _ = found.mapping
    in_order = match(*models, in_order=True).mapping
    hinted = match(*models, hints={target[0]: source[1]}).mapping
    for k in range(2):
        assert in_order.tensors[f"{target[k]}/kernel"].sources[0].name == f"{source[k]}/kernel"  # both reversed
        assert hinted.tensors[f"{target[k]}/kernel"].sources[0].name == f"{source[1 - k]}/kernel"


@pytest.mark.parametrize("below", ["", "block"])
def test_the_order_of_the_alphabet_is_no_order(below):
    models = [{name: dense(4, 4) for name in names} for names in ("ab", "yx")]
    models = [{below: model, "z": [dense(9, 9)] * 2} if below else model for model in models]
    with pytest.raises(smh.PortError, match=f"the source lists '{below}.* in alphabetical order"):
        _ = match(*models, in_order=True).mapping
    with pytest.raises(smh.PortError, match="the target lists .* in alphabetical order"):
        _ = match(*reversed(models), in_order=True).mapping
    names = [[f"{below}/{name}".strip("/") for name in order] for order in ("ab", "xy")]
    assert match(*models, in_order=True, hints={names[1][0]: names[0][0]}).mapping


def test_lists_have_an_order():
    mapping = match([dense(4, 4), dense(4, 4)], {"layers": (dense(4, 4), dense(4, 4))}, in_order=True).mapping
    assert mapping.tensors["layers/1/kernel"].sources[0].name == "1/kernel"


def test_hints_for_tensors_come_first():
    source = {"a": dense(4, 4), "old": np.zeros((4, 6), np.float32)}
    target = {"b": dense(4, 4), "new": np.zeros((6, 4), np.float32)}
    assert {case.targets for case in match(source, target).ambiguous} == {("new",), ()}
    mapping = match(source, target, hints={"new": ("old", "a b -> b a")}).mapping
    assert mapping.tensors["new"].sources[0].view == View("a b -> b a")
    assert mapping.tensors["b/kernel"].sources[0].name == "a/kernel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hints": {"x": "a"}}, "has no layer or tensor 'x'"),
        ({"hints": {"b": "x"}}, "has no layer 'x'"),
        ({"hints": {"b": 3}}, "has no layer 3 for 'b'"),
        ({"hints": {"c": "a"}}, "'c' cannot come from 'a': the target is dense 5 x 4, the source is dense 4 x 4"),
        ({"hints": {"b/kernel": "x"}}, "which the source does not have"),
        ({"hints": {"c/kernel": "a/kernel"}}, "has the shape"),
        ({"flatten": {"x": (1, 2, 2)}}, "a layer of neither model"),
    ],
)
def test_hints_that_do_not_fit(options, message):
    models = {"a": dense(4, 4)}, {"b": dense(4, 4), "c": dense(4, 5)}
    with pytest.raises(smh.PortError, match=message):
        match(*models, **options)


def test_what_has_no_counterpart_is_listed():
    found = match(
        {"a": dense(4, 4), "more": dense(9, 9)}, {"a": dense(4, 4), "norm": {"mean": np.zeros(4), "var": np.ones(4)}}
    )
    assert {(case.targets, case.sources) for case in found.ambiguous} == {(("norm",), ()), ((), ("more",))}
    assert "the source has no such layer" in str(found)


def test_a_missing_bias_is_zero_and_a_lost_one_is_listed():
    without = {"a": {"kernel": np.ones((3, 4), np.float32)}}
    mapping = match(without, {"a": dense(3, 4)}).mapping
    assert not mapping.apply({"a/kernel": np.ones((3, 4))})["a/bias"].any()
    assert "does not use these" in str(match({"a": dense(3, 4)}, without))


def test_missing_statistics_are_an_error():
    norm = {"scale": np.ones(4), "bias": np.zeros(4)}
    found = match({"bn": norm}, {"bn": {**norm, "mean": np.zeros(4), "var": np.ones(4)}})
    assert {case.targets for case in found.ambiguous} == {("bn/mean",), ("bn/var",)}


@pytest.mark.parametrize("model", [3, {}, "model", None, [1.0]])
def test_what_is_no_model(model):
    with pytest.raises(smh.PortError, match="no tensors"):
        match(model, {"a": dense(3, 4)})
