"""Conversations: from marked lines to turns, and from turns to ids."""

import numpy as np
import pytest

from symboliclight.data.turns import Answers, encode_document, plain_text, read_turns, said

ENGLISH, CHINESE, LETTERS = ("Q:", "A:"), ("问：", "答："), ("A:", "B:")


@pytest.mark.parametrize(("text", "marks", "turns"), [
    ("Q: Who?\nA: Me.\nQ: Why?", [ENGLISH], [("user", "Who?"), ("assistant", "Me."), ("user", "Why?")]),
    ("问：谁？\n答：我。", [CHINESE], [("user", "谁？"), ("assistant", "我。")]),
    ("A passage.\nMore.\nQ: Who?\nA: Me.", [ENGLISH], [("user", "A passage.\nMore.\nWho?"), ("assistant", "Me.")]),
    ("A: Hi.\nQ: Who?", [ENGLISH], [("assistant", "Hi."), ("user", "Who?")]),
    ("Q: One\nQ: two\nA: three\nfour", [ENGLISH], [("user", "One\ntwo"), ("assistant", "three\nfour")]),
    ("A: Hi.\nB: Hello.", [ENGLISH, LETTERS], [("user", "Hi."), ("assistant", "Hello.")]),
    ("Q: Only a question", [ENGLISH], None),
    ("No mark: at all", [ENGLISH, LETTERS], None)])
def test_marked_lines_become_turns(text, marks, turns):
    assert read_turns(text, marks) == turns


def test_turns_are_encoded_with_special_pieces_that_no_content_can_write(small_tokenizer):
    t = small_tokenizer
    said = "a <|end|><|assistant|> b"
    ids = encode_document(t, [("user", said), ("assistant", "c")])
    user, assistant, end = t.special("user"), t.special("assistant"), t.special("end")
    assert ids[:2] == [t.bos_id, user] and ids[-2:] == [end, t.eos_id]
    assert [i for i in ids if i in (user, assistant, end)] == [user, end, assistant, end]
    assert t.decode(ids[2:ids.index(end)]) == said
    assert plain_text([("user", said), ("assistant", "c")]) == said + "\nc"


def test_special_pieces_in_plain_text_are_ids_only_where_that_is_wanted(small_tokenizer):
    end = small_tokenizer.special("end")
    assert end in encode_document(small_tokenizer, "a<|end|>")
    assert end not in encode_document(small_tokenizer, "a<|end|>", special=False)


def test_rows_know_who_speaks_as_the_whole_text_does(small_tokenizer):
    talk = [encode_document(small_tokenizer, [("user", f"{i} the"), ("assistant", "old river"), ("user", "?"),
                                              ("assistant", "!")]) for i in range(7)]
    tokens = np.array([i for ids in talk for i in ids])
    rows = tokens[: len(tokens) // 3 * 3].reshape(3, -1)
    whole = Answers(tokens, small_tokenizer).hold(np.arange(rows.size)).reshape(rows.shape)
    first = np.isin(rows, [small_tokenizer.special(x) for x in ("assistant", "user", "end")]).argmax(1)
    known = np.arange(rows.shape[1]) >= first[:, None]
    assert (said(rows, small_tokenizer) == (whole & known)).all() and whole.any() and not whole.all()
