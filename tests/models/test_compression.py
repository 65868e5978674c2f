"""What compressing a model means before any framework: the plan, what a file takes, and the report."""

import dataclasses
import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import smh
from smh.core.sizes import file_bytes
from smh.files.checkpoint import Checkpoint
from smh.models.compression import (
    Compression,
    ModelTensor,
    check_fit,
    check_loaded,
    check_ratio,
    check_residency,
    plan_for,
)
from smh.models.report import make_report

TENSORS = (
    ModelTensor("conv.weight", (16, 8, 3, 3), 4 * 1152, axes="o i h w"),
    ModelTensor("conv.bias", (16,), 64),
    ModelTensor("norm.mean", (16,), 64, kept="is a buffer"),
    ModelTensor("fc.weight", (10, 64), 2560, axes="o i", aliases=("head.weight",)),
    ModelTensor("mask", (20, 20), 400, kept="has the type bool"),
)
KEPT = 64 + 64 + 400


def report_of(plan, scales=None, **options):
    return make_report(Compression(plan, TENSORS, **options), scales or {})


# --- Plans


def test_plans_generate_what_is_free_and_know_the_axes_of_the_model():
    plan = plan_for(TENSORS, ratio=0.2)
    assert [(tensor.name, tensor.axes) for tensor in plan.tensors] == [("conv.weight", "o i h w"), ("fc.weight", "o i")]
    shapes = {"conv.weight": (16, 8, 3, 3), "fc.weight": (10, 64)}
    axes = {"conv.weight": "o i h w", "fc.weight": "o i"}
    assert plan == smh.Plan.build(shapes, ratio=0.2, axes=axes)
    assert plan_for(TENSORS, ratio=0.2, axes={"fc.weight": "i o"}).tensors[1].axes == "i o"
    assert [t.name for t in plan_for(TENSORS, ratio=0.6, include="*.bias").tensors] == ["conv.bias"]


def test_options_that_are_none_are_those_of_plans():
    options = dict.fromkeys(("size", "bits", "optimizer", "pool", "layout", "seed", "axes", "views", "include"))
    assert plan_for(TENSORS, ratio=0.2, **options) == plan_for(TENSORS, ratio=0.2)


@settings(max_examples=60)
@given(st.integers(600, 6000), st.sampled_from([4, 8, 16]), st.booleans(), st.sampled_from([None, ["fc.weight"]]))
def test_a_size_is_that_of_all_arrays_in_the_file(size, bits, learn_scale, include):
    """Tensors that are kept count, those that are not selected among them, and one term more would be too much."""
    options = {"bits": bits, "learn_scale": learn_scale, "include": include, "allow_expansion": True}
    try:
        plan = plan_for(TENSORS, size=size, **options)
    except smh.PlanError as error:
        least = int(str(error).split("need at least ")[1].split(" bytes")[0].replace(",", ""))
        assert least > size
        plan = plan_for(TENSORS, size=least, **options)
        assert report_of(plan).bytes_after == least
        assert plan.pool.m == 1
        return
    report = report_of(plan)
    assert report.bytes_after <= size
    larger = dataclasses.replace(plan.pool, m=plan.pool.m + 1)
    assert report.bytes_after - file_bytes(plan.pool) + file_bytes(larger) > size


def test_a_size_that_what_is_kept_takes_alone_is_refused():
    with pytest.raises(smh.PlanError, match=r"need at least 622 bytes with this pool and these bits; got 528"):
        plan_for(TENSORS, size=KEPT)
    assert report_of(plan_for(TENSORS, size=622)).bytes_after == 622


@pytest.mark.parametrize(
    ("ratio", "hint"),
    [
        (1, "0.1"),
        (1.0, "0.1"),
        (10, "0.1"),
        (25, "0.25"),
        (Fraction(3, 2), "0.1"),
        (np.float64(5), "0.05"),
        (500, "0.1"),
    ],
)
def test_a_ratio_that_compresses_nothing_is_refused(ratio, hint):
    with pytest.raises(smh.PlanError, match=f"did you mean {hint}\\?") as caught:
        plan_for(TENSORS, ratio=ratio)
    assert "allow_expansion=True" in str(caught.value)
    assert "--allow-expansion" in str(caught.value)
    plan = plan_for(TENSORS, ratio=ratio, allow_expansion=True)
    assert plan.ratio <= ratio
    assert plan.ratio > 0.9


def test_a_ratio_below_1_needs_no_permission():
    for ratio in (0.999, Fraction(999, 1000), None):
        check_ratio(ratio, allow_expansion=False)
    assert plan_for(TENSORS, ratio=0.999).ratio < 1


def test_a_plan_decides_everything():
    plan = plan_for(TENSORS, ratio=0.3, seed=7)
    assert plan_for(TENSORS, plan=plan) is plan
    assert plan_for(TENSORS, plan=plan, ratio=None, seed=None) is plan
    with pytest.raises(smh.PlanError, match="leave out ratio, seed, or leave out the plan"):
        plan_for(TENSORS, plan=plan, ratio=0.3, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass ratio=0.1, for example, or size='500 kB', or a plan"),
        ({"ratio": 0.1, "size": 500}, "pass either ratio or size"),
        ({"ratio": "a tenth"}, "ratio must be a number"),
        ({"ratio": 1e-9}, "smallest feasible ratio"),
        (
            {"ratio": 0.1, "include": ["mask"]},
            r"\(not to be generated: 'mask': has the type",
        ),
        (
            {"ratio": 0.1, "exclude": "nothing"},
            r"exclude='nothing' matches no tensor: known names: (?!.*not to be generated)",
        ),
        ({"ratio": 0.1, "axes": {"conv.bias": "o"}}, "is not generated"),
        ({"ratio": 0.1, "views": {"fc.weight": "o i -> i o"}}, r"shape \(64, 10\); the model \(10, 64\)"),
        ({"ratio": 0.1, "arithmetic": "exact"}, "arithmetic"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises((smh.PlanError, TypeError), match=message):
        plan_for(TENSORS, **options)


@pytest.mark.parametrize("options", [{"ratio": "a tenth"}, {"ratio": 1e-9}, {"ratio": 0.1, "bits": 99}, {"size": 1}])
def test_what_is_kept_is_told_only_where_names_are_chosen(options):
    with pytest.raises(smh.PlanError) as found:
        plan_for(TENSORS, **options)
    assert "not to be generated" not in str(found.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "nothing to generate: it has no tensors"),
        ([ModelTensor("b", (3,), 12)], r"nothing to generate: 'b': its shape is \(3,\)$"),
        ([ModelTensor(str(k), (3, 3), 9, kept="is int8") for k in range(7)], "'0', '1', .*'4' and 2 more: is int8$"),
        (
            [ModelTensor(str(k), (3, 3), 9, kept=f"is {k}") for k in range(5)],
            "'2': is 2; and 2 more reasons$",
        ),
        ([ModelTensor("a", (3, 3), 9, kept="it is frozen")], "'a': it is frozen. Frozen tensors are kept: unfreeze"),
    ],
)
def test_models_with_nothing_to_generate_are_refused(tensors, message):
    with pytest.raises(smh.PlanError, match=message):
        plan_for(tensors, ratio=0.1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({f"w{k}": (3, 3) for k in range(7)}, "does not have: 'w0', 'w1', 'w2', 'w3', 'w4' and 2 more"),
        ({"mask": (20, 20)}, "'mask', which cannot be generated: has the type bool"),
        ({"fc.weight": (64, 10)}, r"the shape \(64, 10\); the model \(10, 64\)"),
    ],
)
def test_plans_of_other_models_are_refused(shapes, message):
    plan = smh.Plan.build(shapes, ratio=0.9)
    for call in (check_fit, lambda tensors, plan: plan_for(tensors, plan=plan)):
        with pytest.raises(smh.PlanError, match=message):
            call(TENSORS, plan)


@pytest.mark.parametrize("residency", ["always", None, 3, ["full"]])
def test_residencies_are_three(residency):
    assert [check_residency(name) for name in ("full", "cached", "layer")] == ["full", "cached", "layer"]
    with pytest.raises(smh.PlanError, match="'full', 'cached', 'layer'; got"):
        check_residency(residency)


# --- Reports


def test_a_report_has_the_numbers_of_plan_and_file():
    plan = plan_for(TENSORS, ratio=0.2)
    scales = {"scale/fc.weight": 0.5 * 2.0 ** plan.tensors[1].kappa}
    report = report_of(plan, scales, ratio_asked=0.2, residency="layer")
    assert report.num_weights == 1152 + 640
    assert report.num_variables == plan.num_variables
    assert report.num_kept == 16 + 16 + 400
    assert report.ratio_asked == 0.2
    assert report.ratio == plan.ratio <= 0.2
    assert report.bytes_before == sum(tensor.nbytes for tensor in TENSORS)
    assert report.bytes_after == plan.file_bytes + KEPT
    assert report.residency == "layer"
    assert [(line.name, line.generated, line.why) for line in report.tensors] == [
        ("conv.weight", True, ""),
        ("conv.bias", False, "fewer than two axes"),
        ("norm.mean", False, "is a buffer"),
        ("fc.weight", True, "tied with head.weight"),
        ("mask", False, "has the type bool"),
    ]
    assert [line.offset for line in report.tensors] == [0, None, None, 1152, None]
    assert [line.scale for line in report.tensors] == [plan.tensors[0].initial_scale, None, None, 0.5, None]


def test_a_report_says_why_a_tensor_that_could_be_generated_is_not():
    report = report_of(plan_for(TENSORS, ratio=0.2, exclude=["fc.weight"]))
    assert {line.name: line.why for line in report.tensors}["fc.weight"] == "not selected"


def test_a_report_is_a_paragraph_and_a_table():
    plan = plan_for(TENSORS, ratio=0.2)
    report = report_of(plan, ratio_asked=0.2)
    text = str(report)
    assert text.startswith(f"1,792 weights (2 tensors) are generated from {plan.num_variables} variables")
    assert "asked 0.2)" in text
    assert "432 numbers (3 tensors) are kept." in text
    assert f"The arrays of a file take {plan.file_bytes + KEPT:,} bytes instead of 7,696" in text
    assert "asked" not in str(report_of(plan))
    Console(width=200, file=(shown := io.StringIO())).print(report)
    table = shown.getvalue()
    assert "fc.weight = head.weight" in table
    assert "16 x 8 x 3 x 3" in table
    assert "generated" in table


# --- Files that do not fit


def _checkpoint(**dense):
    plan = plan_for(TENSORS, ratio=0.2)
    return Checkpoint(plan, smh.initialize(plan), dense, "0" * 64)


ARRAYS = {"b": np.zeros(3, dtype=np.float32), "n": np.zeros((), dtype=np.int64)}


def test_files_that_fit_a_model_are_taken():
    found = _checkpoint(**ARRAYS)
    check_loaded(found, ARRAYS)
    check_loaded(found, ARRAYS, found.plan)
    check_loaded(_checkpoint(**{**ARRAYS, "b": np.zeros(3, dtype=np.float16)}), ARRAYS)  # a float is a float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "missing: 'b'; unexpected: none"),
        ({"x": np.zeros(1)}, "missing: none; unexpected: 'x'"),
        ({"b": np.zeros(4, dtype=np.float32)}, r"'b' has the shape \(4,\) in the file, \(3,\) in the model"),
        ({"b": np.zeros(3, dtype=np.int32)}, "'b' has the type int32 in the file, float32 in the model"),
        ({"n": np.zeros((), dtype=np.uint8)}, "'n' has the type uint8 in the file, int64 in the model"),
        ({"n": np.zeros((), dtype=np.bool_)}, "'n' has the type bool in the file, int64 in the model"),
    ],
)
def test_files_that_do_not_fit_a_model_are_refused(change, message):
    arrays = {name: x for name, x in {**ARRAYS, **change}.items() if x is not None}
    with pytest.raises(smh.CheckpointError, match=message):
        check_loaded(_checkpoint(**arrays), ARRAYS)


def test_files_with_another_plan_are_refused():
    with pytest.raises(smh.CheckpointError, match="another plan than the model"):
        check_loaded(_checkpoint(**ARRAYS), ARRAYS, plan_for(TENSORS, ratio=0.3))


def test_a_size_that_leaves_room_for_all_weights_is_refused():
    with pytest.raises(smh.PlanError, match="as many as before or more: ask for less"):
        plan_for(TENSORS, size=sum(tensor.nbytes for tensor in TENSORS))
    assert plan_for(TENSORS, size=sum(tensor.nbytes for tensor in TENSORS), allow_expansion=True).ratio >= 1
