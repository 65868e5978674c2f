"""Pools: sets of variables, with rules that turn their integers into virtual weights (specification, section 4).

======================  ====================================  ==========================================
pool                    variables                             virtual weights
======================  ====================================  ==========================================
:class:`Matmul`         left [n, m], right [m, n]             one matrix product, row-major
:class:`Kronecker`      left [t, d, d], right [t, d, d]       a sum of t Kronecker products, row-major
:class:`Hash`           table [hashes, size]                  a signed sum of hashed table entries
:class:`Sum`            all variables of its parts            the parts added elementwise
:class:`Product`        all variables of its parts            the parts multiplied elementwise
======================  ====================================  ==========================================

The same classes represent a *request*, in which sizes and gain may be None and follow from ratio and optimizer
(``Matmul(bits=4)``), and the *sized* pool of a plan (``Matmul(n=100, m=10, bits=4, gain=1)``).
"""

from smh.core.pools.base import LeafPool, Pool, from_dict, named
from smh.core.pools.kinds import Hash, Kronecker, Matmul, Product, Sum

__all__ = ["Hash", "Kronecker", "LeafPool", "Matmul", "Pool", "Product", "Sum", "from_dict", "named"]
