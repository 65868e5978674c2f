"""Tests of the tests: a core that is broken on purpose must be found by the golden vectors."""

import json

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from conformance.vectors import load_vectors
from smh import exact, fast, grid, hashing, layout, scales, sums
from smh.pools import combine, factorized, hashed
from tests.support import on_grid

VECTORS = [vector for vector in load_vectors() if vector.plan["arithmetic"] == "exact"]


def found_by():
    """Return the names of the vectors whose weights or gradients come out with other bits."""
    names = set()
    for vector in VECTORS:
        plan = smh.Plan.from_json(json.dumps(vector.plan))
        expected = {**vector.weights, **vector.gradients}
        actual = smh.materialize(plan, vector.variables)
        actual |= smh.vjp(plan, vector.variables, vector.cotangents)
        try:
            for name, x in expected.items():
                assert_same_bits(actual[name], x, name)
        except AssertionError:
            names.add(vector.name)
    return names


def flush_otherwise(patch, flush):
    """Put another flush in the place of the one that makes a new array, and of the one that need not."""
    for module in (exact, fast, grid, scales, sums, combine):
        patch(module, "flush", flush)
    for module in (exact, grid, scales, sums):
        patch(module, "flush_if_needed", lambda ops, x: flush(ops.xp, x))


def no_flush(patch):
    flush_otherwise(patch, lambda xp, x: x)


def flush_at_the_smallest_normal_number(patch):
    flush_otherwise(patch, lambda xp, x: np.where(abs(x) < 2.0**-126, 0.0, x).astype(x.dtype))


def grids_that_round_down(patch):
    def to_grid(ops, x, shifter):
        unit = shifter / (1.5 * 2.0**52)
        return np.floor(grid.flush(np, x).astype(np.float64) / unit) * unit

    patch(exact, "to_grid", to_grid)
    patch(grid, "to_grid", to_grid)


def one_bit_less(patch):
    for module in (exact, grid):
        patch(module, "grid_bits", lambda terms: min(24, (53 - grid.ceil_log2(min(terms, 2048))) // 2) - 1)


def accumulation_in_float32(patch):
    def multiply(ops, a, b, first, stop, finish=None, made=None):
        return fast.multiply(ops, a if made is None else made(a), b, first, stop, finish)

    patch(exact, "right", fast.right)
    patch(exact, "multiply", multiply)


def chunks_added_in_descending_order(patch):
    def times_grid(ops, a, made, b, shifter, finish, place=None):
        rows = on_grid(a if made is None else made(a), 1, grid.grid_bits(len(b)))
        chunks = [slice(start, start + 2048) for start in range(0, len(b), 2048)]
        total = np.zeros((len(a), b.shape[1]))
        for chunk in reversed(chunks):
            total = total + rows[:, chunk] @ b[chunk]
        total = grid.rounded(np, total)
        return total if finish is None else finish(total)

    patch(exact, "_times_grid", times_grid)


def flush_after_rounding(patch):
    flush = grid.flush
    for module in (exact, sums):
        patch(module, "rounded", lambda xp, x: flush(xp, x.astype(np.float32)))
    patch(exact, "flush_if_needed", lambda ops, x: x if x.dtype == np.float64 else flush(ops.xp, x))


def slices_off_by_one(patch):
    read = factorized.BoundMatmul._read_plain
    patch(
        factorized.BoundMatmul,
        "_read_plain",
        lambda self, start, stop, finish: np.roll(read(self, 0, self.capacity, finish), -1)[start:stop],
    )


def kronecker_in_the_order_of_the_matrix_product(patch):
    def read(self, start, stop, finish):
        d = round(self.side**0.5)
        return self._entries(self._rows(0, d), 0, self.side, finish).reshape(-1)[start:stop]

    patch(factorized._BoundKronecker, "_read_plain", read)


def hash_functions_shared_by_parts(patch):
    patch(combine, "_part_seed", lambda seed, p: seed)


def signs_forgotten(patch):
    patch(hashing, "signs", lambda xp, seed, function, i, dtype: np.ones(i.shape, dtype=dtype))


def bucket_of_the_wrong_stream(patch):
    patch(hashing, "buckets", lambda xp, seed, m, i, size: hashing.words(xp, hashing.key(seed, m), i) % size)


def hash_gradient_without_signs(patch):
    patch(
        hashed._BoundHash,
        "_table_gradient",
        lambda self, m, xs: sums.segment_sum(
            self.ops, xs[0].reshape(-1)[: self.capacity], self._buckets(m, np.arange(self.capacity)), self.size
        ),
    )


def scale_gradient_with_the_scaled_weight(patch):
    patch(exact, "dot_with_flushed", lambda ops, a, c: sums.exact_sum(ops, a.astype(np.float64) * a))


def relu_that_lets_gradients_pass(patch):
    patch(scales, "pull", lambda ops, scale, modifiers, v, cotangent: cotangent)


def cyclic_gradient_in_descending_order(patch):
    scatter = layout.scatter

    def descending(ops, name, capacity, cells):
        if name != "cyclic" or len(cells) <= capacity:
            return scatter(ops, name, capacity, cells)
        return scatter(ops, name, capacity, cells.reshape(-1, capacity)[::-1].reshape(-1))

    patch(layout, "scatter", descending)


def padding_of_zeros(patch):
    patch(layout, "PADDING", 0.0)


def gain_counted_once(patch):
    patch(factorized._Factorized, "gain_power", 1)


BROKEN = [
    no_flush,
    flush_at_the_smallest_normal_number,
    grids_that_round_down,
    one_bit_less,
    accumulation_in_float32,
    chunks_added_in_descending_order,
    flush_after_rounding,
    slices_off_by_one,
    kronecker_in_the_order_of_the_matrix_product,
    hash_functions_shared_by_parts,
    signs_forgotten,
    bucket_of_the_wrong_stream,
    hash_gradient_without_signs,
    scale_gradient_with_the_scaled_weight,
    relu_that_lets_gradients_pass,
    cyclic_gradient_in_descending_order,
    padding_of_zeros,
    gain_counted_once,
]


def test_the_core_as_it_is_passes():
    assert found_by() == set()


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda break_it: break_it.__name__)
def test_broken_cores_are_found(break_it, monkeypatch):
    break_it(monkeypatch.setattr)
    with np.errstate(all="ignore"):
        assert found_by()
