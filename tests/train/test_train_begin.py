"""A run that begins with the weights of another."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import CONFIG, go, with_train

from symboliclight.core import checkpoint
from symboliclight.core.config import DataConfig, RunConfig
from symboliclight.core.errors import InputError
from symboliclight.data.turns import encode_document
from symboliclight.model.step import token_nll
from symboliclight.train.validate import validate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def first(small_config, small_shards, tmp_path_factory):
    """A finished run and its folder."""
    run = RunConfig(small_config, DataConfig(str(small_shards.path), seq_len=32), CONFIG)
    folder = tmp_path_factory.mktemp("first") / "run"
    go(run, folder)
    return run, folder


def weights(folder, step):
    return checkpoint.load(folder / f"step-{step:08d}")[1]


def test_it_has_those_weights_at_step_0_and_a_fresh_optimiser(first, tmp_path):
    run, folder = first
    again = with_train(run, init=str(folder), tokens=4 * 64, keep=9)
    result = go(again, tmp_path / "second")
    assert result.steps == 4
    before, after = checkpoint.load(folder)[1], weights(tmp_path / "second", 0)
    assert all(torch.equal(before[name], after[name]) for name in before)
    state = checkpoint.load_training(tmp_path / "second" / "step-00000000")
    assert not any(x.any() for name, x in state.tensors.items())


def test_it_goes_on_when_the_folder_that_it_began_with_is_gone(first, tmp_path):
    run, folder = first
    second = tmp_path / "second"
    go(with_train(run, init=str(folder), tokens=8 * 64), second)
    assert go(with_train(run, init=str(tmp_path / "moved"), tokens=8 * 64), second).steps == 8


def test_other_shapes_tokenizers_and_folders_are_refused_in_one_line(first, small_tokenizer, tmp_path):
    run, folder = first
    wide = replace(run, model=replace(run.model, d_ff=96), train=replace(run.train, init=str(folder)))
    with pytest.raises(InputError, match=r"ffn\.up\.weight is float32\[64, 32\] instead of float32\[96, 32\]"):
        go(wide, tmp_path / "wide")
    with pytest.raises(InputError, match="nowhere does not exist"):
        go(with_train(run, init=str(tmp_path / "nowhere")), tmp_path / "lost")
    from symboliclight.core.tokenizer import train

    other = train(["another text of the same length, " * 200, "另一个故事里有很多不同的字" * 50], 390).tokenizer
    padded = replace(run.model, vocab_size=run.model.vocab_size)
    checkpoint.save(tmp_path / "foreign", padded, checkpoint.load(folder)[1], other)
    with pytest.raises(InputError, match="was trained with another tokenizer"):
        go(with_train(run, init=str(tmp_path / "foreign")), tmp_path / "third")
    assert small_tokenizer.vocab_size > other.vocab_size


def test_a_run_on_answers_is_validated_on_answers(small_config, small_model, small_tokenizer):
    """By hand: the mean over what the assistant says, of the losses of all tokens."""
    talk = [("user", "the sun"), ("assistant", "old river"), ("user", "?"), ("assistant", "!")]
    ids = np.array(encode_document(small_tokenizer, talk))
    shards = SimpleNamespace(path="here", domains=lambda split: ["talk"], tokens=lambda split, domain: ids)
    run = RunConfig(small_config, DataConfig("", seq_len=len(ids) - 1, loss="answers"), CONFIG)
    found = validate(small_model, shards, small_tokenizer, run)
    losses = token_nll(small_model, ids[None, :-1], ids[None, 1:])[0]
    end, speaker = small_tokenizer.special("end"), None
    answers = []
    for token, loss in zip(ids[1:], losses, strict=True):
        if speaker == "assistant":
            answers.append(loss)
        roles = [role for role in ("user", "assistant") if token == small_tokenizer.special(role)]
        speaker = roles[0] if roles else None if token == end else speaker
    assert found["tokens"] == len(answers) and 0 < len(answers) < len(losses)
    assert found["nats_per_token"] == pytest.approx(np.mean(answers))
    plain = validate(small_model, shards, small_tokenizer, replace(run, data=replace(run.data, loss="all")))
    assert plain["nats_per_token"] == pytest.approx(losses.mean())
