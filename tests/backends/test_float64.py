"""How users let the core do without float64."""

import os
import subprocess
import sys

import pytest

from smh.backends.float64 import float64_allowed, without_float64


def test_a_context_forbids_it_and_ends():
    assert float64_allowed()
    with without_float64():
        with pytest.raises(ZeroDivisionError), without_float64():
            raise ZeroDivisionError
        assert not float64_allowed()
    assert float64_allowed()


@pytest.mark.parametrize(("value", "output"), [("0", "False"), ("1", "True"), (None, "True")])
def test_the_environment_decides(value, output):
    done = run(value)
    assert done.stdout.strip() == output, done.stderr


def test_other_values_are_refused():
    done = run("no")
    assert "SMH_FLOAT64 must be 0 (no float64) or 1; got 'no'" in done.stderr


def run(value):
    start = "from smh.backends.float64 import float64_allowed; print(float64_allowed())"
    environment = {name: x for name, x in os.environ.items() if name != "SMH_FLOAT64"}
    environment |= {"SMH_FLOAT64": value} if value else {}
    return subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)
