"""The process of :mod:`trust.coverage_guided`: it imports the library by way of atheris, which notes what code runs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["smh", "json"]):
    from trust import fuzz, targets
    from trust.coverage_guided import input_of


def main(inputs: int, keep: Path, results: Path, arguments: list[str]) -> None:
    """Try inputs until there have been enough, write what was found to a file, and end the process."""
    found = fuzz.Found()

    def test(data: bytes) -> None:
        fuzz.try_one(found, *input_of(data), keep, seconds=0)  # libFuzzer has an alarm of its own
        if found.inputs == inputs:
            found.peak = fuzz.peak()
            results.write_text(json.dumps(dataclasses.asdict(found)))
            targets.clean()
            os._exit(0)

    atheris.Setup([sys.argv[0], *arguments], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
