"""Names and patterns from strangers: they are only names, and no pattern takes for ever on them."""

import io
import json
import random
import re

import pytest

import smh
from smh.cli.output import text_console
from smh.core.patterns import compile_pattern
from smh.core.selection import select
from smh.files.dense import DenseFile
from smh.porting.layers import words
from smh.text import printable
from tests.files.forgery import forged, plan_of, tensor

# --- Names

NAMES = {
    "parent folders": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "another system's path": "..\\..\\x:y",
    "a class": "__class__",
    "a method": "forward",
    "a dictionary": "__dict__.x",
    "a NUL": "a\0b",
    "colour": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;title\x07",
    "one byte that begins an escape": "\x9b31m",
    "lines": "a\nerror: all is well\r\n",
    "a line separator": "a\u2028b\u2029c\x85d",
    "the other direction": "abc\u202edef",
    "no width": "a\u200bb\ufeffc",
    "markup": "[red]x[/red][/]",
    "broken markup": "[/nothing]",
    "a link": "[link=file:///etc/passwd]x[/link]",
    "emoji": ":warning:",
    "braces": "{0} {name!r} %s %(x)d",
    "spaces": "   ",
    "long": "n" * 5000,
}


def hostile_files(write, name):
    """Return the paths of a checkpoint and a plain file that have the name in every place."""
    plan = plan_of([tensor([2, 2], name=name, learn_scale=True)])
    scale = {f"scale/{name}": ()}
    path = write(
        forged(plan, {"pool/table": (1, 1), **scale}, {f"dense/kept {name}": (2,), f"dense/carried/{name}": (1,)})
    )
    plain = {name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps(plain).encode()
    return path, write(len(text).to_bytes(8, "little") + text + bytes(16), "plain")


def harmless(text):
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("what", NAMES)
def test_names_are_only_names(write, call, tmp_path, what):
    name = NAMES[what]
    path, plain = hostile_files(write, name)
    found = smh.load(path)
    assert list(smh.materialize(found.plan, found.variables)) == [name]
    smh.save(tmp_path / "again", found.plan, found.variables, found.dense)
    assert smh.load(tmp_path / "again").plan == found.plan
    before = set(tmp_path.iterdir())
    results = [
        call("inspect", path),
        call("inspect", plain),
        call("digest", path),
        call("verify", path, "--backend", "numpy", "--against", plain),
        call("diff", path, plain),
        call("diff", path, tmp_path / "again"),
        call("plan", plain, "--ratio", "1", "--allow-expansion", "--scale", "1"),
        call("plan", plain, "--ratio", "1", "--allow-expansion", "--scale", "1", "--include", "nothing like it"),
        call("materialize", path, "-o", tmp_path / "out"),
        call("materialize", path, "-o", tmp_path / "none", "--names", "nothing like it"),
    ]
    for result in results:
        assert "Traceback" not in result.output
        assert harmless(result.output), repr(result.output)
    assert [result.exit_code for result in results] == [0, 0, 1, 1, 1, 1, 0, 3, 0, 3]
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    with DenseFile(tmp_path / "out") as file:
        assert set(file) == {name, f"kept {name}"}
    assert harmless(str(found.plan))


@pytest.mark.parametrize("what", NAMES)
def test_names_of_mappings_are_only_names(write, call, tmp_path, what):
    name = NAMES[what]
    path, _ = hostile_files(write, "x")
    source = smh.load(path)
    mapping = smh.porting.Mapping.build({name: "x", f"kept {name}": "kept x"}, source, {name: {name: 1.0}})
    mapping.save(tmp_path / "map.json")
    assert smh.porting.Mapping.load(tmp_path / "map.json") == mapping
    smh.save(tmp_path / "honest", source.plan, source.variables, source.dense)
    result = call("port", tmp_path / "honest", "--map", tmp_path / "map.json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert harmless(result.output), repr(result.output)
    assert name in {t.name for t in smh.load(tmp_path / "out").plan.tensors}


@pytest.mark.parametrize("name", ["9" * 200_000 + "x", "x" + "9" * 200_000, "_" * 200_000, "x_9" * 70_000])
def test_names_that_end_with_numbers_take_no_time(name):
    assert words(name) is not None  # it would take hours if the time grew with the square


def test_names_that_look_alike_are_different_names(write):
    names = ["\u00e9", "e\u0301", "\u0065", "\uff45"]
    tensors = [tensor([1], k, name=name) for k, name in enumerate(names)]
    dense = {f"dense/kept {name}": (1,) for name in names}
    found = smh.load(write(forged(plan_of(tensors), {"pool/table": (1, 1), **dense})))
    assert list(smh.materialize(found.plan, found.variables)) == names
    assert set(found.dense) == {f"kept {name}" for name in names}
    twice = [tensor([1], k, name="\u00e9") for k in range(2)]
    with pytest.raises(smh.CheckpointError, match="names must differ"):
        smh.load(write(forged(plan_of(twice))))


def test_a_console_lets_no_control_character_through():
    file = io.StringIO()
    console = text_console(file)
    console.print("a\x1b[31mb\n\x9bc", "[red]\u202ed[/red]")
    assert file.getvalue() == "a\\x1b[31mb\n\\x9bc [red]\\u202ed[/red]\n"
    assert printable("plain \u00e9") == "plain \u00e9"


# --- Patterns that meet a stranger's names

NESTED = ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(?:a*)*b", "((a?)){40}b", "(?P<n>a+){2,}b", "(a+|x)*", r"([^.]+\.)*weight"]
NESTED += [
    "(a+)(?#x)+b",
    "(?x)(a+) +b",
    "(?x)(a+)#c\n+b",
    "(?s-i:(?x:(a+) +))b",
    "(?=(a+)+)b",
    "(a)(?(1)(a+)+|b)",
    "(?>(a+)+)b",
]
PLAIN = [".*", r"layers\.\d+\..*", r".*\.(q|k|v|o)_proj\..*", "(?:ab)+", r"[(+]+x?", r"\(a+\)+", "(?!head).*", "(a+)?"]


@pytest.mark.parametrize("pattern", NESTED)
def test_patterns_that_can_take_for_ever_are_refused(write, call, pattern):
    with pytest.raises(smh.PlanError, match=r"for ever.*got"):
        compile_pattern(pattern, ["a" * 200], "include")
    _, plain = hostile_files(write, "a" * 200)
    result = call("plan", plain, "--ratio", "1", "--allow-expansion", "--scale", "1", "--include", f"re:{pattern}")
    assert result.exit_code == 2
    assert "for ever" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("pattern", PLAIN)
def test_patterns_that_end_are_taken(pattern):
    assert compile_pattern(pattern, ["layers.0.q_proj.weight"], "include").pattern == pattern


def test_too_many_ways_to_match_are_refused():
    names = ["a" * 1000 + str(k) for k in range(100)]
    with pytest.raises(smh.PlanError, match=r"more than 10,000,000,000 ways, with 4 repetitions"):
        compile_pattern("a*a*a*a*b", names, "include")
    assert all(map(compile_pattern("a*[0-9]*", names, "include").fullmatch, names))
    with pytest.raises(smh.PlanError, match="ways"):
        compile_pattern("a?" * 40 + "a" * 40, ["a" * 40], "include")
    with pytest.raises(smh.PlanError, match="ways"):
        compile_pattern("(a|a)" * 40 + "b", ["a" * 40], "include")


def test_compiled_patterns_are_taken_at_the_user_s_own_risk():
    pattern = re.compile(r"(\w+\.)*weight")
    for include in (pattern, pattern.fullmatch):
        assert select({"a.b.weight": (2, 2)}, include, None) == ["a.b.weight"]


@pytest.mark.parametrize("wanted", ["a*" * 40 + "b", "?" * 2000 + "b", "*.b" * 40, "a.b", "[a]*" * 40 + "b"])
def test_globs_and_names_end_whoever_chose_the_names(wanted):
    shapes = {"a" * 10**5: (2, 2), "a." * 10**5: (2, 2), "." * 10**5: (2, 2)}
    with pytest.raises(smh.PlanError, match="matches no tensor"):
        select(shapes, wanted, None)


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "*", "[", "(?P<1>a)"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(smh.PlanError, match="not a regular expression"):
        compile_pattern(pattern, ["a"], "include")


def test_counting_ways_agrees_with_python_on_what_is_a_group():
    rng = random.Random(0)
    parts = ["a", "b*", "[)*|(]", r"\)", r"\(", "(?:a)", "(b)", "(?=a)", ".", "[^]]", r"\*", "x?"]
    for _ in range(200):
        pattern = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 12)))
        assert compile_pattern(pattern, ["ab"], "include").pattern == pattern
        with pytest.raises(smh.PlanError, match="for ever"):
            compile_pattern(f"(?:{pattern}c+)*", ["ab"], "include")
