"""lm-evaluation-harness as a client of the server finds what it finds with the model in its own process."""

import json

import pytest
from live import Server

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # the harness's clients need it

from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from symboliclight.interop.lm_eval import HarnessModel

CHOICES = ["the water of the river", "light", "nobody in the house", "吹过江南"]


class Client(LocalCompletionsAPI):
    """The harness's own client, with our tokenizer, which it does not know."""

    def __init__(self, url, ours, **options):
        super().__init__(base_url=url, model="model", tokenizer_backend="None", max_length=64, **options)
        self.tokenized_requests, self.tokenizer, self.ours = True, ours, ours

    def tok_encode(self, string, **options):
        return self.ours.tok_encode(string)

    def _encode_pair(self, context, continuation):
        return self.ours._encode_pair(context, continuation)

    eot_token_id = prefix_token_id = 1


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Eight questions of four answers, as a task of the harness."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"question": f"What is in the {place} of the old city?", "choices": CHOICES, "answer": i % 4})
             for i, place in enumerate(["light", "river", "house", "water", "桥", "town", "wind", "sun"])]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "places.yaml").write_text(
        "task: places\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {folder}/questions.jsonl\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 3}, {"batch_size": 4}],
                         ids=["one by one", "concurrent", "in batches"])
def test_the_harness_asks_the_server_and_finds_what_it_finds_in_its_own_process(
        small_checkpoint, task, tmp_path, monkeypatch, options):
    import datasets
    from lm_eval import simple_evaluate

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    ours = HarnessModel(str(small_checkpoint), "int8")
    server = Server("--model", str(small_checkpoint), "--precision", "int8")
    found = []
    try:
        for model in (ours, Client(f"http://127.0.0.1:{server.port}/v1/completions", ours, **options)):
            tasks = TaskManager(include_path=str(task), include_defaults=False)
            found.append(simple_evaluate(model, tasks=["places"], task_manager=tasks, bootstrap_iters=0))
    finally:
        server.stop()
    answers = [[(score, greedy) for doc in one["samples"]["places"] for ((score, greedy),) in doc["resps"]]
               for one in found]
    assert len(answers[0]) == 32
    for (score, greedy), (wanted, as_wanted) in zip(answers[1], answers[0], strict=True):
        assert score == pytest.approx(wanted, abs=1e-4) and greedy == as_wanted
    assert found[1]["results"]["places"]["acc,none"] == found[0]["results"]["places"]["acc,none"]
