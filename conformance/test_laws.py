"""Every law, for every backend, device and mode that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, seed, settings

from conformance.bits import Tally
from conformance.case_laws import RESULTS
from conformance.cases import cases, golden_plans, one_of_each_plan
from conformance.subject import CaseLaw, OwnLaw, Subject


def test_golden_vectors(subject: Subject, case_law: CaseLaw, tally: Tally) -> None:
    """The law holds for the golden vectors.

    Modes that compile every plan take every n-th plan. Outside the first mode, laws other than those of results take
    one case of each plan: drawn plans bring them values of all kinds.
    """
    found = []
    chosen = golden_plans(subject.backend.mode.slowness)
    if subject.backend.mode != subject.backend.modes()[0] and case_law not in RESULTS:
        chosen = one_of_each_plan(chosen)
    for case in chosen:
        try:
            case_law(subject, case, tally)
        except AssertionError as error:
            found.append(f"{case.name}: {error}")
    assert not found, "\n".join(found)


def test_drawn_plans(subject: Subject, case_law: CaseLaw, tally: Tally, pytestconfig: pytest.Config) -> None:
    """The law holds for plans and values that Hypothesis draws, the same for all laws and modes."""

    @seed(pytestconfig.getoption("seed"))
    @settings(
        max_examples=max(1, pytestconfig.getoption("plans") // subject.backend.mode.slowness),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def holds(drawn):
        for case in drawn:
            case_law(subject, case, tally)

    holds()


def test_law(subject: Subject, own_law: OwnLaw, tally: Tally) -> None:
    """The law holds for its own data."""
    own_law(subject, tally)
