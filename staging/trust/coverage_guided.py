"""The engine that watches which code an input reaches, and goes on from those that reach new code.

It needs atheris (``pip install atheris``), which no other part does. libFuzzer ends its process as it likes, so it runs
in one of its own and leaves what it found in a file. The first byte of an input chooses the reader; length and
checksums of files are put right, for no mutation of bytes would ever hit them.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from trust.fuzz import CORPUS, MOST_SECONDS, Found
from trust.honest import honest
from trust.mutations import seal, split

READERS = ("checkpoint", "mapping", "plain", "plan")


def run(inputs: int, seed: int, keep: Path = CORPUS) -> Found:
    """Let atheris make inputs; raises ``ModuleNotFoundError`` where it is not installed.

    Parameters
    ----------
    inputs : int
        How many.
    seed : int
        Of libFuzzer.
    keep : Path
        The folder for inputs that were not read as they should be.
    """
    if importlib.util.find_spec("atheris") is None:
        raise ModuleNotFoundError("No module named 'atheris'", name="atheris")
    with tempfile.TemporaryDirectory() as folder:
        seeds, results = Path(folder, "seeds"), Path(folder, "results.json")
        seeds.mkdir()
        for name, content in honest().items():
            reader = READERS.index(name.split("/")[0])
            text = content if isinstance(content, bytes) else content.encode()
            Path(seeds, name.replace("/", "-")).write_bytes(bytes([reader]) + text)
        command = [sys.executable, "-m", "trust.coverage_process", str(inputs), str(keep), str(results)]
        command += [f"-seed={seed + 1}", f"-runs={2 * inputs}", f"-artifact_prefix={folder}/", "-max_len=8192"]
        command += [f"-timeout={MOST_SECONDS}", "-rss_limit_mb=2048", "-verbosity=0", str(seeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not results.exists():
            crashes = sorted(Path(folder).glob("*-*"))
            name = f"{READERS[crashes[0].read_bytes()[0] % 4]}-{crashes[0].name[-12:]}.bin" if crashes else "none"
            if crashes:
                (keep / name).write_bytes(input_of(crashes[0].read_bytes())[1])
            return Found(defects={name: f"the process ended with code {done.returncode}: {done.stderr[-300:]}"})
        return Found(**json.loads(results.read_text()))


def input_of(data: bytes) -> tuple[str, bytes]:
    """Return the reader of an input of libFuzzer, and what it reads."""
    reader, content = READERS[data[0] % len(READERS)] if data else "plan", data[1:]
    if reader in ("checkpoint", "plain") and len(content) > 8:
        length = int.from_bytes(content[:8], "little")
        header, rest = split(content) if length <= len(content) - 8 else (content[8:], b"")
        content = seal(header, rest)
    return reader, content
