"""The specification SMH-2 in code: from variables to weights and back, in pure array API (docs/specification_2.md).

======================  ================================================================================
module                  sections of the specification
======================  ================================================================================
:mod:`smh.v2.core.grid`    2 and 3.1: the grid, floors and roundings
``smh.v2.core.pools``      3.2, 3.3, 4 and 7.4: pools
:mod:`smh.v2.core.layout`  5.2 and 7.2: which virtual weight a cell shows
:mod:`smh.v2.core.scales`  3.4, 3.5, 6 and 7.1: scales and modifiers
``smh.v2.core.generate``   both directions of the whole way
:mod:`smh.v2.core.plan`    10: plans
``smh.v2.core.initial``    8: initial values
======================  ================================================================================

Hash words (5.1) and views (9) are those of version 1: :mod:`smh.hashing`, :mod:`smh.views`. Everything runs on a
:class:`~smh.v2.core.kernels.Kernels`: a namespace, and a few primitives that a backend may override.
"""
