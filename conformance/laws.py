"""All laws that every backend keeps, in every mode and on every device.

A law is a function that fails with an AssertionError. Those of :mod:`conformance.case_laws` take a case; the suite
runs them on the golden vectors and on drawn plans. Those of :mod:`conformance.own_laws` bring their own data.
`tests/suite` holds broken backends, each of which a law finds.
"""

from __future__ import annotations

from conformance.case_laws import CASE_LAWS
from conformance.own_laws import ONCE, OWN_LAWS, kernels, resnet34
from conformance.subject import CaseLaw, OwnLaw, Subject

__all__ = ["CASE_LAWS", "OWN_LAWS", "CaseLaw", "OwnLaw", "Subject", "own_laws"]


def own_laws(subject: Subject | None, deep: bool) -> tuple[OwnLaw, ...]:
    """Return the laws without cases: some only for the first mode, those of real sizes only with `--deep`.

    The law of kernels is for each mode that has others.
    """
    first = subject is not None and subject.backend.mode == subject.backend.modes()[0]
    others = subject is not None and subject.backend.mode.kernels is not None
    chosen = (law for law in OWN_LAWS if first or law not in ONCE or (others and law is kernels))
    return (*chosen, resnet34) if deep else tuple(chosen)
