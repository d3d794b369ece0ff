"""Folders as transformers saves them, in half precision and in shards, are read wherever a checkpoint is."""

import json
import shutil

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight import engine
from symboliclight.commands import cli
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.engine.files import map_tensors

transformers = pytest.importorskip("transformers")
from transformers import AutoModelForCausalLM  # noqa: E402

TOKENS = torch.arange(4, 44)[None]


@pytest.fixture
def saved(folder, tmp_path):
    """Save the small model again as transformers does; the tokenizer stays with it."""
    def save(dtype=torch.float32, **options):
        out = tmp_path / "saved"
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
        AutoModelForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(out, **options)
        return out
    return save


def logits_of(folder):
    """By the torch model and by the runtime."""
    with torch.no_grad():
        ours = symboliclight.load(folder)[0](TOKENS)[0].numpy()
    return ours, engine.load(folder, threads=1)(TOKENS.numpy())[0]


@pytest.mark.parametrize("shard", [None, "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_shards_are_read_by_torch_and_the_runtime(dtype, shard, saved, model, tmp_path, capsys):
    out = saved(dtype, **({} if shard is None else {"max_shard_size": shard}))
    assert (out / checkpoint.MODEL).exists() == (shard is None)
    rounded = {name: x.to(dtype).float() for name, x in model.state_dict().items()}
    _, found = checkpoint.load(out)
    assert found.keys() == rounded.keys() and all(torch.equal(found[name], x) for name, x in rounded.items())
    mapped, _ = map_tensors(out / checkpoint.MODEL)
    assert mapped.keys() == rounded.keys()
    assert all(np.array_equal(mapped[name], x.numpy()) for name, x in rounded.items())
    ours, runtime = logits_of(out)
    np.testing.assert_allclose(runtime, ours, rtol=0, atol=1e-4)
    assert cli.main(["export", "--model", str(out), "--precision", "int8", "--out", str(tmp_path / "int8"),
                     "--json"]) == 0
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert json.loads(capsys.readouterr().out)["bytes_before"] == size


def test_gpt2_in_float16_is_read(small_config, small_tokenizer, tmp_path):
    import dataclasses

    config = dataclasses.replace(small_config, family="gpt2", d_ff=128)
    half = symboliclight.build(config).half()
    checkpoint.save(tmp_path / "gpt2", config, half.state_dict(), small_tokenizer)
    read, _ = symboliclight.load(tmp_path / "gpt2")
    assert all(x.dtype != torch.float16 for x in read.state_dict().values())
    assert torch.equal(read.transformer.wte.weight, half.transformer.wte.weight.float())


def test_double_precision_is_named_by_both(saved):
    out = saved(torch.float64)
    for load in (symboliclight.load, engine.load):
        with pytest.raises(InputError, match=r"float64\[.*instead of float32") as caught:
            load(out)
        assert "\n" not in str(caught.value)


def write_index(out, names):
    index = out / "model.safetensors.index.json"
    index.write_text(names if isinstance(names, str) else json.dumps({"weight_map": names}), encoding="utf-8")


@pytest.mark.parametrize("names", ["", "[]", "{}", "[" * 100_000, {}, {"a": 3}, {"a": "../elsewhere.safetensors"},
                                   {"a": "x", "b": ["y"]}], ids=lambda names: str(names)[:20])
def test_an_index_that_names_no_files_is_refused_in_one_line(names, saved):
    out = saved(max_shard_size="20KB")
    write_index(out, names)
    for load in (checkpoint.load, engine.load):
        with pytest.raises(InputError, match=r"index\.json does not name the files of a model") as caught:
            load(out)
        assert "\n" not in str(caught.value)


def test_a_missing_and_a_repeated_shard_are_named(saved):
    out = saved(max_shard_size="20KB")
    first, second = sorted(out.glob("model-*.safetensors"))[:2]
    whole = second.read_bytes()
    second.unlink()
    for load in (checkpoint.load, engine.load):
        with pytest.raises(InputError, match=second.name):
            load(out)
    second.write_bytes(first.read_bytes())
    for load in (checkpoint.load, engine.load):
        with pytest.raises(InputError, match=f"{second.name} holds .* again"):
            load(out)
    second.write_bytes(whole)
    assert checkpoint.load(out)
