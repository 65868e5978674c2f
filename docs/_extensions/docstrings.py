"""What griffe does not see by itself: functions that are bound methods, and the roles of Sphinx in docstrings."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from roles import convert

_ELSEWHERE = {"keras"}  # projects that have their own documentation
_API = "_api."  # how modules call the smh.api.Api whose methods they give out as functions


class Docstrings(griffe.Extension):
    """Completes the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Give modules their functions, then every docstring its references."""
        classes = ("models.api.ModelApi", "models.in_place.InPlaceApi", "models.freezing.FreezingApi", "api.Api")
        api = {name: member for path in classes for name, member in pkg[path].members.items()}
        for module in _modules(pkg):
            _unshadow(pkg, module)
            for name, member in list(module.members.items()):
                if isinstance(member, griffe.Attribute) and str(member.value) == f"{_API}{name}":
                    module.set_member(name, _function(api, name))
        for found in _objects(pkg):
            if found.docstring is not None:
                found.docstring.value = convert(found.docstring.value, partial(_find, pkg, found))


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [member for member in module.members.values() if not member.is_alias and member.is_module]
    return [module, *(found for each in inner for found in _modules(each))]


def _objects(parent: griffe.Object) -> list[griffe.Object]:
    inner = [member for member in parent.members.values() if not member.is_alias]
    return [parent, *(found for each in inner for found in _objects(each))]


def _unshadow(pkg: griffe.Module, module: griffe.Module) -> None:
    """Let a function that is imported win over a module of its name: ``smh.port`` is the function, as Python has it."""
    for name, path in module.imports.items():
        package, _, last = path.rpartition(".")
        inner = package.partition(".")[2]
        where = pkg[inner] if inner in pkg.modules and not pkg.modules[inner].is_alias else None
        if where is not None and last in where.modules and last in where.imports:
            module.set_member(name, griffe.Alias(name, where.imports[last], parent=module))


def _function(api: dict[str, Any], name: str) -> griffe.Function:
    """Return the function that a bound method is, which may have the signature of another method."""
    method = api[name]
    other = re.search(
        r"with_signature_of\((?:\w+\.)?(\w+)\)", " ".join(str(decorator.value) for decorator in method.decorators)
    )
    parameters = api[other[1]].parameters if other else method.parameters
    function = griffe.Function(
        name,
        lineno=method.lineno,
        endlineno=method.endlineno,
        parameters=griffe.Parameters(*list(parameters)[1:]),
        returns=method.returns,
    )
    text = method.docstring
    function.docstring = griffe.Docstring(text.value, lineno=text.lineno, endlineno=text.endlineno, parent=function)
    return function


def _find(pkg: griffe.Module, scope: griffe.Object, name: str) -> str | None:
    """Return the path of what a docstring names: a member of its class or module, or a whole path."""
    if name.partition(".")[0] in _ELSEWHERE:
        return None
    if name.startswith(f"{pkg.name}."):
        return name
    first, _, rest = name.partition(".")
    around: griffe.Object | None = scope
    while around is not None:
        if first in around.members:
            member = around.members[first]
            path = member.target_path if member.is_alias else member.path
            return f"{path}.{rest}" if rest else path
        around = around.parent
    return name  # which no page has, and mkdocs says so
