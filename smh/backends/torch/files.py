"""Plain tensors in files of ``torch.save``, which are not trusted: ``torch.load(weights_only=True)`` reads them."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from smh.errors import CheckpointError
from smh.files.dense import DenseTensors
from smh.files.header import CODES, dtype_of
from smh.strict_json import check, short
from smh.text import SURROGATE, shortened, some

_STATES = ("state_dict", "model_state_dict", "model")  # entries of a training state that hold the model


class TorchFile(DenseTensors):
    """A file of ``torch.save`` with the tensors of a model: mapped into memory, or read whole where PyTorch cannot map.

    A training state with an entry such as ``"state_dict"`` is read as that. Of tied tensors the first is read.
    """

    kind = "file of PyTorch"

    def _open(self, stack: contextlib.ExitStack) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of types that PyTorch will drop
                content = torch.load(
                    self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path)
                )
        except Exception as error:  # unpickling hostile data fails in many ways
            says = "" if isinstance(error, pickle.UnpicklingError) else f". PyTorch says: {shortened(str(error), 200)}"
            what = "PyTorch cannot read it as tensors alone: save a model by torch.save(model.state_dict(), path)"
            raise CheckpointError(what + says) from error
        self._tensors: dict[str, Any] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, x in self._state(content).items():
            what = f"tensor {short(name)} must"
            check(not SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
            plain = x.layout is torch.strided and not x.is_quantized and x.device.type == "cpu"
            check(plain, f"{what} have plain values: convert it before it is saved", f"{x.layout}, {x.device}")
            place = (x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride())
            if x.numel() and place in first:
                self.aliases[name] = first[place]
                self.notes.append(f"tied, and read once: {name!r} is {first[place]!r}")
                continue
            first[place] = name
            self._tensors[name] = x
            dtype = str(x.dtype).removeprefix("torch.")
            self._add(name, tuple(x.shape), CODES.get(dtype, dtype), x.numel() * x.element_size())

    def _state(self, content: Any) -> Mapping[str, Any]:
        """Return the tensors of a model, in a state that may hold more."""

        def is_state(value: Any) -> bool:
            return isinstance(value, Mapping) and all(
                isinstance(key, str) and isinstance(x, torch.Tensor) for key, x in value.items()
            )

        check(isinstance(content, Mapping), "it must hold tensors by name, as model.state_dict() does", type(content))
        if is_state(content):
            return content  # type: ignore[no-any-return]
        states = [key for key, value in content.items() if value and is_state(value)]
        state = next((key for key in _STATES if key in states), states[0] if len(states) == 1 else None)
        if state is None:
            raise CheckpointError(
                "it must hold the tensors of one model by name, as model.state_dict() does; got entries "
                f"{some(list(map(str, content)))}: save the tensors of the model alone"
            )
        self.notes.append(f"read from its entry {state!r}")
        return content[state]  # type: ignore[no-any-return]

    def _read(self, name: str, code: str) -> np.ndarray:
        x = self._tensors[name].detach().resolve_conj().resolve_neg().contiguous().clone()
        real = torch.view_as_real(x) if x.is_complex() else x
        data: np.ndarray = real.reshape(-1).view(torch.uint8).numpy()
        return data.view(dtype_of(name, code)).reshape(self.shapes[name])
