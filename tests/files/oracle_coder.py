"""Streams of packed files by the specification, section 12.1: plain Python, integers only, one symbol at a time."""

import collections
import functools


def short(x, digits):
    low = max(0, x.bit_length() - digits)
    return 2 ** (digits - 1) * low + (x >> low)


def low_bits(x, digits):
    return max(0, x.bit_length() - digits)


def near(x, digits):
    return short(x + (2 ** low_bits(x, digits) >> 1), digits)


def start(code, digits):
    """Return the smallest number with a code, by looking for it among those of each number of low bits."""
    for low in range(64):
        leading = code - 2 ** (digits - 1) * low
        if leading < 2**digits:
            return leading << low
    raise AssertionError(code)


def starts(weights):
    """Return where each symbol of a model starts, and the end of the last one."""
    n, before, found = len(weights), 0, []
    for i, weight in enumerate(weights):
        found.append(i + (2**24 - n) * before // sum(weights))
        before += weight
    return [*found, 2**24]


def uniform(bits):
    return [i << 24 - bits for i in range(2**bits + 1)]


def differences(rate):
    falling = [2**20]
    for _ in range(127):
        falling.append(2 * rate * falling[-1] // 16)
    return [falling[abs(k)] for k in range(-127, 128)]


ALL_DIFFERENCES = [differences(rate) for rate in range(8)]


class Coder:
    """An ANS coder."""

    def __init__(self, stream=b""):
        stream = stream.rstrip(b"\0")
        self.stack = [int.from_bytes(stream[k : k + 4], "little") for k in range(0, len(stream), 4)]
        self.state = 0
        while self.stack and self.state < 2**32:
            self.state = self.state << 32 | self.stack.pop()

    def write(self, symbol, model):
        a, f = model[symbol], model[symbol + 1] - model[symbol]
        if self.state >= 2**40 * f:
            self.stack.append(self.state % 2**32)
            self.state >>= 32
        self.state = 2**24 * (self.state // f) + a + self.state % f

    def read(self, model):
        at = self.state % 2**24
        symbol = next(i for i in range(len(model) - 1) if model[i] <= at < model[i + 1])
        a, f = model[symbol], model[symbol + 1] - model[symbol]
        self.state = f * (self.state // 2**24) + at - a
        if self.state < 2**32 and self.stack:
            self.state = self.state << 32 | self.stack.pop()
        return symbol

    def stream(self):
        words = [*self.stack, self.state % 2**32, self.state >> 32]
        return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


def decode(stream, count):
    """Return the integers of a stream that is as it should be."""
    coder = Coder(stream)
    f, d, rate, last = (coder.read(uniform(bits)) for bits in (3, 1, 3, 10))
    f, d = f + 2, d + 2
    codes = [near(count // (2 * last + 1), d)] * 2
    model = starts(differences(rate))
    for _ in range(2 * last + 1):
        codes.append((codes[-2] + codes[-1] + 1) // 2 + coder.read(model) - 127)
    classes = [0] + [sign * c for c in range(1, last + 1) for sign in (1, -1)]
    present = [(c, start(t, d)) for c, t in zip(classes, codes[2:], strict=True) if t]
    model = starts([weight for _, weight in present])
    found = [present[coder.read(model) if len(present) > 1 else 0][0] for _ in range(count)]
    low_of = {c: low_bits(start(abs(c), f), f) for c, _ in present}
    values = [start(abs(c), f) for c in found]
    for low in range(1, max(low_of.values()) + 1):
        for k, c in enumerate(found):
            if low_of[c] == low:
                values[k] += coder.read(uniform(low))
    assert (coder.state, coder.stack) == (0, [])
    return [-x if c < 0 else x for c, x in zip(found, values, strict=True)]


@functools.cache
def length(f):
    """Return the length of a symbol in 1/256 bits."""
    low = low_bits(f, 9)
    return 256 * (24 - low) - (((f >> low) ** 256).bit_length() - 1)


def encode(q):
    """Return the stream of integers."""
    choices = ((cost, f, d, rate) for f in range(2, 8) for d in (2, 3) for rate, cost in enumerate(costs(q, f, d)))
    return written(q, *min(choices)[1:])


def table(q, f, d):
    """Return the classes of integers, all classes, the codes of their counts, and differences."""
    found = [short(abs(x), f) * (-1 if x < 0 else 1) for x in q]
    last = max(map(abs, found))
    classes = [0] + [sign * c for c in range(1, last + 1) for sign in (1, -1)]
    counts = collections.Counter(found)
    codes = [near(counts[c], d) for c in classes]
    first = near(len(q) // len(classes), d)
    before = [first, first, *codes]
    steps = [t - (a + b + 1) // 2 for t, a, b in zip(codes, before, before[1:], strict=False)]
    return found, classes, codes, steps


def costs(q, f, d):
    """Return the costs of tables with each rate."""
    found, classes, codes, steps = table(q, f, d)
    total = 256 * sum(low_bits(abs(x), f) for x in q)
    present = [c for c, t in zip(classes, codes, strict=True) if t]
    if len(present) > 1:
        sizes = frequencies([start(t, d) for t in codes if t])
        lengths = {c: length(size) for c, size in zip(present, sizes, strict=True)}
        total += sum(lengths[c] for c in found)
    return [total + sum(length(sizes[step + 127]) for step in steps) for sizes in map(frequencies, ALL_DIFFERENCES)]


def frequencies(weights):
    places = starts(weights)
    return [b - a for a, b in zip(places, places[1:], strict=False)]


def written(q, f, d, rate):
    """Return the stream with a table that was chosen, or a stream that no writer writes."""
    coder = Coder()
    found, classes, codes, steps = table(q, f, d)
    for low in range(16, 0, -1):
        for x in reversed(q):
            if low_bits(abs(x), f) == low:
                coder.write(abs(x) % 2**low, uniform(low))
    present = [c for c, t in zip(classes, codes, strict=True) if t]
    if len(present) > 1:
        model = starts([start(t, d) for t in codes if t])
        for c in reversed(found):
            coder.write(present.index(c), model)
    model = starts(differences(rate))
    for step in reversed(steps):
        coder.write(step + 127, model)
    for bits, field in ((10, len(classes) // 2), (3, rate), (1, d - 2), (3, f - 2)):
        coder.write(field, uniform(bits))
    return coder.stream().ljust(-(-len(q) // 256), b"\0")
