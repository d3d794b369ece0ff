"""Runs are done once, whoever does them; what is wrong with data or results is refused."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from symboliclight.core.errors import InputError
from symboliclight.measure.evaluate import evaluate
from symboliclight.study import read_study
from symboliclight.study.measure import matching_controls
from symboliclight.study.results import Results
from symboliclight.study.work import data_hash, is_locked, locked, prepare, seconds_left, work

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def do(study_file, small_shards, tmp_path):
    """Work on the first runs of the study."""
    def go(count, folder="work", results="results", shards=small_shards):
        study = read_study(study_file)
        return work(study, study.runs[:count], shards, tmp_path / folder,
                    Results(tmp_path / results, data_hash(shards), study.split))
    return go


def test_a_result_has_all_that_a_report_needs(do, tmp_path, small_shards):
    do(3)
    paths = sorted((tmp_path / "results").iterdir())
    gpt2, v1, _ = (json.loads(path.read_text()) for path in paths)
    assert v1["seed"] == 1 and v1["config"]["train"]["tokens"] == 640 and v1["data_hash"] == data_hash(small_shards)
    assert v1["config"]["data"]["directory"] == "" and str(tmp_path) not in paths[1].read_text()
    assert set(v1["test"]["domains"]) == {"chinese", "english"}
    for when in ("start", "trained"):
        assert set(v1["sparsity"][when]["sites"]) == {"encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"}
    assert len(v1["curve"]["validation"]) == 5 and v1["curve"]["train"]["tokens"][-1] == 640
    assert v1["operations"]["per_token"]["acs"] > 0 and v1["training"]["tokens_per_second"] > 0
    assert gpt2["sparsity"]["trained"]["sites"] == {} and gpt2["parameters"] == gpt2["operations"]["parameters"]


def test_only_the_final_weights_of_a_finished_run_stay(do, tmp_path):
    do(1)
    run, = (tmp_path / "work" / "runs").iterdir()
    assert [p.name for p in run.glob("step-*")] == ["step-00000010"]
    assert not list(run.rglob("optimizer.safetensors"))


def test_a_result_from_another_machine_is_not_run_again(do, tmp_path):
    assert len(do(2).done) == 2
    for path in (tmp_path / "results").iterdir():  # renamed labels and other folders do not matter
        path.rename(path.with_name(f"other-{path.name}"))
    again = do(2, folder="elsewhere")
    assert again.done == [] and len(again.present) == 2 and not (tmp_path / "elsewhere" / "runs").exists()


def test_results_that_contradict_are_refused(do, tmp_path, small_shards):
    do(1)
    path, = (tmp_path / "results").iterdir()
    whole = path.read_text()
    path.write_text(whole.replace('"lr": 0.003', '"lr": 0.004'))
    with pytest.raises(InputError, match="is not the one in its name"):
        do(1)
    path.write_text(whole[:500])
    with pytest.raises(InputError, match="is damaged or foreign"):
        do(1)
    path.write_text(whole)
    with pytest.raises(InputError, match=r"was made on data \w{12}, not 0{12}"):
        Results(tmp_path / "results", "0" * 64)


def test_a_search_leaves_the_test_split_unseen(do, study_file, tmp_path, small_shards, monkeypatch):
    study_file.write_text(study_file.read_text().replace('name = "small"', 'name = "small"\nsplit = "validation"'))
    opened = set()
    read = small_shards.domains
    monkeypatch.setattr(type(small_shards), "domains", lambda shards, split: opened.add(split) or read(split))
    do(1)
    assert opened == {"train", "validation"}
    path, = (tmp_path / "results").iterdir()
    body = json.loads(path.read_text())
    assert body["test"]["split"] == "validation"
    with pytest.raises(InputError, match="measured on the validation split, this study measures on test"):
        Results(tmp_path / "results", data_hash(small_shards))


def test_two_results_of_one_run_are_refused_unless_they_agree(do, tmp_path, small_shards):
    do(1)
    path, = (tmp_path / "results").iterdir()
    copy = path.with_name(f"copy-{path.name}")
    copy.write_bytes(path.read_bytes())
    assert len(Results(tmp_path / "results", data_hash(small_shards))) == 1
    copy.write_text(path.read_text().replace('"seed": 1', '"seed": 3', 1))
    with pytest.raises(InputError, match="are two results of one run"):
        Results(tmp_path / "results", data_hash(small_shards))


@pytest.mark.parametrize("seconds", [6.4, 0.0])  # a tiny run can take none
def test_the_time_left_follows_from_what_a_token_cost(study_file, seconds):
    first, *rest = read_study(study_file).runs[:3]
    body = {"training": {"tokens": first.tokens, "seconds": seconds, "measuring_seconds": seconds / 4}}
    results = SimpleNamespace(get=lambda run: body if run is first else None)
    expected = 1.25 * seconds * sum(run.tokens for run in rest) / first.tokens
    assert seconds_left([first, *rest], results) == pytest.approx(expected)
    assert seconds_left(rest, results) is None


def test_a_lost_result_is_measured_again_without_training(do, tmp_path, monkeypatch):
    do(1)
    path, = (tmp_path / "results").iterdir()
    before = json.loads(path.read_text())
    path.unlink()
    monkeypatch.setattr("symboliclight.study.work.train", None)
    do(1)
    after = json.loads(path.read_text())
    assert after["test"] == before["test"] and after["curve"] == before["curve"]


def test_a_locked_run_is_left_to_its_process(do, study_file, small_shards, tmp_path):
    run = read_study(study_file).runs[0]
    lock = tmp_path / "work" / "locks" / run.identity(data_hash(small_shards))
    assert not is_locked(lock)
    with locked(lock) as mine:
        assert mine and is_locked(lock)
        outcome = do(2)
    assert outcome.locked == ["v1-s1-t640"] and outcome.done == ["v1-s2-t640"]
    with locked(tmp_path / "work" / "runs" / lock.name / ".lock"):  # trained there without the study
        assert do(1).locked == ["v1-s1-t640"]
    assert do(2).done == ["v1-s1-t640"]


def test_a_run_that_diverges_is_a_result_and_the_study_goes_on(do, tmp_path, monkeypatch):
    from symboliclight.train import loop

    step, seen = loop.step, []

    def explode(model, optimizer, batches, config, lr, limit, *rest):
        seen.append(config.seed)
        bad = config.seed == 1 and len(seen) > 4
        return step(model, optimizer, batches, config, lr, -1.0 if bad else limit, *rest)

    monkeypatch.setattr(loop, "step", explode)
    assert len(do(2).done) == 2
    first, second = (json.loads(p.read_text()) for p in sorted((tmp_path / "results").iterdir()))
    assert first["diverged"].startswith("training diverged at step") and "test" not in first
    assert "diverged" not in second
    assert do(2).done == []


def test_data_of_another_vocabulary_are_refused(do, study_file):
    text = study_file.read_text()
    study_file.write_text(text.replace("vocab_size = 5", "vocab_size = 6", 1))
    with pytest.raises(InputError, match="make shards with a tokenizer of that size"):
        do(1)


@contextmanager
def silent(text):
    yield


def test_data_are_made_once_from_files_and_folders(study_file, tmp_path):
    texts = tmp_path / "texts"
    (texts / "chinese" / "deep").mkdir(parents=True)
    for path, text in (("english.txt", "the cat sat on the mat, and nobody saw it."),
                       ("chinese/deep/a.txt", "春天的风吹过江南的小镇，桥下的水慢慢地流着。")):
        (texts / path).write_text("\n\n".join(f"{i} {text}" for i in range(400)), encoding="utf-8")
    study = replace(read_study(study_file), vocab_size=330)
    with pytest.raises(InputError, match="give --corpus"):
        prepare(study, tmp_path / "data", None, silent)
    shards = prepare(study, tmp_path / "data", texts, silent)
    assert shards.domains("train") == ["chinese", "english"] and shards.vocab_size == 330
    assert data_hash(prepare(study, tmp_path / "data", None, silent)) == data_hash(shards)


def test_controls_match_the_rate_of_the_encoder(small_model, small_config, small_shards):
    import symboliclight

    found = matching_controls(small_model, small_shards, 32)
    trained = evaluate(small_model, small_shards.tokenizer(), small_shards, "test", 2048, 32)
    assert found["topk_rate"] == pytest.approx(1 - trained["sparsity"]["sites"]["encoder"], rel=1e-3)
    for source in ("threshold", "topk"):
        config = replace(small_config, spike_source=source, topk_rate=found["topk_rate"],
                         encoder_threshold=found["encoder_threshold"])
        control = symboliclight.build(config).eval()
        control.load_state_dict(small_model.state_dict())
        silent = evaluate(control, small_shards.tokenizer(), small_shards, "test", 2048, 32)["sparsity"]["sites"]
        assert 1 - silent["encoder"] == pytest.approx(found["topk_rate"], abs=0.5 / small_config.d_model)
        assert matching_controls(control, small_shards, 32) == {}
