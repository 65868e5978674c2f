"""The public functions, once for all backends."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from smh.backends.protocol import Backend
from smh.core.arguments import explained_calls
from smh.core.checks import check_flag
from smh.core.initial import initial_variables
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError, VariableError
from smh.files import checkpoint, digests, kept, limits
from smh.models import poison
from smh.models.adapter import ModelAdapter
from smh.models.api import Compressed, Model
from smh.models.compression import Compression, check_fit, check_loaded, check_plan, check_trains
from smh.models.freezing import FreezingApi


def _no_models(model: Any) -> ModelAdapter:
    raise PlanError(
        "this backend has arrays only: pass a Plan and its variables, or pass a model to the function of the same name "
        f"in smh, smh.torch, smh.jax or smh.keras; got {type(model).__name__}"
    )


_KINDS: dict[type, str] = {checkpoint.Checkpoint: "checkpoint"}


class Api(FreezingApi[Model, Compressed]):
    """The public functions for one backend.

    Parameters
    ----------
    get_backend : callable
        Returns the backend of arrays; called at each use, so that nothing is imported before it is needed.
    adapter_of : callable, optional
        Returns the adapter for a model; without it, models are refused.
    """

    def __init__(
        self, get_backend: Callable[[], Backend], adapter_of: Callable[[Any], ModelAdapter] = _no_models
    ) -> None:
        super().__init__(adapter_of)
        self._get_backend = get_backend

    @explained_calls
    def initialize(
        self, plan: Plan, distribution: str = "normal", device: Any = None, *, init_seed: int | None = None
    ) -> dict[str, Array]:
        """Return initial values for all variables of a plan: the same bits on every machine and backend.

        Parameters
        ----------
        plan : Plan
            The plan.
        distribution : str
            ``"normal"`` or ``"uniform"``. Virtual weights have mean 0 and variance 1 with both.
        device : optional
            A device of the backend.
        init_seed : int, optional
            Seed of the values, in ``[0, 2**32)``; the default is the plan's seed. The plan and its hash functions do
            not change, so models with different seeds can be averaged or stacked.

        Returns
        -------
        dict of str to array, float32
            ``pool/...`` and ``scale/<tensor>``, in the plan's order.

        Raises
        ------
        PlanError
            For an unknown distribution or seed.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> list(smh.initialize(plan))
        ['pool/left', 'pool/right', 'scale/fc']
        """
        check_plan(plan)
        backend = self._get_backend()
        initial = initial_variables(plan, distribution, init_seed)
        return {name: backend.asarray(x, device) for name, x in initial.items()}

    @explained_calls
    def materialize(
        self,
        model: Plan | Compressed | checkpoint.Checkpoint,
        variables: Mapping[str, Array] | None = None,
        names: Iterable[str] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> Any:
        """Build weights from variables, differentiably, or a plain model from a compressed one.

        Parameters
        ----------
        model : Plan, compressed model or Checkpoint
            Source of the weights. A checkpoint, as :func:`load` returns it, stands for its plan and variables.
        variables : mapping of str to array, float32
            With a plan: all its variables, by name.
        names : iterable of str, optional
            With a plan: the tensors to build, by default all. The bits of a tensor do not depend on this choice.
        max_bytes : int, optional
            With a plan from an untrusted source: the largest size of all weights; see
            :func:`smh.files.limits.default`. The default is no limit; :func:`load` limits the plans of files.

        Returns
        -------
        dict of str to array, float32, or plain model
            For a plan, the weights in their viewed shapes; no two share memory. For a model, a plain model of the same
            kind with the generated weights: in PyTorch and Keras a copy with parameters, in JAX the pytree, through
            which gradients flow.

        Raises
        ------
        VariableError
            If a variable is missing, unknown, or of the wrong shape or dtype; or, in a model of PyTorch or Keras, not
            finite or too large. For a plan, weights are NaN then.
        UnknownNameError
            If the plan has no tensor of that name.
        LimitError
            If the weights are larger than ``max_bytes``.
        PlanError
            If the model is not compressed.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> smh.materialize(plan, smh.initialize(plan))["fc"].shape
        (20, 5)
        """
        if isinstance(model, checkpoint.Checkpoint):
            model, variables = self._opened(model, variables)
        if not isinstance(model, Plan):
            self._check_alone(model, variables=variables, names=names, max_bytes=max_bytes)
            self._compression(model)
            return self._adapter_of(model).materialize(model)
        if max_bytes is not None:
            names = None if names is None else [tensor.name for tensor in model.select(names)]
            limits.check_plan(model, max_bytes, names)
        return self._get_backend().materialize(model, _mapping("variables", variables), names)

    @explained_calls
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradient of every variable, given those of weights.

        Parameters
        ----------
        plan : Plan
            The plan of the weights.
        variables : mapping of str to array, float32
            All variables of the plan, by name.
        cotangents : mapping of str to array, float32
            Gradients of a loss with respect to weights, in their viewed shapes. A missing tensor has gradient zero.

        Returns
        -------
        dict of str to array, float32
            One gradient per variable, in the plan's order.

        Raises
        ------
        VariableError
            If an array has the wrong name, shape or dtype.
        UnknownNameError
            If the plan has no tensor of a cotangent's name.

        Examples
        --------
        >>> import numpy as np
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> gradients = smh.vjp(plan, smh.initialize(plan), {"fc": np.ones((20, 5), dtype=np.float32)})
        >>> gradients["pool/left"].shape
        (10, 2)
        """
        check_plan(plan)
        if cotangents is None:
            raise VariableError("cotangents must be a mapping from names to arrays; got NoneType: {} means zeros")
        return self._get_backend().vjp(plan, _mapping("variables", variables), _mapping("cotangents", cotangents))

    @explained_calls
    def digest(
        self, model: Plan | Compressed | checkpoint.Checkpoint, variables: Mapping[str, Array] | None = None
    ) -> str:
        """Return the SHA-256 of all generated weights: equal digests are equal bits, in every framework.

        The weights are built by this backend, some tensors at a time.
        Names and views do not count, so a model keeps its digest when it is ported.

        Parameters
        ----------
        model : Plan, compressed model or Checkpoint
            Source of the weights. A checkpoint, as :func:`load` returns it, stands for its plan and variables.
        variables : mapping of str to array, float32
            With a plan: all its variables, by name.

        Returns
        -------
        str
            64 hexadecimal digits.

        Raises
        ------
        VariableError
            If a variable is missing, unknown, or of the wrong shape or dtype; or, of a model, not finite or too large.
        PlanError
            If the model is not compressed.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> len(smh.digest(plan, smh.initialize(plan)))
        64
        """
        if isinstance(model, checkpoint.Checkpoint):
            model, variables = self._opened(model, variables)
        backend, plan, variables, _ = self._contents(model, variables)
        return _digest(backend, plan, variables)

    @explained_calls
    def save(
        self,
        path: str | os.PathLike[str],
        model: Plan | Compressed,
        variables: Mapping[str, Array] | None = None,
        dense: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        packed: bool = False,
        kept_bits: int | None = None,
    ) -> str:
        """Write a checkpoint: one safetensors file with plan, integers of the pool, scales and digest of the weights.

        The file is written beside its destination and moved there when it is complete.

        Parameters
        ----------
        path : str or path-like
            The file to write.
        model : Plan or compressed model
            The model to save, with its variables and kept tensors, without states of optimizers.
        variables : mapping of str to array, float32
            With a plan: all its variables, by name.
        dense : mapping of str to array, optional
            With a plan: kept tensors, such as biases and norms.
        training : bool
            Whether to also store the float32 values of the pool, to resume training. The pool then takes five times as
            many bytes.
        packed : bool
            Whether to entropy-code all integers of the file, which makes it smaller. Needs the extra ``pack``, to save
            and to load. The weights are the same.
        kept_bits : int, optional
            8 or 16: kept tensors of floats are rounded to integers of so many bits. Those that would lose too much get
            16 bits, or stay as they are; the guide to files has the rules. The model does not change. By default, all
            kept tensors are stored as they are.

        Returns
        -------
        str
            The digest.

        Raises
        ------
        VariableError
            If an array cannot be stored, does not fit the plan, or is not finite. Nothing is written then.
        PlanError
            If the model is not compressed, or ``kept_bits`` is another number.
        CheckpointError
            If the file would be packed and constriction is not installed.

        Examples
        --------
        >>> import os, tempfile
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> digest = smh.save(path, plan, smh.initialize(plan))
        >>> smh.load(path).digest == digest
        True
        """
        path = _path(path)
        kept.check_bits(kept_bits)
        check_flag("training", training)
        check_flag("packed", packed)
        if training and not isinstance(model, Plan):
            check_trains(self._compression(model), "has no training values to save")
        backend, plan, variables, others = self._contents(model, variables, dense)
        digest = _digest(backend, plan, variables)
        host = {name: backend.to_numpy(x) for name, x in variables.items()}
        tensors = {name: backend.to_numpy(x) for name, x in others.items()}
        checkpoint.write(path, plan, host, tensors, digest, training, packed, kept_bits)
        return digest

    @explained_calls
    def load(
        self,
        path: str | os.PathLike[str] | checkpoint.Checkpoint,
        model: Model | Compressed | None = None,
        *,
        device: Any = None,
        max_bytes: int | None = None,
        frozen: bool = False,
    ) -> Any:
        """Read and validate a checkpoint, and load it into a model if one is given.

        The file is treated as untrusted.

        Parameters
        ----------
        path : str, path-like or Checkpoint
            The file. With a model, also what this function returned without one: files that are read once can be
            loaded into models many times.
        model : torch.nn.Module, keras.Model or pytree of jax.Array, optional
            A compressed model with the plan of the file, or a plain model, which is then compressed by that plan. All
            checks run before the model changes. Names of Keras layers may differ in their automatic numbers.
        device : optional
            Without a model: a device of the backend.
        max_bytes : int, optional
            The largest size of all weights of the plan in the file. The default is 1 GiB or 1,024 times the size of the
            file, whichever is more; see :func:`smh.files.limits.default`.
        frozen : bool
            Whether to make a plain model a frozen one, see :func:`freeze`, so that the pool is in memory as integers
            only. Files load into a frozen model in any case.

        Returns
        -------
        Checkpoint or compressed model
            Without a model: plan, variables and kept tensors, as arrays of the backend. The pool has the values of the
            stored integers, or the float32 values of training if the file has them. ``digest`` is the digest that the
            file states; compare it with :func:`digest` to prove that the weights are the same here. With a model: the
            compressed model. PyTorch returns the given model, Keras too if it was compressed, and JAX a new pytree with
            the types and devices of the given one.

        Raises
        ------
        CheckpointError
            If the file is damaged, not a checkpoint of a known version, or does not fit the model, by which tensors.
        PlanError
            If the plan of the file does not fit a plain model.
        LimitError
            If its weights would be larger than the limit.

        Examples
        --------
        >>> import smh
        >>> smh.load("/nowhere.safetensors")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: '/nowhere.safetensors'
        """
        path = path if isinstance(path, checkpoint.Checkpoint) else _path(path)
        check_flag("frozen", frozen)
        if model is not None and device is not None:
            raise PlanError(f"a model brings its own device: leave out device, or the model; got device={device!r}")
        adapter = None if model is None else self._adapter_of(model)
        compression = None if adapter is None else adapter.compression(model)
        if frozen and compression is not None and not compression.frozen:
            raise PlanError("frozen=True takes a plain model or a frozen one: smh.freeze(model) freezes this one")
        frozen = frozen or (compression is not None and compression.frozen)
        if isinstance(path, checkpoint.Checkpoint):
            if adapter is None:
                raise PlanError("this checkpoint is loaded already and needs a model: smh.load(checkpoint, model)")
            found = _as_read(path.mapped(adapter.backend.to_numpy), frozen)
        else:
            found = checkpoint.read(path, frozen)
        limits.check_file(found, max_bytes)
        if adapter is None:
            return found.mapped(partial(self._get_backend().asarray, device=device))
        found = adapter.renamed(found, model)
        if compression is not None:
            check_loaded(found, adapter.kept(model, found.plan), compression.plan)
            with adapter.restored_on_error(model):
                return _fill(adapter, model, found)
        tensors = adapter.tensors(model, found.plan)
        check_fit(tensors, found.plan)
        check_loaded(found, adapter.kept(model, found.plan))
        with adapter.restored_on_error(model):
            compressed = adapter.install(model, Compression(found.plan, tensors, frozen=frozen))
            return _fill(adapter, compressed, found)

    def _contents(
        self, model: Any, variables: Mapping[str, Array] | None, dense: Mapping[str, Array] | None = None
    ) -> tuple[Backend, Plan, Mapping[str, Array], Mapping[str, Array]]:
        """Return the backend of a model or plan, the plan, its variables and kept tensors."""
        if isinstance(model, Plan):
            return self._get_backend(), model, _mapping("variables", variables), _mapping("dense", dense)
        self._check_alone(model, variables=variables, dense=dense)
        plan, adapter = self.plan_of(model), self._adapter_of(model)
        named = adapter.variables(model)
        poison.check(plan, {name: adapter.backend.to_numpy(x) for name, x in named.items()})
        return adapter.backend, plan, named, adapter.kept(model, plan)

    def _opened(self, found: checkpoint.Checkpoint, given: Any) -> tuple[Plan, Mapping[str, Array]]:
        """Return the plan of a checkpoint, and its variables as arrays of this backend."""
        self._check_alone(found, variables=given)
        if found.integers is not None:
            raise PlanError("this checkpoint was read with frozen=True, for a frozen model: read it without")
        return found.plan, found.mapped(self._get_backend().asarray).variables

    def _check_alone(self, model: Any, **given: Any) -> None:
        """Raise :class:`~smh.PlanError` where arguments that go with a plan come with a model."""
        names = [name for name, value in given.items() if value is not None]
        if names:
            arguments = " and ".join(f"{name}=" for name in names)
            what = f"{arguments} need{'s' if len(names) == 1 else ''} a Plan, not a {_KINDS.get(type(model), 'model')}"
            raise PlanError(f"{what}; got {type(model).__name__}")


def _as_read(found: checkpoint.Checkpoint, frozen: bool) -> checkpoint.Checkpoint:
    """Check a checkpoint that was read before, for a model that is frozen or not."""
    if (found.integers is not None) != frozen:
        what, option = ("integers", "frozen=True") if frozen else ("float32 variables", "no frozen=True")
        raise PlanError(f"this model needs {what}, and the checkpoint does not have them: read its file with {option}")
    if found.integers is None:
        poison.check(found.plan, found.variables)
    return found


def _fill(adapter: ModelAdapter, model: Any, found: checkpoint.Checkpoint) -> Any:
    if found.integers is None:
        return adapter.fill(model, found.variables, found.dense)
    return adapter.fill_frozen(model, found)


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    """Return a mapping from names to arrays, an empty one for None, or raise :class:`~smh.VariableError`."""
    if not isinstance(given, Mapping | None):
        raise VariableError(f"{what} must be a mapping from names to arrays; got {type(given).__name__}")
    return given or {}


def _path(path: Any) -> str:
    if not isinstance(path, str | bytes | os.PathLike):
        raise PlanError(f"the path comes first, as in smh.save(path, model); got {type(path).__name__}")
    return os.fsdecode(path)


def _digest(backend: Backend, plan: Plan, variables: Mapping[str, Array]) -> str:
    unviewed = dataclasses.replace(plan, tensors=tuple(dataclasses.replace(t, view=None) for t in plan.tensors))

    def build(names: list[str]) -> list[np.ndarray]:
        weights = backend.materialize(unviewed, variables, names)
        return [backend.to_numpy(weights[name]) for name in names]

    return digests.digest(plan, build)
