"""The names under which the library is installed, and the versions that it declares."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# `smh` on the package index is another project, and a shell expands brackets without quotes.
WRONG = re.compile(r"""pip install [^\n`#]*?(?<![\w./-])['"]?smh(?![\w.*])|pip install structured-multi-hashing\[""")
EXTRA = re.compile(r"structured-multi-hashing\[([\w,-]+)\]")


def tracked(*patterns):
    done = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines() if not line.endswith("test_distribution.py")]


def in_step(requirements, constraints):
    """Return what the lowest versions should be, and what the file has."""
    pairs = (re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,.*)?", line) for line in requirements)
    declared = {pair[1].lower(): pair[2] for pair in pairs if pair}
    lines = constraints.splitlines()
    return declared, dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_the_wheel_has_one_top_level_package():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"]["packages"] == ["smh"]
    assert all(place.startswith("smh/") for place in wheel["wheel"]["force-include"].values())


def test_install_lines_name_this_distribution_and_its_extras():
    files = tracked("*.md", "*.py", "*.ipynb", "*.toml", "Makefile")
    assert len(files) > 100
    for path in files:
        if path.name == "CHANGELOG.md":  # past versions had another name
            continue
        text = path.read_text(encoding="utf-8")
        wrong = [match[0] for match in WRONG.finditer(text)]
        assert not wrong, f"{path.relative_to(ROOT)} has {wrong[0]!r}"
        for match in EXTRA.finditer(text):
            unknown = set(match[1].split(",")) - EXTRAS.keys()
            assert not unknown, f"{path.relative_to(ROOT)} names the extras {sorted(unknown)}"


@pytest.mark.parametrize(
    "line",
    [
        "pip install smh",
        "pip install 'smh[torch]'",
        'pip install "smh[jax]"',
        "pip install structured-multi-hashing[torch]",
    ],
)
def test_wrong_install_lines_are_found(line):
    assert WRONG.search(line)


@pytest.mark.parametrize(
    "line",
    [
        'pip install "structured-multi-hashing[torch]"',
        "pip install structured-multi-hashing",
        "pip install torch  # for smh.torch",
    ],
)
def test_right_install_lines_are_not(line):
    assert not WRONG.search(line)


def test_the_lowest_versions_are_those_that_the_project_declares():
    requirements = PROJECT["dependencies"] + [
        x for name in ("cli", "fit", "pack", "plot", "conformance", "demo", "test") for x in EXTRAS[name]
    ]
    declared, pinned = in_step(requirements, (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8"))
    assert pinned.pop("click")  # which typer brings
    assert pinned.pop("pyparsing")  # which matplotlib brings
    assert pinned == declared


def test_the_citation_names_the_licence_and_the_paper():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"license: {PROJECT['license']}\n" in citation
    assert "arxiv.org/abs/1911.11177" in citation
