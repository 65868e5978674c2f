"""Tests of the conformance suite: broken backends are found, by the law that is there for them, and no law is idle."""

import numpy as np
import pytest

import smh
from conformance import fingerprint, laws
from conformance.bits import Tally
from conformance.cases import golden_cases
from smh.backends.numpy import NumpyBackend
from tests.meta import broken_backends as broken
from tests.meta.test_broken_core import BROKEN as BROKEN_CORES

LAWS = [law.__name__ for law in (*laws.CASE_LAWS, *laws.OWN_LAWS)]

# What only one law finds: without it, the backend would pass the suite.
ONLY = {
    "indices": broken.IndicesOfAnotherSeed,
    "weights": broken.WeightsThatAreNotFlushed,
    "gradients": broken.GradientsThatPassRelu,
    "by_name": broken.NamesInTheOrderOfThePlan,
    "form": broken.ResultsInAnotherOrder,
    "purity": broken.VariablesFlushedInPlace,
    "memory": broken.GradientsThatAccumulate,
    "linearity": broken.WeightDecayInFastGradients,
    "fast": broken.FastInHalfPrecision,
    "round_trip": broken.NanPayloadsLost,
    "refusals": broken.UnknownVariablesIgnored,
    "large": broken.LastBlockForgotten,
    "environment": broken.ThreadsThatShow,
}
# What some law finds, and others may.
ALSO = {
    broken.SwappedScaleGradients: "gradients",
    broken.FusedMultiplyAdd: "gradients",
    broken.SilentCast: "refusals",
    broken.WordsInsteadOfErrors: "refusals",
}


@pytest.fixture(autouse=True)
def _one_thread_and_no_other_frameworks(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fingerprint, "FRAMEWORKS", ())


def found_by(make, skip=()):
    """Return the names of the laws that a backend breaks; each law gets a new one."""
    names = set()
    for law in laws.CASE_LAWS:
        subject = laws.Subject(make(), "cpu", "numpy")
        if any(breaks(law, subject, case) for case in golden_cases()):
            names.add(law.__name__)
    for law in laws.OWN_LAWS:
        source = f"{make.__module__}:{make.__name__}"
        if law.__name__ not in skip and breaks(law, laws.Subject(make(), "cpu", source)):
            names.add(law.__name__)
    return names


def breaks(law, subject, *case):
    try:
        law(subject, *case, Tally())
    except (AssertionError, smh.SmhError):
        return True
    return False


def test_a_sound_backend_passes():
    assert found_by(broken.OrdinaryNumpy) == set()


@pytest.mark.parametrize("law", ONLY)
def test_no_law_is_idle(law):
    assert found_by(ONLY[law]) == {law}


def test_the_law_of_initial_variables_is_not_idle(monkeypatch):
    """These are the library's, not a backend's."""
    from smh import api

    def of_another_seed(plan, distribution):
        return {name: np.flip(x) for name, x in original(plan, distribution).items()}

    original = api.initial_variables
    monkeypatch.setattr(api, "initial_variables", of_another_seed)
    assert found_by(broken.OrdinaryNumpy) == {"initial"}


def test_every_law_has_a_backend_that_only_it_finds():
    assert set(LAWS) == {*ONLY, "initial"}


@pytest.mark.parametrize("make", ALSO, ids=lambda make: make.__name__)
def test_broken_backends_are_found(make):
    assert ALSO[make] in found_by(make, skip=("environment",))


@pytest.mark.parametrize("break_it", BROKEN_CORES, ids=lambda break_it: break_it.__name__)
def test_broken_cores_are_found_by_the_laws_of_results(break_it, monkeypatch):
    break_it(monkeypatch.setattr)
    with np.errstate(all="ignore"):
        assert found_by(NumpyBackend, skip=("environment", "large")) & {"weights", "gradients"}
