"""The public functions that change models in place."""

from __future__ import annotations

from typing import Any

from smh.core.arguments import explained_calls, with_signature_of
from smh.models.api import Compressed, Model, ModelApi


class InPlaceApi(ModelApi[Model, Compressed]):
    """The public functions of models, with those that change a model in place."""

    @explained_calls
    @with_signature_of(ModelApi.compress)
    def compress_(self, *args: Any, **options: Any) -> Compressed:
        """Compress a model in place and return it; the arguments are those of :func:`smh.compress`.

        PyTorch only. After an error, the model is unchanged.

        Raises
        ------
        PlanError
            As :func:`smh.compress`, and for models of other frameworks.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = torch.nn.Linear(40, 30)
        >>> smh.compress_(model, size="1 kB") is model
        True
        """
        in_place: ModelApi[Any, Compressed] = ModelApi(lambda model: self._adapter_of(model).in_place(model))
        return in_place.compress(*args, **options)

    @explained_calls
    def materialize_(self, model: Compressed) -> Any:
        """Turn a compressed model back into a plain one: generated weights become parameters with the same bits.

        PyTorch only.

        Parameters
        ----------
        model : torch.nn.Module
            The compressed model, which changes.

        Returns
        -------
        torch.nn.Module
            The same model, with its original class; tied weights stay tied.

        Raises
        ------
        PlanError
            If the model is not compressed, or of another framework.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
        >>> list(smh.materialize_(model).state_dict())
        ['weight', 'bias']
        """
        adapter = self._adapter_of(model).in_place(model)
        self._compression(model)
        return adapter.materialize(model)
