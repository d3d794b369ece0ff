"""`symboliclight train`: options become one checked configuration, and every refusal is one line."""

import argparse
import json
import subprocess
import sys

import pytest

from symboliclight.commands import train as command
from symboliclight.core.config import preset, to_dict
from symboliclight.core.errors import InputError


def parse(*words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    return parser.parse_args(["train", *map(str, words)])


@pytest.fixture
def configure(small_shards, tmp_path):
    return lambda *words: command.configure(parse("--data", small_shards.path, "--out", tmp_path / "run", *words))


def refused(message, function, *words):
    with pytest.raises(InputError, match=message) as caught:
        function(*words)
    assert "\n" not in str(caught.value)


def test_the_model_is_tiny_with_the_vocabulary_of_the_data(configure, small_shards):
    run = configure()
    assert to_dict(run.model) == to_dict(preset("tiny")) | {"vocab_size": small_shards.vocab_size}
    assert configure("--set", "model.vocab_size=4096").model.vocab_size == 4096
    assert run.data.directory == str(small_shards.path)


def test_short_options_and_fields_reach_the_configuration(configure):
    run = configure("--preset", "mini", "--tokens", "3e6", "--batch-size", 4, "--lr", 1e-2, "--precision", "float32",
                    "--set", "model.ffn=gelu", "--set", "train.lr=2e-3", "--set", "model.aux_layers=[1,2]",
                    "--set", 'data.weights={"chinese":2}', "--set", "train.eval_tokens=1e3")
    assert (run.train.tokens, run.train.batch_size, run.train.lr) == (3_000_000, 4, 2e-3)
    assert (run.model.d_model, run.model.ffn, run.model.aux_layers) == (preset("mini").d_model, "gelu", (1, 2))
    assert run.data.weights == {"chinese": 2.0} and run.train.eval_tokens == 1000


def test_sequences_fit_the_model_and_the_warm_up_the_run_unless_told_otherwise(configure):
    run = configure("--tokens", 256 * 8 * 50)
    assert (run.data.seq_len, run.train.warmup_steps) == (256, 5)
    assert configure("--seq-len", 64, "--warmup-steps", 7).train.warmup_steps == 7
    assert configure("--preset", "mini").train.warmup_steps == 2000


def test_a_configuration_file_is_taken_as_it_is_and_options_go_on_top(configure, tmp_path):
    first = configure("--preset", "mini", "--lr", 0.01)
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, **to_dict(first), "seed": 1, "commit": "x"}))
    assert configure("--config", tmp_path / "run.json") == first
    assert configure("--config", tmp_path / "run.json", "--lr", 0.02).train.lr == 0.02


def test_nonsense_is_refused_in_one_line(configure, tmp_path):
    refused("unknown preset 'huge'", configure, "--preset", "huge")
    refused("did you mean train.lr", configure, "--set", "lr=3")
    refused("no such field", configure, "--set", "train.velocity=3")
    refused("must look like FIELD=VALUE", configure, "--set", "train.lr")
    refused("model.ffn must be one of spike, gelu, got 'relu'", configure, "--set", "model.ffn=relu")
    refused("train.clip must be float", configure, "--set", "train.clip=much")
    refused("train.batch_size must be positive", configure, "--batch-size", 0)
    refused("data.seq_len must be positive", configure, "--seq-len", -1)
    refused("train.lr must be finite", configure, "--lr", "nan")
    refused("train.min_lr must not exceed train.lr", configure, "--lr", 1e-9)
    refused("cannot read", configure, "--config", tmp_path / "none.json")
    refused("--data is missing", lambda: command.configure(parse("--out", tmp_path / "run")))


def test_help_comes_without_torch():
    code = ("import sys; sys.modules['torch'] = None; import argparse; from symboliclight.commands import train;"
            "p = argparse.ArgumentParser(); train.add(p.add_subparsers()); p.parse_args(['train', '--help'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "default: 0.0003" in done.stdout, done.stderr


@pytest.mark.needs("torch")
def test_a_run_prints_its_figures_and_goes_on_with_out_alone(small_shards, tmp_path, capsys):
    out = tmp_path / "run"
    args = parse("--data", small_shards.path, "--out", out, "--tokens", 256, "--batch-size", 2, "--seq-len", 32,
                 "--set", "model.d_model=64", "--set", "model.head_dim=16", "--set", "model.d_ff=16",
                 "--set", "model.n_layers=1", "--device", "cpu")
    assert args.run(args) == 0
    assert "4 of 4 steps, 256 tokens" in capsys.readouterr().out
    for words in (["--json"], ["--data", small_shards.path, "--tokens", 256, "--json"]):
        again = parse("--out", out, *words)
        assert again.run(again) == 0
        result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 4 and set(result["validation"]["domains"]) == {"chinese", "english"}
    assert result["best"] == result["validation"]["nats_per_token"]
    other = parse("--out", out, "--lr", 0.5)
    refused(r"train\.lr was 0\.0003, now 0\.5", other.run, other)
