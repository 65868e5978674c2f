"""Broken backends and broken cores are found by the laws that are there for them, and no law is idle."""

import numpy as np
import pytest

import smh
from conformance import fingerprint, laws
from conformance.bits import Tally
from conformance.cases import golden_cases
from smh import api
from smh.backends.numpy import NumpyBackend
from smh.core import generate
from smh.files import checkpoint, digests
from tests.core import test_broken_core
from tests.suite.broken_backends import BROKEN, OrdinaryNumpy

LAWS = {law.__name__: law for law in (*laws.CASE_LAWS, *laws.OWN_LAWS)}
ALWAYS = ("views_order", "cotangents_zero", "without_one", "scales_limits_0", "ties_8", "modifiers", "bits_12")


@pytest.fixture(autouse=True)
def _one_thread_and_no_other_frameworks(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fingerprint, "FRAMEWORKS", ())


def some_cases():
    """Return a fifth of the golden vectors, with those that single mistakes need."""
    return [case for k, case in enumerate(golden_cases()) if k % 5 == 0 or case.name in ALWAYS]


def found_by(make, cases, skip=("environment", "large")):
    """Return the names of the laws that a backend breaks, without those that take long; each law gets a new one."""
    names = set()
    with np.errstate(all="ignore"):
        for name, law in LAWS.items():
            subject = laws.Subject(make(), "cpu", f"{make.__module__}:{make.__name__}")
            if law in laws.CASE_LAWS:
                found = any(breaks(law, subject, case) for case in cases)
            else:
                found = name not in skip and breaks(law, subject)
            if found:
                names.add(name)
    return names


def breaks(law, subject, *case):
    try:
        law(subject, *case, Tally())
    except (AssertionError, smh.SmhError):
        return True
    return False


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_backend_breaks_the_laws_of_the_table(make):
    slow = {"environment", "large"} - (BROKEN[make] or {"environment", "large"})
    assert found_by(make, some_cases(), skip=slow) == BROKEN[make]


def of_another_seed(monkeypatch):
    original = api.initial_variables
    monkeypatch.setattr(
        api, "initial_variables", lambda *args: {name: np.flip(x) for name, x in original(*args).items()}
    )


def without_the_last_tensor(monkeypatch):
    original = digests._groups
    monkeypatch.setattr(digests, "_groups", lambda plan: [group[:-1] for group in original(plan)])


def integers_of_the_other_sign(monkeypatch):
    original = checkpoint.unpack
    monkeypatch.setattr(checkpoint, "unpack", lambda *args: {name: -x for name, x in original(*args).items()})


def units_twice_as_large(monkeypatch):
    original = generate.on_grid

    def on_grid(kernels, plan, variables):
        return {name: x * (1 + name.startswith("pool/")) for name, x in original(kernels, plan, variables).items()}

    monkeypatch.setattr(generate, "on_grid", on_grid)


LIBRARY = {
    of_another_seed: "initial",
    without_the_last_tensor: "digest",
    integers_of_the_other_sign: "files",
    units_twice_as_large: "on_grid",
}
"""Mistakes that are the library's, not a backend's."""


@pytest.mark.parametrize("mistake", LIBRARY, ids=lambda mistake: mistake.__name__)
def test_a_library_breaks_one_law(mistake, monkeypatch):
    mistake(monkeypatch)
    assert found_by(OrdinaryNumpy, some_cases()) == {LIBRARY[mistake]}


def test_every_law_has_a_mistake_that_it_finds():
    assert {*LIBRARY.values(), *(law for found in BROKEN.values() for law in found)} == set(LAWS)


@pytest.mark.parametrize("what", test_broken_core.MISTAKES)
def test_broken_cores_are_found_by_the_laws_of_results(what, monkeypatch):
    kernels = test_broken_core.broken(monkeypatch, what)

    class Broken(NumpyBackend):
        pass

    Broken.kernels = kernels
    subject = laws.Subject(Broken(), "cpu", "numpy")
    with np.errstate(all="ignore"):
        assert any(
            breaks(law, subject, case) for case in golden_cases() for law in (LAWS["weights"], LAWS["gradients"])
        )
