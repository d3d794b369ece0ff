"""The preregistered search: every candidate is one change, trains, is measured and reported, and sees no test split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from symboliclight.data.shards import Shards
from symboliclight.energy.parts import spike_fed_share
from symboliclight.study import read_study
from symboliclight.study.plan import changes
from symboliclight.study.report import write_report
from symboliclight.study.results import Results
from symboliclight.study.work import data_hash, work

OURS = Path(__file__).parents[2] / "studies" / "v1-plus.toml"


@pytest.fixture(scope="module")
def study():
    return read_study(OURS)


def test_every_model_is_run_at_both_rates_on_both_seeds(study):
    grid = {}
    for run in study.runs:
        label, rate = run.label.rsplit("-", 1)
        assert run.tokens == 2_000_000 and not run.generate and run.config.train.lr == float(rate) / 1000
        grid.setdefault(label, set()).add((rate, run.seed))
    for label, found in grid.items():
        rates = ("2", "4") if label.startswith("gpt2") else ("4", "8")
        assert found == {(rate, seed) for rate in rates for seed in (1, 2)}, label
    assert study.split == "validation" and {"v1", "gpt2", "gpt2-muon", "fed"} < set(grid)


def test_every_candidate_is_one_change_to_the_frame_at_equal_parameters(study):
    frame = next(run.config for run in study.runs if run.label == "fed-4")
    assert spike_fed_share(frame.model) == pytest.approx(0.596, abs=1e-3)
    for run in study.runs:
        what = changes(run.config, frame)
        if run.group == "ablation":
            assert len(what) == 1 or (len(what) == 2 and "d_ff" in what), run.label
            assert spike_fed_share(run.config.model) >= spike_fed_share(frame.model)


def test_every_candidate_trains_and_is_measured(study, small_shards: Shards, tmp_path):
    """Two steps each, at a tiny size; the report of it all is written."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    size = {"vocab_size": small_shards.vocab_size, "d_model": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16,
            "max_seq_len": 32, "window": 16, "d_ff": 64}
    runs = []
    for run in study.runs:
        if run.seed == 1 and run.label.endswith("-4"):
            train = replace(run.config.train, tokens=128, batch_size=2, warmup_steps=1, eval_tokens=64, eval_every=2,
                            log_every=1)
            config = replace(run.config, model=replace(run.config.model, **size), train=train,
                             data=replace(run.config.data, seq_len=32))
            runs.append(replace(run, config=config))
    small = replace(study, runs=tuple(runs), vocab_size=small_shards.vocab_size)
    results = Results(tmp_path / "results", data_hash(small_shards), study.split)
    assert len(work(small, runs, small_shards, tmp_path / "work", results).done) == len(runs) == 16
    torch.set_num_threads(threads)
    for run in runs:
        body = results.get(run)
        assert "diverged" not in body and body["test"]["split"] == "validation"
        sites = 0 if "gpt2" in run.label else 5 if "v1" in run.label else 7
        assert len(body["sparsity"]["trained"]["sites"]) == sites
    table = write_report(small, results, tmp_path / "report")["tables"]["ablation"]
    assert len(table["rows"]) == 1 + sum(run.group == "ablation" for run in runs)  # and the frame
