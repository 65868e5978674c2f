"""The specification SMH-2 in code: from variables to weights and back, in pure array API (docs/specification_2.md).

======================  ================================================================================
module                  sections of the specification
======================  ================================================================================
:mod:`smh.core.grid`    2 and 3.1: the grid, floors and roundings
``smh.core.pools``      3.2, 3.3, 4 and 7.4: pools
:mod:`smh.core.layout`  5.2 and 7.2: which virtual weight a cell shows
:mod:`smh.core.scales`  3.4, 3.5, 6 and 7.1: scales and modifiers
``smh.core.generate``   both directions of the whole way
:mod:`smh.core.plan`    10: plans
``smh.core.initial``    8: initial values
======================  ================================================================================

Hash words (5.1) and views (9) are those of version 1: :mod:`smh.hashing`, :mod:`smh.views`. Everything runs on a
:class:`~smh.core.kernels.Kernels`: a namespace, and a few primitives that a backend may override.
"""
