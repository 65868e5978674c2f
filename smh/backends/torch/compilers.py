"""Whether a compiler is at work in this thread."""

from __future__ import annotations

import torch


def compiles() -> bool:
    """Return whether a compiler traces the calling code, or it is exported.

    ``torch.compiler.is_compiling`` and ``is_exporting`` also say so to code that merely runs in another thread
    meanwhile. An export without Dynamo runs the code under modes, which are those of one thread.
    """
    if torch.compiler.is_dynamo_compiling():
        return True
    return bool(torch.compiler.is_exporting() and torch._C._len_torch_dispatch_stack())
