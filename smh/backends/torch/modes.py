"""The ways in which people run PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint

from smh.backends.protocol import Function, Mode


def _under(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[Function], Function]:
    """Return what wraps a function so that it runs in a new context each time."""

    def wrap(fn: Function) -> Function:
        @functools.wraps(fn)
        def run(*args: Any) -> Any:
            with context():
                return fn(*args)

        return run

    return wrap


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
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cuda", dtype=torch.float16, enabled=_CUDA):
        yield


_CUDA = torch.cuda.is_available()


def _precision(precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context with a precision of float32 products: ``"high"`` is TF32, ``"medium"`` also bfloat16."""

    @contextmanager
    def context() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    return context


def _vmap(fn: Function) -> Function:
    """Run a batch of one."""

    def run(*args: Any) -> Any:
        batch = torch.func.vmap(fn)(*(x[None] for x in args))
        return tuple(x[0] for x in batch)

    return run


def _checkpointed(fn: Function) -> Function:
    return lambda *args: checkpoint(fn, *args, use_reentrant=False)


def _compiled(compiler: str) -> Callable[[Function], Function]:
    def wrap(fn: Function) -> Function:
        def run(*args: Any) -> Any:
            return fn(*args)

        # A code object of its own: PyTorch counts how often one is compiled, and every plan compiles a function anew.
        # Not dynamic: PyTorch would make symbols of the sizes in which plans differ, and cannot compile `%` by them.
        own = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
        return cast(Function, torch.compile(own, fullgraph=True, dynamic=False, backend=compiler))

    return wrap


MODES = (
    Mode("inference", "torch.inference_mode()", around=_under(torch.inference_mode)),
    Mode("autocast", "torch.autocast in half precision", around=_under(_autocast)),
    Mode("medium", "torch.set_float32_matmul_precision('medium')", around=_under(_precision("medium"))),
    Mode("tf32", "torch.backends.cuda.matmul.allow_tf32 = True", around=_under(_precision("high"))),
    Mode("threads", "torch.set_num_threads, one thread and two", around=_under(_other_threads)),
    Mode("vmap", "torch.func.vmap", within=_vmap),
    Mode("checkpoint", "torch.utils.checkpoint", within=_checkpointed),
    Mode(
        "traced",
        "torch.compile(fullgraph=True, dynamic=False, backend='aot_eager')",
        within=_compiled("aot_eager"),
        slowness=8,
    ),
    Mode("compile", "torch.compile(fullgraph=True, dynamic=False)", within=_compiled("inductor"), slowness=20),
)
