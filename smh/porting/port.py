"""Porting: a checkpoint under the names and in the shapes of another model."""

from __future__ import annotations

import dataclasses

import numpy as np

from smh.core.arguments import explained_calls
from smh.core.views import compose
from smh.errors import PlanError, PortError
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.kept import round_kept
from smh.porting.mapping import Mapping, tensor_shapes
from smh.porting.matching import Match


@explained_calls
def port(checkpoint: Checkpoint, mapping: Mapping) -> Checkpoint:
    """Return a checkpoint for another model, with the variables unchanged, byte for byte, under new names and views.

    The digest and the integers of the pool do not change. Kept tensors are included, rearranged according to the
    mapping. Those that were rounded stay so, unless they are joined.

    Parameters
    ----------
    checkpoint : Checkpoint
        A checkpoint read by :func:`smh.load` with the NumPy backend, with or without training values.
    mapping : Mapping
        A mapping from the model of the checkpoint to the other model. Kept tensors that only the first model has are
        named ``carried/...``, in a file ``dense/carried/...``. Models ignore them, and a port back restores them.

    Returns
    -------
    Checkpoint
        Write it with ``smh.save(path, ported.plan, ported.variables, ported.dense)``.

    Raises
    ------
    PortError
        If a tensor of the checkpoint is unused, a source is missing, shapes differ, or a generated tensor would have to
        be split, joined or added to another tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import smh
    >>> plan = smh.Plan.build({"fc.weight": (10, 64)}, ratio=0.2, axes={"fc.weight": "o i"})
    >>> checkpoint = smh.Checkpoint(plan, smh.initialize(plan), {"fc.bias": np.zeros(10)}, "0" * 64)
    >>> entries = {"fc/kernel": ("fc.weight", "o i -> i o"), "fc/bias": "fc.bias"}
    >>> ported = smh.port(checkpoint, smh.porting.Mapping.build(entries, checkpoint))
    >>> {name: w.shape for name, w in smh.materialize(ported.plan, ported.variables).items()}
    {'fc/kernel': (64, 10)}
    >>> list(ported.variables)
    ['pool/left', 'pool/right', 'scale/fc/kernel']
    """
    if not isinstance(checkpoint, Checkpoint):
        what = "port takes a checkpoint, as smh.numpy.load(path) returns it"
        raise PortError(f"{what}; got {type(checkpoint).__name__}")
    if not isinstance(mapping, Mapping):
        advice = "pass match(...).mapping" if isinstance(mapping, Match) else "smh.porting.Mapping.build makes one"
        raise PortError(f"mapping must be a smh.porting.Mapping; got {type(mapping).__name__}: {advice}")
    for name, x in checkpoint.dense.items():
        if not isinstance(x, np.ndarray | np.generic):
            raise PortError(
                f"port needs NumPy arrays; got {type(x).__name__} for {name!r}: load the file with smh.numpy.load"
            )
    mapping.check(tensor_shapes(checkpoint))
    users = {source.name: target for target, entry in mapping.tensors.items() for source in entry.sources}
    renamed, tensors = {}, []
    for tensor in checkpoint.plan.tensors:
        target = users[tensor.name]
        entry = mapping.tensors[target]
        if not entry.whole or target.startswith(CARRIED):
            raise PortError(
                f"{tensor.name!r} is generated and must become one whole tensor; the mapping makes it "
                f"{'a part of ' if entry.join else 'several tensors, such as '}{target!r}: exclude it from the "
                "compression, split it in the model first, or port the plain model"
            )
        try:
            view = compose(tensor.view, entry.sources[0].view, tensor.shape, tensor.axes)
        except PlanError as error:
            raise PortError(f"{tensor.name!r} cannot be seen as {target!r}: {error}") from error
        if entry.sources[0].view is None:  # keep even the form in which the view was written
            view = tensor.view
        tensors.append(dataclasses.replace(tensor, name=target, view=view))
        renamed[tensor.scale_variable] = tensors[-1].scale_variable
    generated = {tensor.name for tensor in checkpoint.plan.tensors}
    dense = {
        target: np.asarray(entry.read(checkpoint.dense), order="C")
        for target, entry in mapping.tensors.items()
        if not any(source.name in generated for source in entry.sources)
    }
    carried = {name: x for name, x in checkpoint.dense.items() if name.startswith(CARRIED) and name not in users}
    dense = dict(sorted({**carried, **dense}.items()))
    origins = {name: name for name in carried}
    origins |= {name: entry.sources[0].name for name, entry in mapping.tensors.items() if len(entry.sources) == 1}
    rounded = checkpoint.rounded
    bits = {name: rounded[source].bits for name, source in origins.items() if name in dense and source in rounded}
    return Checkpoint(
        plan=dataclasses.replace(checkpoint.plan, tensors=tuple(tensors)),
        variables={renamed.get(name, name): x for name, x in checkpoint.variables.items()},
        dense=dense,
        digest=checkpoint.digest,
        training=checkpoint.training,
        coded=checkpoint.coded,
        rounded=round_kept(dense, bits)[1],
    )
