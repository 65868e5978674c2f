"""Exports of compressed pytrees to StableHLO: programs that hold integers, run without smh, and build the same bits."""

import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import smh
import smh.export
from conformance.bits import assert_same_bits
from smh import pools

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402

X = np.random.default_rng(1).standard_normal((2, 12, 12, 3), dtype=np.float32)


def params():
    rng = np.random.default_rng(0)
    shapes = {"conv1/kernel": (3, 3, 3, 32), "conv2/kernel": (3, 3, 32, 64), "head/kernel": (64, 10)}
    weights = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    return {**weights, "conv1/bias": jnp.zeros(32), "head/bias": jnp.arange(10.0), "half": jnp.ones(7, jnp.bfloat16)}


def cnn(params, x, scale=1.0):
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x, params[f"{name}/kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params["conv1/bias"] if name == "conv1" else x)
    return scale * (x.mean((1, 2)) @ params["head/kernel"] + params["head/bias"])


def compressed(pool="matmul", **options):
    return smh_jax.compress(params(), ratio=0.1, pool=pool, **options)


def run(path, *args, **kwargs):
    return export.deserialize(bytearray(path.read_bytes())).call(*args, **kwargs)


def same_weights(found, model):
    expected = smh.materialize(model)
    assert sorted(found) == sorted(tensor.name for tensor in model.plan.tensors)
    for name, x in found.items():
        assert_same_bits(np.asarray(x), np.asarray(expected[name]))


POOLS = {
    "nibbles": pools.Matmul(bits=4),
    "wide": pools.Matmul(bits=16),
    "kronecker": pools.Kronecker(),
    "hash": pools.Hash(hashes=2),
    "combined": pools.Sum(pools.Matmul(bits=3), pools.Product(pools.Kronecker(), pools.Hash())),
}


@pytest.mark.parametrize("pool", POOLS)
def test_programs_of_every_pool_build_the_same_weights(tmp_path, pool):
    model = compressed(POOLS[pool])
    narrow = pool == "wide"  # TPUs have no float64
    sizes = smh.export.stablehlo(
        tmp_path / "program", cnn, model, [X], weights=True, platforms=["cpu", "tpu"] if narrow else None
    )
    program = export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    assert not narrow or "f64" not in program.mlir_module()
    y, weights = program.call(X)
    same_weights(weights, model)
    np.testing.assert_allclose(y, cnn(smh.materialize(model), X), rtol=1e-5, atol=1e-5)
    check_sizes(tmp_path / "program", sizes, model)


def check_sizes(path, sizes, model):
    kept = sum(x.nbytes for x in model.kept.values())
    assert sizes.file == path.stat().st_size
    assert sizes.integers + 4 * len(model.plan.tensors) == model.plan.file_bytes
    assert kept + 4 * len(model.plan.tensors) <= sizes.kept <= kept + 4 * len(model.plan.tensors) + 8
    assert sizes.held <= sizes.integers + sizes.kept + 1024  # and tables of powers
    assert 0 < sizes.graph < 36_000
    assert sizes.file <= 1.1 * (sizes.integers + sizes.kept + sizes.graph)


IN_ANOTHER_PROCESS = """
    import pathlib, sys
    sys.modules["smh"] = None
    import numpy as np
    from jax import export

    folder = pathlib.Path(sys.argv[1])
    x = np.load(folder / "x.npy")
    y, weights = export.deserialize(bytearray((folder / "program").read_bytes())).call(x[:1], scale=np.float32(2))
    np.savez(folder / "found", **{name.replace("/", "."): w for name, w in weights.items()}, y=y)
"""


def test_a_program_runs_without_smh(tmp_path):
    model = compressed()
    batch = export.symbolic_shape("b, 12, 12, 3")
    platforms = ["cpu", "cuda", "tpu"]
    sizes = smh.export.stablehlo(
        tmp_path / "program",
        cnn,
        smh.freeze(model).with_residency("cached"),
        [jax.ShapeDtypeStruct(batch, jnp.float32)],
        {"scale": jax.ShapeDtypeStruct((), jnp.float32)},
        platforms=platforms,
        weights=True,
    )
    check_sizes(tmp_path / "program", sizes, model)
    program = export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    assert list(program.platforms) == platforms
    np.save(tmp_path / "x", X)
    code, environment = textwrap.dedent(IN_ANOTHER_PROCESS), {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True)
    with np.load(tmp_path / "found.npz") as found:
        weights = {name.replace(".", "/"): found[name] for name in found.files}
    np.testing.assert_allclose(weights.pop("y"), cnn(smh.materialize(model), X[:1], 2), rtol=1e-5, atol=1e-5)
    same_weights(weights, model)


def test_the_size_of_a_program_is_that_of_its_pool(tmp_path):
    model = smh_jax.compress({"w": jnp.ones((1000, 1000))}, ratio=0.1)
    sizes = smh.export.stablehlo(tmp_path / "program", lambda p, x: x @ p["w"], model, [jnp.ones((1, 1000))])
    assert sizes.file < 1.1 * 100_000
    assert run(tmp_path / "program", jnp.ones((1, 1000))).shape == (1, 1000)


def test_what_would_be_large_or_is_mistaken_is_not_written(tmp_path):
    path = tmp_path / "program"
    path.write_text("before")
    model, dense = compressed(), params()
    for function in (lambda p, x: cnn(dense, x), lambda p, x: (x, jnp.asarray(np.arange(90_000.0)))):
        with pytest.raises(smh.ExportError, match="bytes of tensors instead of"):
            smh.export.stablehlo(path, function, model, [X])
    with pytest.raises(smh.PlanError, match="not compressed"):
        smh.export.stablehlo(path, cnn, dense, [X])
    for platforms in ("cpu", ["gpu"], ["cpu", "metal"]):
        with pytest.raises(smh.PlanError, match="platforms must be a list of 'cpu'"):
            smh.export.stablehlo(path, cnn, model, [X], platforms=platforms)
    with pytest.raises(smh.VariableError, match="not finite"):
        smh.export.stablehlo(path, cnn, jax.tree.map(lambda x: x * np.float32(np.inf), model), [X])
    assert path.read_text() == "before"
    assert [x.name for x in pathlib.Path(tmp_path).iterdir()] == ["program"]


def test_models_of_flax_are_exported(tmp_path):
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    network = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(3)])
    x = jnp.ones((2, 20))
    model = smh.compress(network.init(jax.random.key(0), x), ratio=0.2)
    smh.export.stablehlo(tmp_path / "program", network.apply, model, [x])
    np.testing.assert_allclose(
        run(tmp_path / "program", x), network.apply(smh.materialize(model), x), rtol=1e-5, atol=1e-6
    )


def test_functions_that_no_program_holds_are_refused(tmp_path):
    def prints(params, x):
        jax.debug.print("{}", x[0, 0])
        return x @ params["w"]

    def branches(params, x):
        return x @ params["w"] if x[0, 0] > 0 else x

    compressed = smh.compress({"w": jnp.ones((50, 40))}, ratio=0.1)
    for function in (prints, branches):
        with pytest.raises(smh.ExportError, match=r"jax\.export cannot hold this function"):
            smh.export.stablehlo(tmp_path / "model.stablehlo", function, compressed, [jnp.ones((2, 50))])
    assert not list(tmp_path.iterdir())
