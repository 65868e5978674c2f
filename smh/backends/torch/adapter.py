"""The backend itself: arrays in and out, weights and gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from smh.backends.protocol import EAGER, Backend, Function, Mode
from smh.backends.torch import int8
from smh.backends.torch.autograd import Materialize, Promise, Vjp
from smh.backends.torch.compilers import compiles
from smh.backends.torch.modes import MODES, NO_BYTES
from smh.backends.torch.narrow import KERNELS, kernels_for
from smh.backends.torch.sharded import whole
from smh.core import generate
from smh.core.generate import check_cotangents, check_variables
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError, VariableError
from smh.files.header import FOREIGN


class TorchBackend(Backend):
    """Arrays are ``torch.Tensor``; gradients come from autograd, which sees materialization as one function."""

    name = "torch"
    kernels = KERNELS

    def asarray(self, x: Any, device: Any = None) -> torch.Tensor:
        """Return a copy of ``x`` as a tensor, by default on PyTorch's default device."""
        if device is None:
            device = torch.get_default_device()
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise BackendError(f"the torch backend has the devices {self.devices()} here; got {device!r}") from error
        if isinstance(x, torch.Tensor):
            return x.detach().clone().to(device)
        own = np.array(x, order="C")
        if own.dtype.name in FOREIGN:
            return torch.from_numpy(own.view(f"u{own.itemsize}")).view(getattr(torch, own.dtype.name)).to(device)
        return torch.from_numpy(own).to(device)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        if not isinstance(x, torch.Tensor):
            return np.asarray(x)
        if x.device.type == "meta":
            raise VariableError("a tensor on the meta device has no values: fill it first, for example by smh.load")
        host = whole(x.detach()).cpu()
        name = str(host.dtype).removeprefix("torch.")
        if name not in FOREIGN:
            return np.asarray(host.numpy())
        try:
            import ml_dtypes
        except ImportError as error:
            raise BackendError(f"NumPy has {name} from another package: pip install ml_dtypes") from error
        words = host.contiguous().view(torch.uint8 if host.itemsize == 1 else torch.uint16)
        return np.asarray(words.numpy().view(getattr(ml_dtypes, name)))

    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, through which gradients flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        flat = _flat(plan, variables)
        weights = self.mode.around(_builder(self.mode, plan, chosen))(*flat) if chosen else ()
        return dict(zip(chosen, weights, strict=True))

    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return the result of ``torch.autograd.grad`` for the weights that have cotangents."""
        flat = _flat(plan, variables)
        check_cotangents(KERNELS, plan, cotangents)
        for name, x in cotangents.items():
            _check_dense(f"the cotangent of {name!r}", x)
            _check_device(f"the cotangent of {name!r}", x, flat[0])
        if not cotangents:  # nothing to differentiate; zeros times non-finite variables are left to the core
            return generate.vjp(kernels_for(flat[0]), plan, variables, {})
        names = tuple(cotangents)
        # Outside of modes, which may do anything around it, no weight has to be built to be differentiated.
        build = _builder(self.mode, plan, names, eager=Promise)

        def gradients(*flat: Array) -> Any:
            if compiles():  # which traces neither autograd.grad nor what tells inference tensors
                with torch.no_grad():
                    return Vjp.apply(plan, names, False, *flat, *cotangents.values())
            with torch.inference_mode(False), torch.enable_grad():
                leaves = [(x.clone() if x.is_inference() else x.detach()).requires_grad_() for x in flat]
                return torch.autograd.grad(build(*leaves), leaves, [cotangents[name] for name in names])

        return dict(zip(plan.variable_shapes, self.mode.around(gradients)(*flat), strict=True))

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index, on PyTorch's default device."""
        return generate.indices(KERNELS, plan, torch.arange(start, stop, dtype=torch.int64))

    def devices(self) -> list[str]:
        """Return the CPU, and the accelerators of CUDA and Metal."""
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]

    def modes(self) -> tuple[Mode, ...]:
        """Return contexts, transforms and compilers."""
        return (EAGER, *MODES, *((NO_BYTES,) if int8.available() else ()))


def _builder(mode: Mode, plan: Plan, names: tuple[str, ...], eager: Any = Materialize) -> Function:
    """Return the function from all variables to weights; eagerly not from a cache, which a compiler could not trace."""
    return functools.partial(eager.apply, plan, names, False) if mode is EAGER else _within(mode, plan, names)


@functools.lru_cache(maxsize=64)
def _within(mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return the building of weights in a mode, which may have compiled it."""
    return mode.within(functools.partial(Materialize.apply, plan, names, False))


def _flat(plan: Plan, variables: Mapping[str, Array]) -> list[Array]:
    """Return the variables in the plan's order, or raise if one does not fit."""
    for name, x in variables.items():
        if not isinstance(x, torch.Tensor):
            raise VariableError(f"variable {name!r} must be a torch.Tensor, float32; got {type(x).__name__}")
        _check_dense(f"variable {name!r}", x)
    check_variables(KERNELS, plan, variables)
    flat = {name: variables[name] for name in plan.variable_shapes}
    first = next(iter(flat.values()))
    for name, x in flat.items():
        _check_device(f"variable {name!r}", x, first)
    return list(flat.values())


def _check_dense(what: str, x: torch.Tensor) -> None:
    """Raise :class:`~smh.VariableError` for a sparse tensor."""
    if not compiles() and x.layout is not torch.strided:
        raise VariableError(f"{what} must be a dense tensor, as x.to_dense(); got {x.layout}")


def _check_device(what: str, x: torch.Tensor, other: torch.Tensor) -> None:
    """Raise :class:`~smh.VariableError` for a tensor on another device than the first variable."""
    if not compiles() and x.device != other.device:
        raise VariableError(f"{what} must be on {other.device}, as the first variable; got {x.device}")


backend = TorchBackend()
