"""Plans, headers and mappings from strangers: refused for a reason, in bounded time and memory."""

import json
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import smh
from smh.core.views import View
from smh.errors import MAX_MESSAGE, near_names
from smh.files import checkpoint
from smh.files.dense import DenseFile
from smh.strict_json import parse
from smh.text import shortened
from tests.files.common import DENSE, file_of, honest_plans
from tests.files.forgery import forged, hashed, plan_of, tensor

MIB = 2**20


# --- Plans and headers that cost too much to read


def long_plans():
    """Return plans that are long in one place each."""
    million = 10**6
    deep = {"kind": "sum", "parts": [hashed()]}
    for _ in range(20):
        deep = {"kind": "sum", "parts": [deep]}
    return {
        "axes of size one": plan_of([tensor([2], shape=[1] * (million // 8))]),
        "a kind": plan_of([tensor([2])], {"kind": "m" * million}),
        "a key": plan_of([tensor([2])], **{"k" * million: 1}),
        "a key of a tensor": plan_of([tensor([2], **{"k" * million: 1})]),
        "modifiers": plan_of([tensor([2], modifiers=["relu"] * (million // 8))]),
        "letters": plan_of([tensor([2], axes="a " * million)]),
        "a pattern": plan_of([tensor([2], view={"pattern": "a " * million + "-> a", "sizes": {}})]),
        "sizes": plan_of(
            [tensor([2], view={"pattern": "a -> a", "sizes": {f"x{k}": 1 for k in range(million // 16)}})]
        ),
        "an order": plan_of(
            [tensor([2], view={"pattern": "a -> a", "sizes": {}, "order": {"a": [0] * (million // 4)}})]
        ),
        "a scale": plan_of([tensor([2], scale="x" * million)]),
        "an offset": plan_of([tensor([2], offset=[0] * (million // 4))]),
        "a layout": plan_of([tensor([2])], layout=["x" * million]),
        "a version": plan_of([tensor([2])], version="1" * million),
        "a seed": plan_of([tensor([2])], seed={"a": [[1]] * (million // 16)}),
        "parts": plan_of([tensor([2])], {"kind": "sum", "parts": [hashed()] * (million // 64)}),
        "depth": plan_of([tensor([2])], deep),
    }


@pytest.mark.parametrize("what", long_plans())
def test_what_is_long_is_refused_in_bounded_time_and_memory_with_a_short_message(write, what):
    path = write(forged(long_plans()[what]))
    tracemalloc.start()
    try:
        with pytest.raises(smh.CheckpointError) as caught:
            smh.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < MAX_MESSAGE + 1000
    assert peak < 64 * MIB


def test_many_leaves_are_read_and_built(write):
    pool = {"kind": "sum", "parts": [{"kind": "product", "parts": [hashed()] * 8}] * 32}
    shapes = {f"pool/{p}/{q}/table": (1, 1) for p in range(32) for q in range(8)}
    found = smh.load(write(forged(plan_of([tensor([2, 2])], pool), shapes)))
    assert np.abs(smh.materialize(found.plan, found.variables)["t0"]).max() <= 32 * 2.0**-8


def test_a_long_name_does_not_widen_every_line(write, call):
    tensors = [tensor([1], k, name="n" * 100_000 if k == 3 else f"t{k}") for k in range(300)]
    path = write(forged(plan_of(tensors)))
    found = smh.load(path)
    assert len(str(found.plan)) < 300 * 500
    result = call("inspect", path, "--all")
    assert result.exit_code == 0
    assert len(result.stdout) < 300 * 500
    assert "(99,800characters)" in re.sub(r"\s", "", result.stdout)


def test_deep_json_is_refused_before_it_is_parsed():
    for deep in ("[" * 65 + "]" * 65, '{"a":' * 65 + "0" + "}" * 65, "[{" * 100_000, '[["]"' * 100, "[" * 500_000):
        with pytest.raises(smh.CheckpointError, match=r"must be plain JSON .* recursion of more than 64"):
            parse(deep, "it")
    assert parse("[" * 64 + "]" * 64, "it") is not None
    assert parse('{"[[[[": ["' + r"\"[\\" + '", {}]}' + " ", "it") == {"[[[[": ['"[\\', {}]}
    assert parse(json.dumps(["[" * 1000, '"' * 100, "\\" * 99]), "it") == ["[" * 1000, '"' * 100, "\\" * 99]
    with pytest.raises(smh.CheckpointError, match="must be plain JSON"):
        parse("[[[]", "it")


def test_deep_json_does_not_end_a_process_that_allows_deep_recursion(write):
    header = b'{"a":' + b"[" * 500_000
    path = write(len(header).to_bytes(8, "little") + header)
    code = (
        "import sys; sys.setrecursionlimit(10**6)\n"
        "import smh; from smh.files.dense import DenseFile\n"
        f"try: DenseFile({str(path)!r})\n"
        "except smh.CheckpointError as error: print(error)\n"
        "try: smh.Plan.from_json('[' * 500_000)\n"
        "except smh.PlanError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("recursion of more than 64") == 2


def test_headers_are_read_as_utf8_only(write):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    for encoding in ("utf-16-le", "utf-32-le"):
        text = header.encode(encoding)
        with pytest.raises(smh.CheckpointError, match="plain JSON in UTF-8"):
            DenseFile(write(len(text).to_bytes(8, "little") + text + bytes(4)))
    with DenseFile(write(len(header).to_bytes(8, "little") + header.encode() + bytes(4))) as file:
        assert file.shapes == {"a": (1,)}


def test_the_time_to_find_near_names_is_bounded():
    many = [f"layers.{k}.weight" for k in range(100)]
    assert near_names("layers.7.wieght", many).startswith("did you mean 'layers.7.weight'")
    long = "a" * MIB
    tracemalloc.start()
    text = near_names(long, [*many, long])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == "known names: 'layers.0.weight', 'layers.1.weight', 'layers.2.weight', ..."
    assert peak < MIB // 8
    assert len(near_names("x", ["a" * MIB])) < 300


def test_messages_are_short():
    for kind in (smh.SmhError, smh.PlanError, smh.UnknownNameError, smh.LimitError):
        error = kind("begin" + "x" * 10**6 + "end")
        assert str(error).startswith("begin")
        assert str(error).endswith("end")
        assert len(str(error)) < MAX_MESSAGE + 100
        assert str(kind("short")) == "short"
    assert shortened("x" * 10, 10) == "x" * 10


def test_reading_is_bounded_by_the_file(write):
    path = write(file_of(honest_plans()["sum"], DENSE))
    tracemalloc.start()
    checkpoint.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


# --- Values that mean nothing


@pytest.mark.parametrize("scale", [10**400, -(10**400), 10**40])
def test_numbers_of_any_size_are_refused_by_name(scale):
    with pytest.raises(smh.PlanError, match="at most 32 characters|within float32"):
        smh.Plan.from_json(json.dumps(plan_of([tensor([2], scale=scale)])))


@pytest.mark.parametrize("offset", [0.0, False, "0", None, [0]])
def test_offsets_are_integers(offset):
    with pytest.raises(smh.PlanError, match="must start at cell 0"):
        smh.Plan.from_json(json.dumps(plan_of([tensor([2], offset=offset)])))


VIEWS = {
    "an ellipsis of one character": ("\u2026 -> \u2026", {}, {}, "no ellipsis"),
    "a digit of another script": ("a b \uff11 -> b a", {}, {}, "names like Python variables"),
    "a number that is one": ("a b 01 -> b a", {}, {}, "names like Python variables"),
    "an argument of einops": ("(tensor b) c -> c tensor b", {"tensor": 2}, {}, "argument of einops"),
    "another argument of einops": ("(a reduction) b -> a b reduction", {"reduction": 1}, {}, "argument of einops"),
    "too many axes": (
        " ".join(["(a b" + " ".join(f"x{k}" for k in range(70)) + ")", "-> a"]),
        {},
        {},
        "at most 64 axes",
    ),
    "too long": ("a b -> b a" + " " * 2000, {}, {}, "at most 2000 characters"),
    "a size of zero": ("(a c) b -> a b c", {"c": 0}, {}, "positive integers"),
    "a huge size": ("(a c) b -> a b c", {"c": 2**62}, {}, "does not fit"),
    "repeated": ("a b -> a b b", {}, {}, "does not fit"),
    "reduced": ("a b -> a", {}, {}, "does not fit"),
    "an unknown order": ("a b -> b a", {}, {"c": [0]}, "not an axis"),
    "an order with a gap": ("a b -> b a", {}, {"a": [0, 2, 3, 4]}, "each of 0 to 3"),
    "an order of booleans": ("a b -> b a", {}, {"b": [False, True, 2, 3]}, "each of 0 to 3"),
}


@pytest.mark.parametrize("what", VIEWS)
def test_views_that_do_more_than_move_elements_are_refused(what):
    pattern, sizes, order, words = VIEWS[what]
    view = {"pattern": pattern, "sizes": sizes, **({"order": order} if order else {})}
    with pytest.raises(smh.PlanError, match=words):
        smh.Plan.from_json(json.dumps(plan_of([tensor([4, 4], view=view)])))


def test_an_axis_without_elements_has_no_order():
    with pytest.raises(smh.PlanError, match="must contain each"):
        View("a b -> b a", (), (("a", ()),)).shape((0, 3))


def test_a_tensor_has_as_many_axes_as_arrays_can_have():
    letters = " ".join(chr(ord("a") + k) if k < 26 else chr(0x3B1 + k) for k in range(65))
    with pytest.raises(smh.PlanError, match="at most 64 axes; got 65"):
        smh.Plan.from_json(json.dumps(plan_of([tensor([2], shape=[1] * 65, axes=letters)])))
    plan = smh.Plan.from_json(json.dumps(plan_of([tensor([2], shape=[1] * 64, axes=letters[:-2])])))
    assert smh.materialize(plan, smh.initialize(plan))["t0"].ndim == 64


def test_modifiers_are_not_repeated_for_ever():
    assert smh.Plan.from_json(json.dumps(plan_of([tensor([2], modifiers=["relu"] * 16)]))).num_weights == 2
    with pytest.raises(smh.PlanError, match="at most 16 modifiers; got 17"):
        smh.Plan.from_json(json.dumps(plan_of([tensor([2], modifiers=["relu"] * 17)])))


MAPPINGS = {
    "a number beyond floats": ('"settings":{"y":{"epsilon":1e999}}', "must be finite"),
    "a long number": ('"settings":{"y":{"epsilon":' + "9" * 400 + "}}", "at most 32 characters"),
    "not a number": ('"settings":{"y":{"epsilon":NaN}}', "must be finite"),
    "a number as text": ('"settings":{"y":{"epsilon":"NaN"}}', "must be a number"),
    "a key twice": ('"settings":{},"settings":{}', "twice"),
}


@pytest.mark.parametrize("what", MAPPINGS)
def test_mappings_hold_plain_numbers(what):
    settings, words = MAPPINGS[what]
    version = json.loads(smh.porting.Mapping.build({"y": "x"}, {"x": (2,)}).to_json())["version"]
    source = '{"default":null,"name":"x","part":null,"shape":[2],"view":null}'
    text = '{"tensors":{"y":{"join":"","sources":[%s]}},"version":"%s",%s}'
    assert smh.porting.Mapping.from_json(text % (source, version, '"settings":{"y":{"epsilon":0.5}}')).settings["y"]
    with pytest.raises(smh.PortError, match=words):
        smh.porting.Mapping.from_json(text % (source, version, settings))


DEFAULTS = [[[1], "float32"], ["1", "float32"], [None, "float32"], [1e300, "float32"], [2**63, "int64"], [1, ","]]
DEFAULTS += [[1, "(9999,9999)f8"], [1, "O"], [1, "f4,f4"], [1, "M8[s]"], [1, "bfloat16"], [1, ["x"]]]


@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_of_mappings_are_numbers(default):
    source = {"default": default, "name": "x", "part": None, "shape": [2], "view": None}
    tensors = {"y": {"join": "", "sources": [source]}}
    with pytest.raises(smh.PortError, match="default"):
        smh.porting.Mapping.from_json(json.dumps({"settings": {}, "tensors": tensors, "version": "2.0"}))
