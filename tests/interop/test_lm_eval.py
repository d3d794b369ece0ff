"""The harness on our models: the three kinds of request against direct computation, and its own tasks on local data."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import symboliclight
from symboliclight.commands import cli
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.interop.lm_eval import HarnessModel, register
from symboliclight.measure.evaluate import evaluate_text

RUNNERS = ("torch", "gpt2", "float32", "int8")
QUESTION = "What is in the {} of the old city?"
CHOICES = ["the water of the river", "light", "nobody", "a house, and the light"]
WIKITEXT = " \n".join([
    "", " = Old City =", "",
    " The sun rose over 2 @,@ 000 houses , and the light fell on the city 's \" old \" river .", "",
    " = = River = =", "", " Nobody ( in the house ) was awake ; it was a well @-@ known river .", "",
    " = Harbour ( film ) =", "", " A film about water .", ""])
PLAIN = (' = Old City =\n\nThe sun rose over 2,000 houses, and the light fell on the city\'s "old" river.\n\n'
         "== River ==\n\nNobody (in the house) was awake; it was a well-known river.\n\n",
         " = Harbour (film) =\n\nA film about water.\n")


@pytest.fixture(scope="session")
def gpt2_checkpoint(small_config, small_tokenizer, tmp_path_factory):
    torch.manual_seed(1)
    config = replace(small_config, family="gpt2", d_ff=128)
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    checkpoint.save(folder, config, symboliclight.build(config).state_dict(), small_tokenizer)
    return folder


@pytest.fixture(params=RUNNERS)
def harness(request, small_checkpoint, gpt2_checkpoint):
    folder = gpt2_checkpoint if request.param == "gpt2" else small_checkpoint
    return HarnessModel(str(folder), request.param if request.param in ("float32", "int8") else None)


@pytest.fixture(autouse=True)
def local_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def ask(kind, *arguments):
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def log_p(model, ids):
    """Log-probabilities (T, V) after each of the ids."""
    tokens = np.array([ids])
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens) if hasattr(model, "features") else tokens)[0]
    return torch.as_tensor(logits)[0].double().log_softmax(-1).numpy()


def score(model, context, continuation):
    p = log_p(model, [*context, *continuation[:-1]])[len(context) - 1 :]
    return sum(p[i, token] for i, token in enumerate(continuation))


def test_loglikelihood_is_that_of_the_whole_text_less_its_context(harness):
    encode = harness._tokenizer.encode
    asked = [("the old city", " and the light"), ("the old city ", "x"), ("", "the river"), ("桥下的水", " A")]
    found = harness.loglikelihood(ask("loglikelihood", *asked), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(asked, found, strict=True):
        before, whole = encode(context.rstrip(), bos=True), encode(context + continuation, bos=True)
        assert whole[: len(before)] == before and len(whole) > len(before)
        assert value == pytest.approx(score(harness.model, before, whole[len(before) :]), abs=1e-3)
        assert greedy is False


def test_a_continuation_is_scored_in_full_where_a_piece_would_span_the_border(harness):
    encode = harness._tokenizer.encode
    context, continuation = "春天的风吹", "过江南的小镇"
    assert len(encode(context + continuation)) < len(encode(context)) + 2
    (value, _), = harness.loglikelihood(ask("loglikelihood", (context, continuation)), disable_tqdm=True)
    assert value == pytest.approx(score(harness.model, encode(context, bos=True), encode(continuation)), abs=1e-3)


def test_a_context_that_is_too_long_loses_its_beginning(harness):
    context, continuation = "nobody in the house was awake;" * 12, " the river"
    whole = harness.tok_encode(context + continuation)
    assert len(whole) > harness.max_length + 1 == 65
    (value, _), = harness.loglikelihood(ask("loglikelihood", (context, continuation)), disable_tqdm=True)
    count = len(whole) - len(harness.tok_encode(context))
    assert value == pytest.approx(score(harness.model, whole[-65:-count], whole[-count:]), abs=1e-3)


def text_of(tokenizer, count):
    """A text of exactly so many tokens."""
    ids = tokenizer.encode("春天的风吹过江南的小镇, and the light fell on the water of the river; " * 20)[:count]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    return text


@pytest.mark.parametrize("count", [1, 40, 64, 128])
def test_rolling_loglikelihood_is_the_nats_of_evaluate(harness, small_checkpoint, gpt2_checkpoint, count):
    text = text_of(harness._tokenizer, count)
    value, = harness.loglikelihood_rolling(ask("loglikelihood_rolling", (text,)), disable_tqdm=True)
    if harness._about["precision"] == "int8":
        windows = [harness.tok_encode(text)[at : at + 65] for at in range(0, count, 64)]
        assert value == pytest.approx(sum(score(harness.model, ids[:1], ids[1:]) for ids in windows), abs=1e-3)
        return
    model, tokenizer = symboliclight.load(harness._about["model_folder"])
    figures = evaluate_text(model, tokenizer, text, seq_len=64)["domains"]["text"]
    assert figures["tokens"] == count
    assert -value == pytest.approx(figures["nats_per_token"] * count, abs=2e-3)


def test_rolling_windows_predict_every_token_of_every_text_once(harness):
    text = text_of(harness._tokenizer, 100)
    values = harness.loglikelihood_rolling(ask("loglikelihood_rolling", (text,), ("the",)), disable_tqdm=True)
    ids = harness.tok_encode(text)
    second = score(harness.model, ids[36:65], ids[65:])  # the last window is full: it begins before its first target
    assert values[0] == pytest.approx(score(harness.model, ids[:1], ids[1:65]) + second, abs=1e-3)
    the = harness.tok_encode("the")
    assert values[1] == pytest.approx(score(harness.model, the[:1], the[1:]), abs=1e-3)


def test_texts_are_continued_greedily_until_a_stop(harness):
    prompts = ["the old", "春天", "nobody in the house was awake; " * 12]
    free = harness.generate_until(ask("generate_until", *[(p, {"until": [], "max_gen_toks": 12}) for p in prompts]),
                                  disable_tqdm=True)
    for prompt, text in zip(prompts, free, strict=True):
        ids = harness.tok_encode(prompt)[-(64 - 12) :]
        assert text == generate(harness.model, harness._tokenizer, [ids], 12, Sampling(temperature=0))[0].text != ""
    stop = free[0][3:5]
    cut, = harness.generate_until(ask("generate_until", (prompts[0], {"until": stop, "max_gen_toks": 12})),
                                  disable_tqdm=True)
    assert cut == free[0][: free[0].index(stop)]


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size must be positive"), ({"max_length": 1}, "max_length must be in 2..1"),
    ({"model": "/nowhere"}, "/nowhere"),
])
def test_a_model_that_cannot_be_had_is_refused(small_checkpoint, options, message):
    with pytest.raises(InputError, match=message):
        HarnessModel(**{"model": str(small_checkpoint), **options})


def test_gpt2_reads_no_more_than_its_context(gpt2_checkpoint):
    with pytest.raises(InputError, match=r"2\.\.64"):
        HarnessModel(str(gpt2_checkpoint), max_length=65)


def test_the_harness_knows_the_model_beside_its_own():
    register()
    assert get_model("symboliclight") is HarnessModel
    assert get_model("dummy").__name__ == "DummyLM"
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    group, name, value = re.search(r'entry-points\."(lm_eval\.models)"\]\n(\w+) = "(.+)"', project).groups()
    assert importlib.metadata.EntryPoint(name, value, group).load() is HarnessModel and name == "symboliclight"


@pytest.fixture
def local_tasks(tmp_path):
    """ARC as the hub keeps it (Parquet and a card) and C-Eval as its archive does (CSV); tasks pointed at them."""
    arc, ceval, tasks = tmp_path / "ai2_arc", tmp_path / "ceval-exam", tmp_path / "tasks"
    for folder in (arc / "ARC-Easy", ceval / "dev", ceval / "val", tasks):
        folder.mkdir(parents=True)
    rows = [{"id": str(i), "question": QUESTION.format(place), "answerKey": "1A"[i % 2],
             "choices": {"text": CHOICES[: 3 + i % 2], "label": [list("123"), list("ABCD")][i % 2]}}
            for i, place in enumerate(("light", "river", "house", "water"))]
    for split in ("train", "validation", "test"):
        file = arc / "ARC-Easy" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    splits = "".join(f"  - split: {s}\n    path: ARC-Easy/{s}-*\n" for s in ("train", "validation", "test"))
    (arc / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{splits}---\n")
    (ceval / "dev" / "law_dev.csv").write_text(
        "id,question,A,B,C,D,answer,explanation\n"
        "0,桥下的水怎样流？,慢慢地,很快,不流,飞,A,水慢慢地流着\n", encoding="utf-8")
    (ceval / "val" / "law_val.csv").write_text(
        "id,question,A,B,C,D,answer\n0,谁在河边唱歌？,孩子们,老人,山,水,A\n1,春天的风吹过哪里？,山,江南的小镇,树下,桥,B\n"
        "2,老人坐在哪里？,山,河,树下,桥,C\n", encoding="utf-8")
    (tmp_path / "wiki.test.raw").write_text(WIKITEXT, encoding="utf-8")
    (tasks / "local.yaml").write_text(
        f"group: local\ntask:\n  - task: arc_easy\n    dataset_path: {arc}\n"
        "  - task: ceval-valid_law\n    dataset_path: csv\n    dataset_name: null\n    dataset_kwargs:\n"
        f"      data_files:\n        dev: {ceval}/dev/law_dev.csv\n        val: {ceval}/val/law_val.csv\n",
        encoding="utf-8")
    return tasks


def arc_accuracy(harness):
    right = 0
    for i, place in enumerate(("light", "river", "house", "water")):
        context = f"Question: {QUESTION.format(place)}\nAnswer:"
        before = harness.tok_encode(context)
        scores = [score(harness.model, before, harness.tok_encode(f"{context} {choice}")[len(before) :])
                  for choice in CHOICES[: 3 + i % 2]]
        right += int(np.argmax(scores)) == 0
    return right / 4


def ceval_accuracy(harness):
    """One solved example, then the question."""
    intro = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
    solved = "桥下的水怎样流？\nA. 慢慢地\nB. 很快\nC. 不流\nD. 飞\n答案： A\n\n"
    asked = [("谁在河边唱歌？", "孩子们 老人 山 水", 0), ("春天的风吹过哪里？", "山 江南的小镇 树下 桥", 1),
             ("老人坐在哪里？", "山 河 树下 桥", 2)]
    right = 0
    for question, choices, answer in asked:
        shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices.split(), strict=True))
        context = f"{intro}{solved}{question}\n{shown}\n答案："
        ids = [harness.tok_encode(f"{context} {letter}") for letter in "ABCD"]
        count = len(ids[0]) - len(harness.tok_encode(context))
        scores = [score(harness.model, w[-65:-count], w[-count:]) for w in ids]
        right += int(np.argmax(scores)) == answer
    return right / 3


def test_eval_runs_tasks_in_english_and_chinese_and_wikitext(small_checkpoint, local_tasks, tmp_path, capsys):
    wikitext, out = tmp_path / "wiki.test.raw", tmp_path / "found.json"
    arguments = ["eval", "--model", small_checkpoint, "--tasks", "local", "--include-path", local_tasks, "--wikitext",
                 wikitext, "--num-fewshot", 1, "--out", out]
    assert cli.main([str(a) for a in arguments]) == 0
    table = {tuple(line.split()[:3]): line.split()[3] for line in capsys.readouterr().out.splitlines()}
    found = json.loads(out.read_text(encoding="utf-8"))
    harness = HarnessModel(str(small_checkpoint))
    assert found["results"]["ceval-valid_law"]["acc,none"] == pytest.approx(ceval_accuracy(harness))
    assert table["ceval-valid_law", "1", "acc"] == f"{ceval_accuracy(harness):.4f}"
    assert found["n-samples"]["arc_easy"] == {"original": 4, "effective": 4}
    assert found["config"]["tokenizer_hash"] == harness._tokenizer.hash
    nats = -sum(harness.loglikelihood_rolling(ask("loglikelihood_rolling", *[(p,) for p in PLAIN]), disable_tqdm=True))
    figures = found["results"]["wikitext103"]
    assert figures["word_perplexity,none"] == pytest.approx(np.exp(nats / 59), rel=1e-5)
    assert figures["token_perplexity,none"] == pytest.approx(np.exp(nats / 70), rel=1e-5)
    assert table["wikitext103", "1", "token_perplexity"] == f"{figures['token_perplexity,none']:,.4f}"
    assert figures["bits_per_byte,none"] == pytest.approx(nats / np.log(2) / (len(WIKITEXT.encode()) - 2), rel=1e-5)


def test_the_command_line_of_the_harness_runs_the_model_on_the_runtime(small_checkpoint, local_tasks, tmp_path):
    arguments = ["--model", "symboliclight", "--model_args", f"model={small_checkpoint},precision=int8", "--tasks",
                 "local", "--include_path", local_tasks, "--output_path", tmp_path / "out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-m", "symboliclight.interop.lm_eval", *map(str, arguments)],
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "arc_easy" in done.stdout
    file, = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    harness = HarnessModel(str(small_checkpoint), "int8")
    assert found["results"]["arc_easy"]["acc,none"] == pytest.approx(arc_accuracy(harness))
    assert found["config"]["precision"] == "int8"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--tasks", "nothing_of_the_kind"], "no task nothing_of_the_kind"),
    (["--tasks", "arc_easy", "--data", "x"], "give either"),
    (["--tasks", "arc_easy", "--limit", "0"], "--limit must be positive"),
    (["--tasks", "arc_easy", "--num-fewshot", "-1"], "--num-fewshot must not be negative"),
    (["--tasks", "arc_easy", "--include-path", "no/folder"], "no/folder is not a folder"),
    (["--text", "x", "--precision", "int8"], "--precision goes with --tasks"),
])
def test_eval_refuses_nonsense_about_tasks_in_one_line(small_checkpoint, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("symboliclight.interop.lm_eval.TaskManager", NoTasks)
    assert cli.main(["eval", "--model", str(small_checkpoint), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


class NoTasks:
    """In place of the harness's index of its own tasks, which takes seconds to build."""

    def __init__(self, **_):
        pass

    def match_tasks(self, names):
        return []
