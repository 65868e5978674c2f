"""What hostile inputs are made of."""

from __future__ import annotations

from typing import Any

NUMBERS: list[Any] = [0, 1, -1, 2, 64, 65, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**60, 2**63, 2**64]
NUMBERS += [10**15, 10**31, 10**400, 0.0, 1.0, -0.5, 2.5, 1e39, 1e308, 5e-324]
NUMBERS += [float("nan"), float("inf"), float("-inf"), True, False]

TEXTS = ["", "0", "1.0", "2.0", "1.7", "x", "NaN", "\0", "a\nb", "\x1b[31mred", "[red]", "\ud800", "e\u0301", "\u202e"]
TEXTS += ["__class__", "../../x", "dense/", "pool/left", "scale/a", "F32", "BF16", "BOOL", "U8", "(" * 40, "a" * 3000]
TEXTS += ["a b -> b a", "a b -> a", "\u2026 -> \u2026", "a \uff11 -> a", "tensor b -> b tensor"]

LISTS: list[Any] = [[], [0], [0, 0], [1, 2], [-1], [1.0], [True], [2**62, 2**62], [1] * 65, [[]], [None]]
LISTS += [["relu"], ["sign"] * 20]

OBJECTS: list[Any] = [{}, {"a": 1}, {"kind": "matmul"}, {"tensor": 1}, {"": ""}]
OBJECTS += [{"pattern": "a b -> b a", "sizes": {}}]

NASTY: list[Any] = [None, *NUMBERS, *TEXTS, *LISTS, *OBJECTS]
"""What any value may be replaced by."""

KEYS = ["", "x", "a", "shape", "dtype", "version", "__metadata__", "tensor", "pattern", "\ud800", "dense/\x1b[2J"]
KEYS += ["e\u0301", "k" * 300]
"""What any key may be replaced by."""

CODES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "I64", "I32", "U16", "U8", "BOOL"]
CODES += ["f32", "F32 "]
"""Names of dtypes, and what resembles them."""

TOKENS = [b"\xff", b"\xed\xa0\x80", b"\0", b"NaN", b"-", b"1e999", b"9" * 40, b"[" * 70, b"}", b'"', b"null"]
TOKENS += [b"\\u0000", b"\\ud800", b"\xef\xbb\xbf"]
"""What may be written anywhere in a text."""
