"""Which tokens of a domain make up a training sequence: a stretch of its stream, or documents laid out whole.

Legend: T seq_len. A window is T + 1 positions in the domain's tokens: T inputs, and T targets one later.
Both ways walk a domain in epochs; what an epoch looks like is a function of (key, epoch).
"""

import hashlib
from bisect import bisect_left, insort
from typing import NamedTuple, Protocol

import numpy as np

from symboliclight.core.errors import InputError

PADDING = -1  # a position that holds no token


class Window(NamedTuple):
    """Positions in the domain, or PADDING, (T + 1,) int64; and whether each counts as a target, (T + 1,) bool."""

    positions: np.ndarray
    counts: np.ndarray


class Packing(Protocol):
    """`windows` make an epoch."""

    windows: int

    def window(self, index: int) -> Window:
        """Window number `index` since the start of training."""
        ...


class Stream:
    """A ring: an epoch starts at a random offset, cuts it into windows and visits them in random order."""

    def __init__(self, tokens: np.ndarray, seq_len: int, key: str, name: str) -> None:
        self.windows = len(tokens) // seq_len  # an epoch; less than one window of the ring stays unseen in each
        if len(tokens) <= seq_len:
            raise InputError(f"domain {name!r} has {len(tokens)} tokens, too few for one window of {seq_len} + 1; "
                             "lower --seq-len or leave the domain out of the weights")
        self._size, self._seq_len, self._key = len(tokens), seq_len, key
        self._epoch = -1
        self._offset = 0
        self._order = np.empty(0, dtype=np.int64)

    def window(self, index: int) -> Window:
        epoch, position = divmod(index, self.windows)
        if epoch != self._epoch:
            words = _random_words(self._key, epoch, self.windows + 1)
            self._epoch, self._offset = epoch, int(words[0] % self._size)
            self._order = np.argsort(words[1:], kind="stable")
        start = self._offset + int(self._order[position]) * self._seq_len
        positions = np.arange(start, start + self._seq_len + 1) % self._size
        return Window(positions, np.ones(len(positions), bool))


class Documents:
    """Whole documents in each window, as many as fit (best-fit decreasing, arXiv 2404.10830), and padding.

    A document of more than T + 1 tokens is cut into pieces of that length, of which each begins with the last token of
    the one before; what is left at its end is packed with others. In a window beginnings of documents come first. The
    lengths that share a window are the same in each epoch; which documents of these lengths they are is random.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, key: str, bos_id: int, name: str) -> None:
        starts = np.flatnonzero(tokens == bos_id)
        if not len(starts) or starts[0] != 0:
            raise InputError(f"domain {name!r} does not begin with a document, so documents cannot be laid out; "
                             'make the shards again, or use data.packing = "stream"')
        self._start, length, self._fresh = _pieces(starts, len(tokens), seq_len)
        self._length = length
        self._slots, self.windows = _best_fit(np.sort(length)[::-1], seq_len + 1)
        self._by_row = np.argsort(self._slots, kind="stable")
        self._bounds = np.searchsorted(self._slots[self._by_row], np.arange(self.windows + 1))
        self._seq_len, self._key = seq_len, key
        self._epoch = -1
        self._piece = self._order = np.empty(0, dtype=np.int64)

    def window(self, index: int) -> Window:
        epoch, position = divmod(index, self.windows)
        if epoch != self._epoch:
            words = _random_words(self._key, epoch, len(self._start) + self.windows)
            self._epoch, self._order = epoch, np.argsort(words[len(self._start):], kind="stable")
            self._piece = np.lexsort((words[:len(self._start)], -self._length))  # the piece in each slot
        row = int(self._order[position])
        pieces = self._piece[self._by_row[self._bounds[row]:self._bounds[row + 1]]]
        return self._laid_out(pieces[np.argsort(~self._fresh[pieces], kind="stable")])

    def _laid_out(self, pieces: np.ndarray) -> Window:
        window = Window(np.full(self._seq_len + 1, PADDING, np.int64), np.zeros(self._seq_len + 1, bool))
        at = 0
        for piece in pieces:
            start, end = int(self._start[piece]), at + int(self._length[piece])
            window.positions[at:end] = np.arange(start, start + end - at)
            window.counts[at:end] = True
            window.counts[at] = bool(self._fresh[piece])  # was a target where the document was cut
            at = end
        return window


def _pieces(starts: np.ndarray, size: int, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, length (at most T + 1) and whether it begins a document, of every piece."""
    lengths = np.diff(np.append(starts, size))
    counts = np.maximum(1, -(-(lengths - 1) // seq_len))  # a piece brings T tokens that were not in the one before
    which = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (starts[which] + nth * seq_len, np.minimum(lengths[which] - nth * seq_len, seq_len + 1), nth == 0)


def _best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The row of each length (descending), and the number of rows: each goes where it leaves the least room."""
    rows = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = {}  # room -> rows that have it
    rooms: list[int] = []  # those with a row, ascending
    count = 0
    for i, length in enumerate(lengths.tolist()):
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms.pop(place)
        else:
            room, row, count = capacity, count, count + 1
        rows[i] = row
        left = room - length
        if not open_rows.setdefault(left, []):
            insort(rooms, left)
        open_rows[left].append(row)
    return rows, count


def _random_words(key: str, epoch: int, count: int) -> np.ndarray:
    """Raw Philox words, not Generator.permutation: only the bit stream is fixed across numpy versions."""
    digest = hashlib.sha256(f"{key}:{epoch}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
