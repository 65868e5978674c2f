"""SMH-2 in integers: an oracle written from the specification (docs/specification.md) alone.

It shares no code with the library. Float32 values are taken apart into integers, products, sums and roundings are
made on those, and float64 appears only where the specification says so: adding the parts of a sum and the turns of a
cyclic layout in ascending order, and scales, gains, kappas and initial values on the host. It asserts that its sums
of integers stay within 2**53, so a plan that breaks section 3.3 fails loudly. The sections that docstrings cite are
those of the specification.

Plans are dictionaries, as parsed from plan JSON, or the JSON itself; variables and cotangents are dictionaries of
float32 arrays. A NaN in a result has the bits 0x7fc00000, a zero is +0.
"""

from conformance.oracle.bits import bits_of, floor, from_bits, multiply, round32, rounded
from conformance.oracle.generate import bounds, digest, gradients, grids, indices, signs, virtual, weights
from conformance.oracle.grid import Grid, grid, product, scale_gradient
from conformance.oracle.hashing import fmix32, key, word
from conformance.oracle.plans import gains, initial_scale, initial_variables, kappas, sizes, variable_shapes
from conformance.oracle.views import apply as apply_view
from conformance.oracle.views import undo as undo_view
from conformance.oracle.views import viewed_shape

__all__ = [
    "Grid",
    "apply_view",
    "bits_of",
    "bounds",
    "digest",
    "floor",
    "fmix32",
    "from_bits",
    "gains",
    "gradients",
    "grid",
    "grids",
    "indices",
    "initial_scale",
    "initial_variables",
    "kappas",
    "key",
    "multiply",
    "product",
    "round32",
    "rounded",
    "scale_gradient",
    "signs",
    "sizes",
    "undo_view",
    "variable_shapes",
    "viewed_shape",
    "virtual",
    "weights",
    "word",
]
