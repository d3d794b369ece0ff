"""A run that begins with the weights of another."""

from dataclasses import replace

import pytest
import torch
from training import CONFIG, go, with_train

from symboliclight.core import checkpoint
from symboliclight.core.config import DataConfig, RunConfig
from symboliclight.core.errors import InputError

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
