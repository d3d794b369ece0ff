"""Stop strings, looked for in text that comes piece by piece: Aho and Corasick's automaton (CACM 18, 333, 1975).

Its states are beginnings of stop strings. A text makes only those that it comes past, so strings that nothing of the
text begins with cost their sorting and no more, and a character costs a few steps, however many strings there are.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from symboliclight.core.errors import InputError


class _Beginning:
    """The `depth` first characters that all of strings[low:high] have in common, and no other string has."""

    __slots__ = ("after", "depth", "found", "high", "low", "shorter")

    def __init__(self, low: int, high: int, depth: int) -> None:
        self.low, self.high, self.depth = low, high, depth
        self.after: dict[str, _Beginning] = {}
        self.shorter: _Beginning = self  # the longest end of this that is a beginning too; of the empty one, itself
        self.found = 0  # characters of the longest stop string that this ends with


class Stops:
    """The strings, shared by texts that stop at them; each text has a `Search`. Raises `InputError` for an empty one.

    Used by one thread at a time: a search adds states.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise InputError("--stop must not be empty text")
        self._strings = sorted(set(strings))
        self._first = {string[0] for string in self._strings}
        self.start = _Beginning(0, len(self._strings), 0)

    def after(self, state: _Beginning, character: str) -> _Beginning:
        """The longest beginning that the text ends with, after one more character."""
        if state is self.start and character not in self._first:
            return state
        longer = []  # states whose successor is new, the longest first
        while True:
            known = state.after.get(character)
            if known is None and (new := self._grown(state, character)) is not None:
                longer.append((state, new))
            if known is not None or state is self.start:
                break
            state = state.shorter
        last = known or self.start
        for state, new in reversed(longer):
            new.shorter, new.found = last, new.found or last.found
            state.after[character] = last = new
        return last

    def _grown(self, state: _Beginning, character: str) -> _Beginning | None:
        """The beginning that is one character longer; None if no string has it."""
        def there(string: str) -> str:
            return string[state.depth : state.depth + 1]

        low = bisect_left(self._strings, character, state.low, state.high, key=there)
        high = bisect_right(self._strings, character, low, state.high, key=there)
        if low == high:
            return None
        new = _Beginning(low, high, state.depth + 1)
        new.found = new.depth if len(self._strings[low]) == new.depth else 0
        return new


class Search:
    """Looks for stop strings in one text."""

    def __init__(self, stops: Stops) -> None:
        self._stops, self._state = stops, stops.start

    def push(self, text: str) -> int | None:
        """Where in all text so far, counted from the end of `text`, the first stop string begins; None: nowhere.

        Of strings that end within `text`, that which begins first.
        """
        found = None
        for i, character in enumerate(text):
            self._state = self._stops.after(self._state, character)
            if self._state.found:
                begins = len(text) - i - 1 + self._state.found
                found = begins if found is None else max(found, begins)
        return found

    @property
    def held(self) -> int:
        """Characters at the end of the text that may become a stop string."""
        return self._state.depth
