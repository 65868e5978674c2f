"""Hostile inputs made from honest ones: what a structured fuzzer feeds to the readers of files, plans and mappings.

An input is a pure function of a seed and a number, so whatever was found can be made again. Inputs with even numbers go
through *every* small change of every honest input, one after the other: each value and key of the JSON replaced by each
of a list of nasty ones, each truncation. The others are random combinations of changes, also of the data. Checksums are
put right after most changes, so that what lies behind them is reached.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from trust.honest import honest as inputs
from trust.nasty import CODES, KEYS, NASTY, TOKENS

Path = tuple[Any, ...]


def make(seed: int, number: int) -> tuple[str, bytes]:
    """Return the reader that an input is for, one of those of :mod:`trust.targets`, and the input.

    Parameters
    ----------
    seed : int
        Which inputs.
    number : int
        Which of them.
    """
    rng = random.Random(f"{seed}/{number}")
    names = sorted(inputs())
    if number % 2:
        name = rng.choice(names)
        return name.split("/")[0], _random(rng, inputs()[name])
    turn, which = divmod(number // 2, len(names))
    name = names[which]
    return name.split("/")[0], _systematic(turn, rng, inputs()[name])


def split(file: bytes) -> tuple[bytes, bytes]:
    """Return the header and the data section of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return file[8:end], file[end:]


def seal(header: bytes, data: bytes) -> bytes:
    """Return a safetensors file, with right checksums if the header has a place for them."""
    header = _put(header, b'"checksum\\":\\"', hashlib.sha256(data).hexdigest())
    at = header.find(b'header_checksum\\":\\"')
    if at >= 0:
        at += len(b'header_checksum\\":\\"')
        header = header[:at] + hashlib.sha256(header[:at] + header[at + 64 :]).hexdigest().encode() + header[at + 64 :]
    return len(header).to_bytes(8, "little") + header + data


def _put(header: bytes, start: bytes, digits: str) -> bytes:
    at = header.find(start)
    return header if at < 0 else header[: at + len(start)] + digits.encode() + header[at + len(start) + 64 :]


def is_file(honest: Any) -> bool:
    """Say whether an honest input is a safetensors file, not a JSON text."""
    return isinstance(honest, bytes)


def tree_of(honest: Any) -> Any:
    """Return the JSON of an honest input; that of a checkpoint's metadata in the place of their text."""
    if not is_file(honest):
        return json.loads(honest)
    tree = json.loads(split(honest)[0])
    if "smh" in tree.get("__metadata__", {}):
        tree["__metadata__"]["smh"] = json.loads(tree["__metadata__"]["smh"])
    return tree


def text_of(tree: Any) -> bytes:
    """Return the JSON text of a tree, as a header has it."""
    if isinstance(tree, dict) and isinstance(tree.get("__metadata__"), dict):
        metadata = dict(tree["__metadata__"])
        if isinstance(metadata.get("smh"), dict):
            metadata["smh"] = json.dumps(metadata["smh"], sort_keys=True, separators=(",", ":"))
        tree = {**tree, "__metadata__": metadata}
    return json.dumps(tree, separators=(",", ":")).encode()


def _joined(honest: Any, text: bytes, sealed: bool = True) -> bytes:
    """Return an input with another JSON text."""
    if not is_file(honest):
        return text
    data = split(honest)[1]
    return seal(text, data) if sealed else len(text).to_bytes(8, "little") + text + data


def _paths(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Iterate over the places of all values."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _get(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _changed(tree: Any, path: Path, value: Any) -> Any:
    """Return a tree with another value at a place."""
    if not path:
        return value
    tree = copy.copy(tree)
    tree[path[0]] = _changed(tree[path[0]], path[1:], value)
    return tree


def _renamed(tree: Any, path: Path, key: str | None) -> Any:
    """Return a tree with another key at a place, in the same order, or without it."""
    parent = _get(tree, path[:-1])
    if isinstance(parent, list):
        return _changed(tree, path[:-1], [value for k, value in enumerate(parent) if k != path[-1]])
    pairs = [(key if old == path[-1] else old, value) for old, value in parent.items()]
    return _changed(tree, path[:-1], {new: value for new, value in pairs if new is not None})


def _systematic(turn: int, rng: random.Random, honest: Any) -> bytes:
    """Return one of all small changes; once all have been made, random ones."""
    tree = tree_of(honest)
    paths = list(_paths(tree))
    whole = _joined(honest, text_of(tree))
    keyed = [path for path in paths if path]
    if turn < len(whole):
        return whole[:turn]
    turn -= len(whole)
    if turn < len(paths) * len(NASTY):
        place, which = divmod(turn, len(NASTY))
        return _joined(honest, text_of(_changed(tree, paths[place], NASTY[which])))
    turn -= len(paths) * len(NASTY)
    keys = [None, *KEYS]
    if turn < len(keyed) * len(keys):
        place, which = divmod(turn, len(keys))
        return _joined(honest, text_of(_renamed(tree, keyed[place], keys[which])))
    turn -= len(keyed) * len(keys)
    if turn < 8 * len(whole):
        flipped = bytearray(whole)
        flipped[turn // 8] ^= 1 << turn % 8
        return _joined(honest, split(bytes(flipped))[0]) if is_file(honest) and turn >= 64 else bytes(flipped)
    return _random(rng, honest)


def _random(rng: random.Random, honest: Any) -> bytes:
    tree = tree_of(honest)
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        tree = rng.choice(_TREE_CHANGES)(rng, tree)
    text = text_of(tree)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        text = rng.choice(_TEXT_CHANGES)(rng, text)
    if is_file(honest) and rng.random() < 0.2:
        header, data = split(honest)
        honest = len(header).to_bytes(8, "little") + header + _flip(rng, data)
    content = _joined(honest, text, sealed=rng.random() < 0.85)
    for _ in range(rng.choice([0, 0, 0, 0, 1])):
        content = rng.choice(_BYTE_CHANGES)(rng, content)
    return content


def _place(rng: random.Random, tree: Any) -> Path:
    return rng.choice(list(_paths(tree)))


def _replace(rng: random.Random, tree: Any) -> Any:
    return _changed(tree, _place(rng, tree), rng.choice(NASTY))


def _rename(rng: random.Random, tree: Any) -> Any:
    path = _place(rng, tree)
    return _renamed(tree, path, rng.choice([None, *KEYS])) if path else tree


def _nudge(rng: random.Random, tree: Any) -> Any:
    """Change a number a little, or a lot."""
    numbers = [path for path in _paths(tree) if _is_modest(_get(tree, path))]
    if not numbers:
        return tree
    path = rng.choice(numbers)
    value = _get(tree, path)
    near = [value + 1, value - 1, -value, value * 2, value + 2**32]
    return _changed(tree, path, rng.choice([*near, float(value), value + 0.5, bool(value), str(value)]))


def _is_modest(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 10**300


def _exchange(rng: random.Random, tree: Any) -> Any:
    """Exchange two values that do not lie in one another."""
    one, other = _place(rng, tree), _place(rng, tree)
    if one[: len(other)] == other or other[: len(one)] == one:
        return tree
    a, b = _get(tree, one), _get(tree, other)
    return _changed(_changed(tree, one, b), other, a)


def _copy_of(rng: random.Random, tree: Any) -> Any:
    """Put a copy of one value in the place of another."""
    return _changed(tree, _place(rng, tree), _get(tree, _place(rng, tree)))


def _transplant(rng: random.Random, tree: Any) -> Any:
    """Put a value of another honest input in a place of the same key."""
    other = tree_of(inputs()[rng.choice(sorted(inputs()))])
    path = _place(rng, tree)
    same = [p for p in _paths(other) if p and path and p[-1] == path[-1]]
    return _changed(tree, path, _get(other, rng.choice(same))) if same else tree


def _grow(rng: random.Random, tree: Any) -> Any:
    """Repeat elements of a list, reorder it, or add a key to an object."""
    path = rng.choice([p for p in _paths(tree) if isinstance(_get(tree, p), dict | list)] or [()])
    node = copy.copy(_get(tree, path))
    if isinstance(node, list):
        node = node * rng.choice([2, 3, 64]) if rng.random() < 0.5 else rng.sample(node, len(node))
    elif isinstance(node, dict):
        node[rng.choice(KEYS)] = rng.choice([*NASTY, *node.values()])
    return _changed(tree, path, node)


def _nest(rng: random.Random, tree: Any) -> Any:
    path = _place(rng, tree)
    node = _get(tree, path)
    for _ in range(rng.choice([1, 2, 9, 80])):
        node = [node] if rng.random() < 0.5 else {"kind": "sum", "parts": [node]}
    return _changed(tree, path, node)


def _retype(rng: random.Random, tree: Any) -> Any:
    """Give a tensor of a header another dtype, with a shape and offsets that may fit."""
    entries = tree.items() if isinstance(tree, dict) else ()
    named = [name for name, entry in entries if isinstance(entry, dict) and "dtype" in entry]
    if not named:
        return tree
    name = rng.choice(named)
    changes: dict[str, Any] = {"dtype": rng.choice(CODES)}
    if rng.random() < 0.5:
        changes["shape"] = rng.choice([[], [0], [1], [2, 0, 2**40], [4], [2, 2], [8], [3, 5]])
    return {**tree, name: {**tree[name], **changes}}


def _twice(rng: random.Random, text: bytes) -> bytes:
    """Write a key twice."""
    places = [k for k, byte in enumerate(text) if byte == ord("{")]
    if not places:
        return text
    at = rng.choice(places) + 1
    quote = b'\\"' if text[at : at + 2] == b'\\"' else b'"'
    end = text.find(quote, at + len(quote))
    key = text[at : end + len(quote)] if end > 0 else b'"x"'
    return text[:at] + key + b":0," + text[at:]


def _garble(rng: random.Random, text: bytes) -> bytes:
    """Replace some bytes of a text."""
    at = rng.randrange(len(text) + 1)
    token = rng.choice(TOKENS)
    return text[:at] + token + text[at + rng.randrange(4) :]


def _respaced(rng: random.Random, text: bytes) -> bytes:
    wide = text.decode("latin1").encode("utf-16-le")
    return rng.choice([text + b" " * rng.randrange(20), b" " + text, text.replace(b",", b" ,\n"), wide])


def _flip(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 4])):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _tail(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice([b"\0", b" " * 8, content[-9:], bytes(4096)])


def _length(rng: random.Random, content: bytes) -> bytes:
    """State another length of the header."""
    length = int.from_bytes(content[:8], "little") + rng.choice([-8, -1, 1, 8])
    return (rng.choice([length, 0, 2**63, 2**64 - 1, len(content)]) % 2**64).to_bytes(8, "little") + content[8:]


_TREE_CHANGES: list[Callable[[random.Random, Any], Any]] = [
    _replace, _replace, _rename, _nudge, _nudge, _exchange, _copy_of, _transplant, _transplant, _grow, _nest, _retype,
]  # fmt: skip
_TEXT_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [_twice, _garble, _respaced]
_BYTE_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [_flip, _cut, _tail, _length]
