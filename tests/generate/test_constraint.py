"""Text by a schema, a regular expression or a grammar: whatever a model prefers, what it writes matches."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from symboliclight.core.errors import InputError
from symboliclight.generate.distribution import Sampling
from symboliclight.generate.sampling import Row

pytest.importorskip("llguidance")
from symboliclight.generate.constraint import KEPT, Grammars, grammars

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"},
                                           "likes": {"type": "array", "items": {"enum": ["茶", "tea"]}, "maxItems": 3}},
          "required": ["name", "age", "likes"], "additionalProperties": False}


def is_person(value):
    return (set(value) == set(PERSON["properties"]) and isinstance(value["name"], str) and len(value["name"]) <= 8
            and type(value["age"]) is int and len(value["likes"]) <= 3 and set(value["likes"]) <= {"茶", "tea"})


def written(tokenizer, kind, text, seed, max_tokens=400, stop_ids=None, prefer=()):
    """What a model of random logits writes; `prefer` are ids that it likes best, and end what could go on for ever."""
    rng = np.random.default_rng(seed)
    row = Row(tokenizer, [1], max_tokens, Sampling(temperature=1.0), (), stop_ids, seed,
              constraint=grammars(tokenizer).constraint(kind, text))
    assert row.top(SimpleNamespace(config=SimpleNamespace(vocab_size=tokenizer.vocab_size))) == 0
    while not row.done.finish:
        logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
        logits[list(prefer)] += 4
        row.choose(logits)
    return row.done


@pytest.mark.parametrize("seed", range(12))
def test_json_is_valid_and_follows_its_schema(seed, small_tokenizer):
    ends = [small_tokenizer.encode(c)[-1] for c in '"}],'] + [small_tokenizer.eos_id]
    done = written(small_tokenizer, "json", json.dumps(PERSON), seed, prefer=ends)
    assert done.finish == "stop" and is_person(json.loads(done.text))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", ["[a-z]{3}-[0-9]{2}", "你好，(世界|朋友)[！。]", "[一-十]{2,4}x", "(🐦|🦜)+é"])
def test_text_matches_its_regular_expression_in_any_script(pattern, seed, small_tokenizer):
    """Most of these characters are several byte pieces to this tokenizer: none is left half written."""
    done = written(small_tokenizer, "regex", pattern, seed, prefer=[small_tokenizer.eos_id])
    assert done.finish == "stop" and re.fullmatch(pattern, done.text), done.text


def test_a_choice_is_one_of_them_and_characters_of_patterns_are_text(small_tokenizer):
    options = ["yes.*", "no (never)", "也许"]
    found = {written(small_tokenizer, "choice", json.dumps(options), seed).text for seed in range(20)}
    assert found == set(options)


@pytest.mark.parametrize("grammar", ['start: "a"+ "b"', 'root ::= "a" as "b"\nas ::= "a" as | ""'])
def test_grammars_of_lark_and_of_llama_cpp(grammar, small_tokenizer):
    done = written(small_tokenizer, "grammar", grammar, 3)
    assert re.fullmatch("a+b", done.text) and done.finish == "stop"


def test_a_text_that_may_end_ends_by_any_stop_id_and_only_then(small_tokenizer):
    end = small_tokenizer.special("end")
    done = written(small_tokenizer, "regex", "x{3}y*", 0, stop_ids={end}, prefer=[end])
    assert done.text == "xxx" and done.ids[-1] == end and done.finish == "stop"
    done = written(small_tokenizer, "regex", "x*", 0, max_tokens=9, stop_ids=(), prefer=[end])
    assert done.text.startswith("xxx") and done.finish == "length"  # special pieces are never written


def test_a_text_that_is_cut_off_says_so(small_tokenizer):
    done = written(small_tokenizer, "json", json.dumps({"type": "string", "minLength": 50}), 0, max_tokens=10)
    assert done.finish == "length"


@pytest.mark.parametrize(("kind", "text", "message"), [
    ("json", '{"type": "nothing"}', "nothing"), ("json", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json", "[", "json"), ("regex", "(", "unclosed"), ("grammar", "start: x", "x"),
    ("grammar", "root ::= (", "grammar")])
def test_what_is_wrong_or_not_done_is_said_in_one_line(kind, text, message, small_tokenizer):
    with pytest.raises(InputError, match=message) as error:
        grammars(small_tokenizer).constraint(kind, text)
    assert "\n" not in str(error.value)


def test_a_grammar_is_compiled_once_and_few_are_kept(small_tokenizer, monkeypatch):
    made, ours = [], Grammars(small_tokenizer)
    compiled = ours._compile
    monkeypatch.setattr(ours, "_compile", lambda kind, text: made.append(text) or compiled(kind, text))
    for text in ["a", "b", "a", *(f"c{i}" for i in range(KEPT - 1)), "a", "b"]:
        ours.constraint("regex", text)
    assert made == ["a", "b", *(f"c{i}" for i in range(KEPT - 1)), "b"]


def test_texts_of_one_grammar_do_not_meet(small_tokenizer):
    one, other = (grammars(small_tokenizer).constraint("regex", "ab") for _ in range(2))
    a, b = (small_tokenizer.encode(c)[-1] for c in "ab")
    assert not one.push(a) and one.push(b)
    logits = np.zeros(small_tokenizer.vocab_size, np.float32)
    other.mask(logits, ())
    assert logits[a] == 0 and logits[b] == -np.inf
