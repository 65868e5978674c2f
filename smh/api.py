"""The public functions, once for all backends."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from smh.backends.protocol import Backend
from smh.core.initial import initial_variables
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.files import checkpoint, digests, limits
from smh.files.checkpoint import Checkpoint


class Api:
    """The public functions for one backend.

    Parameters
    ----------
    get_backend : callable
        Returns the backend; called at each use, so that nothing is imported before it is needed.
    """

    def __init__(self, get_backend: Callable[[], Backend]) -> None:
        self._get_backend = get_backend

    def initialize(self, plan: Plan, distribution: str = "normal", device: Any = None) -> dict[str, Array]:
        """Return initial values for all variables of a plan: the same bits on every machine and backend.

        Parameters
        ----------
        plan : Plan
            The plan.
        distribution : str
            ``"normal"`` or ``"uniform"``; virtual weights have mean 0 and variance 1 either way.
        device : optional
            A device of the backend.

        Returns
        -------
        dict of str to array, float32
            ``pool/...`` and ``scale/<tensor>``, in the plan's order.

        Raises
        ------
        PlanError
            For an unknown distribution.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> list(smh.initialize(plan))
        ['pool/left', 'pool/right', 'scale/fc']
        """
        backend = self._get_backend()
        return {name: backend.asarray(x, device) for name, x in initial_variables(plan, distribution).items()}

    def materialize(
        self,
        plan: Plan,
        variables: Mapping[str, Array],
        names: Iterable[str] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> dict[str, Array]:
        """Build weights from variables.

        Parameters
        ----------
        plan : Plan
            What to build.
        variables : mapping of str to array, float32
            All variables of the plan, by name.
        names : iterable of str, optional
            The tensors to build, all by default. The bits do not depend on what else is built.
        max_bytes : int, optional
            The most bytes of weights to build, for a plan that came from elsewhere; see
            :func:`smh.files.limits.default`. By default there is no limit: a plan at hand is yours, and
            :func:`load` has one for that of a file.

        Returns
        -------
        dict of str to array, float32
            In their viewed shapes. They overlap nowhere.

        Raises
        ------
        VariableError
            If a variable is missing, unknown, or of the wrong shape or dtype.
        UnknownNameError
            If the plan has no tensor of that name.
        LimitError
            If the weights are larger than ``max_bytes``.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> smh.materialize(plan, smh.initialize(plan))["fc"].shape
        (20, 5)
        """
        if max_bytes is not None:
            names = None if names is None else [tensor.name for tensor in plan.select(names)]
            limits.check_plan(plan, max_bytes, names)
        return self._get_backend().materialize(plan, variables, names)

    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradient of every variable, given those of weights.

        Parameters
        ----------
        plan : Plan
            What was built.
        variables : mapping of str to array, float32
            All variables of the plan, by name.
        cotangents : mapping of str to array, float32
            Gradients of a loss with respect to weights, in their viewed shapes; tensors that are not named have none.

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
        return self._get_backend().vjp(plan, variables, cotangents)

    def digest(self, plan: Plan, variables: Mapping[str, Array]) -> str:
        """Return the SHA-256 of all weights: equal digests are equal bits.

        The weights are built by this backend, some tensors at a time.
        Names and views do not count, so a model keeps its digest when it is ported.

        Parameters
        ----------
        plan : Plan
            The plan.
        variables : mapping of str to array, float32
            All variables of the plan, by name.

        Returns
        -------
        str
            64 hexadecimal digits.

        Raises
        ------
        VariableError
            If a variable is missing, unknown, or of the wrong shape or dtype.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> len(smh.digest(plan, smh.initialize(plan)))
        64
        """
        backend = self._get_backend()
        canonical = tuple(dataclasses.replace(tensor, view=None) for tensor in plan.tensors)
        unviewed = dataclasses.replace(plan, tensors=canonical)

        def build(names: list[str]) -> list[np.ndarray]:
            weights = backend.materialize(unviewed, variables, names)
            return [backend.to_numpy(weights[name]) for name in names]

        return digests.digest(plan, build)

    def save(
        self,
        path: str | os.PathLike[str],
        plan: Plan,
        variables: Mapping[str, Array],
        dense: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
    ) -> str:
        """Write a checkpoint: one safetensors file with plan, integers of the pool, scales and digest of the weights.

        The file is written beside its destination and moved there when it is complete.

        Parameters
        ----------
        path : str or path-like
            Where to.
        plan : Plan
            The plan.
        variables : mapping of str to array, float32
            All variables of the plan, by name.
        dense : mapping of str to array, optional
            Tensors that are kept as they are, such as biases and norms.
        training : bool
            Whether to store float32 values of the pool as well, so that training can go on where it stopped. Files are
            five times larger then.

        Returns
        -------
        str
            The digest.

        Raises
        ------
        VariableError
            If an array cannot be stored, does not fit the plan, or is not finite. Nothing is written then.

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
        backend = self._get_backend()
        digest = self.digest(plan, variables)
        host = {name: backend.to_numpy(x) for name, x in variables.items()}
        kept = {name: backend.to_numpy(x) for name, x in (dense or {}).items()}
        checkpoint.write(path, plan, host, kept, digest, training)
        return digest

    def load(self, path: str | os.PathLike[str], device: Any = None, *, max_bytes: int | None = None) -> Checkpoint:
        """Read and validate a checkpoint. The file is treated as untrusted.

        Parameters
        ----------
        path : str or path-like
            The file.
        device : optional
            A device of the backend.
        max_bytes : int, optional
            The most bytes of weights that the plan of the file may ask to be built. By default 1 GiB, or 1,024 times
            what the file stores, whichever is more; see :func:`smh.files.limits.default`.

        Returns
        -------
        Checkpoint
            The plan, and variables and kept tensors as arrays of the backend. The variables of the pool are the values
            that the stored integers stand for, or those of training if the file has them. ``digest`` is what the file
            states: compare it with :func:`digest` to prove that the weights here are the same.

        Raises
        ------
        CheckpointError
            If the file is truncated or changed, or is not a valid checkpoint of a version that is read here.
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
        backend = self._get_backend()
        found = checkpoint.read(path)
        limits.check_file(found, max_bytes)
        return dataclasses.replace(
            found,
            variables={name: backend.asarray(x, device) for name, x in found.variables.items()},
            dense={name: backend.asarray(x, device) for name, x in found.dense.items()},
        )
