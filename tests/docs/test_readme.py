"""README and the first page: what a reader pastes runs, what they point to exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.docs_pages import DOCS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_of_the_readme_run_in_an_empty_folder(tmp_path):
    commands = re.search(r"## Command line\n.*?```bash\n(.*?)```", README, re.DOTALL)[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True
    )
    made = {file.name for file in tmp_path.iterdir()}
    assert made == {"dense.safetensors", "plan.json", "small.safetensors", "restored.safetensors"}
    written = [line.split()[-1] for line in re.sub(r"#.*", "", commands).split("\n") if " -o " in line]
    assert len(set(written)) == len(written), "no command writes over a file of another one"
    assert "dense.safetensors" not in written


def test_what_the_readme_points_to_exists():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", README)
    local = [a or b for a, b in targets if not (a or b).startswith("http")]
    assert len(local) > 10
    for target in local:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_installation_names_the_distribution_in_quotes(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"pip install[^`\n]*", text)
    assert lines
    for line in lines:
        assert re.match(r'pip install "structured-multi-hashing(\[[a-z,]+\])?"', line), line


def test_pictures_come_in_light_and_dark():
    for page in (DOCS / "index.md", DOCS / "gallery.md"):
        text = page.read_text(encoding="utf-8")
        for name, theme in re.findall(r"\(assets/([\w-]+)-(light|dark)\.svg", text):
            assert f"(assets/{name}-{theme}.svg#only-{theme})" in text
            assert (DOCS / "assets" / f"{name}-{theme}.svg").exists()
