"""What the harness asks seldom: sampled answers, repeats, options, and answers longer than the context of GPT-2."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from test_lm_eval import ask, log_p

import symboliclight
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.interop.lm_eval import HarnessModel, request_seeds

SAMPLED = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
GREEDY = {"until": [], "max_gen_toks": 12}
TASK = """
task: sampled
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/questions.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "x"
repeats: 64
generation_kwargs: {{until: [], max_gen_toks: 12, do_sample: true, temperature: 1.0}}
filter_list:
  - name: all
    filter: [{{function: take_first_k, k: 64}}]
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module", params=[None, "float32"], ids=["torch", "runtime"])
def build(request, small_checkpoint):
    return lambda rows=32: HarnessModel(str(small_checkpoint), request.param, batch_size=rows)


def answers(model, *asked):
    return model.generate_until(ask("generate_until", *asked), disable_tqdm=True)


def test_repeats_of_a_request_are_as_many_streams(build):
    one, = ask("generate_until", ("the old", SAMPLED))
    found = build().generate_until([one] * 64, disable_tqdm=True)  # as the harness repeats a request
    assert len(set(found)) == 64


def test_a_sampled_answer_does_not_depend_on_the_batch(build):
    asked = [(f"{text} {i}", SAMPLED) for i in range(5) for text in ("the old", "nobody in the house")] * 2
    by_one = answers(build(1), *asked)
    assert len(set(by_one)) == len(asked)
    assert answers(build(7), *asked) == answers(build(32), *asked) == by_one
    assert answers(build(3), *asked[4:9]) == by_one[4:9]


def test_sampled_answers_depend_on_the_seed_of_the_harness(build):
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(answers(build(), ("the old", SAMPLED)))
    assert found[0] == found[2] != found[1]


def test_the_harness_itself_gets_as_many_answers_as_it_asks_for(build, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "questions.jsonl").write_text('{"question": "the old"}\n{"question": "the river"}\n')
    (tmp_path / "sampled.yaml").write_text(TASK.format(folder=tmp_path))
    found = []
    for rows, seed in ((32, 3), (5, 3), (32, 4)):
        done = simple_evaluate(build(rows), tasks=["sampled"], torch_random_seed=seed, log_samples=True,
                               task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
        found.append([text for sample in done["samples"]["sampled"] for text in sample["resps"][0]])
    assert len(found[0]) == len(set(found[0])) == 128
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_without_torch_numpy_holds_the_seed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    requests = ask("generate_until", ("a", GREEDY), ("a", GREEDY), ("b", GREEDY))
    found = []
    for seed in (1, 2, 1):
        np.random.seed(seed)
        found.append(request_seeds(requests))
    assert found[0] == found[2] != found[1] and len(set(found[0])) == 3


def test_options_are_honoured(build):
    model = build()
    ids = model.tok_encode("the old")
    for options, how in [({"repetition_penalty": 1.5, "num_beams": 1}, Sampling(0, 0, 1, 0, 1.5, 1000)),
                         ({"do_sample": True, "top_k": 1, "top_p": None}, Sampling(0))]:
        assert answers(model, ("the old", GREEDY | options)) == [
            generate(model.model, model._tokenizer, [ids], 12, how)[0].text]


@pytest.mark.parametrize(("name", "value"), [("num_beams", 4), ("typical_p", 0.9), ("num_return_sequences", 2)])
def test_options_that_would_be_ignored_are_refused_by_name(build, name, value):
    with pytest.raises(InputError, match=f"{name}={value}") as caught:
        answers(build(), ("the old", GREEDY | {name: value}))
    assert "\n" not in str(caught.value)


def test_gpt2_scores_an_answer_that_is_longer_than_its_context(small_config, small_tokenizer, tmp_path):
    """In windows of its context, as the harness scores texts; the other requests are what they are alone."""
    torch.manual_seed(1)
    config = replace(small_config, family="gpt2", d_ff=128)
    checkpoint.save(tmp_path / "gpt2", config, symboliclight.build(config).state_dict(), small_tokenizer)
    harness = HarnessModel(str(tmp_path / "gpt2"))
    encode = harness._tokenizer.encode
    long = " nobody in the house was awake;" * 20
    asked = [("the old", long), ("the old", " city"), ("the light", long)]
    found = harness.loglikelihood(ask("loglikelihood", *asked), disable_tqdm=True)
    before = encode("the old", bos=True)
    ids = encode("the old" + long, bos=True)[len(before) :]
    assert len(ids) > 2 * 64
    expected, read = 0.0, [before[-1], *ids]
    for at in range(0, len(ids), 64):
        targets = ids[at : at + 64]
        window = read[max(0, at + len(targets) - 64) : at + len(targets)]
        p = log_p(harness.model, window)[-len(targets) :]
        expected += sum(p[i, token] for i, token in enumerate(targets))
    assert found[0] == (pytest.approx(expected, abs=1e-3), False)
    alone, = harness.loglikelihood(ask("loglikelihood", asked[1]), disable_tqdm=True)
    assert found[1][0] == pytest.approx(alone[0], abs=1e-4)


def test_a_model_without_a_limit_still_reads_a_long_answer_whole(build):
    harness = build()
    long = " nobody in the house was awake;" * 20
    (value, _), = harness.loglikelihood(ask("loglikelihood", ("the old", long)), disable_tqdm=True)
    whole = harness.tok_encode("the old" + long)
    count = len(harness.tok_encode("the old"))
    p = log_p(harness.model, whole[count - 1 : -1])
    assert value == pytest.approx(sum(p[i, token] for i, token in enumerate(whole[count:])), abs=2e-3)
