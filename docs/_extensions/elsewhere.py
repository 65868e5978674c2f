"""What a page loads from other sites: nothing, so that it works without a network."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(script|img|iframe|source|video|audio|link)\b[^>]*>")
_AWAY = re.compile(r"""\b(?:src|srcset|href)=["']?(?:https?:)?//""")
_LOADS = re.compile(r"""\brel=["']?(?:stylesheet|preload|modulepreload|icon)\b""")


def loaded(html: str) -> str | None:
    """Return the first tag of a page that loads from another site, or None; a link to follow loads nothing."""
    for tag in _TAG.finditer(html):
        if _AWAY.search(tag[0]) and (tag[1] != "link" or _LOADS.search(tag[0])):
            return tag[0]
    return None
