"""A forger's tools: small files that say anything, under right checksums, made from the specification only."""

import hashlib
import json
import math

import numpy as np


def tensor(shape, start=0, /, **changes):
    """Return the JSON object of a tensor."""
    axes = " ".join("abcdefgh"[: len(shape)])
    fields = {"axes": axes, "kappa": 0, "learn_scale": False, "modifiers": [], "name": f"t{start}", "offset": start}
    return {**fields, "scale": 1.0, "shape": list(shape), "view": None, **changes}


def hashed(capacity=4, /, **changes):
    """Return the JSON object of a hash pool of one variable."""
    fields = {"kind": "hash", "size": 1, "hashes": 1, "signed": True, "capacity": capacity}
    return {**fields, "bits": 8, "exponents": None, "gain": 0, **changes}


def plan_of(tensors, pool=None, /, **changes):
    """Return the JSON object of a plan."""
    fields = {"layout": "cyclic", "pool": pool or hashed(), "seed": 0}
    return {**fields, "tensors": tensors, "version": "2.0", **changes}


def forged(plan, shapes=None, dense=None, **metadata):
    """Return a checkpoint with right checksums: integers of the pool are 64 each, all other values float32 ones."""
    shapes = {"pool/table": (1, 1)} if shapes is None else shapes
    zeros = "0" * 64
    exponents = {name.removeprefix("pool/"): 0 for name in shapes if name.startswith("pool/")}
    stated = {"checksum": zeros, "digest": zeros, "header_checksum": zeros, "plan": plan, "pool_exponents": exponents}
    tree = {"__metadata__": {"smh": {**stated, "version": "2.0", **metadata}}}
    data = b""
    for name, shape in {**shapes, **(dense or {})}.items():
        integers = name.startswith("pool/")
        x = np.full(math.prod(shape), 64, dtype="i1") if integers else np.ones(math.prod(shape), dtype="<f4")
        offsets = [len(data), len(data) + x.nbytes]
        tree[name] = {"dtype": "I8" if integers else "F32", "shape": list(shape), "data_offsets": offsets}
        data += x.tobytes()
    return seal(text_of(tree), data)


def split(file):
    """Return the header and the data section of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return file[8:end], file[end:]


def tree_of(file):
    """Return the JSON of a header, that of a checkpoint's metadata in the place of their text."""
    tree = json.loads(split(file)[0])
    if "smh" in tree.get("__metadata__", {}):
        tree["__metadata__"]["smh"] = json.loads(tree["__metadata__"]["smh"])
    return tree


def text_of(tree):
    """Return the JSON text of a tree, as a header has it."""
    if isinstance(tree, dict) and isinstance(tree.get("__metadata__"), dict):
        metadata = dict(tree["__metadata__"])
        if isinstance(metadata.get("smh"), dict):
            metadata["smh"] = canonical(metadata["smh"])
        tree = {**tree, "__metadata__": metadata}
    return json.dumps(tree, separators=(",", ":")).encode()


def canonical(value):
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def seal(header, data):
    """Return a safetensors file, with right checksums if the header has a place for them."""
    header = _put(header, b'"checksum\\":\\"', hashlib.sha256(data))
    at = header.find(b'header_checksum\\":\\"')
    if at >= 0:
        at += len(b'header_checksum\\":\\"')
        header = _put(header, b'header_checksum\\":\\"', hashlib.sha256(header[:at] + header[at + 64 :]))
    return len(header).to_bytes(8, "little") + header + data


def _put(header, start, digest):
    at = header.find(start)
    if at < 0:
        return header
    at += len(start)
    return header[:at] + digest.hexdigest().encode() + header[at + 64 :]
