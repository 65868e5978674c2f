"""The modes of the PyTorch backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint

from smh.backends.float64 import no_float64
from smh.backends.protocol import Function, Mode
from smh.backends.torch import int8, operators
from smh.backends.torch.narrow import NARROW


@contextmanager
def _other_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _autocast() -> Any:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autocast("cuda", dtype=torch.float16, enabled=torch.cuda.is_available()),
    ):
        yield


@contextmanager
def _precision(precision: str) -> Any:
    """Run with a precision of float32 products: ``"high"`` is TF32, ``"medium"`` also bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _vmap(fn: Function) -> Function:
    """Run a batch of one."""

    def run(*args: Any) -> Any:
        batch = torch.func.vmap(fn)(*(x[None] for x in args))
        return tuple(x[0] for x in batch)

    return run


def _compiled(compiler: str) -> Callable[[Function], Function]:
    def wrap(fn: Function) -> Function:
        def run(*args: Any) -> Any:
            return fn(*args)

        # A separate code object: PyTorch limits the compilations of one, and every plan compiles a function anew.
        # Not dynamic: PyTorch would make the sizes that differ between plans symbolic, and cannot compile `%` by them.
        own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
        return cast(Function, torch.compile(own, fullgraph=True, dynamic=False, backend=compiler))

    return wrap


MODES = (
    Mode("inference", "torch.inference_mode()", around=torch.inference_mode()),
    Mode("autocast", "torch.autocast in half precision", around=_autocast()),
    Mode("medium", "torch.set_float32_matmul_precision('medium')", around=_precision("medium")),
    Mode("tf32", "torch.backends.cuda.matmul.allow_tf32 = True", around=_precision("high")),
    Mode("threads", "torch.set_num_threads, one thread and two", around=_other_threads()),
    no_float64(NARROW),
    Mode("vmap", "torch.func.vmap", within=_vmap),
    Mode("checkpoint", "torch.utils.checkpoint", within=lambda fn: partial(checkpoint, fn, use_reentrant=False)),
    Mode(
        "traced",
        "torch.compile(fullgraph=True, dynamic=False, backend='aot_eager'), the core without operators",
        around=operators.ALLOWED.off(),
        within=_compiled("aot_eager"),
        slowness=16,
    ),
    Mode("compile", "torch.compile(fullgraph=True, dynamic=False)", within=_compiled("inductor"), slowness=40),
)
NO_BYTES = Mode("no-bytes", "products of float32 and float64 only", around=int8.ALLOWED.off())
"""For processors that multiply bytes; on others it is the eager mode."""
