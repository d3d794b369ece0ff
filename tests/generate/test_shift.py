"""Biases and penalties of written tokens, against their definition."""

from collections import Counter

import numpy as np
import pytest

from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Row, Sampling
from symboliclight.generate.shift import Shift

SHIFTS = [Shift(frequency_penalty=0.7), Shift(presence_penalty=1.5), Shift(logit_bias=((5, 3.5), (300, -100))),
          Shift(-0.4, -2, ((310, -1.25),)), Shift(2, 2)]


def slowly(logits, shift, written):
    """mu[j] + bias[j] - c[j] · alpha_frequency - float(c[j] > 0) · alpha_presence, id by id."""
    out, bias = [], dict(shift.logit_bias)
    for j, value in enumerate(logits):
        times = sum(token == j for token in written)
        out.append(float(value) + bias.get(j, 0) - times * shift.frequency_penalty
                   - float(times > 0) * shift.presence_penalty)
    return np.array(out)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("count", [0, 1, 60])
def test_logits_are_shifted_by_their_definition(shift, count):
    logits = np.random.randn(520).astype(np.float32)
    logits[7] = -np.inf
    written = list(np.random.randint(290, 320, count))
    np.testing.assert_allclose(shift.apply(logits, Counter(written)), slowly(logits, shift, written), atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_row_writes_what_its_shifted_logits_say_and_its_prompt_does_not_count(small_tokenizer, shift):
    row = Row(small_tokenizer, [1] + [310] * 9, 30, Sampling(temperature=0), stop_ids=(), shift=shift)
    for _ in range(30):
        logits = (np.random.randn(520) * 2).astype(np.float32)
        wanted = slowly(logits, shift, row.done.ids)
        wanted[[0, 1, 3]] = -np.inf  # ids that stand for no text, whatever their bias
        row.choose(logits)
        assert row.done.ids[-1] == wanted.argmax()


def test_samples_follow_the_shifted_distribution(small_tokenizer):
    shift, counts = Shift(logit_bias=((400, 5.0), (401, 4.0))), Counter()
    logits = np.zeros(520, np.float32)
    for seed in range(2000):
        row = Row(small_tokenizer, [1], 5, Sampling(temperature=1), stop_ids=(), seed=seed, shift=shift)
        row.choose(logits.copy())
        counts[row.done.ids[0]] += 1
    e = np.exp(slowly(logits, shift, []))
    e[[0, 1, 3]] = 0
    for token in (400, 401):
        assert abs(counts[token] / 2000 - e[token] / e.sum()) < 0.03


def test_logits_that_the_shift_needs_are_all_asked_for(small_tokenizer):
    class Model:
        class config:
            vocab_size = 520

    for shift, wanted in ((Shift(), True), (Shift(0.5), False), (Shift(logit_bias=((5, 1),)), False)):
        row = Row(small_tokenizer, [1], 5, Sampling(top_k=3), shift=shift)
        assert (row.top(Model) > 0) == wanted


@pytest.mark.parametrize(("name", "value"), [("frequency_penalty", 2.01), ("presence_penalty", float("nan")),
                                             ("logit_bias", ((3, 100.5),)), ("logit_bias", ((3, float("nan")),))])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        Shift(**{name: value})
