"""Checkpoints appear whole or not at all, and damaged or foreign ones are refused in one line."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import symboliclight
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError

TRAINING = checkpoint.Training({"step": 7}, {"w:exp_avg": torch.ones(2, 3)})


@pytest.fixture
def saved(tmp_path, small_config, small_model, small_tokenizer):
    directory = tmp_path / "model"
    checkpoint.save(directory, small_config, small_model.state_dict(), small_tokenizer, TRAINING)
    return directory


def fails(text, directory, load=checkpoint.load):
    with pytest.raises(InputError) as caught:
        load(directory)
    message = str(caught.value)
    assert text in message and "\n" not in message
    return message


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_what_is_saved_comes_back(saved, small_config, small_model):
    config, tensors = checkpoint.load(saved)
    assert config == small_config
    expected = small_model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    training = checkpoint.load_training(saved)
    assert training.state == {"step": 7} and torch.equal(training.tensors["w:exp_avg"], torch.ones(2, 3))


def test_numpy_arrays_are_saved_and_loaded_as_such(tmp_path, small_config, small_tokenizer):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array(3, dtype=np.int64)}
    checkpoint.save(tmp_path / "m", small_config, arrays, small_tokenizer)
    _, found = checkpoint.load(tmp_path / "m", "numpy")
    assert all(isinstance(found[name], np.ndarray) and np.array_equal(found[name], arrays[name]) for name in arrays)
    assert not (tmp_path / "m" / "training").exists()


def test_a_run_without_optimiser_state_comes_back(tmp_path, small_config, small_model, small_tokenizer):
    none = checkpoint.Training({}, {})
    checkpoint.save(tmp_path / "m", small_config, small_model.state_dict(), small_tokenizer, none)
    assert checkpoint.load_training(tmp_path / "m") == none


@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
def test_equal_models_are_equal_files(tmp_path, small_config, small_model, small_tokenizer, arrays):
    weights = {name: t.numpy() if arrays else t for name, t in small_model.state_dict().items()}
    for n in range(8):
        checkpoint.save(tmp_path / str(n), small_config, weights, small_tokenizer)
    assert len({(tmp_path / str(n) / checkpoint.MODEL).read_bytes() for n in range(8)}) == 1


def test_every_kind_of_tensor_comes_back_from_the_library(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor(2, dtype=torch.int64),
               "c": torch.tensor([True]), "d": torch.arange(32, dtype=torch.bfloat16),
               "e": torch.arange(5, dtype=torch.uint8), "f": torch.zeros(0, 4)}
    checkpoint._write_tensors(tmp_path / "t", tensors, {"key": "value"})
    found = safetensors.torch.load_file(tmp_path / "t")
    assert found.keys() == tensors.keys()
    assert all(x.dtype == tensors[n].dtype and torch.equal(x, tensors[n]) for n, x in found.items())
    checkpoint._write_tensors(tmp_path / "n", {"v": np.arange(6, dtype=np.int8).reshape(2, 3).T}, {})
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "n")["v"], [[0, 3], [1, 4], [2, 5]])


def test_tensors_are_written_in_whole_large_pages(tmp_path, monkeypatch):
    sizes = []

    class Disk(io.FileIO):
        def write(self, data):
            sizes.append(len(data))
            return super().write(data)

    def opened(file, mode, buffering):
        return io.BufferedWriter(Disk(file, mode), buffering)

    monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    monkeypatch.setattr(checkpoint, "LARGE_PAGE", 4096)
    tensors = {"a": np.arange(3000, dtype=np.float32), "b": np.arange(5, dtype=np.uint8), "c": np.ones((70, 64))}
    checkpoint._write_tensors(tmp_path / "file", tensors, {})
    assert len(sizes) > 10 and set(sizes[:-1]) == {4096}
    for name, x in safetensors.numpy.load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(x, tensors[name])


def test_the_public_load_returns_the_model_and_its_tokenizer(saved, small_model, small_tokenizer):
    model, tokenizer = symboliclight.load(saved)
    assert not model.training and tokenizer.hash == small_tokenizer.hash
    tokens = torch.tensor([tokenizer.encode("the light 春天", bos=True)])
    with torch.no_grad():
        assert torch.equal(model(tokens)[0], small_model(tokens)[0])


def test_a_run_folder_stands_for_its_last_checkpoint(saved, small_config):
    (saved.parent / "last").symlink_to(saved.name)
    assert checkpoint.load(saved.parent)[0] == small_config


def test_saving_again_replaces_the_whole_checkpoint(saved, small_config, small_model, small_tokenizer):
    checkpoint.save(saved, small_config, small_model.state_dict(), small_tokenizer)
    assert not (saved / "training").exists()
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("name", [checkpoint.CONFIG, checkpoint.MODEL, checkpoint.TOKENIZER])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    fails(name, saved)


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.OPTIMIZER])
def test_a_missing_training_file_is_named(saved, name):
    (saved / name).unlink()
    fails(name, saved, checkpoint.load_training)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_model_is_refused(saved, keep):
    data = (saved / checkpoint.MODEL).read_bytes()
    (saved / checkpoint.MODEL).write_bytes(data[:keep])
    fails(checkpoint.MODEL, saved)


def test_a_foreign_model_file_is_refused_and_never_unpickled(saved):
    torch.save({"weight": torch.zeros(3)}, saved / checkpoint.MODEL)
    fails(checkpoint.MODEL, saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"format": 99, "model": {}}', '{"format": 1, "model": 3}'])
def test_a_damaged_config_is_refused(saved, text):
    (saved / checkpoint.CONFIG).write_text(text, encoding="latin-1")
    fails(checkpoint.CONFIG, saved)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_training_state_is_refused(saved, text):
    (saved / checkpoint.STATE).write_text(text)
    fails(checkpoint.STATE, saved, checkpoint.load_training)


def test_no_checkpoint_and_no_folder_are_told_apart(tmp_path):
    fails("is not a checkpoint", tmp_path)
    fails("does not exist", tmp_path / "none")


def test_weights_that_do_not_fit_the_config_are_listed(saved, small_config):
    tensors = safetensors.numpy.load_file(saved / checkpoint.MODEL)
    del tensors["encoder.norm.bias"]
    tensors["encoder.norm.weight"] = np.zeros(3, dtype=np.float32)
    tensors["head.out.weight"] = tensors["head.out.weight"].astype(np.float64)
    tensors["surprise"] = np.zeros(1, dtype=np.float32)
    safetensors.numpy.save_file(tensors, saved / checkpoint.MODEL)
    message = fails("model.safetensors does not fit its config", saved, symboliclight.load)
    assert "encoder.norm.bias is missing" in message and "surprise is unknown" in message and "(4 of" in message


def test_a_larger_tokenizer_than_the_models_vocabulary_is_refused(saved, small_config):
    small = replace(small_config, vocab_size=small_config.vocab_size - 1)
    symboliclight.core.config.save_json(saved / checkpoint.CONFIG, model=small)
    fails(f"vocab_size {small.vocab_size}", saved)


def test_another_tokenizer_of_the_same_size_is_refused(saved, small_tokenizer):
    from symboliclight.core.tokenizer import train

    words = [f"{a}{b} " for a in "bcdfghjklmnpqrstvwxz" for b in ("ought", "eigh", "augur", "iety", "oxen")]
    other = train(["".join(words) * 20], small_tokenizer.vocab_size).tokenizer
    other.save(saved / checkpoint.TOKENIZER)
    fails("is not the tokenizer", saved)


def test_a_padded_vocabulary_is_allowed(tmp_path, small_config, small_tokenizer):
    padded = replace(small_config, vocab_size=small_config.vocab_size + 100)
    checkpoint.save(tmp_path / "m", padded, symboliclight.build(padded).state_dict(), small_tokenizer)
    assert symboliclight.load(tmp_path / "m")[0].config == padded


def test_a_kill_between_the_two_renames_is_mended_on_load(saved, small_config):
    os.replace(saved, saved.parent / ".model.old")
    assert checkpoint.load(saved)[0] == small_config
    assert saved.is_dir()


def test_a_failed_second_rename_puts_the_old_checkpoint_back(saved, small_config, small_tokenizer, monkeypatch):
    before, rename = files(saved), os.replace

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoint.save(saved, small_config, {"a": np.zeros(1)}, small_tokenizer)
    assert files(saved) == before and os.listdir(saved.parent) == ["model"]


def test_a_folder_with_something_else_is_never_replaced(tmp_path, small_config, small_tokenizer):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not a checkpoint"):
        checkpoint.save(tmp_path, small_config, {"a": np.zeros(1)}, small_tokenizer)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


FILL = """
import resource, sys
import numpy as np
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer

directory, bytes_each = sys.argv[1], int(sys.argv[2])
config, _ = checkpoint.load(directory, "numpy")
resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_each, bytes_each))
try:
    checkpoint.save(directory, config, {"big": np.zeros(1 << 20, np.float32)}, Tokenizer.load(directory))
except InputError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_disk_that_is_full_while_saving_leaves_the_last_good_checkpoint(saved, size):
    """The operating system refuses to let any file grow beyond `size` bytes: in a small file, in the large one."""
    before = files(saved)
    done = subprocess.run([sys.executable, "-c", FILL, str(saved), str(size)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("\n") == 1 and "cannot write checkpoint" in done.stdout
    assert files(saved) == before and os.listdir(saved.parent) == ["model"]


def test_a_checkpoint_is_json_and_safetensors_only(saved):
    assert sorted(str(name) for name in files(saved)) == [
        "config.json", "model.safetensors", "tokenizer.model", "training/optimizer.safetensors", "training/state.json"]
    assert json.loads((saved / checkpoint.CONFIG).read_text())["format"] == 1
