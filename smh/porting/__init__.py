"""Porting: train a compressed model in one framework, serve it in another.

The variables never change: a port gives the plan other names and views, and the digest stays the same. Which tensor of
one model becomes which of the other is a :class:`Mapping`; :func:`match` proposes it, :func:`port` applies it to a
checkpoint.
"""

from smh.porting.entries import Entry, Source
from smh.porting.mapping import Mapping, doubts, tensor_shapes
from smh.porting.matching import Ambiguity, Match, match
from smh.porting.port import port

__all__ = ["Ambiguity", "Entry", "Mapping", "Match", "Source", "doubts", "match", "port", "tensor_shapes"]
