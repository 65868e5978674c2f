"""Makes the golden files of the present version: ``python -m tests.files.golden_files.make``.

Once a version has been released its files never change: what is there is not written again, and nothing is removed. Run
this before a release, in a folder that has none of its files yet, or to add new kinds of files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from smh.backends import numpy as smh_numpy
from smh.core.versions import VERSION
from smh.files import checkpoint
from tests.files.golden_files import contents

FOLDER = Path(__file__).parent


def make(folder: Path) -> list[str]:
    """Write the files that a folder lacks, and what a reader must find in them; return their names."""
    folder.mkdir(exist_ok=True)
    index = folder / "index.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    written = []

    def add(path: Path, digest: str = "") -> None:
        known[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if digest:
            known[path.name] |= {"digest": digest, "arrays": arrays_of(path)}
        written.append(path.name)

    for name, plan in contents.plans().items():
        path = folder / f"{name}.smh"
        if not path.exists():
            variables = smh_numpy.initialize(plan)
            rounded = name.endswith("rounded")
            kept = contents.dense() if name == "matmul" else contents.ROUNDED if rounded else contents.KEPT
            options = {"training": name == "training", "packed": name.startswith("packed")}
            options |= {"kept_bits": 8 if rounded else None}
            add(path, smh_numpy.save(path, plan, variables, kept, **options))
    texts = {"plan.json": contents.plans()["views"].to_json(), "mapping.json": contents.mapping().to_json()}
    for name, text in texts.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")
            add(folder / name)
    if written:
        index.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return written


def arrays_of(path: Path) -> dict[str, str]:
    """Return a SHA-256 of every array in a checkpoint, by name."""
    found = checkpoint.read(path)
    arrays = {**found.variables, **{f"dense/{name}": x for name, x in found.dense.items()}}
    return {
        name: hashlib.sha256(f"{x.dtype.name} {x.shape} ".encode() + x.tobytes()).hexdigest()
        for name, x in arrays.items()
    }


if __name__ == "__main__":
    print("\n".join(make(FOLDER / VERSION)) or "all files are there")
