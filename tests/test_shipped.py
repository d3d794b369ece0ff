"""The model that comes with the package: the file that was measured, small enough, and at work without torch."""

import hashlib
import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training import CONFIG, go

from symboliclight.commands import cli
from symboliclight.core.checkpoint import MODEL
from symboliclight.core.config import DataConfig, ModelConfig, RunConfig, from_dict
from symboliclight.core.turns import ends
from symboliclight.generate import runner
from symboliclight.measure import stories
from symboliclight.measure.likelihood import nats
from symboliclight.show import card

ROOT = Path(__file__).resolve().parents[1]
SHIP = [sys.executable, str(ROOT / "tools" / "ship.py")]
RESULT = json.loads((ROOT / "results" / "shipped.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shipped():
    return runner.load_runner(str(runner.SHIPPED), threads=1)


def test_the_file_is_the_one_that_was_measured(shipped):
    weights = (runner.SHIPPED / MODEL).read_bytes()
    model, tokenizer = shipped
    assert hashlib.sha256(weights).hexdigest() == RESULT["sha256"]
    assert len(weights) == RESULT["bytes"] <= 32_000_000
    assert model.precision == RESULT["precision"]
    assert model.config == from_dict(ModelConfig, RESULT["config"])
    assert tokenizer.hash == RESULT["training"][-1]["tokenizer_hash"]


@pytest.mark.parametrize("domain", ["en_fiction", "zh_fiction"])
def test_it_predicts_text_that_it_did_not_train_on_as_well_as_its_card_says(shipped, domain):
    """The demo corpus is another text, so the margin is wide: a broken file predicts worse than a uniform guess."""
    model, tokenizer = shipped
    file = ROOT / "src" / "symboliclight" / "data" / "demo" / f"{domain}.txt.xz"
    text = lzma.decompress(file.read_bytes()).decode()[:4000]
    ids = np.array([tokenizer.encode(text, bos=True)[:512]])
    loss = float(nats(model(ids[:, :-1])[0], ids[:, 1:]).mean())
    assert loss < RESULT["shipped"]["languages"][domain[:2]]["nats_per_token"] + 1 < np.log(model.config.vocab_size) - 1


def test_stories_keep_their_language_do_not_circle_and_some_end(shipped):
    """As the card says of all forty; rounding on another processor moves single stories, so bounds are wide."""
    model, tokenizer = shipped
    openings = stories.read_openings(ROOT / "recipes" / "openings.txt")
    for language in (openings[:6], openings[20:26]):
        found = stories.measure(model, tokenizer, language, card.HOW, 300, stop_ids=ends(tokenizer))
        share = found["shares"]["all"]
        assert share["keeps_its_language"] >= 0.8 and share["ends"] > 0
        circling = [s for s in found["stories"] if len(set(tokenizer.encode(s["text"])[-100:])) <= 12]
        assert len(circling) <= 1


@pytest.mark.parametrize("prompt", ["", "Привет, как дела?", "🐱🐶🌊", "مرحبا", "the cat " * 5000, "\u200b\x00\n\t",
                                    "<|end|>"])
def test_any_prompt_is_continued_or_ends(prompt, capsys, tmp_path):
    (tmp_path / "prompt").write_text(prompt, encoding="utf-8")
    assert cli.main(["generate", "--prompt-file", str(tmp_path / "prompt"), "--max-tokens", "150"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith(prompt) and "Traceback" not in found.err


@pytest.mark.parametrize("prompt", ["Once upon a time", "从前，"])
def test_generate_needs_neither_a_model_nor_torch(prompt):
    code = ("import sys; sys.modules['torch'] = None; from symboliclight.commands.cli import main; "
            f"sys.exit(main(['generate', {prompt!r}, '--max-tokens', '20']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(prompt) and len(done.stdout.strip()) > len(prompt) + 10


def test_the_same_seed_writes_the_same_and_another_does_not(capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert cli.main(["generate", "The sea", "--max-tokens", "16", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.fixture(scope="module")
def finished(small_config, small_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ship") / "run"
    go(RunConfig(small_config, DataConfig(str(small_shards.path), seq_len=32), CONFIG), folder)
    return folder


@pytest.fixture
def bench(tmp_path):
    """Two English pairs, a Chinese one and a question of each kind of C3."""
    files = {
        "blimp/a.jsonl": [{"sentence_good": "The old river runs.", "sentence_bad": f"The old river {bad}.",
                           "UID": "a", "linguistics_term": "agreement"} for bad in ("run", "running")],
        "zhoblimp/b.jsonl": [{"sentence_good": "太阳很大。", "sentence_bad": "很太阳大。", "paradigm": "b",
                              "phenomenon": "order", "UID": "b"}]}
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "c3").mkdir()
    for kind in "dm":
        question = [["太阳很大。"], [{"question": "什么很大？", "choice": ["太阳", "河"], "answer": "太阳"}], kind]
        (tmp_path / f"c3/c3-{kind}-test.json").write_text(json.dumps([question]), encoding="utf-8")
    return tmp_path


def test_ship_exports_and_measures(finished, small_shards, bench, tmp_path):
    package, results = tmp_path / "package", tmp_path / "shipped.json"
    done = subprocess.run([*SHIP, "--model", finished, "--data", small_shards.path, "--package", package, "--phases",
                           finished, "--bench", bench, "--beside", f"itself={finished}", "--results", results],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["sha256"] == hashlib.sha256((package / MODEL).read_bytes()).hexdigest()
    assert [phase["tokens"] for phase in found["training"]] == [20 * 64] * 2
    assert set(found["shipped"]["domains"]) == {"english", "chinese"}
    exact, ours = (found[kind]["mean"]["token_weighted"]["nats_per_token"] for kind in ("float32", "shipped"))
    assert exact != ours and abs(exact - ours) < 0.01
    assert {site.split(".")[0] for site in found["shipped"]["sparsity"]["sites"]} == {"encoder", "ffn", "blocks"}
    assert len(found["stories"]["stories"]) == 40 and len(found["answers"]) == 20
    assert found["memorised"]["passages"] == sum(d["passages"] for d in found["memorised"]["domains"].values())
    for name, count in (("blimp", 2), ("zhoblimp", 1)):
        assert {label: row["all"]["count"] for label, row in found["benchmarks"][name].items()} == {
            "shipped": count, "itself": count}
    for table in card.TABLES.values():
        head, rows = table(found)
        assert rows and all(len(row) == len(head) for row in rows)


def test_ship_refuses_what_is_not_finished_or_not_of_this_data(finished, tmp_path, small_shards):
    run = json.loads((finished / "run.json").read_text())
    other = {**run, "data_hash": "0" * 64}
    del (unfinished := dict(run))["result"]
    for facts, message in ((unfinished, "not finished"), (other, "other data")):
        (tmp_path / "run.json").write_text(json.dumps(facts))
        done = subprocess.run([*SHIP, "--model", tmp_path, "--data", small_shards.path, "--package", tmp_path / "p",
                               "--results", tmp_path / "r.json"], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "p").exists() and not (tmp_path / "r.json").exists()
