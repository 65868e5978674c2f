"""JSON of which nothing is trusted: headers of files, and plans.

Limits keep what hostile input can cost within bounds; every failure is one :class:`~smh.CheckpointError`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import Any

from smh.errors import CheckpointError

MAX_HEADER, MAX_VALUES = 8 << 20, 1 << 19
"""Most bytes and JSON values of a header (some 20,000 tensors): parsing one allocates less than 128 MiB."""
MAX_NESTING = 64
"""The most lists and objects that lie in one another."""
_STRINGS = re.compile(r'"[^"]*+"')
_NO_BRACKETS = re.compile(r"[^][{}]++")
short = reprlib.Repr().repr  # shows the received value, shortened if it is large or deep


def check_limits(header: bytes, what: str = "a header") -> None:
    """Raise unless a header, or other JSON, is small enough to be parsed."""
    check(len(header) <= MAX_HEADER, f"{what} must have at most {MAX_HEADER} bytes", len(header))
    # At least as many as parsing makes, those of a plan included, which is JSON in a string.
    values = sum(header.count(character) for character in (b",", b"[", b"{"))
    check(values <= MAX_VALUES, f"{what} must have at most {MAX_VALUES} JSON values", values)


def check(condition: bool, what: str, got: Any) -> None:
    """Raise CheckpointError with what there must be and what there is, unless a condition holds."""
    if not condition:
        raise CheckpointError(f"{what}, got {short(got)}")


def parse(text: str | bytes, where: str) -> Any:
    """Parse JSON strictly: without Python's extensions, duplicate keys or very long numbers."""
    try:
        plain = text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")  # names are checked later
        # json.loads itself would also take UTF-16 and UTF-32
        _check_nesting(plain)
        return json.loads(
            plain, object_pairs_hook=_unique, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{where} must be plain JSON in UTF-8: {error}") from error


def _check_nesting(text: str) -> None:
    """Raise unless JSON is flat enough for any parser; Python's own limit can be set so high that it crashes."""
    unquoted = _STRINGS.sub("", text.replace("\\\\", "").replace('\\"', ""))
    brackets = _NO_BRACKETS.sub("", unquoted)
    for _ in range(MAX_NESTING):
        brackets = brackets.replace("[]", "").replace("{}", "")
    if len(brackets) > MAX_NESTING or "[]" in brackets or "{}" in brackets:
        raise ValueError(f"it has a recursion of more than {MAX_NESTING} lists and objects")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"every key must come once, got {short(name)} twice")
        result[name] = value
    return result


def _number(text: str) -> int | float:
    # The time to read an integer grows with the square of its length.
    if len(text) > 32 or not math.isfinite(float(text)):
        raise ValueError(f"a number must be finite and have at most 32 characters, got {short(text)}")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, without spaces, in ASCII: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
