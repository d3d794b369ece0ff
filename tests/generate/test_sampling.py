"""Filters on hand-made logits, distributions by frequency, and text by the contract of `Generation`."""

from types import SimpleNamespace

import numpy as np
import pytest

import symboliclight
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.generate.distribution import adapted_temperature, distribution, largest, penalise
from symboliclight.generate.sampling import Generation, Sampling, generate

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = np.log(P) + 3  # any constant: softmax(LOGITS) = P
PLAIN = Sampling(temperature=1.0)


def kept(how, logits=LOGITS, recent=()):
    ids, p = distribution(logits, how, recent)
    return dict(zip(ids.tolist(), p.round(6).tolist(), strict=True))


def test_without_filters_the_distribution_is_the_softmax():
    assert kept(PLAIN) == pytest.approx(dict(enumerate(P)))


def test_temperature_raises_probabilities_to_its_inverse():
    assert kept(Sampling(temperature=0.5)) == pytest.approx(dict(enumerate((P**2 / (P**2).sum()).round(6))))


def test_temperature_zero_takes_the_most_likely_token():
    assert kept(Sampling(temperature=0.0)) == {0: 1.0}


def test_top_k_keeps_k_tokens_and_renormalises():
    assert kept(Sampling(temperature=1.0, top_k=2)) == pytest.approx({0: 4 / 7, 1: 3 / 7}, abs=1e-6)
    assert len(kept(Sampling(temperature=1.0, top_k=99))) == 5


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    for top_p, count in ((0.01, 1), (0.39, 1), (0.41, 2), (0.71, 3), (0.96, 5)):
        assert sorted(kept(Sampling(temperature=1.0, top_p=top_p))) == list(range(count)), top_p
    shuffled = LOGITS[[3, 1, 4, 0, 2]]
    assert sorted(kept(Sampling(temperature=1.0, top_p=0.6), shuffled)) == [1, 3]


def test_min_p_drops_what_is_small_beside_the_best():
    assert sorted(kept(Sampling(temperature=1.0, min_p=0.3))) == [0, 1, 2]


def test_top_p_counts_the_probabilities_left_by_top_k():
    assert sorted(kept(Sampling(temperature=1.0, top_k=2, top_p=0.5))) == [0]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    out = penalise(np.array([2.0, -2.0, 1.0]), [0, 1, 0, 0], 2.0)
    assert out.tolist() == [1.0, -4.0, 1.0]
    assert kept(Sampling(temperature=0.0, repetition_penalty=2.0), np.array([2.0, 1.5]), [0]) == {1: 1.0}


def test_adaptive_temperature_is_halved_at_the_given_entropy_and_greedy_at_none():
    assert adapted_temperature(0.8, 0.5, 0.5) == pytest.approx(0.4)
    assert adapted_temperature(0.8, 0.0, 0.5) == 0
    assert adapted_temperature(0.8, 1e9, 0.5) == pytest.approx(0.8)
    assert adapted_temperature(0.8, 0.0, 0.0) == 0.8


def test_adaptive_temperature_uses_the_entropy_of_the_next_token():
    entropy = -(P * np.log(P)).sum()
    q = P ** ((entropy + 0.7) / entropy)  # temperature 1 · H / (H + 0.7)
    assert kept(Sampling(temperature=1.0, adaptive=0.7)) == pytest.approx(dict(enumerate((q / q.sum()).round(6))))


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        distribution(np.array([0.0, np.nan]), PLAIN)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0},
                                 {"top_p": 1.1}, {"min_p": 1}, {"repetition_penalty": 0}, {"adaptive": -1},
                                 {"repetition_window": -1}])
def test_nonsense_options_are_refused_by_name(bad):
    with pytest.raises(InputError, match="--" + next(iter(bad)).replace("_", "-")):
        Sampling(**bad)


def test_only_the_window_of_prompt_and_text_is_penalised(small_tokenizer):
    logits = np.zeros(small_tokenizer.vocab_size)
    logits[300:304] = 5, 4.9, 4.8, 4.7
    model = Scripted(small_tokenizer, logits=logits)
    how = Sampling(temperature=0, repetition_penalty=2.0, repetition_window=2)
    assert generate(model, small_tokenizer, [[1, 301, 300]], 5, how)[0].ids == [302, 301, 300, 302, 301]


class Scripted:
    """A numpy model behind the seam: after any tokens, the logits of its script at that position."""

    def __init__(self, tokenizer, script=(), logits=None):
        self.size = tokenizer.vocab_size if logits is None else len(logits)
        self.script, self.logits = script, logits
        self.calls = []

    def initial_state(self, batch_size, padding):
        return Positions(-np.asarray(padding))

    def __call__(self, tokens, state):
        self.calls.append(tokens.copy())
        position = (np.zeros(len(tokens), int) if state is None else state.position) + tokens.shape[1]
        out = np.zeros((*tokens.shape, self.size), np.float32)
        for row, at in zip(out, position, strict=True):
            if self.logits is not None:
                row[-1] = self.logits
            else:
                row[-1, self.script[at - 1]] = 50.0
        return out, Positions(position)


class Positions:
    def __init__(self, position):
        self.position = position

    def rows(self, index):
        return Positions(self.position[index])


def script(tokenizer, text):
    """A model that, prompted with the bos alone, writes `text` and then eos for ever."""
    ids = tokenizer.encode(text)
    return Scripted(tokenizer, [*ids, *[tokenizer.eos_id] * 40])


def test_draws_follow_the_distribution(small_tokenizer):
    logits = np.full(small_tokenizer.vocab_size, -np.inf)
    logits[300:305] = LOGITS
    model = Scripted(small_tokenizer, logits=logits)
    ids = generate(model, small_tokenizer, [[1]], 4000, PLAIN, seed=3)[0].ids
    counts = np.bincount(ids, minlength=305)[300:305]
    chi2 = ((counts - 4000 * P) ** 2 / (4000 * P)).sum()
    assert counts.sum() == 4000
    assert chi2 < 9.49  # 95% quantile with 4 degrees of freedom


def test_ids_without_text_are_never_drawn(small_tokenizer):
    model = Scripted(small_tokenizer, logits=np.zeros(small_tokenizer.vocab_size + 30))
    ids = generate(model, small_tokenizer, [[1]], 3000, PLAIN, stop_ids=())[0].ids
    assert small_tokenizer.eos_id in ids
    assert {small_tokenizer.pad_id, small_tokenizer.bos_id, small_tokenizer.unk_id}.isdisjoint(ids)
    assert max(ids) == small_tokenizer.vocab_size - 1


def test_generation_works_without_torch_tensors_and_stops_at_eos(small_tokenizer):
    text = "the old 春天的𰻞风 city"
    model = script(small_tokenizer, text)
    done = generate(model, small_tokenizer, [[1]], 200)[0]
    assert (done.text, done.finish) == (text, "stop")
    assert done.ids == [*small_tokenizer.encode(text), small_tokenizer.eos_id]


def test_streamed_pieces_join_to_the_text_and_never_hold_half_a_character(small_tokenizer):
    text = "水𰻞🙂 river"
    pieces = []
    done = generate(script(small_tokenizer, text), small_tokenizer, [[1]], 200, on_text=lambda _, t: pieces.append(t))
    assert "".join(pieces) == done[0].text == text
    assert not any("\ufffd" in p for p in pieces)


def test_text_cut_inside_a_character_ends_before_it(small_tokenizer):
    assert len(small_tokenizer.encode("🙂")) == 4
    done = generate(script(small_tokenizer, "a🙂"), small_tokenizer, [[1]], 3)[0]
    assert (done.text, done.finish) == ("a", "length")


@pytest.mark.parametrize(("stop", "text"), [
    (["river"], "the water of the "), (["ver", "the w"], ""), (["r; nob"], "the water of the rive"),
    (["zzz"], "the water of the river; nobody"), (["nobody knows"], "the water of the river; nobody"),
])
def test_stop_strings_end_the_text_before_them_and_are_never_shown(small_tokenizer, stop, text):
    shown = []
    model = script(small_tokenizer, "the water of the river; nobody")
    done = generate(model, small_tokenizer, [[1]], 99, stop=stop, on_text=lambda _, t: shown.append(t))
    assert (done[0].text, "".join(shown), done[0].finish) == (text, text, "stop")


def prompts(tokenizer):
    return [tokenizer.encode(t, bos=True) for t in ("the old city", "春天", "def add(a, b):\n\treturn a")]


@pytest.mark.parametrize("family", ["symboliclight", "gpt2"])
def test_a_batch_of_different_lengths_writes_what_each_row_writes_alone(small_tokenizer, small_config, family):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shape = {} if family == "symboliclight" else {"family": "gpt2", "d_ff": 128}
    model = symboliclight.build(ModelConfig(**{**vars(small_config), **shape})).eval()
    how = Sampling(temperature=1.2, top_k=40, repetition_penalty=1.1)
    many = prompts(small_tokenizer)
    together = generate(model, small_tokenizer, many, 30, how, seed=5)
    alone = [generate(model, small_tokenizer, [p], 30, how, seed=5 + i)[0] for i, p in enumerate(many)]
    assert together == alone
    assert len({tuple(c.ids) for c in together}) == 3


def test_rows_that_finish_leave_the_batch(small_tokenizer):
    model = script(small_tokenizer, "the water")
    eos_at = len(small_tokenizer.encode("the water"))
    longer = [1] * eos_at
    first, second = generate(model, small_tokenizer, [[1], longer], 50)
    assert (first.text, second.text) == ("the water", small_tokenizer.decode(small_tokenizer.encode("the water")[-1:]))
    assert [len(c) for c in model.calls] == [2, 2] + [1] * (eos_at - 1)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(small_tokenizer, small_runner):
    one, same, other = (generate(small_runner, small_tokenizer, [[1]], 30, PLAIN, seed=s)[0] for s in (7, 7, 8))
    assert one == same and one.ids != other.ids


def test_greedy_text_depends_on_no_seed(small_tokenizer, small_runner):
    how = Sampling(temperature=0)
    texts = {generate(small_runner, small_tokenizer, [[1]], 20, how, seed=s)[0].text for s in (1, 2)}
    assert len(texts) == 1


def test_a_state_goes_on_as_if_the_text_had_been_read_at_once(small_tokenizer, small_runner):
    greedy = Sampling(temperature=0)
    first = Generation(small_runner, small_tokenizer, [[1, 300]], 6, greedy, stop_ids=())
    list(first)
    ids = first.completions[0].ids
    more = Generation(small_runner, small_tokenizer, [[ids[-1], 310, 320]], 8, greedy, stop_ids=(), state=first.state)
    list(more)
    whole = generate(small_runner, small_tokenizer, [[1, 300, *ids, 310, 320]], 8, greedy, stop_ids=())
    assert more.completions[0].ids == whole[0].ids


def test_a_model_with_a_limit_stops_at_it(small_tokenizer, small_config):
    pytest.importorskip("torch")
    model = symboliclight.build(ModelConfig(**{**vars(small_config), "family": "gpt2", "d_ff": 128})).eval()
    done = generate(model, small_tokenizer, [[1] * 60, [1] * 4], 100, stop_ids=())
    assert [(len(c.ids), c.finish) for c in done] == [(5, "limit"), (61, "limit")]
    with pytest.raises(InputError, match="at most 64 tokens"):
        generate(model, small_tokenizer, [[1] * 65], 1)


def test_generation_leaves_training_mode_as_it_was(small_tokenizer, small_config):
    pytest.importorskip("torch")
    model = symboliclight.build(small_config).train()
    generate(model, small_tokenizer, [[1]], 2)
    assert model.training and model.blocks[0].training


@pytest.mark.parametrize(("arguments", "message"), [
    (([[]], 5), "prompt is empty"), (([], 5), "prompt is empty"), (([[1]], 0), "--max-tokens must be positive"),
])
def test_bad_requests_are_refused(small_tokenizer, small_runner, arguments, message):
    with pytest.raises(InputError, match=message):
        generate(small_runner, small_tokenizer, *arguments)


def test_an_empty_stop_string_is_refused(small_tokenizer, small_runner):
    with pytest.raises(InputError, match="--stop"):
        generate(small_runner, small_tokenizer, [[1]], 5, stop=[""])


@pytest.mark.parametrize("kind", ["any", "ties", "masked", "all equal"])
@pytest.mark.parametrize("k", [1, 7, 50, 400, 2999])
def test_largest_finds_what_a_full_sort_finds(kind, k):
    x = np.random.default_rng(k).standard_normal(3000).astype(np.float32)
    x = {"any": x, "ties": x.round(1), "masked": np.where(x > 2, x, -np.inf), "all equal": np.zeros_like(x)}[kind]
    assert largest(x, k).tolist() == np.argsort(-x, kind="stable")[:k].tolist()


@pytest.mark.parametrize("spread", [0.01, 3, 9])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999999])
def test_top_p_over_a_large_vocabulary_keeps_what_a_full_sort_keeps(spread, top_p):
    z = np.random.default_rng(0).standard_normal(20000).astype(np.float32) * spread
    p = np.exp(z.astype(np.float64) - z.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    wanted = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    ids, kept_p = distribution(z, Sampling(temperature=1.0, top_p=top_p))
    assert ids.tolist() == sorted(wanted)
    assert np.allclose(kept_p, p[ids] / p[ids].sum(), rtol=1e-9)


class Circling:
    """A model that goes round the ids 300 to 300 + `circle` - 1 in every row."""

    def __init__(self, vocab_size, circle):
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self._circle = circle

    def __call__(self, tokens, state=None):
        logits = np.zeros((*tokens.shape, self.config.vocab_size), np.float32)
        logits[:, -1][np.arange(len(tokens)), 300 + (tokens[:, -1] - 299) % self._circle] = 1
        return logits, state or Positions(tokens.shape[1])


@pytest.mark.parametrize(("circle", "end", "expected"), [
    (12, True, ("repeat", 100)), (13, True, ("length", 150)), (12, False, ("length", 150))])
def test_a_text_that_only_repeats_itself_ends_where_asked(circle, end, expected, small_tokenizer):
    model = Circling(small_tokenizer.vocab_size, circle)
    run = Generation(model, small_tokenizer, [[300]], 150, Sampling(temperature=0), stop_ids=(), end_repeats=end)
    text = "".join(piece for _, piece in run)
    assert (run.completions[0].finish, len(run.completions[0].ids)) == expected
    assert text == run.completions[0].text == small_tokenizer.decode(run.completions[0].ids)
