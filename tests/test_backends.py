import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import smh
import smh.backends.numpy
from conformance.bits import assert_same_bits
from smh.backends import registry
from smh.backends.protocol import Backend, Mode
from smh.pools import Hash, Kronecker, Matmul, Sum


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


POOLS = (Matmul(n=80), Kronecker(d=9), Hash(size=300), Sum(Matmul(n=80, m=2), Hash(size=300)))
LOADED = """
    import sys
    frameworks = {"torch", "jax", "jaxlib", "tensorflow", "keras"} & set(sys.modules)
    print(sorted(frameworks))
"""


def test_importing_smh_loads_no_framework():
    result = run("import smh, smh.cli, smh.backends.numpy\nsmh.list_backends()" + textwrap.dedent(LOADED))
    assert result.stdout.strip() == "[]", result.stderr


def test_the_check_above_can_fail():
    result = run("import sys; sys.modules['torch'] = sys" + textwrap.dedent(LOADED))
    assert result.stdout.strip() == "['torch']"


def test_the_protocol_has_at_most_ten_methods_with_docstrings():
    methods = [name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))]
    assert 0 < len(methods) <= 10
    assert all("Return" in getattr(Backend, name).__doc__ for name in methods)


def test_the_backend_is_chosen_by_name_by_import_or_by_the_environment(monkeypatch):
    from smh.backends import numpy as chosen

    assert smh.get_backend("numpy") is chosen.backend
    monkeypatch.delenv("SMH_BACKEND", raising=False)
    assert smh.get_backend() is chosen.backend
    monkeypatch.setenv("SMH_BACKEND", "numpyy")
    with pytest.raises(
        smh.BackendError, match="'numpyy' .from the environment variable SMH_BACKEND.: did you mean 'numpy'"
    ):
        smh.get_backend()
    with pytest.raises(smh.BackendError, match="numpyy"):
        smh.initialize(smh.Plan.build({"a": (4, 4)}, ratio=1))


class Doubled(smh.backends.numpy.NumpyBackend):
    name = "doubled"


doubled = Doubled()
not_a_backend = object()


@pytest.fixture
def entry(monkeypatch):
    def register(name, value):
        monkeypatch.setattr(registry, "_loaded", {})
        monkeypatch.setattr(
            "importlib.metadata.entry_points",
            lambda group: [EntryPoint(name, value, group)] if group == "smh.backends" else [],
        )

    return register


def test_other_packages_bring_backends_as_entry_points(entry):
    entry("doubled", "tests.test_backends:doubled")
    assert smh.list_backends() == ["numpy", "torch", "jax", "tensorflow", "doubled"]
    assert smh.get_backend("doubled") is doubled


def test_backends_without_their_framework_are_not_installed(entry, monkeypatch):
    entry("doubled", "tests.test_backends:doubled")
    there = {"numpy": object(), "jax": object()}
    monkeypatch.setattr(registry.importlib.util, "find_spec", there.get)
    assert smh.list_backends(installed=True) == ["numpy", "jax", "doubled"]


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
    entry("numpy", "tests.test_backends:doubled")
    assert smh.get_backend("numpy") is smh.backends.numpy.backend


def test_a_backend_whose_framework_is_missing_names_what_to_install(entry, monkeypatch):
    entry("other", "a_framework_that_is_not_there:backend")
    with pytest.raises(smh.BackendError, match="a_framework_that_is_not_there"):
        smh.get_backend("other")
    monkeypatch.setattr(registry, "_BUILT_IN", {"torch": "a_framework_that_is_not_there:backend"})
    with pytest.raises(smh.BackendError, match=r"pip install 'smh\[torch\]'"):
        smh.get_backend("torch")


def test_what_is_no_backend_is_refused(entry):
    entry("thing", "tests.test_backends:not_a_backend")
    with pytest.raises(smh.BackendError, match="must be a smh.backends.protocol.Backend; got object"):
        smh.get_backend("thing")


def test_arrays_go_through_the_numpy_backend_unchanged():
    backend = smh.get_backend("numpy")
    assert backend.devices() == ["cpu"]
    x = np.asarray([1.5, -0.0, np.nan], dtype=np.float32)
    y = backend.asarray(x, "cpu")
    y[0] = 2
    assert x[0] == 1.5
    assert_same_bits(backend.to_numpy(backend.asarray(x)), x)
    with pytest.raises(smh.BackendError, match="'cpu' only; got 'cuda'"):
        backend.asarray(x, "cuda")


@pytest.mark.parametrize("layout", ["basic", "cyclic", "padding"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("names", [None, ["b"], ["c", "a"]])
def test_weights_of_numpy_overlap_neither_one_another_nor_variables(arithmetic, names, pool, layout):
    shapes = {"a": (7, 3), "b": (5, 1), "c": (3, 3, 4, 6), "d": (50, 60) if layout == "basic" else (300, 400)}
    plan = smh.Plan.build(shapes, ratio=0.3, pool=pool, layout=layout, arithmetic=arithmetic)
    variables = smh.initialize(plan)
    before = {name: x.copy() for name, x in variables.items()}
    weights = smh.materialize(plan, variables, names)
    expected = {name: w.copy() for name, w in weights.items()}
    for number, w in enumerate(weights.values()):
        assert w.flags.writeable
        assert w.flags.c_contiguous
        w[...] = number
    assert [np.unique(w).tolist() for w in weights.values()] == [[number] for number in range(len(weights))]
    assert all(np.array_equal(x, before[name]) for name, x in variables.items())
    again = smh.materialize(plan, variables, names)
    assert all(np.array_equal(w, expected[name]) for name, w in again.items())


def test_threads_do_not_change_a_bit():
    code = """
        import smh
        plan = smh.Plan.build({"a": (300, 300)}, ratio=0.5)
        print(smh.digest(plan, smh.initialize(plan)))
    """
    digests = {run(code, OPENBLAS_NUM_THREADS=threads, OMP_NUM_THREADS=threads).stdout for threads in ("1", "2")}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
