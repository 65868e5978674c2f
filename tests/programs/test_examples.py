"""The examples run, and learn what they say."""

import importlib.util
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {
    "torch_cnn": ("torch", "sklearn"),
    "torch_activation": ("torch", "sklearn"),
    "torch_distillation": ("torch", "sklearn"),
    "flax_mlp": ("jax", "flax", "optax", "sklearn"),
    "keras_cnn": ("keras", "sklearn"),
}


def test_every_example_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_an_example(name, capsys):
    for needed in NEEDS[name]:
        pytest.importorskip(needed, reason=f"examples/{name}.py needs {needed}")
    path = FOLDER / f"{name}.py"
    assert len(path.read_text().splitlines()) < 80
    spec = importlib.util.spec_from_file_location(name, path)
    example = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other libraries, while they load and run
        spec.loader.exec_module(example)
        accuracy = example.main()
    assert accuracy > 0.94
    assert "bytes" in capsys.readouterr().out
