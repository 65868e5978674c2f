"""Compressed models of transformers: ``save_pretrained`` and its counterpart, tied embeddings, sizes of vocabularies.

A directory of ``save_pretrained`` has the plan in ``config.json``, and variables in the place of weights. For the first
generated tensor it has an empty one, because of which transformers cannot load it as a plain model of random weights.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from smh.backends.torch.checks import check_places
from smh.backends.torch.copies import NAMES, STORE, plain_class
from smh.backends.torch.weights import ADVICE
from smh.core.arguments import explained_in
from smh.core.plan import Plan
from smh.errors import PlanError, VariableError
from smh.models.api import ModelApi
from smh.models.compression import check_trains

_PLAN = "smh_plan"
"""The attribute of a config."""
_ONE_FILE = "a compressed model is saved in one file, model.safetensors"


def members(base: type) -> dict[str, Any]:
    """Return methods that take the place of those of a class which know parameters only."""
    if any(cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.") for cls in base.__mro__):
        return {"save_pretrained": _save(base), "tie_weights": _tie, "resize_token_embeddings": _resize(base)}
    return {"save_pretrained": _refuse} if hasattr(base, "save_pretrained") else {}


def _refuse(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    raise PlanError(
        f"save_pretrained of {type(model).__name__} does not write the plan, so its files could not be loaded: "
        "smh.save(path, model) writes a file, smh.load(path, plain_model) reads it"
    )


def _save(base: Any) -> Any:
    def save_pretrained(
        self: Any, directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
    ) -> Any:
        """Write a directory for :func:`smh.torch.from_pretrained`."""
        store = self.__dict__[STORE]
        if store.root is not self:
            raise PlanError(
                f"this {type(self).__name__} is a part of a compressed {type(store.root).__name__}, which owns the "
                "pool: save the whole model, or a part of smh.materialize(model)"
            )
        check_trains(store.compression, "cannot be written by save_pretrained, which smh.save(path, model) replaces")
        check_places(store)
        if odd := options.keys() & {"variant", "distributed_checkpoint"}:
            raise PlanError(f"{_ONE_FILE}: leave out {', '.join(odd)}")
        state = dict(self.state_dict() if state_dict is None else state_dict)
        state[next(iter(store.weights))] = torch.empty(0, device="cpu")
        if (size := options.get("max_shard_size")) is not None:  # which push_to_hub always gives
            from huggingface_hub import split_torch_state_dict_into_shards

            if split_torch_state_dict_into_shards(state, max_shard_size=size).is_sharded:
                raise PlanError(f"{_ONE_FILE}, and this one needs more than max_shard_size={size!r}")
        setattr(self.config, _PLAN, store.compression.plan.to_json())
        try:  # names of the original format are known for weights only
            options |= {"is_main_process": is_main_process, "state_dict": state, "save_original_format": False}
            return base.save_pretrained(self, directory, **options)
        finally:
            delattr(self.config, _PLAN)

    return save_pretrained


def _tie(self: Any, missing_keys: Any = None, recompute_mapping: bool = True) -> None:
    """Tie the weights that the config ties; generated ones must be tied already."""
    keys = self.all_tied_weights_keys
    if recompute_mapping:  # by patterns for names of a plain model
        with torch.device("meta"):
            keys = plain_class(self)(self.config).all_tied_weights_keys
    generated = {
        f"{prefix}.{attribute}" if prefix else attribute: name
        for prefix, module in self.named_modules(remove_duplicate=False)
        for attribute, name in module.__dict__.get(NAMES, {}).items()
    }
    for target, source in keys.items():
        if generated.get(target) != generated.get(source):
            raise VariableError(f"{target!r} cannot be tied to {source!r}, of which one is generated: {ADVICE}")
    for target, source in keys.items():
        if target not in generated:
            parent, _, attribute = target.rpartition(".")
            setattr(self.get_submodule(parent), attribute, self.get_parameter_or_buffer(source))


def _resize(base: Any) -> Any:
    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Resize embeddings, unless they are generated."""
        ends = [end for end in (self.get_input_embeddings(), self.get_output_embeddings()) if end is not None]
        same = new_num_tokens in (None, *(end.weight.shape[0] for end in ends)) and pad_to_multiple_of is None
        if any(NAMES in end.__dict__ for end in ends):
            if same:
                return ends[0]
            raise VariableError(f"the embeddings are generated, and cannot be resized: {ADVICE}")
        return base.resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of, *args, **kwargs)

    return resize_token_embeddings


@explained_in("smh.torch")
def from_pretrained(cls: Any, path: Any, **options: Any) -> nn.Module:
    """Load a compressed model of transformers that its ``save_pretrained`` wrote, or a ``Trainer``.

    Parameters
    ----------
    cls : type
        The class of the model, or one such as ``transformers.AutoModelForCausalLM``.
    path : str or path-like
        The directory, or a repository of the Hugging Face hub.
    **options
        Where in the hub the files are: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns
    -------
    torch.nn.Module
        The compressed model, on the CPU and in evaluation mode, as that of ``cls.from_pretrained``.

    Raises
    ------
    PlanError
        If there is no plan, or it does not fit the class.
    CheckpointError
        If the variables are of another plan.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2Model
    >>> from smh import torch as smh
    >>> config = GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
    >>> model = smh.compress(GPT2Model(config), ratio=0.1)
    >>> directory = tempfile.mkdtemp()
    >>> model.save_pretrained(directory)
    >>> smh.digest(smh.from_pretrained(GPT2Model, directory)) == smh.digest(model)
    True
    """
    if not hasattr(cls, "from_pretrained") or not isinstance(path, str | os.PathLike):
        what = "write from_pretrained(cls, path): a class of models of transformers, and a folder or repository"
        raise PlanError(f"{what}; got ({type(cls).__name__}, {type(path).__name__})")
    from safetensors.torch import load_file
    from transformers import AutoConfig, GenerationConfig
    from transformers.initialization import no_init_weights
    from transformers.utils import cached_file

    from smh.backends.torch.models import ModelsInPlace

    config = (getattr(cls, "config_class", None) or AutoConfig).from_pretrained(path, **options)
    if not isinstance(plan := getattr(config, _PLAN, None), str):
        raise PlanError(
            f"{str(path)!r} has no plan of a compressed model: {cls.__name__}.from_pretrained loads plain ones"
        )
    delattr(config, _PLAN)
    with no_init_weights():
        model = (getattr(cls, "_from_config", None) or cls.from_config)(config)
    model.tie_weights()
    for module in model.modules():
        module._is_hf_initialized = True
    in_place: ModelApi[nn.Module, nn.Module] = ModelApi(lambda model: ModelsInPlace())
    compressed = in_place.compress(model, plan=Plan.from_json(plan))
    state = load_file(cached_file(path, "model.safetensors", **options))
    own = compressed.state_dict(keep_vars=True)
    first = {id(x): state[name] for name, x in own.items() if name in state}  # tied parameters are written once
    compressed.load_state_dict({name: first[id(x)] for name, x in own.items() if id(x) in first} | state)
    if compressed.can_generate():
        compressed.generation_config = GenerationConfig.from_pretrained(path, **options)
    return compressed.eval()
