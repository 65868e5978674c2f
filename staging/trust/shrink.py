"""Making a failing input as small as it can be, so that people see what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

from trust.mutations import seal, split


def shrink(content: bytes, fails: Callable[[bytes], bool], most: int = 3000) -> bytes:
    """Return a smaller input that fails as well.

    Parts are left out, half of the rest at first, single bytes in the end. In a safetensors file they are left out of
    the header and of the data, and length and checksums are put right again.

    Parameters
    ----------
    content : bytes
        An input that fails.
    fails : callable
        Whether another one does.
    most : int
        How often to try.
    """
    forms: list[Callable[[bytes], bytes]] = [lambda part: part]
    header, data = split(content)
    if content[8:9] == b"{" and fails(seal(header, data)):
        forms = [lambda part: seal(part, data)]
        content = header
    make = forms[0]
    step = max(1, len(content) // 2)
    while most > 0:
        at = 0
        smaller = False
        while at < len(content) and most > 0:
            candidate = content[:at] + content[at + step :]
            most -= 1
            if fails(make(candidate)):
                content, smaller = candidate, True
            else:
                at += step
        if step == 1 and not smaller:
            break
        step = max(1, step // 2)
    return make(content)
