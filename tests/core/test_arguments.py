"""Arguments of any type work or raise an SmhError that says what was received: never another exception."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

import smh
from smh import numpy as arrays
from smh import pools

PLAN = smh.Plan.build({"a": (6, 5), "b": (4, 4)}, ratio=0.9)
VARIABLES = arrays.initialize(PLAN)
COTANGENTS = {"a": np.ones((6, 5), dtype=np.float32)}

ODD = [
    None, True, 0, -1, 3, 10**30, 0.5, math.nan, math.inf, Fraction(1, 3), 1j,
    "", "a", "b", "x", "(", "10%", b"a", "\ud800",
    (), [], ["a"], ["a", 3], [["a"]], [None], ("a", "b"), [("a", (6, 5))], range(3), iter(["a"]),
    {}, {"a": 3}, {"a": None}, {3: 3}, {"a": "x"}, {"x": "fan_in"}, {"a": [1, 2]}, {"a": (6, 5)},
    {"a": ("a b -> b a", {3: 1})}, np.ones(3), np.ones((6, 5), dtype=np.float32), np.float32(3), np.array("x"),
    np.ma.ones((6, 5)), np.ones(2, dtype=object),
    object(), object, len, lambda name: name, re.compile("a"), smh.Plan, PLAN, pools.Matmul(), pools.Matmul,
]  # fmt: skip
GOOD = {
    "build": (smh.Plan.build, {"shapes": {"a": (6, 5), "b": (4, 4)}, "ratio": 0.9}),
    "build by size": (smh.Plan.build, {"shapes": {"a": (6, 5), "b": (4, 4)}, "size": "1 kB"}),
    "match": (smh.Plan.build, {"shapes": {"a": (6, 5)}, "ratio": 0.9, "scale": "match", "values": {"a": np.eye(6, 5)}}),
    "from_json": (smh.Plan.from_json, {"text": PLAN.to_json()}),
    "select": (PLAN.select, {"names": ["a"]}),
    "initialize": (arrays.initialize, {"plan": PLAN}),
    "materialize": (arrays.materialize, {"model": PLAN, "variables": VARIABLES}),
    "vjp": (arrays.vjp, {"plan": PLAN, "variables": VARIABLES, "cotangents": COTANGENTS}),
    "digest": (arrays.digest, {"model": PLAN, "variables": VARIABLES}),
    "save": (arrays.save, {"path": None, "model": PLAN, "variables": VARIABLES}),
    "load": (arrays.load, {"path": None}),
    "get_backend": (smh.get_backend, {"name": "numpy"}),
}
OPTIONS = {
    "build": [
        *("ratio", "size", "bits", "optimizer", "pool", "layout", "scale", "modifiers", "seed", "axes", "views"),
        *("include", "exclude", "values", "kept_bytes"),
    ],
    "initialize": ["distribution", "device"],
    "materialize": ["names", "max_bytes"],
    "save": ["dense"],
    "load": ["device", "max_bytes"],
}
CASES = [(name, option) for name, (_, good) in GOOD.items() for option in [*good, *OPTIONS.get(name, [])]]


@pytest.mark.parametrize(("name", "option"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_other_exception(tmp_path, name, option):
    function, good = GOOD[name]
    if "path" in good:
        arrays.save(tmp_path / "good", PLAN, VARIABLES)
        good = {**good, "path": tmp_path / "good"}
    function(**good)
    refused = 0
    for odd in ODD:
        if option == "path" and isinstance(odd, str | bytes):
            continue  # any text may be a path
        try:
            function(**{**good, option: odd})
        except smh.SmhError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}({option}={odd!r}) raised {type(error).__name__}: {error}") from error
    assert refused, "every argument has values that are refused"


@pytest.mark.parametrize(
    "value", [np.ma.array(VARIABLES["pool/left"], mask=True), VARIABLES["pool/left"].view(np.matrix)]
)
def test_subclasses_of_arrays_are_refused(value):
    for call in (arrays.materialize, arrays.digest, lambda *args: arrays.vjp(*args, COTANGENTS)):
        with pytest.raises(smh.VariableError, match=f"must be a plain numpy.ndarray; got .*{type(value).__name__}"):
            call(PLAN, {**VARIABLES, "pool/left": value})


def test_an_array_in_a_file_is_taken(tmp_path):
    np.save(tmp_path / "x.npy", VARIABLES["pool/left"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert arrays.digest(PLAN, {**VARIABLES, "pool/left": mapped}) == arrays.digest(PLAN, VARIABLES)


def test_the_path_comes_first(tmp_path):
    for save in (smh.save, arrays.save):
        with pytest.raises(smh.PlanError, match=r"the path comes first, as in smh.save\(path, model\); got Plan"):
            save(PLAN, tmp_path / "x", VARIABLES)
    assert not list(tmp_path.iterdir())


def test_a_path_of_bytes_is_taken(tmp_path):
    path = bytes(tmp_path / "x")
    assert arrays.save(path, PLAN, VARIABLES) == arrays.load(path).digest
