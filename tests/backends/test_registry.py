"""Backends by name: built-in ones, those of other packages, the environment variable, modes; and what is imported."""

import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest

import smh
from smh.backends import registry
from smh.backends.numpy import NumpyBackend
from smh.backends.protocol import Backend, Mode


def run(code, **environment):
    """Run a program in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = """
import sys
print(sorted({"torch", "jax", "jaxlib", "tensorflow", "keras", "scipy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "use",
    [
        "import smh",
        "import smh.cli",
        "import smh\nsmh.list_backends(), smh.list_backends(installed=True)",
        "import smh\nsmh.numpy.initialize(smh.Plan.build({'a': (4, 4)}, ratio=0.9))",
        "import smh.models.adapter, smh.models.compression, smh.porting",
        "import smh\ntry: smh.compress(3, 0.1)\nexcept smh.PlanError: pass",
    ],
)
def test_no_framework_is_imported_before_it_is_needed(use):
    assert run(use + LOADED) == "[]"


def test_the_check_above_can_fail():
    assert run("import sys; sys.modules['torch'] = sys" + LOADED) == "['torch']"


def test_the_protocol_has_at_most_ten_methods_with_docstrings():
    methods = [name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))]
    assert 0 < len(methods) <= 10
    assert all("Return" in getattr(Backend, name).__doc__ for name in methods)


def test_the_backend_is_chosen_by_name_by_import_or_by_the_environment(monkeypatch):
    from smh.backends import numpy as chosen

    assert smh.get_backend("numpy") is chosen.backend
    monkeypatch.delenv("SMH_BACKEND", raising=False)
    assert smh.get_backend() is chosen.backend
    monkeypatch.setenv("SMH_BACKEND", "")
    assert smh.get_backend() is chosen.backend
    monkeypatch.setenv("SMH_BACKEND", "numpyy")
    with pytest.raises(
        smh.BackendError, match="'numpyy' .from the environment variable SMH_BACKEND.: did you mean 'numpy'"
    ):
        smh.get_backend()
    with pytest.raises(smh.BackendError, match="numpyy"):
        smh.initialize(smh.Plan.build({"a": (4, 4)}, ratio=1))
    with pytest.raises(smh.BackendError, match="there is no backend 3: known names"):
        smh.get_backend(3)


class Doubled(NumpyBackend):
    name = "doubled"


doubled = Doubled()
not_a_backend = object()


@pytest.fixture
def entry(monkeypatch):
    """Return a function that registers an entry point, instead of those of packages that are installed."""

    def register(name, value):
        monkeypatch.setattr(registry, "_loaded", {})
        monkeypatch.setattr(
            "importlib.metadata.entry_points",
            lambda group: [EntryPoint(name, value, group)] if group == registry.GROUP else [],
        )

    return register


HERE = f"{__name__}:"


def test_other_packages_bring_backends_as_entry_points(entry):
    entry("doubled", f"{HERE}doubled")
    assert smh.list_backends() == ["numpy", "torch", "jax", "tensorflow", "doubled"]
    assert smh.get_backend("doubled") is doubled


def test_backends_without_their_framework_are_not_installed(entry, monkeypatch):
    entry("doubled", f"{HERE}doubled")
    there = {"numpy": object(), "jax": object(), "tests": object()}
    monkeypatch.setattr(registry.importlib.util, "find_spec", there.get)
    assert smh.list_backends(installed=True) == ["numpy", "jax", "doubled"]


@pytest.mark.parametrize("value", ["no_such_package:backend", "no_such_package.inside:backend", ""])
def test_entry_points_without_their_package_are_not_installed(entry, value):
    entry("ghost", value)
    assert "ghost" in smh.list_backends()
    assert "ghost" not in smh.list_backends(installed=True)
    entry("doubled", f"{HERE}doubled")
    assert "doubled" in smh.list_backends(installed=True)


def test_modes_are_named_and_say_why_they_cannot_run(monkeypatch):
    backend = smh.get_backend("numpy")
    assert [mode.name for mode in backend.modes()] == ["eager"]
    assert backend.in_mode("eager") is not backend
    with pytest.raises(smh.BackendError, match="no mode 'jit': known names: 'eager'"):
        backend.in_mode("jit")
    monkeypatch.setattr(type(backend), "modes", lambda self: (Mode("jit", "compiled", missing="no compiler"),))
    with pytest.raises(smh.BackendError, match="mode 'jit' of the numpy backend cannot run here: no compiler"):
        backend.in_mode("jit")


def test_an_entry_point_cannot_replace_a_built_in_backend(entry):
    entry("numpy", f"{HERE}doubled")
    assert smh.get_backend("numpy") is sys.modules["smh.backends.numpy"].backend


def test_a_backend_whose_framework_is_missing_names_what_to_install(entry, monkeypatch):
    entry("other", "a_framework_that_is_not_there:backend")
    with pytest.raises(smh.BackendError, match="a_framework_that_is_not_there"):
        smh.get_backend("other")
    monkeypatch.setattr(registry, "_BUILT_IN", {"torch": "a_framework_that_is_not_there:backend"})
    with pytest.raises(smh.BackendError, match=r'pip install "structured-multi-hashing\[torch\]"'):
        smh.get_backend("torch")


def test_what_is_no_backend_is_refused(entry):
    entry("thing", f"{HERE}not_a_backend")
    with pytest.raises(smh.BackendError, match="Backend; got object"):
        smh.get_backend("thing")


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "tensorflow"])
def test_every_built_in_backend_says_what_it_is(name):
    """Its name, its devices, and its modes, of which the first is eager."""
    pytest.importorskip(name)
    backend = smh.get_backend(name)
    assert backend.name == name
    assert smh.get_backend(name) is backend
    assert backend.devices()
    assert backend.modes()[0].name == backend.mode.name == "eager"
    assert all(mode.about and mode.slowness >= 1 for mode in backend.modes())
    assert len({mode.name for mode in backend.modes()}) == len(backend.modes())


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("torch", "torch", "torch"), ("jax", "jax", "jax"), ("keras", "tensorflow", "keras")],
)
def test_a_framework_that_is_missing_is_named_with_the_extra_that_brings_it(module, package, extra):
    for line in (f"from smh import {module}", f"import smh; smh.{module}", f"from smh.backends import {package}"):
        code = f"import sys; sys.modules.update(dict.fromkeys(['torch', 'jax', 'tensorflow', 'keras'])); {line}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        last = done.stderr.splitlines()[-1]
        advice = f'pip install "structured-multi-hashing[{extra}]"'
        assert last == f"ModuleNotFoundError: {package} is not installed: {advice}"
