"""Strategies for plans and arrays, and the comparison of bits."""

from conformance.bits import assert_same_bits, canonical_bits
from conformance.cases import (
    KINDS,
    any_pools,
    as_dict,
    cotangents_for,
    floats,
    kinds,
    leaf_pools,
    plans,
    seeds,
    variables_for,
)

__all__ = [
    "KINDS",
    "any_pools",
    "as_dict",
    "assert_same_bits",
    "canonical_bits",
    "cotangents_for",
    "floats",
    "kinds",
    "leaf_pools",
    "plans",
    "seeds",
    "variables_for",
]
