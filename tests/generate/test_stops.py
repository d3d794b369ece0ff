"""Stop strings in text that comes piece by piece, against looking for each of them in all of it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Row, Sampling
from symboliclight.generate.stops import Search, Stops

few = st.text(alphabet="ab春", min_size=1, max_size=5)


class Slow:
    """The definition."""

    def __init__(self, stops):
        self.stops, self.text = stops, ""

    def push(self, text):
        """Of the strings in the text, where the first begins; what ended before this piece would have been found."""
        self.text += text
        found = [at for s in self.stops if (at := self.text.find(s)) >= 0]
        return len(self.text) - min(found) if found else None

    @property
    def held(self):
        return max((n for s in self.stops for n in range(len(s)) if self.text.endswith(s[:n])), default=0)


@given(st.lists(few, max_size=6), st.lists(st.text(alphabet="ab春", max_size=6), max_size=12))
def test_the_same_is_found_and_held_back_as_by_the_definition(strings, pieces):
    fast, slow, shared = Search(Stops(strings)), Slow(strings), Stops(strings)
    used = Search(shared)
    for piece in pieces:  # another text has made states before
        used.push(piece)
    again = Search(shared)
    for piece in pieces:
        found = slow.push(piece)
        assert fast.push(piece) == again.push(piece) == found
        if found is not None:
            break
        assert fast.held == again.held == slow.held


def test_stops_that_nothing_begins_with_cost_no_more_than_their_sorting(small_tokenizer):
    """Looked for one by one, as before, these took a second for three tokens; the bound is a fiftieth of that."""
    strings = ["the " * 1249 + f"{i:04d}" for i in range(500)]
    ids = small_tokenizer.encode("the light")[:3]
    row = Row(small_tokenizer, [1], 9, Sampling(), Stops(strings))
    start = time.perf_counter()
    for token in ids:
        row.push(token)
    assert time.perf_counter() - start < 0.02


def test_a_long_stop_string_is_found_at_its_end_and_no_recursion_is_needed():
    search = Search(Stops(["a" * 5000, "a" * 4000 + "b"]))
    assert search.push("a" * 4999) is None and search.held == 4999
    assert search.push("b") == 4001
    search = Search(Stops(["a" * 5000 + "c", "b" + "a" * 5000]))  # many ends become known at one character
    assert search.push("a" * 5000) is None and search.push("b" + "a" * 4999) is None and search.held == 5000
    assert search.push("a") == 5001


def test_empty_stop_strings_are_refused():
    with pytest.raises(InputError, match="--stop must not be empty"):
        Stops(["a", ""])
