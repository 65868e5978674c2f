"""Exports of compressed pytrees to StableHLO, with the pool as integer constants."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax import export

from smh.backends.float64 import without_float64
from smh.backends.jax import freeze
from smh.backends.jax.models import adapter, weights_of, with_weights
from smh.backends.jax.narrow import NO_FLOAT64
from smh.core.sizes import file_bytes
from smh.errors import ExportError, PlanError
from smh.files.atomic import replacing
from smh.models.compression import not_compressed
from smh.models.exported import Exported

_LIMIT = 2**31  # bytes of a program
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def stablehlo(
    path: str | os.PathLike[str],
    function: Callable[..., Any],
    params: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    platforms: Sequence[str] | None,
    weights: bool,
) -> Exported:
    """Write a program of StableHLO; see :func:`smh.export.stablehlo`."""
    if isinstance(platforms, str) or (platforms is not None and not {*platforms} <= {*_PLATFORMS}):
        raise PlanError(f"platforms must be a list of {', '.join(map(repr, _PLATFORMS))}; got {platforms!r}")
    compression = adapter.compression(params)
    if compression is None:
        raise not_compressed(params)
    frozen = (params if compression.frozen else freeze(params)).with_residency("full")
    pool, kept = file_bytes(frozen.plan.pool), sum(map(_nbytes, frozen.kept.values()))
    kept += sum(_nbytes(x) for name, x in frozen.variables.items() if not name.startswith("pool/"))
    if pool + kept >= _LIMIT:
        raise ExportError(f"an exported program holds less than {_LIMIT:,} bytes; the parameters have {pool + kept:,}")

    def program(*args: Any, **kwargs: Any) -> Any:
        # The barrier keeps compilers from building the weights while they compile.
        model = dataclasses.replace(frozen, variables=jax.lax.optimization_barrier(dict(frozen.variables)))
        built = weights_of(model)
        outputs = function(with_weights(model, built), *args, **kwargs)
        return (outputs, built) if weights else outputs

    narrow = platforms is not None and any(platform in NO_FLOAT64 for platform in platforms)
    compiled = jax.jit(program)
    with without_float64() if narrow else nullcontext():
        try:
            constants = compiled.trace(*args, **dict(kwargs or {})).jaxpr.consts
            data = export.export(compiled, platforms=platforms)(*args, **dict(kwargs or {})).serialize()
        except (NotImplementedError, jax.errors.JAXTypeError) as error:  # host callbacks; branches on traced values
            what = str(error).strip().partition("\n")[0]
            raise ExportError(f"jax.export cannot hold this function: change the code it names; got {what}") from error
    found = Exported(len(data), pool, kept, sum(_nbytes(x) for x in constants if not _is_uniform(x))).check()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
    return found


def _host(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def _nbytes(x: Any) -> int:
    return _host(x).nbytes


def _is_uniform(x: Any) -> bool:
    """Return whether all elements are equal: a program then holds only one."""
    flat = _host(x).reshape(-1)
    return bool((flat == flat[:1]).all())
