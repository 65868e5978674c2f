"""Reports and sweeps: their numbers, and how they look as text, in notebooks, with rich and as data."""

import io
import json
import re
import subprocess
import sys
import types

import pytest
from rich.console import Console

import smh
from smh.models.compression import Compression, ModelTensor, plan_for
from smh.models.progress import Progress
from smh.models.report import make_report, one_line
from smh.models.sweep import RATIOS, make_sweep
from smh.tables import Table

TENSORS = (
    ModelTensor("conv.weight", (16, 8, 3, 3), 4 * 1152, axes="o i h w", kind="Conv2d"),
    ModelTensor("conv.bias", (16,), 64, kind="Conv2d"),
    ModelTensor("norm.mean", (16,), 64, kept="is a buffer", kind="BatchNorm2d", trained=False),
    ModelTensor("fc.weight", (10, 64), 2560, axes="o i", aliases=("head.weight",), kind="Linear"),
    ModelTensor("fc.bias", (10,), 40, kind="Linear"),
    ModelTensor("mask", (20, 20), 400, kept="has the type <bool>", kind="Net", trained=False),
)
PLAN = plan_for(TENSORS, ratio=0.2)


def report_of(tensors=TENSORS, plan=PLAN, **options):
    return make_report(Compression(plan, tensors, **options), {})


def test_bytes_of_tensors_add_up_to_those_of_the_file():
    for bits in (3, 8, 16):
        plan = plan_for(TENSORS, ratio=0.2, bits=bits)
        report = report_of(plan=plan)
        assert sum(line.bytes_after for line in report.tensors) == report.bytes_after
        assert sum(line.bytes_before for line in report.tensors) == report.bytes_before
        conv, fc = report.tensors[0], report.tensors[3]
        assert abs((conv.bytes_after - 4) / (fc.bytes_after - 4) - 1152 / 640) < 0.1
        assert all(line.bytes_before == line.bytes_after for line in report.tensors if not line.generated)


def test_trained_numbers_leave_out_what_is_not_trained():
    report = report_of()
    assert report.num_trained == PLAN.num_variables + 16 + 10
    assert report.num_trained_before == 1152 + 640 + 16 + 10


def test_text_sums_by_kind_and_by_reason():
    paragraph, table, kept = str(report_of(ratio_asked=0.2)).split("\n\n")
    assert "1,792 weights (2 tensors)" in paragraph
    header, _, *rows, total = (re.split(r" {2,}", line) for line in table.splitlines())
    assert header == ["layer", "tensors", "generated numbers", "kept numbers", "bytes before", "bytes after"]
    assert [row[:5] for row in rows] == [
        ["Conv2d", "2", "1,152", "16", "4,672"],
        ["Linear", "2", "640", "10", "2,600"],
        ["Net", "1", "0", "400", "400"],
        ["BatchNorm2d", "1", "0", "16", "64"],
    ]
    assert total == ["total", "6", "1,792", "442", "7,736", f"{report_of().bytes_after:,}"]
    assert kept.splitlines() == [
        "Kept tensors:",
        "  has the type <bool>: 1 tensor, 400 numbers ('mask')",
        "  biases: 2 tensors, 26 numbers (such as 'conv.bias')",
        "  is a buffer: 1 tensor, 16 numbers ('norm.mean')",
    ]


def test_many_reasons_are_folded():
    more = tuple(ModelTensor(f"x{k}", (9,), 36, kept=f"reason {k}") for k in range(20))
    lines = str(report_of((*TENSORS, *more))).splitlines()
    assert lines[-1] == "  and 15 more reasons"
    assert sum("reason" in line for line in lines) <= 10


def test_pytrees_are_summed_by_the_names_of_leaves():
    tensors = [ModelTensor(f"{k}/{leaf}", (30, 20)[: 2 - (leaf == "bias")], 9) for k in "ab" for leaf in ("w", "bias")]
    text = str(report_of(tuple(tensors), plan_for(tensors, ratio=0.5)))
    assert re.search(r"^\*/w +2 +1,200 +0 ", text, re.MULTILINE)
    assert re.search(r"^\*/bias +2 +0 +60 ", text, re.MULTILINE)


def test_nothing_kept_leaves_out_the_reasons():
    tensors = TENSORS[:1]
    assert "Kept" not in str(report_of(tensors, plan_for(tensors, ratio=0.5)))


@pytest.mark.parametrize("width", [40, 60, 80])
def test_rich_folds_long_names_and_cuts_nothing(width):
    name = "encoder.layers.11.attention.output.projection.weight"
    tensors = (ModelTensor(name, (64, 64), 4 * 4096, kind="Linear"), *TENSORS)
    Console(width=width, file=(shown := io.StringIO())).print(report_of(tensors, plan_for(tensors, ratio=0.2)))
    rows = [line.split("│") for line in shown.getvalue().splitlines() if line.startswith("│")]
    assert "".join(row[1].strip() for row in rows).startswith(name)
    assert "…" not in shown.getvalue()


def test_html_is_escaped_and_has_no_colours():
    html = report_of()._repr_html_()
    assert "&lt;bool&gt;" in html
    assert "<bool>" not in html
    assert "color" not in html
    assert html.count("<tr>") == 6


def test_dictionaries_survive_json():
    report = report_of()
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["tensors"][3]["aliases"] == ["head.weight"]
    sweep = make_sweep(TENSORS, [1e-9, 0.1]).to_dict()
    assert json.loads(json.dumps(sweep, allow_nan=False)) == sweep


def test_data_frames(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    assert [row["name"] for row in report_of().to_pandas()] == [tensor.name for tensor in TENSORS]
    assert [row["ratio"] for row in make_sweep(TENSORS, [0.1, 0.2]).to_pandas()] == [0.1, 0.2]
    monkeypatch.setitem(sys.modules, "pandas", None)
    for shown in (report_of(), make_sweep(TENSORS, [0.1])):
        with pytest.raises(smh.SmhError, match="pip install pandas"):
            shown.to_pandas()


def test_a_line_for_representations():
    line = one_line(Compression(plan_for(TENSORS, ratio=0.6, pool=smh.pools.Sum("matmul", "hash"), bits=4), TENSORS))
    assert "1,792 weights generated from" in line
    assert "sum of matmul, hash pool, 4 bits), residency 'full', gradients 'exact'" in line


# --- Sweeps


def test_a_sweep_has_the_numbers_of_reports():
    sweep = make_sweep(TENSORS, RATIOS, bits=4, pool="hash")
    assert [line.ratio for line in sweep.lines] == list(RATIOS)
    for line in sweep.lines:
        report = report_of(plan=plan_for(TENSORS, ratio=line.ratio, bits=4, pool="hash"))
        assert (line.num_variables, line.bytes, line.share) == (report.num_variables, report.bytes_after, report.share)
    assert (sweep.num_weights, sweep.num_kept, sweep.dense_bytes) == (1792, 442, 7736)


def test_refused_ratios_say_why():
    sweep = make_sweep(TENSORS, [1e-9, 0.2, 3])
    assert [line.bytes is None for line in sweep.lines] == [True, False, True]
    assert "smallest feasible ratio" in sweep.lines[0].why
    assert "did you mean 0.03" in sweep.lines[2].why
    text = str(sweep)
    assert "Refused ratios:\n  1e-09: ratio 1e-09 leaves no room" in text
    assert sweep.lines[2].why in text
    assert "did you mean" in sweep._repr_html_()
    Console(width=60, file=(shown := io.StringIO())).print(sweep)
    assert "Refused ratios:" in shown.getvalue()


@pytest.mark.parametrize(
    ("ratios", "options", "message"),
    [
        ([], {}, "ratios must be a list"),
        (0.1, {}, "ratios must be a list"),
        ([0.1, 0.2], {"bits": 99}, "bits"),
        ([0.1], {"include": ["nothing"]}, "nothing"),
        ([1e-9], {}, "smallest feasible"),
    ],
)
def test_sweeps_without_a_size_are_refused(ratios, options, message):
    with pytest.raises(smh.PlanError, match=message):
        make_sweep(TENSORS, ratios, **options)


# --- Text, progress and imports


def test_tables_align_numbers_on_the_right():
    assert str(Table(("a", "b"), [("long", "1"), ("x", "1,000")], right=["b"])).splitlines() == [
        "a         b",
        "-----------",
        "long      1",
        "x     1,000",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "expected"),
    [
        (Terminal, False, ""),
        (Terminal, None, ""),  # the work is too short
        (io.StringIO, None, ""),
        (io.StringIO, True, "one\ntwo\n"),
    ],
)
def test_progress_is_quiet_unless_it_helps(monkeypatch, stream, shown, expected):
    monkeypatch.setattr(sys, "stderr", stream())
    with Progress(shown) as bars:
        bars.tick("one", 0.1)
        bars.tick("one", 0.5)
        bars.tick("two", 0.9)
    assert sys.stderr.getvalue() == expected


def test_progress_on_a_terminal_stays_on_one_line_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(True) as bars:
        bars.tick("fitting " * 30, 0.25)
    assert "\n" not in sys.stderr.getvalue()
    assert sys.stderr.getvalue().split("\r")[1].startswith("fitting fitting")
    assert all(len(part) <= 79 for part in sys.stderr.getvalue().split("\r"))
    assert sys.stderr.getvalue().endswith(" \r")


def test_nothing_needs_rich_matplotlib_or_pandas():
    code = """
import sys
for name in ("rich", "typer", "matplotlib", "pandas"):
    sys.modules[name] = None
import numpy as np
import smh
from smh.models.compression import Compression, ModelTensor, plan_for
from smh.models.fit import fit_variables
from smh.models.report import make_report
from smh.models.sweep import make_sweep
tensors = (ModelTensor("fc.weight", (30, 20), 2400), ModelTensor("fc.bias", (20,), 80))
plan = plan_for(tensors, ratio=0.5)
report = make_report(Compression(plan, tensors), {})
texts = [str(report), report._repr_html_(), str(make_sweep(tensors, [0.1])), repr(plan), str(plan), plan._repr_html_()]
assert all(texts)
print(fit_variables(plan, {"fc.weight": np.ones((30, 20), dtype=np.float32)}, progress=True)[1])
for draw in (plan.plot, report.plot):
    try:
        draw()
    except smh.SmhError as error:
        assert 'pip install "structured-multi-hashing[plot]"' in str(error), error
    else:
        raise SystemExit("nothing was raised")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
