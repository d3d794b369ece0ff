"""A study file becomes the runs it lists, in order; whatever it gets wrong is refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from symboliclight.core.config import DataConfig
from symboliclight.core.errors import InputError
from symboliclight.study import choose, read_study
from symboliclight.study.plan import describe, identity

OURS = Path(__file__).parents[2] / "studies" / "v1.toml"


def test_an_entry_stands_for_all_combinations_in_order(study_file):
    study = read_study(study_file)
    assert [run.name for run in study.runs] == [
        "v1-s1-t640", "v1-s2-t640", "gpt2-s1-t640", "gpt2-s2-t640",
        "gelu-ffn-s1-t320", "gelu-ffn-s1-t640", "v1-s7-t320", "v1-s7-t320", "v1-s7-t640", "v1-s7-t640"]
    assert [run.config.train.lr for run in study.runs[6:]] == [1e-3, 2e-3, 1e-3, 2e-3]
    last = study.runs[5].config
    assert last.model.ffn == "gelu" and last.model.d_model == 32 and last.data.seq_len == 32


def test_what_depends_on_the_budget_is_derived(study_file):
    train = read_study(study_file).runs[0].config.train  # 10 steps of 2 x 32 tokens
    assert (train.warmup_steps, train.eval_every, train.log_every, train.keep) == (0, 2, 1, 1)
    assert train.min_lr == pytest.approx(3e-3 / 20)
    study_file.write_text(study_file.read_text().replace('eval_tokens = 64', 'eval_tokens = 64, warmup_steps = 3'))
    assert read_study(study_file).runs[0].config.train.warmup_steps == 3


def test_the_identity_is_that_of_configuration_and_data_wherever_the_data_lie(study_file):
    config = read_study(study_file).runs[0].config
    moved = replace(config, data=DataConfig("elsewhere", {}, config.data.seq_len))
    other = replace(config, train=replace(config.train, lr=2e-3))
    assert identity(moved, "a") == identity(config, "a")
    assert len({identity(config, "a"), identity(config, "b"), identity(other, "a")}) == 3
    assert describe(moved)["data"]["directory"] == ""


def test_runs_are_chosen_by_group_label_and_budget(study_file):
    study = read_study(study_file)
    assert [r.label for r in choose(study, ["ablation"], 320)] == ["gelu-ffn"]
    assert {r.label for r in choose(study, ["v1", "ablation"])} == {"v1", "gelu-ffn"}
    with pytest.raises(InputError, match="no such group or label; groups are: main, ablation, sweep"):
        choose(study, ["mian"])
    with pytest.raises(InputError, match="budgets are: 320, 640"):
        choose(study, [], 7)


@pytest.mark.parametrize(("old", "new", "message"), [
    ('group = "main"', 'grup = "main"', r"run 1 \(v1\): unknown field grup"),
    ('ffn = "gelu"', 'fnn = "gelu"', r"run 3 \(gelu-ffn\) model: unknown field fnn"),
    ('ffn = "gelu"', 'ffn = "relu"', r"run 3 \(gelu-ffn\) model.ffn must be one of"),
    ('model = { ffn = "gelu" }', "", r"lists one run twice, as main/v1-s1-t640 and ablation/gelu-ffn-s1-t640"),
    ('label = "gelu-ffn"', 'label = "gpt2"', r"lists one run twice, as main/gpt2-s1-t640 and ablation/gpt2-s1-t640"),
    ("seeds = [1, 2]", 'seeds = ["a"]', "seeds must be a number or a list"),
    ("batch_size = 2", "batch_size = 2, lr = 1.0", "write lr in the entry itself"),
    ("batch_size = 2", "batch_size = 200", "less than one step"),
    ('label = "v1"', 'label = "V1/a"', "label must consist of"),
    ('preset = "tiny"', "preset = [", "is not valid TOML"),
    ('name = "small"', "", "name is missing"),
    ('name = "small"', 'name = "small"\nsplit = "train"', "split must be test or validation, got 'train'"),
    ('name = "small"', 'name = "small"\nreference = "v2"', "compares with 'v2', but no run has that label"),
])
def test_what_is_wrong_is_named(study_file, old, new, message):
    study_file.write_text(study_file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        read_study(study_file)
    assert str(study_file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_search_writes_no_texts(study_file):
    text = study_file.read_text().replace('name = "small"', 'name = "small"\nsplit = "validation"')
    study_file.write_text(text)
    assert read_study(study_file).split == "validation"
    study_file.write_text(text.replace('ffn = "gelu" }', 'ffn = "gelu" }\ngenerate = true'))
    with pytest.raises(InputError, match="prompts of the test split; with split = 'validation' leave out generate"):
        read_study(study_file)


def test_our_study_file_is_sound():
    study = read_study(OURS)
    assert {run.group for run in study.runs} == {"sweep", "warmup", "main", "ablation", "sparsity"}
    models = {run.label: run.config.model for run in study.runs}
    reference = models["v1"]
    twin = replace(reference, spike_source="dense", block_spikes=False, ffn="gelu", init_std=0.02)
    assert models["dense-twin"] == twin
    for run in study.runs:
        if run.group == "ablation":
            assert run.config.model != reference and run.config.train.rate_weight == 0
