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
    "initialize": ["distribution", "device", "init_seed"],
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
        with pytest.raises(smh.VariableError, match=f"must be a plain numpy.ndarray; .* got .*{type(value).__name__}"):
            call(PLAN, {**VARIABLES, "pool/left": value})


def test_an_array_in_a_file_is_taken(tmp_path):
    np.save(tmp_path / "x.npy", VARIABLES["pool/left"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert arrays.digest(PLAN, {**VARIABLES, "pool/left": mapped}) == arrays.digest(PLAN, VARIABLES)


def test_arguments_in_the_wrong_order_are_told(tmp_path):
    path = tmp_path / "x"
    for module in (smh, arrays):
        calls = {
            r"smh.save\(path, model, variables\); got \(Plan, PosixPath, dict\)": (module.save, PLAN, path, VARIABLES),
            r"smh.save\(path, model, variables\); got \(PosixPath, dict, Plan\)": (module.save, path, VARIABLES, PLAN),
            r"smh.materialize\(model, variables\); got \(dict, Plan\)": (module.materialize, VARIABLES, PLAN),
            r"smh.digest\(model, variables\); got \(dict, Plan\)": (module.digest, VARIABLES, PLAN),
            r"smh.vjp\(plan, variables, cotangents\)": (module.vjp, VARIABLES, COTANGENTS, PLAN),
            r"smh.initialize\(plan, distribution\); got \(str, Plan\)": (module.initialize, "normal", PLAN),
        }
        for message, (function, *arguments) in calls.items():
            with pytest.raises(smh.PlanError, match=f"in the wrong order: write {message}"):
                function(*arguments)
    with pytest.raises(smh.PlanError, match=r"the path comes first, as in smh.save\(path, model\); got int"):
        smh.save(3, PLAN, VARIABLES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "option", "message"),
    [
        (arrays.materialize, "variabels", r"smh.materialize has no option 'variabels'; did you mean 'variables'"),
        (arrays.save, "trainning", r"smh.save has no option 'trainning'; did you mean 'training'"),
        (arrays.initialize, "seed", r"smh.initialize has no option 'seed'; did you mean 'init_seed'"),
        (smh.Plan.build, "learn_scales", r"smh.Plan.build has no option 'learn_scales'; did you mean 'learn_scale'"),
    ],
)
def test_a_mistaken_option_names_itself_and_its_neighbour(function, option, message):
    with pytest.raises(smh.PlanError, match=message):
        function(PLAN, **{option: None})


def test_an_error_of_a_right_call_stays_as_it_is():
    with pytest.raises(smh.VariableError, match="'pool/left' is missing"):
        arrays.materialize(PLAN, {})


def test_a_call_without_an_argument_names_the_function_and_its_options():
    written = {
        r"smh.materialize lacks 'model': write smh.materialize\(model, variables, names, max_": arrays.materialize,
        r"smh.save lacks 'path' and 'model': write smh.save\(path, model, variables, dense, training=": smh.save,
        r"smh.compress_ lacks 'model': write smh.compress_\(model, ratio, size=, .*, \.\.\.\)$": smh.compress_,
        r"smh.port lacks 'checkpoint' and 'mapping': write smh.port\(checkpoint, mapping\)": smh.port,
        r"smh.porting.match lacks 'source' and 'target': write smh.porting.match\(source, target, ": smh.porting.match,
        r"smh.Plan.build lacks 'shapes': write smh.Plan.build\(shapes, ratio, ": smh.Plan.build,
        r"smh.export.onnx lacks 'path' and 'model': write smh.export.onnx\(path, model, args, ": smh.export.onnx,
    }
    for message, function in written.items():
        with pytest.raises(TypeError, match=message):
            function()
    with pytest.raises(TypeError, match=r"smh.load has too many positional arguments: write smh.load\(path, model, "):
        smh.load("path", None, "cpu")


def test_a_plan_takes_its_ratio_as_compress_does():
    assert smh.Plan.build({"a": (6, 5)}, 0.9) == smh.Plan.build({"a": (6, 5)}, ratio=0.9)
    with pytest.raises(smh.PlanError, match=r"wrong order: write smh.Plan.build\(shapes, ratio\); got \(float, dict\)"):
        smh.Plan.build(0.9, {"a": (6, 5)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smh.report(PLAN, x=1), r"smh.report has no option 'x'; write smh.report\(model\)"),
        (lambda: smh.plan_of(PLAN, x=1), r"smh.plan_of has no option 'x'; write"),
        (lambda: smh.built(PLAN, x=1), r"smh.built has no option 'x'; write"),
        (lambda: smh.materialize_(PLAN, x=1), r"smh.materialize_ has no option 'x'; write"),
        (lambda: smh.compress_(PLAN, rato=1), r"smh.compress_ has no option 'rato'; did you mean 'ratio'"),
        (lambda: smh.port(PLAN, mappin=1), r"smh.port has no option 'mappin'; did you mean 'mapping'"),
        (
            lambda: smh.porting.match(PLAN, PLAN, hint={}),
            r"smh.porting.match has no option 'hint'; did you mean 'hints'",
        ),
        (lambda: pools.Hash(hash=2), r"smh.pools.Hash has no option 'hash'; did you mean 'hashes'"),
        (lambda: pools.Matmul(bit=4), r"smh.pools.Matmul has no option 'bit'; did you mean 'bits'"),
        (lambda: pools.Sum(part=4), r"smh.pools.Sum has no option 'part'; write smh.pools.Sum\(\*parts\)"),
        (lambda: smh.export.onnx("x", PLAN, weight=True), r"smh.export.onnx has no option 'weight'; did you mean"),
    ],
)
def test_every_public_function_explains_its_options(call, message):
    with pytest.raises(smh.PlanError, match=message):
        call()


def test_a_checkpoint_stands_for_its_plan_and_variables(tmp_path):
    digest = arrays.save(tmp_path / "x", PLAN, VARIABLES)
    found = arrays.load(tmp_path / "x")
    assert arrays.digest(found) == smh.digest(found) == digest
    built, expected = arrays.materialize(found, names=["b"]), arrays.materialize(found.plan, found.variables)
    assert {name: x.tobytes() for name, x in built.items()} == {"b": expected["b"].tobytes()}
    for call in (arrays.digest, arrays.materialize):
        with pytest.raises(smh.PlanError, match="variables= needs a Plan, not a checkpoint; got Checkpoint"):
            call(found, found.variables)
        with pytest.raises(smh.PlanError, match="read with frozen=True"):
            call(arrays.load(tmp_path / "x", frozen=True))
    with pytest.raises(smh.PlanError, match=r"not a checkpoint: .*checkpoint.plan and checkpoint.variables; got Check"):
        smh.report(found)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_initial_values_of_a_seed_are_those_of_a_plan_with_it(distribution):
    pool = pools.Sum("hash", pools.Product("matmul", "hash"))
    first, second = (smh.Plan.build({"a": (40, 50)}, ratio=0.9, pool=pool, seed=seed) for seed in (3, 4))
    values = arrays.initialize(first, distribution, init_seed=4)
    expected, own = arrays.initialize(second, distribution), arrays.initialize(first, distribution)
    assert {name: x.tobytes() for name, x in values.items()} == {name: x.tobytes() for name, x in expected.items()}
    assert {name: x.tobytes() for name, x in own.items()} != {name: x.tobytes() for name, x in values.items()}


def test_a_path_of_bytes_is_taken(tmp_path):
    path = bytes(tmp_path / "x")
    assert arrays.save(path, PLAN, VARIABLES) == arrays.load(path).digest
