"""Whether a compiler is at work in this thread."""

from __future__ import annotations

import torch


def compiles() -> bool:
    """Return whether a compiler traces the calling code, or it is exported.

    ``torch.compiler.is_compiling`` also says so to code that merely runs in another thread meanwhile.
    """
    return bool(torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting())
