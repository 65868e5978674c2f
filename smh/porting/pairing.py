"""Which layers of one shape belong together, as far as their names decide it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from smh.porting.layers import Layer, same_words, words

Pairs = list[tuple[Layer, Layer]]


def certain_pairs(sources: Sequence[Layer], targets: Sequence[Layer]) -> Pairs:
    """Return the pairs of layers that names settle: equal names first, then a single remaining pair.

    Layers whose names differ only in numbers form a series, which is settled as a whole: if ``fc1`` and ``fc2``
    were to come from ``fc2`` and ``fc3``, none of them is certain.
    """
    if len(sources) != len(targets):
        return []
    if len(sources) == 1:
        return [(sources[0], targets[0])] if sources[0].fits(targets[0]) else []
    pairs: Pairs = []
    candidates = [(x, y) for y in targets for x in sources if x.fits(y) and same_words(x.name, y.name)]
    while candidates:
        choices = Counter(y.name for _, y in candidates)
        only = [(x, y) for x, y in candidates if choices[y.name] == 1]
        wanted = Counter(x.name for x, _ in only)
        new = [(x, y) for x, y in only if wanted[x.name] == 1]
        if not new:
            break
        pairs += new
        used = {x.name for x, _ in new}
        candidates = [(x, y) for x, y in candidates if x.name not in used and choices[y.name] > 1]
    while True:
        left, right = rest(sources, targets, pairs)
        open_words = {words(layer.name)[0] for layer in (*left, *right)}
        whole = [pair for pair in pairs if not open_words & {words(layer.name)[0] for layer in pair}]
        if len(whole) == len(pairs):
            break
        pairs = whole
    alone = list(zip(left, right, strict=True))
    one_series = all(len({words(layer.name)[0] for layer in layers}) == 1 for layers in (left, right))
    if one_series and all(x.fits(y) for x, y in alone):
        if _varying(left) == _varying(right) if len(alone) > 1 else not _one_ends_with_the_other(*alone[0]):
            pairs += alone
    return pairs


def rest(sources: Sequence[Layer], targets: Sequence[Layer], pairs: Pairs) -> tuple[list[Layer], list[Layer]]:
    """Return the layers of both models that are in no pair."""
    taken = [{id(pair[k]) for pair in pairs} for k in (0, 1)]
    left, right = (
        [x for x in layers if id(x) not in ids] for layers, ids in zip((sources, targets), taken, strict=True)
    )
    return left, right


def _one_ends_with_the_other(one: Layer, other: Layer) -> bool:
    short, long = sorted((words(one.name)[0], words(other.name)[0]), key=len)
    return long[len(long) - len(short) :] == short


def _varying(series: Sequence[Layer]) -> list[tuple[int, ...]]:
    """Return those numbers in the names of layers that are not the same in all of them."""
    numbers = [words(layer.name)[1] for layer in series]
    if len({len(found) for found in numbers}) > 1:
        return numbers
    varying = [place for place, found in enumerate(zip(*numbers, strict=True)) if len(set(found)) > 1]
    return [tuple(found[place] for place in varying) for found in numbers]
