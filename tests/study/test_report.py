"""A report shows what there is, names what is missing, and no mean without its spread and n."""

import json
import re
from dataclasses import replace

import pytest

from symboliclight.core.errors import InputError
from symboliclight.study import read_study
from symboliclight.study.plan import identity
from symboliclight.study.report import write_report
from symboliclight.study.results import Results
from symboliclight.study.work import data_hash, work

MORE = """
[[runs]]
label = "v1"
group = "main"
tokens = [1280, 2560]
seeds = [1, 2]
lr = 3e-3

[[runs]]
label = "gpt2"
group = "main"
preset = "gpt2-tiny"
tokens = [1280, 2560]
seeds = [1, 2]
lr = 3e-3

[[runs]]
label = "rate-1"
group = "sparsity"
train = { rate_weight = 1.0 }
tokens = 640
seeds = [1, 2]
lr = 3e-3

[[claims]]
better = "gpt2"
worse = "v1"
published = "8.3 < 8.9"

[[claims]]
better = "v1"
worse = "gelu-ffn"
published = "1 < 2"
"""


@pytest.fixture(scope="module")
def bodies(small_shards, small_study, tmp_path_factory):
    """A real result of each family; the figures of the other runs are made from them."""
    folder = tmp_path_factory.mktemp("bodies")
    (folder / "study.toml").write_text(small_study)
    study = read_study(folder / "study.toml")
    runs = [study.runs[i] for i in (0, 2, 5)]
    results = Results(folder / "results", data_hash(small_shards))
    work(study, runs, small_shards, folder / "work", results)
    return {run.label: results.get(run) for run in runs}


@pytest.fixture
def whole(study_file, bodies, tmp_path):
    """The study with made-up losses: by model, less for more tokens, and by seed."""
    study_file.write_text(study_file.read_text() + MORE)
    study = read_study(study_file)
    results = Results(tmp_path / "results")
    for run in study.runs:
        if run.group == "ablation" and run.tokens == 320:
            continue
        base = bodies["gpt2" if run.label == "gpt2" else "gelu-ffn" if run.label == "gelu-ffn" else "v1"]
        body = json.loads(json.dumps(base))
        nats = {"gpt2": 4.0, "gelu-ffn": 5.2, "rate-1": 5.5}.get(run.label, 5.0)
        nats += 0.01 * run.seed - 0.1 * (run.label == "v1") * (run.tokens // 1280) + 0.001 * (run.label == "gpt2")
        nats += 0.0005 * (run.seed * run.tokens % 7)
        body["test"]["mean"]["token_weighted"]["nats_per_token"] = nats
        body["config"] = json.loads(json.dumps(_config(run)))
        body["label"], body["seed"] = run.label, run.seed
        results.data_hash = body["data_hash"]
        results.put(run, body)
    return study, Results(tmp_path / "results")


def _config(run):
    from symboliclight.study.plan import describe

    assert identity(run.config, "") == run.identity("")
    return describe(run.config)


def test_a_whole_study_is_reported_with_all_sections(whole, tmp_path):
    body = write_report(*whole, tmp_path / "report")
    tables = body["tables"]
    assert {"missing", "main", "gaps", "trends", "claims", "ablation", "sites", "where", "gate", "sparsity", "sweep",
            "controls", "operations", "operations-v1", "domains-640", "domains-2560"} <= set(tables)
    written = {p.name for p in (tmp_path / "report").iterdir()}
    drawn = {"budgets", "curves", "gaps", "ablations", "silence", "sparsity"}
    assert {f"{name}.{form}" for name in drawn for form in ("svg", "png")} <= written
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == len(drawn) and not re.search(r"""(src|href)=["']?[^"'#]""", page)
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == body
    assert all(f"]({name}.png)" in (tmp_path / "report" / "report.md").read_text() for name in drawn)


def test_the_reference_may_be_a_dense_model(whole, tmp_path):
    study, results = whole
    tables = write_report(replace(study, reference="gpt2"), results, tmp_path / "report")["tables"]
    assert [row[0] for row in tables["gaps"]["rows"]] == ["gpt2 − v1"] * 3
    assert "controls" not in tables


def test_gaps_and_verdicts_come_from_the_losses(whole, tmp_path):
    tables = write_report(*whole, tmp_path / "report")["tables"]
    gap = {row[1]: row[2] for row in tables["gaps"]["rows"]}
    assert gap["0.00064 M"].startswith("+0.999 [") and gap["0.00256 M"].startswith("+0.799 [")
    assert tables["trends"]["rows"][0][-1] == "grows more favourable"
    verdicts = {(row[0], row[2]): row[-1] for row in tables["claims"]["rows"]}
    assert verdicts["gpt2 beats v1", "0.00064 M"] == "yes"
    assert verdicts["v1 beats gelu-ffn", "0.00064 M"] == "undecided"  # the second has one seed
    rates = {row[0]: row for row in tables["sparsity"]["rows"]}
    assert rates["rate-1"][3].startswith("5.5") and float(rates["v1"][-1].split()[0]) > 0
    assert rates["gpt2"][5:8] == ["dense"] * 3


def test_no_mean_stands_without_its_n(whole, tmp_path):
    tables = write_report(*whole, tmp_path / "report")["tables"]
    for name in ("main", "domains-640", "gaps", "sites", "where", "operations", "sparsity", "gate"):
        for row in tables[name]["rows"]:
            counted = [cell for cell in row if "(n=" in cell]
            assert counted and all("±" in c or "[" in c or "(n=1)" in c for c in counted), row
            loose = [cell for head, cell in zip(tables[name]["head"], row, strict=True)
                     if head not in ("p", "rate_weight") and re.fullmatch(r"[+-]?\d+\.\d+%?", cell)]
            assert not loose, row


def test_what_is_missing_is_named_and_the_rest_is_reported(whole, tmp_path):
    study, results = whole
    for path in results.directory.iterdir():
        if "-s2-" in path.name or path.name.startswith("gpt2") or "sweep" in path.read_text()[:200]:
            path.unlink()
    body = write_report(study, Results(results.directory), tmp_path / "report")
    rows = body["tables"]["missing"]["rows"]
    assert ["main", "gpt2", "0.00064 M", "missing", "1, 2"] in rows
    assert ["ablation", "gelu-ffn", "0.00032 M", "missing", "1"] in rows
    assert body["runs"]["missing"] == sum(len(row[-1].split(",")) for row in rows)
    assert "gaps" not in body["tables"] and "(n=1)" in body["tables"]["main"]["rows"][0][3]
    assert {row[-1] for row in body["tables"]["claims"]["rows"]} == {"undecided"}


def test_a_report_of_nothing_is_refused(study_file, tmp_path):
    with pytest.raises(InputError, match="holds no result"):
        write_report(read_study(study_file), Results(tmp_path / "none"), tmp_path / "report")
