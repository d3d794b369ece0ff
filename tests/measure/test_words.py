"""Perplexity per word: counts and nats by hand, one stream against a single forward, the harness's wikitext."""

import math
from dataclasses import replace

import numpy as np
import pytest

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.measure import words

TEXT = (" = Old City = \n \n The sun rose over the <unk> city , and the light fell on the water of the river . \n"
        + " 春天 的 风 吹过 江南 , nobody in the house was <unk> . \n" * 12)


@pytest.fixture(params=["torch", "float32", "int8"])
def model(request, small_checkpoint):
    if request.param == "torch":
        return request.getfixturevalue("small_model")
    return engine.load(small_checkpoint, request.param, threads=1)


def log_p(model, ids):
    tokens = np.array([ids])
    if hasattr(model, "features"):
        import torch

        with torch.no_grad():
            logits = model(torch.from_numpy(tokens))[0].numpy()
    else:
        logits = model(tokens)[0]
    logits = logits[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nats(model, ids):
    """Of all ids but the first, read in one go."""
    return -sum(log_p(model, ids[:-1])[np.arange(len(ids) - 1), ids[1:]])


def test_the_state_is_carried_through_the_whole_text(model, small_tokenizer, monkeypatch):
    monkeypatch.setattr(words, "CHUNK", 37)
    done = []
    found = words.measure(model, small_tokenizer, TEXT, "t", on_tokens=done.append)
    ids = small_tokenizer.encode(TEXT, bos=True)
    own = found["carried"]
    assert own["nats"] == pytest.approx(nats(model, ids), rel=1e-5)
    count = len(TEXT.split()) + TEXT.count("\n")
    assert (own["tokens"], found["line_ends"], found["words"]) == (count, 15, 4 + 19 + 12 * 13)
    assert own["perplexity"] == pytest.approx(math.exp(own["nats"] / count))
    assert own["bits_per_byte"] == pytest.approx(own["nats"] / math.log(2) / len(TEXT.encode()))
    assert sum(done) == len(ids) - 1 == found["pieces"] and "windows" not in found and not found["partial"]


def test_windows_start_without_memory(model, small_tokenizer, monkeypatch):
    monkeypatch.setattr(words, "ROWS", 3)
    found = words.measure(model, small_tokenizer, TEXT, "t", window=30)
    ids = small_tokenizer.encode(TEXT, bos=True)
    assert len(ids) % 30 != 1  # the last window is shorter
    expected = sum(nats(model, ids[at : at + 31]) for at in range(0, len(ids) - 1, 30))
    assert found["windows"]["nats"] == pytest.approx(expected, rel=1e-5)
    assert found["windows"]["tokens"] == found["carried"]["tokens"]
    assert found["windows"]["nats"] != found["carried"]["nats"]


def test_a_model_with_a_limited_context_has_windows_only(small_config, small_tokenizer):
    torch = pytest.importorskip("torch")
    import symboliclight

    torch.manual_seed(1)
    gpt2 = symboliclight.build(replace(small_config, family="gpt2", d_ff=128)).eval()
    found = words.measure(gpt2, small_tokenizer, TEXT, "t")
    ids = small_tokenizer.encode(TEXT, bos=True)
    expected = sum(nats(gpt2, ids[at : at + 65]) for at in range(0, len(ids) - 1, 64))
    assert found["windows"]["nats"] == pytest.approx(expected, rel=1e-5)
    assert "carried" not in found and found["window"] == 64
    with pytest.raises(InputError, match="at most 64 tokens, so --windows may not be 65"):
        words.measure(gpt2, small_tokenizer, TEXT, "t", window=65)


def test_ctrl_c_leaves_the_whole_lines_that_were_read(small_model, small_tokenizer, monkeypatch):
    monkeypatch.setattr(words, "CHUNK", 16)
    ids, seen = small_tokenizer.encode(TEXT, bos=True), []

    def stop(count):
        seen.append(count)
        if sum(seen) >= at:
            raise KeyboardInterrupt

    at = len(small_tokenizer.encode(TEXT[: TEXT.index(" 春天")])) + 20
    found = words.measure(small_model, small_tokenizer, TEXT, "t", window=30, on_tokens=stop)
    read = small_tokenizer.decode(ids[1 : 1 + sum(seen)])
    lines = read[: read.rfind("\n") + 1]
    whole = words.measure(small_model, small_tokenizer, lines, "t")
    assert found["partial"] and "windows" not in found and 0 < len(lines) < len(TEXT)
    assert found["carried"] == pytest.approx(whole["carried"], rel=1e-5)
    at = 1
    seen.clear()
    with pytest.raises(InputError, match="not one line"):
        words.measure(small_model, small_tokenizer, "the light " * 40, "t", on_tokens=stop)


def test_a_corpus_without_words_is_refused(small_model, small_tokenizer):
    with pytest.raises(InputError, match=r"empty\.txt has no words"):
        words.measure(small_model, small_tokenizer, " \n\n", "empty.txt")


PAGE = " = Old =\nThe sun rose over the city\nNobody sees the <unk> river\n"  # its detokenizer leaves it as it is


@pytest.mark.parametrize("precision", [None, "float32"])
def test_wikitext_of_the_harness_finds_the_same(small_checkpoint, tmp_path, precision, monkeypatch):
    """One page of a window: the harness divides by what re.split counts, one more for each end that is blank."""
    pytest.importorskip("lm_eval")
    import json

    import datasets
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    from symboliclight.interop.lm_eval import HarnessModel, evaluate_tasks

    assert wikitext_detokenizer({"page": PAGE}) == PAGE
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "pages.jsonl"
    file.write_text(json.dumps({"page": PAGE}), encoding="utf-8")
    (tmp_path / "local.yaml").write_text(
        "group: local_words\ntask:\n  - task: wikitext\n    dataset_path: json\n    dataset_name: null\n"
        "    training_split: null\n    validation_split: null\n"
        f"    dataset_kwargs:\n      data_files:\n        test: {file}\n", encoding="utf-8")
    model = HarnessModel(str(small_checkpoint), precision, max_length=512)
    harness = evaluate_tasks(model, ["local_words"], [tmp_path])["results"]["wikitext"]
    own = words.measure(model.model, model._tokenizer, PAGE, "p", window=512)
    assert own["pieces"] < 512
    for way in ("carried", "windows"):
        assert own[way]["bits_per_byte"] == pytest.approx(harness["bits_per_byte,none"], rel=1e-5)
        counted = own["words"] + 2
        assert own[way]["nats"] == pytest.approx(math.log(harness["word_perplexity,none"]) * counted, rel=1e-5)
        assert own[way]["word_perplexity"] == pytest.approx(math.exp(own[way]["nats"] / 14), rel=1e-9)
