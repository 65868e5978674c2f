"""A setting of XLA that breaks bits is refused."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

FLAG = """
    import smh
    import tensorflow as tf
    from smh.backends.tensorflow import backend

    plan = smh.Plan.build({"a": (4, 4)}, ratio=0.5)
    variables = {name: tf.constant(x) for name, x in smh.initialize(plan).items()}
    for run in (lambda fn: fn(), lambda fn: tf.function(fn)(), lambda fn: tf.function(fn, jit_compile=True)()):
        try:
            run(lambda: backend.materialize(plan, variables))
            print("built")
        except smh.BackendError as error:
            print(str(error))
"""


def test_a_compiler_that_reorders_sums_is_refused():
    """Eagerly, and where the first call is in a graph or compiled."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FLAG)],
        env={**os.environ, "XLA_FLAGS": "--xla_cpu_enable_fast_math=true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.count("remove the flag --xla_cpu_enable_fast_math=true from") == 3, result.stderr
