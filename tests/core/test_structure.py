"""How the core is written: short enough to be read, and on nothing but itself."""

import ast
import sys
from pathlib import Path

import pytest

import smh.core

CORE = Path(smh.core.__file__).parent
PACKAGE = "smh"
READ = ("hashing.py", "grid.py", "layout.py", "scales.py", "generate.py", "pools/arithmetic.py")
"""All formulas of the specification that weights and gradients need."""
ALLOWED = {"core", "errors", "plots", "strict_json", "tables", "text"}
"""What the core may import of the package; frameworks, files and models build on it."""
THIRD = {"numpy", "array_api_compat", "einops"}


def imports(source, within=()):
    """Return the modules that a source imports, at any depth, also for types only, with relative ones resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*within[: len(within) - node.level + 1], *filter(None, [node.module])))
            module = base if node.level else node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def foreign(modules, standard):
    """Return those modules that the core may not import."""
    found = set()
    for module in modules:
        if module.startswith(f"{PACKAGE}."):
            if module.removeprefix(f"{PACKAGE}.").split(".")[0] not in ALLOWED:
                found.add(module)
        elif module.split(".")[0] not in standard | THIRD:
            found.add(module)
    return found


def test_the_formulas_can_be_read_in_one_sitting():
    lines = {name: len((CORE / name).read_text(encoding="utf-8").splitlines()) for name in READ}
    assert sum(lines.values()) <= 900, lines


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_only_itself(path):
    within = (*PACKAGE.split("."), "core", *path.relative_to(CORE).parent.parts)
    found = foreign(imports(path.read_text(encoding="utf-8"), within), sys.stdlib_module_names)
    assert not found, f"{path.name} imports {sorted(found)}"


@pytest.mark.parametrize(
    "source",
    [
        f"import {PACKAGE}.backends.numpy",
        f"from {PACKAGE} import backends",
        f"from {PACKAGE}.files import checkpoint",
        f"def f():\n    from {PACKAGE}.models.fit import fit",
        "from ..models import fit",
        "import torch.nn",
        "if TYPE_CHECKING:\n    import jax",
    ],
)
def test_the_check_above_can_fail(source):
    assert foreign(imports(source, (*PACKAGE.split("."), "core")), sys.stdlib_module_names)
