"""Minimal pairs: layouts, credit and intervals by hand, scores against whole sentences, and the harness's own tasks."""

import json
import math

import numpy as np
import pytest

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.measure import items, pairs
from symboliclight.measure.likelihood import loglikelihoods

BLIMP = [
    ("The cat sleeps in the house.", "The cat sleep in the house."),
    ("Nobody sees the river.", "Nobody see the river."),
    ("The light that the people love is old.", "The light that the people love are old."),
    ("Some houses fell on the city.", "Some house fell on the city."), ("A river is awake.", "A rivers is awake."),
    ("Who rose over the city?", "Whom rose over the city?"), ("The sun fell.", "The sun fell the."),
]
CHINESE = [("桥下的水慢慢地流着。", "桥下的水流着慢慢地。"), ("老人坐在树下。", "老人坐树在下。"),
           ("他把书看了。", "他把看了书。"),
           ("孩子们在河边唱歌。", "孩子们唱歌在河边着。"), ("一条河。", "一只河。")]


def blimp_rows(uid="cat_sleeps", term="agreement"):
    return [{"sentence_good": good, "sentence_bad": bad, "field": "morphology", "linguistics_term": term, "UID": uid,
             "simple_LM_method": True, "pairID": str(i)} for i, (good, bad) in enumerate(BLIMP)]


def zhoblimp_rows():
    return [{"UID": "word_order", "phenomenon": "order", "sentence_good": good, "sentence_bad": bad, "pairID": i}
            for i, (good, bad) in enumerate(CHINESE)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(params=["torch", "float32", "int8"])
def model(request, small_checkpoint):
    if request.param == "torch":
        return request.getfixturevalue("small_model")
    return engine.load(small_checkpoint, request.param, threads=1)


def test_the_three_layouts_are_told_apart_by_their_fields():
    blimp = pairs.parse(jsonl(blimp_rows()), "a/cat_sleeps.jsonl")[1]
    assert blimp == pairs.MinimalPair(*BLIMP[1], "cat_sleeps", "agreement", "morphology", " ", "a/cat_sleeps.jsonl",
                                      "a/cat_sleeps.jsonl:2")
    zho = pairs.parse(jsonl(zhoblimp_rows()), "word_order.jsonl")[0]
    assert (zho.paradigm, zho.phenomenon, zho.field, zho.before) == ("word_order", "order", "", "")
    sling = {"sentence_good": "甲。", "sentence_bad": "乙。", "phenomenon": "Anaphor", "paradigm": "Plural",
             "pair_ID": 0, "field": "syntax"}
    older = {"sentence_good": "甲。", "sentence_bad": "乙。", "Phenomenon": "Reflexive", "Paradigm": "animacy",
             "phenomenon": "other", "field": "syntax"}
    found = pairs.parse(jsonl([sling, older]), "sling/cl_self.jsonl")
    assert [(p.paradigm, p.phenomenon, p.field, p.before) for p in found] == [
        ("cl_self", "Anaphor", "syntax", ""), ("cl_self", "Reflexive", "syntax", "")]


@pytest.mark.parametrize(("text", "message"), [
    ('{"sentence_good": "A."}', r"f\.jsonl:1 has no sentence_bad, only sentence_good"),
    ('\n{"sentence_good": "A.", "sentence_bad": ""}', r"f\.jsonl:2: sentence_bad is empty"),
    ('{"sentence_good": " ", "sentence_bad": "B."}', r"f\.jsonl:1: sentence_good is not text, or blank"),
    ('{"sentence_good": 3, "sentence_bad": "B."}', r"f\.jsonl:1: sentence_good is not text"),
    ('{"sentence_good": "A.", "sentence_bad": "B."}\nplain', r"f\.jsonl:2 is not JSON"),
    ("[1, 2]", r"f\.jsonl:1 is not a JSON object"), ("\n \n", r"f\.jsonl holds no minimal pair"),
])
def test_a_line_that_is_no_pair_is_named(text, message):
    with pytest.raises(InputError, match=message):
        pairs.parse(text, "f.jsonl")


def test_wilson_interval_agrees_with_known_values():
    """15 of 20 by hand; the ends stay within 0 and 1."""
    z = 1.959964
    root = math.sqrt(0.75 * 0.25 / 20 + z * z / 1600)
    assert items.wilson(15, 20) == pytest.approx([(0.75 + z * z / 40 + s * z * root) / (1 + z * z / 20)
                                                  for s in (-1, 1)])
    assert items.wilson(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert items.wilson(0, 10)[0] == 0 and items.wilson(10, 10)[1] == pytest.approx(1)
    assert items.wilson(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_ties_share_the_credit():
    assert [items.credit(scores, 0) for scores in ([-1, -2], [-2, -1], [-1, -1], [-1, -1, -1])] == [1, 0, 0.5, 1 / 3]


def test_figures_group_by_paradigm_phenomenon_and_field():
    read = pairs.parse(jsonl(blimp_rows()), "x/a.jsonl") + pairs.parse(jsonl(blimp_rows()), "y/a.jsonl")
    read += pairs.parse(jsonl(zhoblimp_rows()), "z.jsonl")
    found = pairs.figures(read, [1.0] * 7 + [0.0] * 6 + [0.5] + [1, 0, 1, 0.5, 1])
    assert {name: (row["count"], row["accuracy"]) for name, row in found["paradigms"].items()} == {
        "cat_sleeps (x/a.jsonl)": (7, 1), "cat_sleeps (y/a.jsonl)": (7, 0.5 / 7), "word_order": (5, 0.7)}
    assert found["phenomena"]["agreement"]["accuracy"] == 7.5 / 14 and list(found["fields"]) == ["morphology"]
    assert found["all"]["accuracy"] == 11 / 19 and found["ties"] == 2
    assert found["mean_over_paradigms"] == pytest.approx((1 + 0.5 / 7 + 0.7) / 3)


def whole(model, tokenizer, text):
    (score, _), = loglikelihoods(model, [([tokenizer.bos_id], tokenizer.encode(text))])
    return score


def test_the_parts_that_differ_decide_as_whole_sentences_do(model, small_tokenizer):
    read = pairs.parse(jsonl(blimp_rows()), "b.jsonl") + pairs.parse(jsonl(zhoblimp_rows()), "z.jsonl")
    for pair in read:
        (good, _), (bad, _) = loglikelihoods(model, pairs.choices(small_tokenizer, pair))
        alone = [whole(model, small_tokenizer, pair.before + text) for text in (pair.good, pair.bad)]
        assert good - bad == pytest.approx(alone[0] - alone[1], abs=1e-4)
    found = pairs.measure(model, small_tokenizer, read)
    right = [whole(model, small_tokenizer, p.before + p.good) > whole(model, small_tokenizer, p.before + p.bad)
             for p in read]
    assert found["all"]["accuracy"] == pytest.approx(np.mean(right)) and not found["partial"]


def test_two_equal_sentences_are_a_tie(small_model, small_tokenizer):
    same = [{"sentence_good": "A river.", "sentence_bad": "A river."}]
    found = pairs.measure(small_model, small_tokenizer, pairs.parse(jsonl(same), "e.jsonl"))
    assert found["all"]["accuracy"] == 0.5 and found["ties"] == 1 and found["phenomena"] == {}


def test_a_sentence_that_begins_its_twin_is_likelier(small_model, small_tokenizer):
    row = [{"sentence_good": "A river", "sentence_bad": "A river is a river"}]
    assert pairs.measure(small_model, small_tokenizer, pairs.parse(jsonl(row), "e.jsonl"))["all"]["accuracy"] == 1


def test_a_sample_is_the_same_each_time_and_of_every_paradigm():
    read = pairs.parse(jsonl(blimp_rows()), "a.jsonl") + pairs.parse(jsonl(zhoblimp_rows()), "z.jsonl")
    some = pairs.sample(read, 3)
    assert some == pairs.sample(read, 3) and set(some) <= set(pairs.sample(read))
    assert sorted(p.paradigm for p in some) == ["cat_sleeps"] * 3 + ["word_order"] * 3
    assert sorted(map(str, pairs.sample(read))) == sorted(map(str, read)) and pairs.sample(read) != read


def test_ctrl_c_leaves_what_was_done(small_model, small_tokenizer, monkeypatch):
    monkeypatch.setattr(items, "AT_ONCE", 3)
    read = pairs.parse(jsonl(blimp_rows()), "a.jsonl")

    def stop(count):
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    done = []
    found = pairs.measure(small_model, small_tokenizer, read, stop)
    first = pairs.measure(small_model, small_tokenizer, read[:6])
    assert found.pop("partial") and not first.pop("partial") and found == first

    def at_once(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(items, "loglikelihoods", at_once)
    with pytest.raises(InputError, match="not one minimal pair"):
        pairs.measure(small_model, small_tokenizer, read)


@pytest.mark.parametrize("precision", [None, "float32"])
def test_blimp_and_zhoblimp_of_the_harness_find_the_same(small_checkpoint, tmp_path, precision, monkeypatch):
    pytest.importorskip("lm_eval")
    import datasets

    from symboliclight.interop.lm_eval import HarnessModel, evaluate_tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    entries, read = "", []
    for task, rows in (("blimp_adjunct_island", blimp_rows()), ("zhoblimp_BA_deletion", zhoblimp_rows())):
        file = tmp_path / f"{task}.jsonl"
        file.write_text(jsonl(rows), encoding="utf-8")
        read.append(pairs.parse(jsonl(rows), str(file)))
        entries += (f"  - task: {task}\n    dataset_path: json\n    dataset_name: null\n    dataset_kwargs:\n"
                    f"      data_files:\n        train: {file}\n")
    (tmp_path / "local.yaml").write_text(f"group: local_pairs\ntask:\n{entries}", encoding="utf-8")
    model = HarnessModel(str(small_checkpoint), precision)
    found = evaluate_tasks(model, ["local_pairs"], [tmp_path])["results"]
    for task, own in zip(("blimp_adjunct_island", "zhoblimp_BA_deletion"), read, strict=True):
        assert 0 < found[task]["acc,none"] < 1  # a model that always takes one side would prove little
        assert pairs.measure(model.model, model._tokenizer, own)["all"]["accuracy"] == pytest.approx(
            found[task]["acc,none"])
