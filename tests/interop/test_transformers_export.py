"""`symboliclight export --format transformers`, its model card, and the page that shows all this."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from symboliclight.commands import cli
from symboliclight.core import checkpoint

pytest.importorskip("transformers")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "from-transformers.md"


def run(capsys, *args, code=0):
    assert cli.main([str(a) for a in args]) == code
    return capsys.readouterr()


@pytest.fixture
def evaluation(small_checkpoint, small_shards, tmp_path, capsys):
    run(capsys, "eval", "--model", small_checkpoint, "--data", small_shards.path, "--max-tokens", 200, "--seq-len", 40,
        "--out", tmp_path / "eval.json")
    return tmp_path / "eval.json"


def test_the_card_shows_what_eval_measured(small_checkpoint, small_model, evaluation, tmp_path, capsys):
    found = run(capsys, "export", "--model", small_checkpoint, "--format", "transformers", "--out", tmp_path / "out",
                "--evaluation", evaluation, "--json")
    assert json.loads(found.out)["bytes"] == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    for name, figures in result["domains"].items():
        assert (f"| {name} | {figures['tokens']:,} | {figures['perplexity']:.2f} | {figures['bits_per_byte']:.3f} |"
                in card)
    for site, silent in result["sparsity"]["sites"].items():
        assert f"| {site} | {100 * silent:.2f}% |" in card
    assert f"| parameters | {sum(p.numel() for p in small_model.parameters()):,} |" in card
    assert f"{small_model.initial_state(1).nbytes:,} bytes" in card and "windows of 40 tokens" in card


def test_without_an_evaluation_the_card_claims_nothing(small_checkpoint, tmp_path, capsys):
    run(capsys, "export", "--model", small_checkpoint, "--format", "transformers", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "no quality is claimed" in card and "perplexity" not in card and "%" not in card


def test_what_does_not_fit_is_refused_in_one_line(small_checkpoint, evaluation, tmp_path, capsys):
    foreign = json.loads(evaluation.read_text(encoding="utf-8"))
    foreign["config"]["n_layers"] += 1
    (tmp_path / "foreign.json").write_text(json.dumps(foreign), encoding="utf-8")
    (tmp_path / "broken.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "occupied").mkdir()
    for args, message in [
        (["--evaluation", tmp_path / "foreign.json"], "foreign.json is the evaluation of another model"),
        (["--evaluation", tmp_path / "broken.json"], "broken.json is not what `symboliclight eval --out` writes"),
        (["--evaluation", tmp_path / "none.json"], "cannot read"),
        (["--out", tmp_path / "occupied"], "exists and is not a model"),
        (["--model", tmp_path / "none"], "does not exist"),
    ]:
        err = run(capsys, "export", "--model", small_checkpoint, "--format", "transformers", "--out", tmp_path / "out",
                  *args, code=2).err
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not list((tmp_path / "occupied").iterdir())


def test_an_export_replaces_the_one_before(small_checkpoint, tmp_path, capsys):
    for _ in range(2):
        run(capsys, "export", "--model", small_checkpoint, "--format", "transformers", "--out", tmp_path / "out")
        (tmp_path / "out" / "old").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    run(capsys, "export", "--model", small_checkpoint, "--format", "transformers", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "old").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_page_runs_from_top_to_bottom(small_checkpoint, small_shards, tmp_path, capsys, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(small_checkpoint, tmp_path / "runs" / "mini" / checkpoint.LAST)
    (tmp_path / "shards").symlink_to(small_shards.path)
    names: dict = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    for language, text in blocks:
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
            continue
        for line in text.splitlines():
            assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert checkpoint.locate("tuned") and (tmp_path / "tuned-int8").is_dir()
    assert names["cache"].get_seq_length() == names["prompt"].shape[1]
