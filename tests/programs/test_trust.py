"""What the harnesses of ``trust`` share: results, the page of them, the command line; and looking into packages."""

import json
import types
import zipfile

import pytest
from typer.testing import CliRunner

from trust import marks, packages, record, report, suite
from trust.__main__ import app


def findings(check="faults", **labels):
    found = record.Findings(check, labels=labels)
    found.count("savers", 1234)
    found.measure("left", 1, 2)
    found.skipped["full disk"] = "this process may not mount disks"
    return found


def test_a_figure_above_its_bound_is_a_failure():
    found = findings()
    assert found.line()["passed"] is True
    found.measure("MiB grown by", 8.5, 8)
    assert found.line()["passed"] is False
    assert found.line()["failures"] == ["MiB grown by is 8.5, and may be 8"]
    assert found.line()["bounds"] == {"left": 2, "MiB grown by": 8}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_bound_holds_for_what_is_no_number(value):
    found = findings()
    found.measure("loss", value, 3)
    assert not found.line()["passed"]


def test_many_failures_are_counted_and_some_are_told():
    found = findings()
    for k in range(100):
        found.expect(k < 0, f"number {k}")
    assert found.counts["failures"] == 100
    assert found.failures == [f"number {k}" for k in range(record.MOST_FAILURES)]


def test_lines_are_added_and_a_cut_one_is_taken_out(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    record.append(path, {"check": "a"})
    record.append(path, {"check": "b"})
    with path.open("a") as file:
        file.write('{"check": "c", "cut')
    assert record.read(path) == [{"check": "a"}, {"check": "b"}]
    record.append(path, {"check": "d"})
    assert [line["check"] for line in record.read(path)] == ["a", "b", "d"]


def test_a_line_tells_what_it_depends_on():
    line = findings(environment="smh").line()
    assert {"date", "commit", "changed", "source", "versions", "system", "seconds", "environment"} <= line.keys()
    assert {"python", "smh", "numpy"} <= line["versions"].keys()


def test_a_line_tells_which_code_was_imported(tmp_path, monkeypatch):
    found = findings()
    (tmp_path / "smh").mkdir()
    (tmp_path / "smh" / "x.py").write_text("x = 1")
    monkeypatch.setattr(record, "LIBRARY", tmp_path)
    first = record.source()
    (tmp_path / "smh" / "x.py").write_text("x = 2")
    assert first != record.source()
    assert found.line()["source"] not in (first, record.source())  # what there was at the start


def test_the_page_has_every_figure_of_the_last_lines():
    old = findings()
    old.count("savers", 1)
    broken = findings("soak")
    broken.measure("MiB grown by", 8.5, 8)
    lines = [
        x.line() for x in (old, broken, findings(), findings("packages", environment="structured-multi-hashing[torch]"))
    ]
    page = report.page(lines)
    assert page.count("| savers | 1,234 |") == 3
    assert "1,235" not in page  # of the first line of faults
    assert "| left | 1 | 2 |" in page
    assert "**Failed:** MiB grown by is 8.5, and may be 8." in page
    assert "Not done here: full disk, because this process may not mount disks." in page
    assert page.index("## Faults while saving") < page.index("## Long training") < page.index("## Packages")
    assert "Smh[torch]" not in page
    assert "### structured-multi-hashing[torch]" in page


def test_the_command_writes_the_page(tmp_path):
    record.append(tmp_path / "results.jsonl", findings().line())
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "results.jsonl"), "-o", str(tmp_path / "pages" / "trust.md")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pages" / "trust.md").read_text() == report.page(record.read(tmp_path / "results.jsonl"))


@pytest.mark.parametrize("fails", [True, False])
def test_a_command_keeps_its_line_and_exits_with_what_it_found(tmp_path, monkeypatch, fails):
    from trust import orders

    found = findings("orders")
    found.expect(not fails, "other bits")
    monkeypatch.setattr(orders, "run", lambda: found)
    done = CliRunner().invoke(app, ["orders", "--results", str(tmp_path / "x")])
    assert done.exit_code == int(fails)
    assert ("FAILED: other bits" in done.output) == fails
    assert "savers: 1,234" in done.output
    (line,) = record.read(tmp_path / "x")
    assert line["passed"] is not fails


def test_unknown_extras_are_refused():
    done = CliRunner().invoke(app, ["packages", "--extras", "none,pytorch"])
    assert done.exit_code == 2
    assert "pytorch" in done.output


# --- Packages: what was built is looked into


def wheel(folder, names):
    with zipfile.ZipFile(folder / "smh-0-py3-none-any.whl", "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return folder / "smh-0-py3-none-any.whl"


def everything():
    tracked = [name for name in packages.tracked() if name.startswith(("smh/", "conformance/"))]
    return {*tracked, "smh/py.typed", "smh-0.dist-info/METADATA", "smh-0.dist-info/licenses/LICENSE"}


def test_a_whole_wheel_passes(tmp_path):
    found = record.Findings("packages")
    packages.look_into_wheel(found, wheel(tmp_path, everything()))
    assert found.failures == []


VECTOR = next(name for name in packages.tracked() if "/vectors/" in name and name.endswith(".json"))


@pytest.mark.parametrize(
    ("more", "less", "failure"),
    [
        ({"tests/test_x.py"}, set(), "the wheel holds ['tests']"),
        (set(), {"smh/py.typed"}, "lacks smh/py.typed"),
        (set(), {VECTOR}, f"the wheel lacks ['{VECTOR}']"),
        (set(), {"smh-0.dist-info/licenses/LICENSE"}, "the wheel lacks the licence"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_found(tmp_path, more, less, failure):
    found = record.Findings("packages")
    packages.look_into_wheel(found, wheel(tmp_path, (everything() | more) - less))
    assert failure in "".join(found.failures)


def test_every_check_has_a_place_on_the_page_and_a_command():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands == {*report.CHECKS, "report"}


def test_lines_are_json_with_plain_numbers():
    assert json.loads(json.dumps(findings().line())) == findings().line() | {"seconds": findings().line()["seconds"]}


# --- The suite and the demonstration, as they are run, and the pages that show them


def test_the_suite_is_run_and_counted(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'not environment and not large'")  # laws that take long
    (found,) = suite.run("conformance", ["numpy"], options=["--plans", "1"])
    assert found.failures == []
    assert found.labels == {"backend": "numpy", "modes": "eager", "seeds": "0"}
    assert found.counts["runs of the suite"] == 1
    assert found.counts["laws passed"] > 20
    assert found.counts["bits compared"] > 10**6
    assert found.counts["bits different"] == found.counts["laws failed"] == 0


def row(**changes):
    base = {"backend": "torch", "mode": "eager", "passed": 20, "failed": 0, "checks": 7, "bits": 96, "different": 0}
    return {**base, "skipped": "", **changes}


def report_of(rows, seed=3, failures=()):
    return {
        "passed": not failures,
        "seeds": {"torch": seed},
        "plans": {"torch": 9},
        "rows": rows,
        "failures": list(failures),
    }


def test_the_suite_is_run_until_the_time_is_over(monkeypatch):
    calls, seeds = [], iter((3, 5, 8))

    def printed(*arguments):
        calls.append(arguments)
        skipped = row(mode="compile", passed=0, checks=0, bits=0, skipped="no compiler")
        return report_of([row(), row(mode="vmap"), skipped], next(seeds))

    clock = iter((0.0, 30.0, 59.0, 61.0))
    monkeypatch.setattr(suite, "_printed", printed)
    monkeypatch.setattr(suite, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    runs = list(suite.run("deep", ["torch"], 60))
    assert calls == [("conformance", "--backend", "torch", "--json", "--deep")] * 3
    assert [run.labels["seeds"] for run in runs] == ["3", "5", "8"]
    for run in runs:
        assert run.labels["modes"] == "eager, vmap"
        assert (run.counts["plans drawn"], run.counts["laws passed"], run.counts["bits compared"]) == (9, 40, 192)
        assert run.skipped == {"some of mode compile": "no compiler"}
        assert run.failures == []


def deep_line(bits, seeds, **changes):
    counts = {"runs of the suite": 1, "bits compared": bits}
    labels = {"backend": "torch", "seeds": seeds, "modes": "eager"}
    return record.Findings("deep", counts=counts, labels=labels).line() | {"changed": False, "seconds": 40.5} | changes


def test_runs_of_the_same_code_are_summed():
    lines = [
        deep_line(1, "1", source="older", failures=["other bits"], passed=False),
        deep_line(10, "2"),
        deep_line(7, "4", backend="jax"),
        deep_line(100, "3", changed=True, modes="vmap, eager"),
    ]
    other, summed = report.latest(lines)
    assert other == lines[2]
    assert summed["counts"] == {"runs of the suite": 2, "bits compared": 110}
    assert (summed["seconds"], summed["changed"], summed["passed"]) == (81.0, True, True)
    assert (summed["seeds"], summed["modes"]) == ("2, 3", "eager, vmap")
    assert lines[1]["counts"]["bits compared"] == 10, "the lines stay as they are"


def test_a_later_run_does_not_hide_a_failure_of_the_same_code():
    (summed,) = report.latest([deep_line(1, "1", failures=["other bits"], passed=False), deep_line(2, "2")])
    assert summed["failures"] == ["other bits"]
    assert not summed["passed"]
    other = deep_line(3, "3", versions={"torch": "3"})
    assert report.latest([deep_line(1, "1", failures=["other bits"], passed=False), other]) == [other]


@pytest.mark.parametrize(
    "found",
    [
        report_of([row(failed=1)], failures=[{"id": "law[eager]", "error": "other bits"}]),
        report_of([row(different=1)]),
    ],
    ids=["a law fails", "a bit differs"],
)
def test_what_the_suite_finds_is_a_failure_and_ends_it(monkeypatch, found):
    monkeypatch.setattr(suite, "_printed", lambda *_: found)
    (findings,) = suite.run("deep", ["torch"], 3600)
    assert findings.failures
    assert findings.counts["runs of the suite"] == 1


def test_a_suite_that_does_not_run_is_no_success():
    with pytest.raises(RuntimeError, match="no-such-backend"):
        list(suite.run("conformance", ["no-such-backend"]))


def test_the_demonstration_is_kept(monkeypatch):
    parts = {what: {"variables": n, "accuracy": 0.5, "bytes": 4 * n} for what, n in (("dense", 90), ("pool", 9))}
    monkeypatch.setattr(suite, "_printed", lambda *_: {"weights": 90, "bits_different": 0, "same": True, **parts})
    found = suite.demo()
    assert found.failures == []
    assert found.counts["pool: bytes"] == 36
    assert found.measured["dense: test accuracy, %"] == 50
    monkeypatch.setattr(suite, "_printed", lambda *_: {"weights": 90, "bits_different": 1, "same": False, **parts})
    assert suite.demo().failures


def shown():
    demo = record.Findings("demo", counts={"weights": 1234, "dense: variables": 1234, "pool: variables": 123})
    demo.counts |= {"dense: bytes": 4936, "pool: bytes": 492}
    demo.measured |= {"dense: test accuracy, %": 98.75, "pool: test accuracy, %": 97.5}
    labels = {"backend": "numpy", "modes": "eager", "seeds": "0"}
    counts = {"laws passed": 24, "bits compared": 10**6, "bits different": 0}
    return [demo.line(), record.Findings("conformance", labels=labels, counts=counts).line()]


def test_tables_are_put_between_marks():
    written = "written by `python -m trust report`"
    marked = [f"<!-- {name}: {written} -->\nold\n<!-- end of {name} -->" for name in ("demo", "conformance")]
    text = marks.filled("before\n" + "\nbetween\n".join(marked) + "\nafter", shown())
    assert "old" not in text
    assert "| dense | 1,234 | 1,234 | 98.8 % | 4,936 |" in text
    assert "| matmul pool | 1,234 | 123 | 97.5 % | 492 |" in text
    assert "| numpy | eager | 24 | 1,000,000 | 0 |" in text
    assert text.startswith("before\n")
    assert "\nbetween\n" in text
    assert text.endswith("\nafter")
    assert marks.filled(text, shown()) == text


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="demo"):
        marks.filled("nothing", shown())


def test_the_readme_shows_the_results_that_are_kept():
    text = (record.ROOT / "README.md").read_text()
    assert marks.filled(text, record.read(record.RESULTS)) == text
