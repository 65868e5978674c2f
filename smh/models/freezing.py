"""The public function that freezes models."""

from __future__ import annotations

from smh.core.arguments import explained_calls
from smh.files.integers import pack
from smh.models import poison
from smh.models.api import Compressed, Model
from smh.models.compression import check_trains
from smh.models.in_place import InPlaceApi


class FreezingApi(InPlaceApi[Model, Compressed]):
    """The public functions of models, with the one that freezes them."""

    @explained_calls
    def freeze(self, model: Compressed) -> Compressed:
        """Return a copy of a compressed model for inference only, which holds the integers of its pool.

        A variable of the pool then takes one byte instead of four: int8, up to 4 bits half a byte, above 8 bits two
        bytes. Weights, their digest and files of :func:`save` have the same bits.

        Parameters
        ----------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model, which does not change.

        Returns
        -------
        torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The frozen model. It cannot be trained; nothing in it has gradients.

        Raises
        ------
        PlanError
            If the model is not compressed, or frozen already.
        VariableError
            If training has diverged: variables are not finite or too large.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
        >>> frozen = smh.freeze(model)
        >>> frozen.pool_left.dtype, smh.digest(frozen) == smh.digest(model)
        (torch.int8, True)
        """
        compression, adapter = self._compression(model), self._adapter_of(model)
        check_trains(compression, "cannot be frozen again")
        variables = {name: adapter.backend.to_numpy(x) for name, x in adapter.variables(model).items()}
        poison.check(compression.plan, variables)
        frozen: Compressed = adapter.freeze(model, pack(compression.plan, variables))
        return frozen
