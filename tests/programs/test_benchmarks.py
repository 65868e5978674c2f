"""The benchmark runs. No test looks at how long anything takes."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_row_of_the_benchmark_is_complete(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    core_numpy = pytest.importorskip("core_numpy")
    row = core_numpy.row(40, 0.1, rounds=1)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["40", "0.1"]
    assert len(cells) == 7
    assert all(float(cell.split()[0]) > 0 for cell in cells[2:6])
    sys.modules.pop("core_numpy")
