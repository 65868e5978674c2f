"""The compressed Keras model: a copy of the given one whose variables are generated in part.

Keras layers read their weights from ``keras.Variable`` objects. So ``compress`` replaces variables, not
layers: each variable of a generated weight becomes, in its place, a ``GeneratedVariable``, which holds no array and
has the value that the present forward pass generated. Layers of any kind, tied weights and layers that are called twice
then need no special support, and all that Keras does with the other variables goes on unchanged: statistics,
random states, losses, masks and mixed precision. (``keras.StatelessScope`` would also catch those updates and losses.)

The model becomes an instance of a subclass of its class. So methods, attributes and a ``train_step`` of that class
work as before; the subclass adds the pool to the variables, and makes a call of the model a pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.utils import io_utils
from keras.src.utils.tracking import DotNotTrackScope

from smh.backends.tensorflow import keras_tensors
from smh.backends.tensorflow.keras_edits import check_layers, config_of, serialized
from smh.backends.tensorflow.keras_frozen import FrozenSource
from smh.backends.tensorflow.keras_pool import PoolLayer
from smh.backends.tensorflow.keras_weights import GeneratedVariable, Source, held_while_running
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.errors import ExportError, PlanError, VariableError
from smh.models.compression import Compression, check_gradients, check_residency, check_trains
from smh.models.report import one_line
from smh.text import some

_PLAIN = "make a plain model by smh.materialize(model) first"


class Compressed(keras.Model):
    """A model whose weights are generated; :func:`smh.compress` makes it.

    It is an instance of the class of the model that was compressed, too, and is trained, evaluated, saved and loaded as
    every Keras model is.

    Attributes
    ----------
    smh_pool : PoolLayer
        The variables of the plan.
    """

    smh_pool: PoolLayer
    smh_source: Source

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass, with weights of the present variables."""
        if kwargs.get("training"):
            self._follow_freezing()
        with self.smh_source.passing():
            outputs = super().call(*args, **kwargs)
            penalties = self.smh_source.penalties()
        self._penalties = (_graph(), penalties)
        keras.Layer.add_loss(self, penalties)  # that of functional models refuses
        return outputs

    @property
    def losses(self) -> list[Any]:
        """The losses of Keras, and those of regularizers of generated weights."""
        graph, penalties = self._penalties
        if graph is _graph():  # those of the latest call
            return list(super().losses)
        left = {id(loss) for loss in penalties}
        return [*(loss for loss in super().losses if id(loss) not in left), *self.smh_source.penalties()]

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables, those of the pool last."""
        return [*super().variables, *self.smh_pool.variables]

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights that are stored, and then the variables of the pool."""
        return [*super().weights, *self.smh_pool.weights]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The trained variables; raises :class:`~smh.VariableError` if only some of the generated layers are frozen."""
        self._follow_freezing()
        return list(super().trainable_variables)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The trained variables; raises :class:`~smh.VariableError` if only some of the generated layers are frozen."""
        self._follow_freezing()
        return list(super().trainable_weights)

    @property
    def trainable(self) -> bool:
        """Whether anything of the model is trained."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        self._follow_freezing()

    def __repr__(self) -> str:
        return f"<{super().__repr__().strip('<>')}, smh: {one_line(self.smh_source.compression)}>"

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Print the summary of Keras, and a line on the plan."""
        super().summary(*args, **kwargs)
        print_fn = kwargs.get("print_fn") or (args[2] if len(args) > 2 else None)
        (print_fn or io_utils.print_msg)(f" smh: {one_line(self.smh_source.compression)}")

    def _follow_freezing(self) -> None:
        """Train the pool if the layers that it generates are trained, or raise if that holds for some of them only."""
        owners = {layer.name: layer.trainable for layer in self.smh_source.owners}
        trained = self.trainable and any(owners.values())
        if trained and not all(owners.values()):
            frozen = some([name for name, trainable in owners.items() if not trainable])
            raise VariableError(
                f"the layers {frozen} are frozen, but one pool generates their weights and those of layers that are "
                "trained: freeze layers before smh.compress, which then keeps their weights as they are; or freeze all "
                "layers with generated weights; or set trainable of these to True again"
            )
        if self.smh_pool.trainable != trained:
            self.smh_pool.trainable = trained

    @property
    def residency(self) -> str:
        """When weights are built: ``"full"``, ``"cached"`` or ``"layer"``; see :func:`smh.compress`. May be changed."""
        return self.smh_source.compression.residency

    @residency.setter
    def residency(self, value: str) -> None:
        self._change(residency=check_residency(value))

    @property
    def gradients(self) -> str:
        """How gradients are computed: ``"exact"`` or ``"fast"``; see :func:`smh.compress`. May be changed."""
        return self.smh_source.compression.gradients

    @gradients.setter
    def gradients(self, value: str) -> None:
        self._change(gradients=check_gradients(value))

    def _change(self, **changes: Any) -> None:
        self.smh_source.compression = dataclasses.replace(self.smh_source.compression, **changes)
        self.smh_source.forget()
        self.train_function = self.test_function = self.predict_function = None  # traced with the old one

    def make_train_function(self, force: bool = False) -> Any:
        """Return the function of ``fit``; raises as :attr:`trainable_variables` does, and if training diverges."""
        self._follow_freezing()
        before, made = self.train_function, super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = self.smh_source.watched(self.train_function)
        return made

    def make_predict_function(self, force: bool = False) -> Any:
        """Return the function of ``predict``, which reads stored weights if residency is ``cached``."""
        return self._make_serving("predict_function", super().make_predict_function, force)

    def make_test_function(self, force: bool = False) -> Any:
        """Return the function of ``evaluate``, which reads stored weights if residency is ``cached``."""
        return self._make_serving("test_function", super().make_test_function, force)

    def _make_serving(self, name: str, make: Callable[[bool], Any], force: bool) -> Any:
        before = getattr(self, name)
        make(force)
        made = getattr(self, name)
        single = self.distribute_strategy.num_replicas_in_sync == 1
        if made is not before and self.residency == "cached" and single and not self.run_eagerly:
            setattr(self, name, self.smh_source.serving()(made))  # within this context, each time
        return getattr(self, name)

    def get_config(self) -> dict[str, Any]:
        """Return all that makes the model but the values of its variables."""
        if global_state.get_global_attribute("use_legacy_config"):
            raise ExportError(
                f"HDF5 files of whole models cannot hold generated weights: save a .keras file, or {_PLAIN}"
            )
        check_layers(self)
        compression = self.smh_source.compression
        plain = serialized(as_plain(self))
        plain.pop("compile_config", None)  # Keras stores that of the compressed model
        return {
            "inner": plain,
            "plan": compression.plan.to_json(),
            "names": [tensor.name for tensor in compression.tensors],
            "residency": compression.residency,
            "ratio_asked": compression.ratio_asked,
            "gradients": compression.gradients,
            "frozen": compression.frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Compressed:
        """Make a model from the result of :meth:`get_config`, with initial values of its variables."""
        inner = keras.saving.deserialize_keras_object(config["inner"], custom_objects=custom_objects)
        plan, residency = Plan.from_json(config["plan"]), check_residency(config["residency"])
        gradients, frozen = check_gradients(config.get("gradients", "exact")), bool(config.get("frozen", False))
        named = zip(config["names"], keras_tensors.tensors_of(inner), strict=True)
        tensors = tuple(dataclasses.replace(tensor, name=name) for name, tensor in named)
        model = compressed(inner, Compression(plan, tensors, residency, config["ratio_asked"], gradients, frozen))
        if frozen:
            return model
        for variable, value in zip(model.smh_pool.weights, initial_variables(plan).values(), strict=True):
            variable.assign(value)
        return model

    def __reduce__(self) -> Any:
        """Pickle as Keras does, by name of a class that can be imported."""
        return (Compressed._unpickle_model, super().__reduce__()[1])

    def get_build_config(self) -> None:
        """Return nothing: the model is built when it is made."""

    def export(self, filepath: Any, format: str = "tf_saved_model", *args: Any, **kwargs: Any) -> Any:
        """Export a SavedModel as :meth:`keras.Model.export` does; a subclassed model needs an ``input_signature``."""
        if format != "tf_saved_model":
            raise ExportError(
                f"generated weights cannot be exported as {format!r}, only as 'tf_saved_model', or {_PLAIN}"
            )
        return super().export(filepath, format, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: layers would get weights that the pool does not generate."""
        raise VariableError(f"generated weights cannot be quantized: {_PLAIN}")

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write a ``.keras`` file as :meth:`keras.Model.save` does, unless layers were replaced or added."""
        check_layers(self)
        super().save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> None:
        """Write a weights file as :meth:`keras.Model.save_weights` does, unless layers were replaced or added."""
        check_layers(self)
        super().save_weights(*args, **kwargs)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load a weights file as :meth:`keras.Model.load_weights` does, or change nothing.

        Raises :class:`~smh.CheckpointError` if its variables are of another plan, or none, also with ``skip_mismatch``.
        """
        check_layers(self)
        before = [(variable, variable.numpy()) for variable in self.variables]
        name = self.smh_pool.plan_name
        name.refusal = None
        problem: Exception | None = None
        try:
            super().load_weights(*args, **kwargs)
        except Exception as error:
            problem = error
        problem = name.refusal or problem  # Keras keeps a refusal to itself if it may skip mismatches
        if problem is not None:
            for variable, value in before:
                variable.assign(value)
            raise problem


class Frozen(Compressed):
    """A compressed model with integers in the place of the pool, for inference only; :func:`smh.freeze` makes it.

    ``compile`` takes the loss and the metrics for ``evaluate``.
    """

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass; raises :class:`~smh.PlanError` for one in training."""
        if kwargs.get("training"):
            self._refuse_training()
        return super().call(*args, **kwargs)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Nothing."""
        return []

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """Nothing."""
        return []

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All variables."""
        return list(self.variables)

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """All weights that are stored."""
        return list(self.weights)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse with a :class:`~smh.PlanError`."""
        self._refuse_training()

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse with a :class:`~smh.PlanError`."""
        self._refuse_training()

    def make_train_function(self, force: bool = False) -> Any:
        """Refuse with a :class:`~smh.PlanError`."""
        self._refuse_training()

    def _refuse_training(self) -> None:
        check_trains(self.smh_source.compression, "cannot be trained")

    def _follow_freezing(self) -> None:
        pass  # nothing is trained


def compressed(model: keras.Model, compression: Compression) -> Compressed:
    """Turn a built model into a compressed one, whose variables are all zero."""
    keras_tensors.check_graphs(model)
    taken = [name for name in ("residency", "gradients", "smh_pool", "smh_source") if hasattr(model, name)]
    if taken:
        raise PlanError(f"the model has attributes that a compressed one needs for itself: {some(taken)}: rename them")
    pool = PoolLayer(compression.plan, compression.frozen)
    source = (FrozenSource if compression.frozen else Source)(compression, pool.weights, model.weights)
    _generate(model, source)
    with DotNotTrackScope():  # the pool is not a layer of a Sequential; files and checkpoints find the attribute
        model.smh_pool, model.smh_source, model._penalties = pool, source, ((), ())
        model._track_trackable(pool, "smh_pool")
    vars(model).pop("quantize", None)  # Keras wraps that of the class in an attribute
    plain_class: Any = type(model)
    model.__class__ = _class_of(plain_class, compression.frozen)
    made: Compressed = model
    made._follow_freezing()
    return made


def as_plain(model: Compressed) -> keras.Model:
    """Return a compressed model as an instance of the class that it had, with the same attributes."""
    plain: keras.Model = object.__new__(type(model).__bases__[1])
    plain.__dict__ = model.__dict__
    return plain


@functools.cache
def _class_of(cls: Any, frozen: bool) -> Any:
    """Return the class of compressed models of a class, which files know as ``smh>Compressed`` whatever it is."""
    base = Frozen if frozen else Compressed
    made = type(f"{base.__name__}{cls.__name__}", (base, cls), {"__module__": __name__})
    keras.saving.register_keras_serializable("smh", "Compressed")(made)
    return made


keras.saving.register_keras_serializable("smh", "Compressed")(Compressed)


def weights_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Return all weights of a model in order, by name; of a compressed one those that it had before, in their place."""
    if isinstance(model, Compressed):
        return model.smh_source.weights
    return dict(zip(keras_tensors.names_of(model), model.weights, strict=True))


def _graph() -> Any:
    """Return the graph that is being traced, or None."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _generate(model: keras.Model, source: Source) -> None:
    """Turn variables of a model into generated ones, which none of its layers tracks or saves."""
    chosen = {id(source.weights[name]): name for name in source.names}
    layers = model._flatten_layers()
    source.layers.update(map(id, layers))
    using = {id(layer): tuple(chosen[id(x)] for x in layer.weights if id(x) in chosen) for layer in layers}
    # Models call layers, but not the layers inside them.
    called = {id(layer): layer for part in layers if isinstance(part, keras.Model) for layer in part.layers}
    for layer in called.values():
        if using[id(layer)]:
            held_while_running(layer, source, using[id(layer)])
    for layer in layers:
        if using[id(layer)] and layer is not model:
            for method in ("set_weights", "quantize", "enable_lora"):
                setattr(layer, method, functools.partial(_refuse, method, layer.name, using[id(layer)]))
            layer.get_config = functools.partial(config_of, layer)
        owned = [x for x in keras_tensors.own_weights(layer) if id(x) in chosen]
        for variable in owned:
            layer._untrack_variable(variable)
            source.places[chosen[id(variable)]].append(layer)
        if owned:  # several layers save variables by name, tracked or not
            source.owners.append(layer)
            layer.save_own_variables = functools.partial(keras.Layer.save_own_variables, layer)
            layer.load_own_variables = functools.partial(keras.Layer.load_own_variables, layer)
    for name in source.names:
        variable = source.weights[name]
        variable.__class__ = GeneratedVariable
        variable.smh_source, variable.smh_name = source, name
        variable._value = None  # its memory is free


def _refuse(method: str, layer: str, names: Sequence[str], *args: Any, **kwargs: Any) -> None:
    raise VariableError(
        f"weights of layer {layer!r} are generated ({', '.join(names)}), which {method} cannot change: "
        "make a plain model by smh.materialize(model) first"
    )
