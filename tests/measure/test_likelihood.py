"""Log-likelihoods in batches, with shared contexts, against plain forwards of one sequence each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.measure.likelihood import loglikelihoods

RUNNERS = ("torch", "gpt2", "float32", "int8")


@pytest.fixture(params=RUNNERS)
def model(request, small_model, small_config, small_checkpoint):
    if request.param == "torch":
        return small_model
    if request.param == "gpt2":
        return gpt2(small_config)
    return engine.load(small_checkpoint, request.param, threads=1)


def gpt2(config):
    torch.manual_seed(1)
    return symboliclight.build(replace(config, family="gpt2", d_ff=128)).eval()


def log_p(model, ids):
    """(T, V) of one sequence, read whole."""
    tokens = np.array([ids])
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens) if hasattr(model, "features") else tokens)[0]
    return torch.as_tensor(logits)[0].double().log_softmax(-1).numpy()


def direct(model, context, continuation):
    p = log_p(model, [*context, *continuation])[len(context) - 1 : -1]
    score = sum(p[i, token] for i, token in enumerate(continuation))
    return score, p.argmax(-1).tolist() == list(continuation)


def some_pairs(vocabulary=520):
    random = np.random.default_rng(0)
    contexts = [random.integers(4, vocabulary, n).tolist() for n in (1, 5, 30, 7, 40)]
    return [(c, random.integers(4, vocabulary, n).tolist()) for c in contexts for n in (3, 1, 20, 1)]


@pytest.mark.parametrize("rows", [32, 3, 1])
def test_scores_are_those_of_plain_forwards(model, rows):
    pairs, done = some_pairs(), []
    found = loglikelihoods(model, pairs, rows, done.append)
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        expected, likeliest = direct(model, context, continuation)
        assert score == pytest.approx(expected, abs=1e-4)
        assert greedy == likeliest
    assert sum(done) == len(pairs)


def test_greedy_continuations_are_told_from_others(model):
    context, written = [1, 30, 40], []
    for _ in range(4):
        written.append(int(log_p(model, context + written)[-1].argmax()))
    other = [*written[:3], (written[3] + 1) % 520]
    found = loglikelihoods(model, [(context, written), (context, other), (context, written[:1]), (context, other[3:])])
    assert [greedy for _, greedy in found] == [True, False, True, False]


def test_an_empty_continuation_is_certain(model):
    assert loglikelihoods(model, [([1, 2], []), ([1, 2], [5])])[0] == (0.0, True)
    assert loglikelihoods(model, []) == []


def test_a_shared_context_is_read_once(small_checkpoint):
    runtime = engine.load(small_checkpoint, "float32", threads=1)
    context = list(range(4, 54))
    loglikelihoods(runtime, [(context, [token]) for token in range(100, 104)])
    assert runtime.tokens_read == 50
    loglikelihoods(runtime, [(context, [token, 7, 8]) for token in range(100, 104)])
    assert runtime.tokens_read == 50 + 50 + 4 * 2


def test_a_limited_context_is_filled_but_not_exceeded(small_config):
    model = gpt2(small_config)  # 64 tokens
    long, short = list(range(4, 64)), [4, 5]
    pairs = [(long, [7] * 5), (short, [8] * 63)]
    for pair, (score, _) in zip(pairs, loglikelihoods(model, pairs), strict=True):
        context, continuation = pair
        p = log_p(model, [*context, *continuation[:-1]])[len(context) - 1 :]
        assert score == pytest.approx(sum(p[i, token] for i, token in enumerate(continuation)), abs=1e-4)
    with pytest.raises(InputError, match="at most 64 tokens"):
        loglikelihoods(model, [(long, [7] * 6)])
