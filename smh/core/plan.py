"""Plans: the immutable description of a compressed model (specification, section 10)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from smh.core import rules, sizes
from smh.core.arguments import explained_calls
from smh.core.checks import check_keys, check_one_of, members, whole_number
from smh.core.layout import LAYOUTS
from smh.core.pools import Pool, from_dict, named
from smh.core.pools.base import BITS, EXPONENTS, MAX_BITS, MAX_DEPTH, MIN_BITS, OPTIMIZERS
from smh.core.selection import Selector, select
from smh.core.tensors import TensorSpec, checked_shape
from smh.core.versions import VERSION, explained, is_readable
from smh.core.views import View
from smh.errors import CheckpointError, PlanError, UnknownNameError, near_names
from smh.strict_json import canonical_json, check_limits, parse
from smh.tables import Table, counted, paragraph
from smh.text import printable, shortened

if TYPE_CHECKING:
    from smh.plots import Figure

_SHOWN = 200  # characters of a name, a view and a pool in the table of a plan


@dataclass(frozen=True, repr=False)
class Plan:
    """How every weight of a model is generated: pool, layout, tensors and seed.

    A plan is immutable, hashable, and equal to every plan with the same content. Make one with :meth:`build` or
    :meth:`from_json`.

    Parameters
    ----------
    pool : Pool
        A sized pool.
    tensors : tuple of TensorSpec
        In declaration order.
    seed : int
        In ``[0, 2**32)``.
    layout : str
        ``"basic"``, ``"cyclic"`` or ``"padding"``.

    Raises
    ------
    PlanError
        If anything does not fit.
    """

    pool: Pool
    tensors: tuple[TensorSpec, ...]
    seed: int = 0
    layout: str = "basic"

    def __post_init__(self) -> None:
        """Check everything, so that every plan that exists is valid."""
        for leaf in self.pool.leaves(seed=0):
            leaf.pool.check()
            depth = leaf.path.count("/")
            if depth > MAX_DEPTH:
                raise PlanError(f"pools may lie in at most {MAX_DEPTH} sums and products; got {depth}")
        whole_number("seed", self.seed, 0, 2**32 - 1)
        check_one_of("layout", self.layout, LAYOUTS)
        if not self.tensors:
            raise PlanError("a plan needs at least one tensor; got none")
        offset = 0
        seen = set()
        for tensor in self.tensors:
            tensor.check()
            if tensor.name in seen:
                raise PlanError(f"two tensors have the name {tensor.name!r}: names must differ")
            seen.add(tensor.name)
            if type(tensor.offset) is not int or tensor.offset != offset:
                raise PlanError(f"tensor {tensor.name!r} must start at cell {offset}; got offset {tensor.offset!r}")
            offset = tensor.stop
        if self.layout == "basic" and offset > self.capacity:
            raise PlanError(
                f"{offset} weights do not fit into a pool of capacity {self.capacity} in the basic layout: "
                "use a larger pool, or layout 'cyclic' or 'padding'"
            )
        _ = self.variable_shapes  # a compiler that traces the use of a plan cannot fill its caches

    @classmethod
    @explained_calls
    def build(
        cls,
        shapes: Mapping[str, Sequence[int]],
        ratio: float | Fraction | str | None = None,
        *,
        size: int | str | None = None,
        bits: int = BITS,
        exponents: str = "free",
        optimizer: str = "sgd",
        pool: Pool | str = "matmul",
        layout: str = "basic",
        scale: str | float | Mapping[str, str | float] = "fan_in",
        learn_scale: bool = True,
        modifiers: Sequence[str] | Mapping[str, Sequence[str]] = (),
        seed: int = 0,
        axes: Mapping[str, str] | None = None,
        views: Mapping[str, Any] | None = None,
        include: Selector | None = None,
        exclude: Selector | None = None,
        values: Mapping[str, Any] | None = None,
        kept_bytes: int = 0,
    ) -> Plan:
        """Make a plan for a model.

        Parameters
        ----------
        shapes : mapping of str to sequence of int
            The model's tensors, by name; the order counts.
        ratio : float, Fraction or str
            Upper bound on pool variables per generated weight, also as ``"10%"``. A float is read as the decimal
            that it prints as.
        size : int or str
            Instead of ``ratio``: what the arrays of the file may take, in bytes or as ``"500 kB"``, without its header.
            The largest ratio that fits is taken.
        bits : int
            Bits of the integers that generate weights, 2 to 16, for pools that do not say.
        exponents : str
            ``"free"``: the unit of the integers follows the largest variable of an array. ``"fixed"``: the plan fixes
            it, by the deviation of initial variables, for pools that do not say; :func:`smh.rate` needs that.
        optimizer : str
            ``"sgd"`` or ``"adam"``: the optimizer whose usual learning rate should fit; sets gains and kappas.
        pool : Pool or str
            ``"matmul"``, ``"kronecker"``, ``"hash"``, or a specification from :mod:`smh.pools`.
        layout : str
            ``"basic"``, ``"cyclic"`` or ``"padding"``.
        scale : str, float or mapping
            ``"fan_in"``, ``"fan_out"``, ``"he"``, ``"glorot"``, ``"match"`` (the standard deviation of ``values``) or a
            number; or one of these for each generated tensor.
        learn_scale : bool
            Whether scales are learned.
        modifiers : sequence of str or mapping
            ``"relu"`` and ``"sign"``, for all tensors or by name.
        seed : int
            In ``[0, 2**32)``; decides hash functions and initial variables.
        axes : mapping of str to str, optional
            The meaning of axes where the default by rank does not hold. Keys of this and other mappings are names or
            globs, as in ``include``.
        views : mapping, optional
            Einops patterns, or pairs (pattern, sizes), from canonical shapes to those that layers use.
        include, exclude : selector or list of selectors, optional
            Tensors to generate and to keep: names of tensors or modules, globs, ``re.compile(...)`` or functions of a
            name; see :func:`smh.core.selection.select`. By default tensors of two or more axes are generated, but no
            biases.
        values : mapping of str to array, optional
            Present values of the tensors, for ``scale="match"``.
        kept_bytes : int
            Bytes of tensors that are kept, which count towards ``size``.

        Raises
        ------
        PlanError
            For options that cannot work; the message says what was received and what would work.

        Examples
        --------
        >>> plan = Plan.build({"fc1": (64, 100), "fc2": (100, 10), "bias": (10,)}, ratio=0.1)
        >>> plan.num_weights, plan.num_variables, plan.file_bytes
        (7400, 698, 704)
        >>> Plan.build({"fc1": (64, 100)}, size="1 kB").file_bytes
        964
        """
        if not isinstance(shapes, Mapping):
            raise PlanError(f"shapes must be a mapping from names to shapes; got {type(shapes).__name__}")
        if not isinstance(values, Mapping | None):
            raise PlanError(f"values must be a mapping from names to arrays; got {type(values).__name__}")
        whole_number("kept_bytes", kept_bytes, 0, 2**60)
        check_one_of("optimizer", optimizer, OPTIMIZERS)
        check_one_of("exponents", exponents, EXPONENTS)
        whole_number("bits", bits, MIN_BITS, MAX_BITS)
        checked = {name: checked_shape(name, shape) for name, shape in shapes.items()}
        names = select(checked, include, exclude)
        axes_of = rules.by_name("axes", axes, names, checked, every=False)
        view_of = rules.by_name("views", views, names, checked, every=False)
        scale_of = rules.by_name("scale", scale, names, checked)
        modifiers_of = rules.by_name("modifiers", modifiers, names, checked)
        tensors, offset, squares = [], 0, 0.0
        for name in names:
            shape = checked[name]
            tensor = TensorSpec(
                name=name,
                shape=shape,
                offset=offset,
                scale=rules.resolved(name, scale_of[name], values, shape),
                learn_scale=learn_scale,
                kappa=0,
                modifiers=rules.modifier_list(modifiers_of[name]),
                axes=axes_of[name] or rules.default_axes(shape),
                view=View.make(view_of[name]),
            )
            tensor.check()
            if learn_scale:
                tensor = dataclasses.replace(tensor, kappa=rules.kappa(optimizer, tensor.initial_scale, tensor.size))
            tensors.append(tensor)
            offset = tensor.stop
            squares += float(tensor.size) * (tensor.initial_scale * tensor.initial_scale)
        if (ratio is None) == (size is None):
            raise PlanError(f"pass either ratio or size; got ratio={ratio!r}, size={size!r}")
        request = named(pool).with_bits(bits)
        if size is not None:
            besides = kept_bytes + (4 * len(tensors) if learn_scale else 0)
            sized = sizes.largest_that_fits(request, offset, sizes.parse_size(size), besides)
        else:
            sized = sizes.sized_by_ratio(request, offset, ratio)
        sized = sized.for_optimizer(optimizer, offset, math.sqrt(squares / offset))
        if exponents == "fixed":
            sized = sized.with_exponents()
        plan = cls(sized, tuple(tensors), whole_number("seed", seed, 0, 2**32 - 1), layout)
        sizes.check_storable(plan.to_json(), sized, [t.scale_variable for t in tensors if t.learn_scale])
        return plan

    @property
    def num_weights(self) -> int:
        """How many weights are generated."""
        return self.tensors[-1].stop

    @property
    def num_variables(self) -> int:
        """How many numbers are trained and stored, those of the pool and learnable scales."""
        return sum(math.prod(shape) for shape in self.variable_shapes.values())

    @property
    def file_bytes(self) -> int:
        """How many bytes the arrays take in a file: integers of the pool, and learned scales."""
        return sizes.file_bytes(self.pool) + 4 * sum(tensor.learn_scale for tensor in self.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the canonical JSON, by which a saved state names its plan."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    @property
    def capacity(self) -> int:
        """How many virtual weights the pool has."""
        return self.pool.capacity

    @property
    def ratio(self) -> float:
        """Pool variables per generated weight."""
        return sum(math.prod(shape) for shape in self.pool.variable_shapes().values()) / self.num_weights

    @cached_property
    def variable_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all variables by name, pool first, then scales; all are float32."""
        shapes = {f"pool/{name}": shape for name, shape in self.pool.variable_shapes().items()}
        return shapes | {tensor.scale_variable: () for tensor in self.tensors if tensor.learn_scale}

    def select(self, names: Iterable[str] | None = None) -> tuple[TensorSpec, ...]:
        """Return the named tensors, in the order of their names; all by default.

        Raises
        ------
        UnknownNameError
            If the plan has no tensor of a name, or a name comes twice.
        """
        if names is None:
            return self.tensors
        if isinstance(names, str):
            raise UnknownNameError(f"names must be a list of names; got the string {names!r}: write [{names!r}]")
        asked = members(names)
        if asked is None:
            raise UnknownNameError(f"names must be a list of names; got {names!r}")
        known = {tensor.name: tensor for tensor in self.tensors}
        chosen: dict[str, TensorSpec] = {}
        for name in asked:
            if not isinstance(name, str) or name not in known:
                raise UnknownNameError(f"the plan has no tensor {name!r}: {near_names(str(name), known)}")
            if name in chosen:
                raise UnknownNameError(f"the name {name!r} appears twice: name every tensor once")
            chosen[name] = known[name]
        return tuple(chosen.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as the JSON object that files hold."""
        return {
            "layout": self.layout,
            "pool": self.pool.to_dict(),
            "seed": self.seed,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "version": VERSION,
        }

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, ASCII. Equal plans give equal strings."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan from JSON, which has at most 8 MiB and 524,288 values, as many as a checkpoint can hold.

        Raises
        ------
        PlanError
            For invalid JSON, unknown or missing keys, an unknown version, or sizes that contradict each other.

        Examples
        --------
        >>> plan = Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        if not isinstance(text, str | bytes):
            raise PlanError(f"a plan is read from a string of JSON; got {type(text).__name__}")
        try:
            check_limits(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "a plan")
            data = parse(text, "a plan")
        except CheckpointError as error:  # the words of a file, of which a plan is a part
            raise PlanError(str(error)) from error.__cause__
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read a plan from its JSON object; raises :class:`~smh.PlanError` as :meth:`from_json` does."""
        if not isinstance(data, dict):
            raise PlanError(f"a plan must be a JSON object; got {type(data).__name__}")
        version = data.get("version")
        if not is_readable(version):
            raise PlanError(f"plans of version {VERSION} are read here; got version {version!r}: upgrade smh")
        with explained(str(version)):
            check_keys("the plan", data, ["layout", "pool", "seed", "tensors", "version"])
            if not isinstance(data["tensors"], list):
                raise PlanError(f"tensors of a plan must be a list; got {type(data['tensors']).__name__}")
            pool = from_dict(data["pool"])
            tensors = tuple(TensorSpec.from_dict(tensor, f"tensors[{t}]") for t, tensor in enumerate(data["tensors"]))
            return cls(pool, tensors, data["seed"], data["layout"])

    def __str__(self) -> str:
        """Return a table of the tensors and a summary."""
        return f"{self._table()}\n\n{self._summary()}"

    def __repr__(self) -> str:
        tensors = counted(len(self.tensors), "tensor")
        return (
            f"Plan({self.num_weights:,} weights of {tensors} from {self.num_variables:,} variables, "
            f"pool={shortened(repr(self.pool), 2 * _SHOWN)}, layout={self.layout!r}, seed={self.seed})"
        )

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() + paragraph(self._summary())

    def plot(self) -> Figure:
        """Return a Matplotlib figure: which virtual weights each tensor shows, and the arrays of the pool.

        The square has a cell for each virtual weight, row by row, in the color of the tensor that shows it. The arrays
        of the pool are drawn at the same scale, so their area is that of the variables.

        Raises
        ------
        SmhError
            If Matplotlib is not installed.

        Examples
        --------
        >>> plan = Plan.build({"fc1": (64, 100), "fc2": (100, 10)}, ratio=0.1)
        >>> plan.plot().savefig("plan.png")  # doctest: +SKIP
        """
        from smh import plots

        return plots.plan_figure(self)

    def _table(self) -> Table:
        rows = []
        for tensor in self.tensors:
            scale = tensor.scale if isinstance(tensor.scale, str) else f"{tensor.scale:.4g}"
            rows.append(
                (
                    shortened(printable(tensor.name), _SHOWN),
                    "x".join(map(str, tensor.shape)),
                    f"{tensor.size:,}",
                    scale if tensor.learn_scale else f"{scale} (fixed)",
                    " ".join(tensor.modifiers),
                    shortened(printable(str(tensor.view)), _SHOWN) if tensor.view else "",
                )
            )
        return Table(("tensor", "shape", "weights", "scale", "modifiers", "view"), rows)

    def _summary(self) -> str:
        return (
            f"{self.num_weights:,} weights from {self.num_variables:,} variables (pool ratio {self.ratio:.4g}), "
            f"{self.file_bytes:,} bytes in a file\n"
            f"pool {shortened(repr(self.pool), 2 * _SHOWN)}, capacity {self.capacity:,}, layout {self.layout}, "
            f"seed {self.seed}"
        )
