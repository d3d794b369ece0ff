"""Last words and questions with choices: layouts, figures by hand, and the harness's own tasks."""

import json
import math

import numpy as np
import pytest

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.measure import cloze
from symboliclight.measure.likelihood import loglikelihoods

LAMBADA = ["The sun rose over the old city, and the light fell on the water of the river",
           "Nobody in the house was awake; nobody in the house", "The old people went home\n\n\"And the light"]
PIQA = [("How do I cross the river?", "By the old bridge.", "Through the light of the sun, in the house."),
        ("wake the house", "Sing in the water.", "Sing in the house"), ("see the sun", "look up ", "look at the river"),
        ("find the city", "follow the river", "follow nobody"), ("water", "drink it", "read it")]
LABELS = [0, 1, 0, 1, 1]
C3 = [[["男：春天的风吹过哪里?", "女：江南的小镇。"],
       [{"question": "风吹过哪里?", "choice": ["山", "江南的小镇", "桥下"], "answer": "江南的小镇"}], "1-2"],
      [["孩子们在河边唱歌。"], [{"question": "谁唱歌?", "choice": ["老人", "孩子们"], "answer": "孩子们"},
                        {"question": "在哪里?", "choice": ["河边", "山"], "answer": "河边"}], "1-3"]]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def piqa_rows():
    return [{"goal": goal, "sol1": one, "sol2": two} for goal, one, two in PIQA]


def test_layouts_are_told_apart_and_prompted():
    word, = cloze.parse(jsonl([{"text": LAMBADA[0]}]), "l.jsonl")
    assert (word.context, word.choices, word.before) == (LAMBADA[0][: -len(" river")], ("river",), " ")
    one = cloze.parse(jsonl(piqa_rows()), "v.jsonl", "0\n1\n0\n1\n1\n")[1]
    assert one == cloze.Question("Question: wake the house\nAnswer:", PIQA[1][1:], 1, " ", "v.jsonl")
    assert cloze.parse(jsonl([{**piqa_rows()[0], "label": 1}]), "v.jsonl")[0].answer == 1
    first, _, third = cloze.parse(json.dumps(C3, ensure_ascii=False), "c3.json")
    assert first.context == "文章：男：春天的风吹过哪里?\n女：江南的小镇。\n问题：风吹过哪里?\n答案："
    assert (first.answer, first.before, third.choices, third.answer) == (1, "", ("河边", "山"), 0)


@pytest.mark.parametrize(("text", "labels", "message"), [
    ('{"text": "One"}', None, r"f\.jsonl:1: text must end with a word"),
    ('{"words": 1}', None, r"f\.jsonl:1 has no text, only words"), ("text", None, r"f\.jsonl:1 is not JSON"),
    ('{"text": ""}', None, r"f\.jsonl:1: text is empty"),
    ("", None, "holds no question"), (jsonl(piqa_rows()), None, r"f\.jsonl:1 has no label; put f-labels\.lst"),
    (jsonl(piqa_rows()), "0\n1\n", r"f-labels\.lst has 2 labels for 5 lines"),
    (jsonl(piqa_rows()), "0\n1\n2\n0\n0\n", r"f-labels\.lst:3 is not 0 or 1"),
    ('{"goal": "a", "sol1": "b", "label": 0}', None, r"f\.jsonl:1 has no sol2"),
    ('{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}', None, r"f\.jsonl:1: the label must be 0 or 1, got 2"),
    ("[1, 2]", None, r"f\.jsonl, passage 1 is not \[lines"), ("[[", None, r"f\.jsonl is not JSON"),
    ('[[["a"], [{"question": "b", "choice": ["c"], "answer": "d"}], "1"]]', None, "passage 1: the answer 'd'"),
])
def test_what_is_no_question_is_named(text, labels, message):
    with pytest.raises(InputError, match=message):
        cloze.parse(text, "f.jsonl", labels)


def test_figures_by_hand():
    word = cloze.Question("a", ("b",), 0, " ", "f")
    found = cloze.figures([(word, [(-1.0, True)]), (word, [(-3.0, False)])])
    assert found["accuracy"] == 0.5 and found["perplexity"] == pytest.approx(math.exp(2)) and found["count"] == 2
    question = cloze.Question("a", ("long answer", "b"), 0, " ", "f")
    both = cloze.figures([(question, [(-11.0, False), (-2.0, False)]), (question, [(-5.5, False), (-5.5, False)])])
    assert both["accuracy"] == 0.25  # wrong, then a tie
    assert both["by_byte"]["accuracy"] == 1.0 and both["chance"] == 0.5


def test_a_context_that_is_too_long_loses_its_beginning(small_checkpoint, small_tokenizer):
    model = engine.load(small_checkpoint, "float32", threads=1)
    text = " ".join(["the light fell on the water"] * 30)
    found = cloze.measure(model, small_tokenizer, cloze.parse(jsonl([{"text": text}]), "l.jsonl"))
    ids = small_tokenizer.encode(text, bos=True)
    count = len(ids) - len(small_tokenizer.encode(text[: -len(" water")], bos=True))
    (score, _), = loglikelihoods(model, [(ids[-65:-count], ids[-count:])])
    assert found["files"]["l.jsonl"]["perplexity"] == pytest.approx(math.exp(-score), rel=1e-5)
    assert found["max_length"] == 64


@pytest.mark.parametrize("precision", [None, "float32"])
def test_lambada_and_piqa_of_the_harness_find_the_same(small_checkpoint, tmp_path, precision, monkeypatch):
    pytest.importorskip("lm_eval")
    import datasets

    from symboliclight.interop.lm_eval import HarnessModel, evaluate_tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {"lambada_openai": tmp_path / "lambada.jsonl", "piqa": tmp_path / "piqa.jsonl"}
    files["lambada_openai"].write_text(jsonl([{"text": text} for text in LAMBADA]), encoding="utf-8")
    rows = [{**row, "label": label} for row, label in zip(piqa_rows(), LABELS, strict=True)]
    files["piqa"].write_text(jsonl(rows), encoding="utf-8")
    entries = "".join(
        f"  - task: {task}\n    dataset_path: json\n    dataset_name: null\n    dataset_kwargs:\n      data_files:\n"
        f"        {split}: {files[task]}\n" + "".join(f"    {other}_split: null\n" for other in none)
        for task, split, none in (("lambada_openai", "test", ()), ("piqa", "validation", ("training",))))
    metrics = "    metric_list:\n" + "".join(f"      - metric: {m}\n        aggregation: mean\n"
                                             "        higher_is_better: true\n" for m in ("acc", "acc_bytes"))
    (tmp_path / "local.yaml").write_text(f"group: local_cloze\ntask:\n{entries}{metrics}", encoding="utf-8")
    model = HarnessModel(str(small_checkpoint), precision)
    found = evaluate_tasks(model, ["local_cloze"], [tmp_path])["results"]
    questions = [q for file in files.values() for q in cloze.parse(file.read_text(encoding="utf-8"), file.name)]
    own = cloze.measure(model.model, model._tokenizer, questions)["files"]
    assert own["lambada.jsonl"]["perplexity"] == pytest.approx(found["lambada_openai"]["perplexity,none"], rel=1e-5)
    assert own["lambada.jsonl"]["accuracy"] == found["lambada_openai"]["acc,none"]
    assert own["piqa.jsonl"]["accuracy"] == pytest.approx(found["piqa"]["acc,none"])
    assert own["piqa.jsonl"]["by_byte"]["accuracy"] == pytest.approx(found["piqa"]["acc_bytes,none"])


def test_chinese_choices_are_scored_after_the_prompt(small_model, small_tokenizer):
    questions = cloze.parse(json.dumps(C3, ensure_ascii=False), "c3.json")
    found = cloze.measure(small_model, small_tokenizer, questions, max_length=200)["files"]["c3.json"]
    right = []
    for question in questions:
        before = small_tokenizer.encode(question.context, bos=True)
        scores = [score for score, _ in loglikelihoods(
            small_model, [(before, small_tokenizer.encode(choice)) for choice in question.choices])]
        right.append(int(np.argmax(scores)) == question.answer)
    assert found["accuracy"] == pytest.approx(np.mean(right)) and found["chance"] == pytest.approx(4 / 9)
