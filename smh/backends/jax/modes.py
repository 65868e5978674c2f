"""The ways in which people run JAX."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from smh.backends.protocol import Function, Mode


def _without_jit(fn: Function) -> Function:
    def run(*args: Any) -> Any:
        with jax.disable_jit():
            return fn(*args)

    return run


def _with_x64(fn: Function) -> Function:
    def run(*args: Any) -> Any:
        with jax.enable_x64(True):
            return fn(*args)

    return run


def _bfloat16(fn: Function) -> Function:
    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("bfloat16"):
            return fn(*args)

    return run


def _vmap(fn: Function) -> Function:
    """Run a batch of one."""

    def run(*args: Any) -> Any:
        batch = jax.vmap(fn)(*jax.tree.map(lambda x: x[None], args))
        return jax.tree.map(lambda x: x[0], batch)

    return run


def _scan(fn: Function) -> Function:
    """Run the same step twice, and return the results of the second."""

    def run(*args: Any) -> Any:
        _, results = jax.lax.scan(lambda _, x: (None, fn(*x)), None, jax.tree.map(lambda x: jnp.stack([x, x]), args))
        return jax.tree.map(lambda x: x[1], results)

    return run


def _sharded(fn: Function) -> Function:
    """Spread every argument over all devices, along the first axis that can be divided by their number.

    Results go back to where the arguments were.
    """
    compiled = jax.jit(fn)

    def run(*args: Any) -> Any:
        home = jax.tree.leaves(args)[0].sharding
        return jax.device_put(compiled(*jax.tree.map(spread, args)), home)

    return run


def spread(x: Any) -> Any:
    """Return an array spread over all devices, or copied to each where no axis can be divided by their number."""
    count = jax.device_count()
    axes: list[str | None] = [None] * x.ndim
    for axis, size in enumerate(x.shape):
        if size % count == 0:
            axes[axis] = "devices"
            break
    mesh = jax.make_mesh((count,), ("devices",))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))


@functools.cache
def modes() -> tuple[Mode, ...]:
    """Return the modes: not before they are asked for, since counting devices starts them."""
    lonely = "one device only: start Python with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    return (
        Mode("jit", "jax.jit", around=jax.jit, slowness=12),
        Mode("eager_ops", "jax.disable_jit()", around=_without_jit, slowness=12),
        Mode("x64", "jax.enable_x64(True)", around=_with_x64, slowness=12),
        Mode("bfloat16", 'jax.default_matmul_precision("bfloat16")', around=_bfloat16, slowness=12),
        Mode("vmap", "jax.vmap", within=_vmap, slowness=12),
        Mode("scan", "jax.lax.scan", within=_scan, slowness=12),
        Mode("remat", "jax.checkpoint", within=jax.checkpoint, slowness=12),
        Mode(
            "sharded",
            "arrays spread over all devices",
            around=_sharded,
            slowness=12,
            missing=lonely if jax.device_count() == 1 else "",
        ),
    )
