"""The modes of the JAX backend."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from smh.backends.float64 import no_float64
from smh.backends.jax.narrow import NARROW
from smh.backends.protocol import EAGER, Function, Mode


@functools.cache
def modes() -> tuple[Mode, ...]:
    """Return the modes, each of which compiles every plan. Counting devices initializes them, so this is a function."""
    lonely = "one device only: start Python with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    missing = lonely if jax.device_count() == 1 else ""
    declared = (
        EAGER,
        Mode("jit", "jax.jit", around=jax.jit),
        Mode("eager_ops", "jax.disable_jit()", around=_under(jax.disable_jit)),
        Mode("x64", "jax.enable_x64(True)", around=_under(jax.enable_x64, True)),
        Mode(
            "bfloat16",
            'jax.default_matmul_precision("bfloat16")',
            around=_under(jax.default_matmul_precision, "bfloat16"),
        ),
        no_float64(NARROW),
        Mode("vmap", "jax.vmap", within=_vmap),
        Mode("scan", "jax.lax.scan", within=_scan),
        Mode("remat", "jax.checkpoint", within=jax.checkpoint),
        Mode("sharded", "arrays spread over all devices", around=_sharded, missing=missing),
    )
    return tuple(dataclasses.replace(mode, slowness=24) for mode in declared)


def _under(context: Callable[..., AbstractContextManager[Any]], *settings: Any) -> Callable[[Function], Function]:
    """Return a wrapper that runs a function in a new context on each call."""

    def wrap(fn: Function) -> Function:
        def run(*args: Any) -> Any:
            with context(*settings):
                return fn(*args)

        return run

    return wrap


def _vmap(fn: Function) -> Function:
    """Run a batch of one."""
    first = functools.partial(jax.tree.map, lambda x: x[0])
    return lambda *args: first(jax.vmap(fn)(*jax.tree.map(lambda x: x[None], args)))


def _scan(fn: Function) -> Function:
    """Run a step twice in a scan, and return the results of the second."""

    def run(*args: Any) -> Any:
        _, results = jax.lax.scan(lambda _, x: (None, fn(*x)), None, jax.tree.map(lambda x: jnp.stack([x, x]), args))
        return jax.tree.map(lambda x: x[1], results)

    return run


def _sharded(fn: Function) -> Function:
    """Shard every argument over all devices, and return results on the original devices."""
    compiled = jax.jit(fn)

    def run(*args: Any) -> Any:
        return jax.device_put(compiled(*jax.tree.map(_spread, args)), jax.tree.leaves(args)[0].sharding)

    return run


def _spread(x: Any) -> Any:
    """Return an array sharded over all devices along the first divisible axis, or replicated."""
    count = jax.device_count()
    divisible = next((axis for axis, size in enumerate(x.shape) if size % count == 0), x.ndim)
    spec = PartitionSpec(*("devices" if axis == divisible else None for axis in range(x.ndim)))
    return jax.device_put(x, NamedSharding(jax.make_mesh((count,), ("devices",)), spec))
