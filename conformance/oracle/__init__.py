"""SMH-1 in integers: an oracle written from the specification (docs/specification.md) alone.

It shares no code with the library. Float32 values are taken apart into integers, all products and
roundings are done on those, and float64 appears only where the specification says so: adding chunk sums,
hash terms, the parts of a sum and the turns of a cyclic layout in ascending order, and scale rules and
initial values on the host. The sections that docstrings cite are those of the specification.

Plans are dictionaries, as parsed from plan JSON, or the JSON itself; variables and cotangents are
dictionaries of float32 arrays. A NaN in a result has the bits 0x7fc00000.
"""

from conformance.oracle.bits import bits_of, flush, from_bits, multiply, round32
from conformance.oracle.exact import exact_dot, exact_segment_sum, exact_sum, product
from conformance.oracle.generate import digest, gradients, indices, signs, virtual, weights
from conformance.oracle.hashing import fmix32, key, word
from conformance.oracle.plans import gains, initial_scale, initial_variables, sizes, variable_shapes
from conformance.oracle.views import viewed_shape

__all__ = [
    "bits_of",
    "digest",
    "exact_dot",
    "exact_segment_sum",
    "exact_sum",
    "flush",
    "fmix32",
    "from_bits",
    "gains",
    "gradients",
    "indices",
    "initial_scale",
    "initial_variables",
    "key",
    "multiply",
    "product",
    "round32",
    "signs",
    "sizes",
    "variable_shapes",
    "viewed_shape",
    "virtual",
    "weights",
    "word",
]
