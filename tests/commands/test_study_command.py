"""`symboliclight study`: status and report of what is there, in text and JSON."""

import json

import pytest

from symboliclight.commands import cli

FILE = """
[study]
name = "one"
vocab_size = {vocab_size}

[[runs]]
label = "v1"
group = "main"
preset = "tiny"
model = {{ d_model = 32, n_layers = 2, n_heads = 2, head_dim = 16, d_ff = 64, max_seq_len = 32, window = 16 }}
train = {{ batch_size = 2, precision = "float32", break_even = 0.125, eval_tokens = 64 }}
tokens = 320
seeds = [1, 2]
lr = 3e-3
"""


@pytest.fixture
def study(tmp_path, small_tokenizer, monkeypatch):
    import torch

    (tmp_path / "study.toml").write_text(FILE.format(vocab_size=small_tokenizer.vocab_size))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def call(capsys, *words):
    code = cli.main(["study", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.needs("torch")
def test_a_study_is_run_looked_at_and_reported(study, small_shards, capsys):
    where = ("study.toml", "--results", "results")
    code, out, _ = call(capsys, "status", *where)
    assert code == 0 and "unknown until a run is done" in out
    code, out, err = call(capsys, "run", *where, "--data", small_shards.path, "--work", "work")
    assert (code, out) == (0, "2 runs done, 0 were there already, 0 are with other processes\n")
    assert "main/v1-s2-t320 lr 0.003:" in err and "bits/byte" in err
    code, out, _ = call(capsys, "run", *where, "--data", small_shards.path, "--work", "work", "--json")
    assert json.loads(out)["present"] == ["v1-s1-t320", "v1-s2-t320"]
    code, out, _ = call(capsys, "status", *where, "--work", "work", "--json")
    assert json.loads(out)["rows"] == [{"group": "main", "label": "v1", "tokens": 320, "runs": 2, "done": 2,
                                        "diverged": 0, "running": 0, "missing": 0}]
    code, out, _ = call(capsys, "report", *where, "--out", "report")
    assert code == 0 and "2 runs measured, 0 diverged, 0 missing" in out and " ± " in out
    assert {"report.md", "report.html", "report.json"} <= {p.name for p in (study / "report").iterdir()}


@pytest.mark.needs("torch")
def test_what_it_needs_is_said(study, capsys):
    code, _, err = call(capsys, "run", "study.toml", "--results", "results", "--work", "work")
    assert code == 2 and "give --corpus FOLDER" in err
    code, _, err = call(capsys, "report", "study.toml", "--results", "results", "--out", "report")
    assert code == 2 and "holds no result" in err
    code, _, err = call(capsys, "status", "none.toml", "--results", "results")
    assert code == 2 and "cannot read none.toml" in err
