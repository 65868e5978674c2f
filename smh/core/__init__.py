"""The specification SMH-2 in code: from variables to weights and back, in pure array API (docs/specification.md).

=============================  =========================================================================
module                         sections of the specification
=============================  =========================================================================
:mod:`smh.core.grid`           2 and 3.1: the grid, floors and roundings
:mod:`smh.core.hashing`        5.1: hash words
``smh.core.pools.arithmetic``  3.2, 3.3, 4 and 7.4: virtual weights of pools, and gradients back
``smh.core.layout``            5.2 and 7.2: the map from cells to virtual weights
``smh.core.scales``            3.4, 3.5, 6.3 and 7.1: scales and modifiers
:mod:`smh.core.generate`       weights from variables, and gradients back
``smh.core.rules``             6.1 and 6.2: initial scales, kappas
:mod:`smh.core.initial`        8: initial values
:mod:`smh.core.views`          9: views
``smh.core.plan``              10: plans
=============================  =========================================================================

Everything runs on :class:`~smh.core.kernels.Kernels`: a namespace and a few primitives that a backend may override
without changing a bit.
"""
