"""The notebooks run, and are stored without output."""

import json

import pytest

from tests.docs.docs_pages import DOCS

NEEDS = {"torch": ("torch", "sklearn"), "jax": ("jax", "optax", "sklearn"), "keras": ("keras", "sklearn")}
NOTEBOOKS = DOCS / "notebooks"


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == NEEDS.keys()


@pytest.mark.filterwarnings("ignore")  # those of other libraries, while they load and run
@pytest.mark.parametrize("name", NEEDS)
def test_a_notebook(name, tmp_path, monkeypatch, capsys):
    for needed in NEEDS[name]:
        pytest.importorskip(needed, reason=f"docs/notebooks/{name}.ipynb needs {needed}")
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)  # output would go out of date
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for i, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}.ipynb, code cell {i}", "exec"), names)
    assert "bytes instead of" in capsys.readouterr().out
