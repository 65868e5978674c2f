"""What a match gives: a mapping, and what it leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smh.v2.errors import PortError
from smh.v2.porting.mapping import Mapping

if TYPE_CHECKING:  # the library is imported faster without it
    from rich.console import Group


@dataclass(frozen=True)
class Ambiguity:
    """What a match leaves open.

    Attributes
    ----------
    targets : tuple of str
        Layers, or tensors, of the target.
    sources : tuple of str
        Those of the source that they may come from.
    why : str
        What cannot be told, and what would tell it.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{', '.join(self.targets) or 'nothing'} <- {' or '.join(self.sources) or 'nothing'}: {self.why}"


@dataclass(frozen=True)
class Match:
    """What :func:`match` found; printed by rich as a table.

    Attributes
    ----------
    proposed : Mapping
        What is certain.
    ambiguous : tuple of Ambiguity
        What is not: there is no mapping before these are settled.
    notes : tuple of str
        What else has to be the same in both models, such as the epsilon of a normalisation, and is not.
    """

    proposed: Mapping
    ambiguous: tuple[Ambiguity, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        """The mapping.

        Raises
        ------
        PortError
            If anything is ambiguous.
        """
        if self.ambiguous:
            cases = "; ".join(map(str, self.ambiguous[:5]))
            more = f"; and {len(self.ambiguous) - 5} more" if len(self.ambiguous) > 5 else ""
            raise PortError(f"the models do not tell how they match, give hints: {cases}{more}")
        return self.proposed

    def __str__(self) -> str:
        """Return the mapping, and what is open."""
        lines = [str(self.proposed)] if self.proposed.tensors else []
        lines += [f"ambiguous: {case}" for case in self.ambiguous]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __rich__(self) -> Group:
        """Return a table, and what is open."""
        from rich.console import Group
        from rich.text import Text

        open_cases = [Text(f"ambiguous: {case}", style="bold red") for case in self.ambiguous]
        return Group(self.proposed.__rich__(), *open_cases, *(Text(f"note: {note}") for note in self.notes))
