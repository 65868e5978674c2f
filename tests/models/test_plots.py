"""Figures of plans and reports: which cells have which colour, and that labels stay few and within the picture."""

import io
import subprocess
import sys

import numpy as np
import pytest

import smh

pytest.importorskip("matplotlib")

from matplotlib.text import Text

from smh import plots
from smh.core.pools import Matmul, Product, Sum
from smh.models.compression import Compression, ModelTensor, plan_for
from smh.models.report import make_report

SHAPES = {"fc1": (64, 100), "fc2": (100, 60), "head$x": (60, 10)}


def texts(figure):
    return [x.get_text() for x in figure.findobj(Text) if x.get_text() and x.get_visible()]


def owners(plan, n, rows):
    """Return the colours of all cells, one at a time."""
    colours = np.zeros(rows * n, dtype=int)
    for number, tensor in enumerate(plan.tensors):
        colours[tensor.offset : tensor.stop] = 1 + number % len(plots._COLORS)
    return colours.reshape(rows, n)


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "hash"}, {"pool": Matmul(n=90), "layout": "cyclic"}, {"pool": Matmul(n=150)}],
    ids=["matmul", "hash", "cyclic", "spare"],
)
def test_cells_have_the_colours_of_their_tensors(options):
    plan = smh.Plan.build(SHAPES, ratio=0.1, **options)
    (image,) = plan.plot().axes[0].images
    n = int(image.get_extent()[1])
    rows = int(image.get_extent()[2])
    assert n == int(np.ceil(np.sqrt(plan.capacity)))
    assert (image.get_array() == owners(plan, n, rows)).all()


def test_large_plans_are_sampled():
    plan = smh.Plan.build({"a": (3000, 3000), "b": (1000, 3000)}, ratio=0.01)
    (image,) = plan.plot().axes[0].images
    assert max(image.get_array().shape) <= plots._PIXELS
    assert abs((image.get_array() == 1).mean() - 0.75) < 0.005


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("matmul", ["matmul pool, 8 bits", "left: 115 x 5", "right: 5 x 115"]),
        ("hash", ["hash pool, 8 bits", "table: 1 x 1300"]),
        ("kronecker", ["kronecker pool, 8 bits", "left: "]),
        (Sum("kronecker", "hash"), ["sum of kronecker, hash pool", "1/table: "]),
        (Product("matmul", "matmul"), ["product of matmul, matmul pool", "1/right: "]),
    ],
)
def test_every_kind_of_pool_is_drawn(pool, words):
    plan = smh.Plan.build(SHAPES, ratio=0.1, pool=pool)
    figure = plan.plot()
    shown = "\n".join(texts(figure))
    assert all(word in shown for word in words), shown
    square, *arrays = (patch for patch in figure.axes[0].patches)
    areas = [patch.get_width() * patch.get_height() for patch in arrays]
    sizes = [int(np.prod(shape)) for shape in plan.pool.variable_shapes().values()]
    np.testing.assert_allclose(areas, sizes)  # at the scale of the square


@pytest.mark.parametrize(("layout", "words"), [("cyclic", "repeat the square"), ("padding", "are constant")])
def test_cells_beyond_the_pool_are_explained(layout, words):
    figure = smh.Plan.build(SHAPES, ratio=0.1, pool=Matmul(n=90), layout=layout).plot()
    assert any(words in text for text in texts(figure))


def test_labels_of_many_tensors_are_few_and_within_the_figure():
    generator = np.random.default_rng(0)
    shapes = {f"encoder.layer.{k}.attention.weight": tuple(map(int, generator.integers(8, 300, 2))) for k in range(150)}
    figure = smh.Plan.build(shapes, ratio=0.05).plot()
    figure.savefig(io.BytesIO(), format="png")
    labels = [x for x in figure.axes[0].texts if "tensors)" in x.get_text()]
    assert 5 <= len(labels) <= 40
    counts = [int(x.get_text().split("(")[1].split()[0]) for x in labels]
    alone = [x for x in figure.axes[0].texts if "weight" in x.get_text() and x not in labels]
    assert sum(counts) + len(alone) == 150
    boxes = [x.get_window_extent() for x in figure.axes[0].texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    heights = sorted(x.get_position()[1] for x in labels)
    assert min(np.diff(heights)) > 0


def test_bars_fold_small_layers():
    tensors = [ModelTensor(f"layer{k}.weight", (20 + k, 30), 120 * (20 + k)) for k in range(40)]
    report = make_report(Compression(plan_for(tensors, ratio=0.1), tuple(tensors)), {})
    axes = report.plot().axes[0]
    labels = [x.get_text() for x in axes.get_yticklabels()]
    assert labels[0] == "layer39"
    assert labels[-1] == "25 smaller layers"
    before, after = axes.containers
    assert sum(bar.get_width() for bar in before) == report.bytes_before
    assert sum(bar.get_width() for bar in after) == report.bytes_after


def test_a_model_of_one_layer_has_a_name():
    tensors = (ModelTensor("weight", (40, 30), 4800),)
    report = make_report(Compression(plan_for(tensors, ratio=0.1), tensors), {})
    assert "(model)" in texts(report.plot())


def test_figures_show_in_notebooks_and_leave_pyplot_alone():
    code = """
import sys
import smh
figure = smh.Plan.build({"a": (30, 20)}, ratio=0.5).plot()
assert figure._repr_png_().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
