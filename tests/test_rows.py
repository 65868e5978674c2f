"""Rows that parts of a matrix have for themselves: each part in its place, zeros elsewhere, and sums of all copies."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.cases import seeds
from smh import fast
from smh.backends.numpy import NumpyOps
from smh.ops import Ops
from smh.pools import rows as module
from smh.pools.rows import OwnRows


class _NoViews(NumpyOps):
    views = False


class _FewRows(NumpyOps):
    product_rows = 1


NAMESPACES = {
    "views": (NumpyOps(), np.asarray),
    "views of few rows": (_FewRows(), np.asarray),
    "no views": (_NoViews(), np.asarray),
    "default": (Ops(np), np.asarray),
    "strict": (Ops(array_api_strict), array_api_strict.asarray),
}


@st.composite
def partitions(draw):
    """Return a side, and parts of a square that follow one another from 0 on and may leave its end to nobody."""
    side = draw(st.integers(1, 9))
    ends = sorted(draw(st.sets(st.integers(1, side * side), min_size=1, max_size=12)))
    return side, list(zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@given(partition=partitions(), seed=seeds)
def test_every_part_is_in_rows_of_its_own(namespace, at_once, partition, seed):
    (ops, asarray), (side, parts) = NAMESPACES[namespace], partition
    rng = np.random.default_rng(seed)
    v = rng.integers(1, 100, side * side).astype(np.float32)
    expected, part_of, shown = [], [], []
    for i, (start, stop) in enumerate(parts):
        alone = np.zeros(side * side, dtype=np.float32)
        alone[start:stop] = v[start:stop]
        own = range(start // side, (stop - 1) // side + 1)
        expected += [alone.reshape(side, side)[row] for row in own]
        part_of += [i for _ in own]
        shown += own

    rows = OwnRows(ops, asarray(v.reshape(side, side)), parts, side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_JOINED", at_once)
        cotangents = [asarray(v[start:stop]) for start, stop in parts]
        stripes = [np.asarray(stripe.rows) for stripe in rows.stripes(cotangents, 1)]
    assert rows.count == len(expected)
    assert np.asarray(rows.part).tolist() == part_of
    assert np.asarray(rows.source).tolist() == shown
    assert np.array_equal(np.concatenate(stripes), expected)
    if not ops.views:
        assert len(stripes) == 1

    values = rng.integers(-100, 100, (rows.count, 3)).astype(np.float32)
    total = np.zeros((side, 3), dtype=np.float32)
    for row, value in zip(shown, values, strict=True):
        total[row] += value
    assert np.array_equal(np.asarray(rows.add_up(fast, asarray(values))), total)


def test_only_what_a_large_part_does_not_fill_is_copied():
    side, ops = 4, _FewRows()
    parts = [(0, 3), (3, 50), (50, 64)]
    v = np.arange(64, dtype=np.float32)
    rows = OwnRows(ops, np.zeros((16, 2), np.float32), parts, side)
    stripes = [stripe.rows for stripe in rows.stripes([v[start:stop] for start, stop in parts], 3)]
    assert [np.shares_memory(rows, v) for rows in stripes] == [False, True, False]
    assert [rows.shape for rows in stripes] == [(2, 4), (11, 4), (5, 4)]
