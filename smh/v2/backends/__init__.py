"""Backends: one namespace each, chosen by import, by name or by ``SMH_BACKEND``.

>>> from smh.v2.backends import numpy as smh
>>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
>>> smh.materialize(plan, smh.initialize(plan))["fc"].shape
(20, 5)
"""
