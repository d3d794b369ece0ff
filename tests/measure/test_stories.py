"""The checks of the story test say what a reader would; passages count as memorised only when they come back whole."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from symboliclight.core.errors import InputError
from symboliclight.generate.distribution import Sampling
from symboliclight.measure import memorised, stories

OPENING = "One day, Tom and his dog went to the park."


@pytest.mark.parametrize(("opening", "text", "failing"), [
    (OPENING, " They saw a cat. Tom was happy, and his dog barked.", set()),
    (OPENING, " They saw a cat. Then they saw a dog. They saw a cat!", {"repeats_no_sentence"}),
    (OPENING, " He ran. He ran. He ran.", set()),  # too short to count
    (OPENING, " The park was big, and Lily played there.", {"keeps_its_people"}),
    (OPENING, " The park was big, and Lily played there with Tom.", set()),
    (OPENING, " The park was big, and Mom was there.", set()),  # a title is no name
    (OPENING, " 他们看见一只猫。", {"keeps_its_language"}),
    ("从前，有一只小熊。", "小熊去找老虎。", set()),
    ("从前，有一只小熊。", "小兔去找老虎，它很高兴。", {"keeps_its_people"}),
    ("从前，有一只小熊。", "它去上学，过了一小时，它很小心。", set()),
    ("从前，有一只小熊。", "它在河边看见了很多鱼。它回家了。它在河边看见了很多鱼。", {"repeats_no_sentence"}),
    ("从前，有一只小熊。", "The bear was small.", {"keeps_its_language"}),
    ("从前，有一只小熊。", "", set()),
])
def test_what_each_check_sees(opening, text, failing):
    found = stories.check(opening, text, True)
    assert {name for name in stories.CHECKS if not found[name]} == failing
    assert found["passes"] is (not failing)
    assert not stories.check(opening, text, False)["passes"]


def test_openings_are_lines(tmp_path):
    (tmp_path / "openings.txt").write_text("# two\nOne day.\n\n从前。\n", encoding="utf-8")
    assert stories.read_openings(tmp_path / "openings.txt") == ["One day.", "从前。"]
    (tmp_path / "none.txt").write_text("#\n")
    for name in ("none.txt", "missing.txt"):
        with pytest.raises(InputError, match=name):
            stories.read_openings(tmp_path / name)


class Reciting:
    """A model that knows one text by heart: after a token that is n of it comes the one that is n + 1."""

    def __init__(self, text, vocab_size):
        self.config = SimpleNamespace(vocab_size=vocab_size, max_seq_len=None)
        self._next = {int(a): int(b) for a, b in itertools.pairwise(text)}

    def __call__(self, tokens, state=None):
        logits = np.zeros((*tokens.shape, self.config.vocab_size), np.float32)
        for place, token in np.ndenumerate(tokens):
            logits[(*place, self._next.get(int(token), 0))] = 1
        return logits, state or Rows()


class Rows:
    position = 0

    def rows(self, which):
        return self


def test_stories_are_measured_by_language(small_tokenizer):
    end = small_tokenizer.eos_id
    opening = small_tokenizer.encode("the sun")
    model = Reciting([*opening, end], small_tokenizer.vocab_size)
    found = stories.measure(model, small_tokenizer, ["the sun"], Sampling(temperature=0), 5)
    assert found["shares"]["en"]["ends"] == 1 and "zh" not in found["shares"]
    assert found["stories"][0]["text"] == ""


@pytest.mark.parametrize(("knows", "verbatim"), [(400, 4), (99, 0)])
def test_a_passage_is_memorised_when_it_comes_back_whole(knows, verbatim, small_tokenizer):
    """Of two documents the second is too short, so all passages lie in the first; knowing 99 of 100 is not enough."""
    text = np.concatenate([10 + np.arange(100), [small_tokenizer.eos_id], 10 + np.arange(60)])
    shards = SimpleNamespace(domains=lambda split: ["all", "short"],
                             tokens=lambda split, domain: text if domain == "all" else text[-60:])
    model = Reciting(text[:knows], small_tokenizer.vocab_size)
    found = memorised.measure(model, small_tokenizer, shards, 4)
    assert found["domains"] == {"all": {"passages": 4, "verbatim": verbatim}}
    assert (found["passages"], found["verbatim"], found["tokens"]) == (4, verbatim, 50)
