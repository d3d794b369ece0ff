"""Texts written together are what each is alone; they wait, are remembered, leave, and fail by themselves."""

import threading
import time

import numpy as np
import pytest

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Row, Sampling, generate
from symboliclight.serve import writer as writing
from symboliclight.serve.memory import Memory
from symboliclight.serve.texts import Busy, Text
from symboliclight.serve.writer import Writer

HOW = Sampling(temperature=1.1, top_k=40)
PROMPTS = ["the old city", "春天的风", "def add(a, b):\n\treturn a", "the light fell on the river; " * 6, ""]


class Told:
    """A text, and all that was told of it."""

    def __init__(self, tokenizer, prompt, seed=0, n=1, max_tokens=25, how=HOW):
        ids = tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt
        rows = [Row(tokenizer, ids, max_tokens, how, stop_ids=(), seed=seed + i) for i in range(n)]
        self.events, self.ended, self.left = [], threading.Event(), n
        self.text = Text(ids, rows, self.tell)

    def tell(self, event):
        self.events.append(event)
        self.left -= bool(event.finish)
        if event.error or not self.left:
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60), "the text never ended"
        return self

    @property
    def done(self):
        return [row.done for row in self.text.rows]


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return engine.load(small_checkpoint, "int8", threads=1)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(writing, "PIECE", 8)


@pytest.mark.parametrize("slots", [3, 16])
def test_texts_written_together_are_those_written_alone(model, small_tokenizer, small_pieces, slots):
    hows = [HOW, Sampling(temperature=0.9, repetition_penalty=1.2)] * 5
    many = [Told(small_tokenizer, p, seed=10 * i, n=1 + i % 3, max_tokens=8 + 9 * i, how=hows[i])
            for i, p in enumerate(PROMPTS * 2)]
    with Writer(model, slots, Memory(1 << 20)) as writer:
        for i, told in enumerate(many):
            writer.submit([told.text])
            time.sleep(0.002 * (i % 3))  # some come while others run
        for told in many:
            told.wait()
    for i, told in enumerate(many):
        n = len(told.done)
        alone = generate(model, small_tokenizer, [told.text.prompt] * n, 8 + 9 * i, hows[i], stop_ids=(), seed=10 * i)
        assert told.done == alone
        for row in range(n):
            assert "".join(e.piece for e in told.events if e.row == row) == told.done[row].text
            assert [e.finish for e in told.events if e.row == row and e.finish] == ["length"]


@pytest.mark.needs("torch")
def test_the_torch_model_and_gpt2_are_written_alike(small_tokenizer, small_config):
    import torch

    import symboliclight
    from symboliclight.core.config import ModelConfig

    torch.manual_seed(0)
    for shape in ({}, {"family": "gpt2", "d_ff": 128}):
        model = symboliclight.build(ModelConfig(**{**vars(small_config), **shape})).eval()
        many = [Told(small_tokenizer, p, seed=i, max_tokens=12) for i, p in enumerate(PROMPTS[:3])]
        with Writer(model, 4, Memory(1 << 20)) as writer:
            writer.submit([t.text for t in many])
            for i, told in enumerate(many):
                alone = generate(model, small_tokenizer, [told.text.prompt], 12, HOW, stop_ids=(), seed=i)
                assert told.wait().done == alone


def test_what_was_read_is_not_read_again_and_changes_nothing(model, small_tokenizer, small_pieces):
    start = small_tokenizer.encode(PROMPTS[3], bos=True)
    with Writer(model, 4, Memory(1 << 20)) as writer:
        def write(ids):
            told = Told(small_tokenizer, ids, seed=5)
            writer.submit([told.text])
            return told.wait()

        first, read = write(start), writer.counts.prompt_tokens
        again = write(start)
        longer = [*start, *first.done[0].ids, 310, 311]
        more = write(longer)
        aside = write([*start[:20], 300, 301])
    assert read == len(start)
    assert (first.text.cached, again.text.cached) == (0, len(start) - 1)
    assert more.text.cached == len(start) + len(first.done[0].ids) - 1
    assert aside.text.cached == 16  # whole pieces of a beginning that two prompts share
    assert writer.counts.prompt_tokens == read + 1 + 3 + 6
    assert first.done == again.done
    for told in (more, aside):
        assert told.done == generate(model, small_tokenizer, [told.text.prompt], 25, HOW, stop_ids=(), seed=5)


def test_running_texts_go_on_while_a_long_prompt_is_read(model, small_tokenizer, small_pieces):
    running, late = Told(small_tokenizer, "a", max_tokens=200), Told(small_tokenizer, [1] + [300] * 160, max_tokens=1)
    with Writer(model, 4, Memory(0)) as writer:
        writer.submit([running.text, late.text])
        late.wait()
        written = len(running.done[0].ids)
        running.wait()
    assert written >= 160 // 8  # at least a token for every piece


def test_a_short_prompt_waits_for_one_piece_of_each_long_one(model, small_tokenizer, small_pieces):
    long = [Told(small_tokenizer, [1] + [300 + i] * 800, max_tokens=1) for i in range(3)]
    short = Told(small_tokenizer, [1, 310, 311], max_tokens=3)
    with Writer(Slow(model), 4, Memory(1 << 20)) as writer:
        writer.submit([t.text for t in long])
        while not writer.counts.prompt_tokens:
            time.sleep(0.001)
        before = writer.counts.prompt_tokens
        writer.submit([short.text])
        short.wait()
        assert writer.counts.prompt_tokens - before <= (4 + 3 + 3) * 8  # a round, those of its tokens, and some luck
        for told in long:
            told.wait()
    for told in [*long, short]:
        ids, tokens = told.text.prompt, len(told.done[0].ids)
        assert told.done == generate(model, small_tokenizer, [ids], tokens, HOW, stop_ids=())


def test_two_long_prompts_with_one_beginning_are_read_once(model, small_tokenizer, small_pieces):
    many = [Told(small_tokenizer, [1] + [300] * 399, max_tokens=4) for _ in range(3)]
    with Writer(model, 4, Memory(1 << 24)) as writer:
        writer.submit([t.text for t in many])
        for told in many:
            told.wait()
        assert writer.counts.prompt_tokens <= 400 + 2 * 8
        assert writer.counts.prompt_tokens + writer.counts.cached_tokens == 3 * 400
    assert many[0].done == many[1].done == generate(model, small_tokenizer, [many[0].text.prompt], 4, HOW, stop_ids=())


def test_a_text_of_many_rows_leaves_no_place_empty(model, small_tokenizer):
    endless, many, late = (Told(small_tokenizer, p, n=n, max_tokens=m)
                           for p, n, m in (("a", 1, 10**9), ("b", 4, 20), ("c", 1, 5)))
    with Writer(model, 4, Memory(0)) as writer:
        writer.submit([endless.text, many.text, late.text])
        many.wait()  # three of its rows have places, and the fourth takes the first that is free
        late.wait()
        endless.text.cancelled = True
    assert many.done == generate(model, small_tokenizer, [many.text.prompt] * 4, 20, HOW, stop_ids=())


def test_rows_that_wait_for_places_get_them_when_all_others_end_at_once(model, small_tokenizer):
    first, second = (Told(small_tokenizer, p, n=3, max_tokens=20) for p in ("a", "b"))
    with Writer(model, 4, Memory(0)) as writer:
        writer.submit([first.text, second.text])
        for told in (first, second):  # two rows of the second have no place until the last of the others has ended
            told.wait()
    assert second.done == generate(model, small_tokenizer, [second.text.prompt] * 3, 20, HOW, stop_ids=())


def test_a_cancelled_text_makes_room_for_another(model, small_tokenizer):
    endless, waiting = Told(small_tokenizer, "a", max_tokens=10**9), Told(small_tokenizer, "b")
    never = Told(small_tokenizer, "c")
    with Writer(model, 1, Memory(0)) as writer:
        writer.submit([endless.text, never.text, waiting.text])
        while not endless.events:
            time.sleep(0.001)
        assert writer.load() == (1, 2)
        never.text.cancelled = endless.text.cancelled = True
        waiting.wait()
        assert not endless.ended.is_set() and not never.events
        while writer.load() != (0, 0):
            time.sleep(0.001)


def test_what_can_never_be_written_is_refused_and_a_full_queue_is_busy(model, small_tokenizer):
    with Writer(model, 2, Memory(0), queue=1) as writer:
        with pytest.raises(InputError, match="n is 3, and 2 texts"):
            writer.submit([Told(small_tokenizer, "a", n=3).text])
        with pytest.raises(InputError, match="520 ids, the prompt one of 520"):
            writer.submit([Told(small_tokenizer, [1, 520]).text])
        with pytest.raises(Busy):
            writer.submit([Told(small_tokenizer, "a").text, Told(small_tokenizer, "b").text])
        told = Told(small_tokenizer, "a")
        writer.submit([told.text])
        told.wait()


def test_who_has_left_takes_no_room_from_those_that_wait(model, small_tokenizer):
    endless, first, gone, last = (Told(small_tokenizer, "a", max_tokens=n) for n in (10**6, 5, 5, 5))
    with Writer(model, 1, Memory(0), queue=2) as writer:
        writer.submit([endless.text])
        while writer.load() != (1, 0):
            time.sleep(0.001)
        writer.submit([first.text, gone.text])
        with pytest.raises(Busy):
            writer.submit([last.text])
        gone.text.cancelled = True
        deadline = time.monotonic() + 60
        while writer.load() != (1, 1):
            assert time.monotonic() < deadline, "the text that left still waits"
            time.sleep(0.001)
        writer.submit([last.text])
        endless.text.cancelled = True
        assert first.wait().done == last.wait().done and not gone.events


class Slow:
    """A model that takes its time for a call."""

    def __init__(self, model):
        self.config, self.model = model.config, model

    def initial_state(self, *arguments):
        return self.model.initial_state(*arguments)

    def last(self, *arguments):
        time.sleep(0.002)
        return self.model.last(*arguments)


class Broken:
    """A model that fails, or gives logits that are not finite, for one token."""

    def __init__(self, model, how):
        self.config, self.model, self.how = model.config, model, how

    def initial_state(self, *arguments):
        return self.model.initial_state(*arguments)

    def last(self, tokens, state, top=0):
        if self.how == "raise" and 333 in tokens:
            raise RuntimeError("out of luck")
        bad = (tokens == 333).any(1)
        logits, state = self.model.last(tokens, state, top)
        logits[bad] = np.nan
        return logits, state


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_failure_ends_its_texts_and_nothing_else(model, small_tokenizer, how):
    greedy = Sampling(temperature=0)
    good, bad, later = (Told(small_tokenizer, p, how=greedy, max_tokens=99) for p in ([1], [1, 333], [1]))
    with Writer(Broken(model, how), 4, Memory(1 << 20)) as writer:
        writer.submit([good.text, bad.text])
        bad.wait()
        writer.submit([later.text])
        later.wait()
    assert isinstance(bad.events[-1].error, RuntimeError if how == "raise" else InputError)
    assert later.done == generate(model, small_tokenizer, [[1]], 99, greedy, stop_ids=())
    if how == "raise":
        while_read = Told(small_tokenizer, [1, 333, 1])
        with Writer(Broken(model, how), 4, Memory(0)) as writer:
            writer.submit([while_read.text])
            while_read.wait()
        assert isinstance(while_read.events[-1].error, RuntimeError)
    else:
        assert good.done == later.done


def test_closing_ends_texts_that_run_and_texts_that_wait(model, small_tokenizer):
    told = [Told(small_tokenizer, "a", max_tokens=10**9) for _ in range(3)]
    with Writer(model, 1, Memory(0)) as writer:
        writer.submit([t.text for t in told])
    for t in told:
        assert  "stopping" in str(t.events[-1].error)


class Sized:
    def __init__(self, nbytes):
        self.nbytes = nbytes

    def copy(self):
        return self


def test_memory_keeps_to_its_limit_and_forgets_what_was_used_longest_ago():
    memory = Memory(400)
    a, b, c = Sized(100), Sized(100), Sized(150)
    for ids, state in (([1], a), ([1, 2], b), ([9], c)):
        memory.keep(ids, state)
    assert memory.nbytes == 100 + 100 + 150 + 4 * 4
    assert memory.find([1, 3]) == (a, 1) and memory.find([1, 2, 3]) == (b, 2)
    memory.keep([7], Sized(100))  # [9] goes
    assert memory.find([9, 1]) == (None, 0) and len(memory) == 3
    memory.keep([8], Sized(1000))
    assert memory.find([8]) == (None, 0) and memory.nbytes <= 400
    assert memory.find([1]) == (a, 1) and memory.find([256 + 1]) == (None, 0)
