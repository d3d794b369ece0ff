"""What is not a published checkpoint is refused in one line: nothing runs, nothing is written."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_import import golden_file, released_config

from golden_cases import CASES, GOLDEN, config_of
from symboliclight.commands.cli import main
from symboliclight.core import checkpoint
from symboliclight.interop import released


class Bomb:
    """What a hostile file holds: unpickling it would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("where", ["plain pickle", "old format", "whole file", "config", "entry", "beside"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(where, tmp_path, call):
    file, target = tmp_path / "bad.pt", tmp_path / "ran"
    body = torch.load(golden_file(file, CASES[0]), weights_only=True)
    bomb = Bomb(target)
    if where == "plain pickle":
        file.write_bytes(pickle.dumps(bomb))
    elif where == "entry":
        torch.save(body | {"model": body["model"] | {"output_head.output_proj.weight": bomb}}, file)
    elif where == "whole file":
        torch.save(bomb, file)
    else:
        old = where == "old format"
        torch.save(body | {"config" if where == "config" else "x": bomb}, file,
                   _use_new_zipfile_serialization=not old)
    refused = "zip format" if where in ("plain pickle", "old format") else "nothing of it was run"
    call(file, refused=refused)
    assert not target.exists()
    torch.load(file, weights_only=False) if where != "plain pickle" else pickle.loads(file.read_bytes())
    assert target.exists(), "the file would have run code, had it been let"


@pytest.mark.parametrize("change", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(change, tmp_path, call):
    (tmp_path / "bad.pt").write_bytes(change)
    call(tmp_path / "bad.pt", refused="zip format")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_download_is_refused(part, golden, call):
    data = golden.read_bytes()
    golden.write_bytes(data[:int(part * len(data))])
    call(golden, refused="damaged or incomplete")


@pytest.mark.parametrize("body", [
    torch.zeros(3), {"transformer.wte.weight": torch.zeros(4, 2)}, {"model": {}}, {"model": {}, "config": None}, [1]])
def test_another_body_is_refused(body, tmp_path, call):
    torch.save(body, tmp_path / "other.pt")
    call(tmp_path / "other.pt", refused="not a released SymbolicLight checkpoint")


def test_another_architecture_is_refused(tmp_path, call):
    nano = {"config": {"n_layer": 2, "n_embd": 8}, "model": {"_orig_mod.transformer.wte.weight": torch.zeros(4, 8)}}
    torch.save(nano, tmp_path / "ckpt.pt")
    call(tmp_path / "ckpt.pt", refused="has no vocab_size, embed_dim")
    torch.save(nano | {"config": released_config(config_of(CASES[0]), n_layers=1)}, tmp_path / "ckpt.pt")
    message = call(tmp_path / "ckpt.pt", refused="transformer.wte.weight is unknown")
    assert "spike_encoder.norm.bias is missing" in message


def test_all_differences_are_listed(tmp_path, call):
    body = torch.load(golden_file(tmp_path / "bad.pt", CASES[0]), weights_only=True)
    state = body["model"]
    del state["spike_encoder.norm.bias"]
    state["blocks.1.ffn.up.weight"] = torch.zeros(3, 32)
    state["output_head.output_proj.weight"] = state["output_head.output_proj.weight"].half()
    state["surprise"] = torch.zeros(1)
    state["encoder.norm.weight"] = torch.zeros(32)  # our name, which no release has
    state["blocks.2.ffn.norm.bias"] = [0.0]
    for i in range(3):
        state.pop(f"blocks.{i}.tcam.decay_raw")
    torch.save(body, tmp_path / "bad.pt")
    message = call(tmp_path / "bad.pt", refused="does not hold what its config describes")
    for difference in ("spike_encoder.norm.bias is missing", "surprise is unknown", "encoder.norm.weight is unknown",
                       "blocks.1.ffn.up.weight is float32[3, 32] instead of float32[64, 32]",
                       "output_head.output_proj.weight is float16[97, 32] instead of float32[97, 32]",
                       "blocks.2.ffn.norm.bias is a list", "blocks.*.tcam.decay_raw is missing", "(9 differences"):
        assert difference in message


def test_an_entry_that_is_there_twice_is_refused(tmp_path, call):
    body = torch.load(golden_file(tmp_path / "bad.pt", CASES[0]), weights_only=True)
    body["model"]["module.spike_encoder.norm.bias"] = torch.zeros(32)
    torch.save(body, tmp_path / "bad.pt")
    call(tmp_path / "bad.pt", refused="spike_encoder.norm.bias twice")


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_experts": 8, "frontier": 1}, "fields that V1 did not have: frontier, n_experts; upgrade"),
    ({"n_layers": 10**9}, "nonsense in n_layers"), ({"n_layers": 100_000}, "too few for the 100000 layers"),
    ({"n_heads": 3}, "d_model must equal"), ({"embed_dim": "32"}, "d_model must be int"),
    ({"leak_factor": 2.0}, "model.leak must be"),
    ({"enable_sparse_attn": 1}, "nonsense in enable_sparse_attn"), ({"use_topk_mask": True}, "top-k mask"),
    ({"enable_stdp": True}, "STDP"), ({"frontend_mode": "vision"}, "frontend"),
    ({"enable_dynamic_prior": False}, "output_head.log_prior is missing"), ({"vocab_size": 96}, "float32[96, 32]")])
def test_a_config_that_does_not_fit_is_refused(changes, message, tmp_path, call):
    err = call(golden_file(tmp_path / "bad.pt", CASES[0], **changes), refused=message)
    assert "bad.pt" in err


def test_a_field_can_be_passed_over(tmp_path, call):
    file = golden_file(tmp_path / "new.pt", CASES[0], note="harmless")
    call(file, refused="--ignore-field")
    call(file, "--ignore-field", "note")
    assert checkpoint.load(tmp_path / "out")[0].d_model == 32


def test_nan_is_refused_and_an_earlier_import_stays(golden, tmp_path, call, capsys):
    call(golden)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    body = torch.load(golden, weights_only=True)
    body["model"]["output_head.prior_net.2.weight"][5, 3] = float("nan")
    torch.save(body, golden)
    assert main(["import", str(golden), "--out", str(tmp_path / "out")]) == 2
    assert "output_head.prior_net.2.weight holds NaN" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["golden.pt", "out"]


def test_a_hash_is_checked(golden, call, monkeypatch):
    digest = json.loads(call(golden, "--json"))["sha256"]
    call(golden, "--sha256", digest.upper())
    monkeypatch.setattr("symboliclight.interop.importer.PUBLISHED", (
        released.Published("good", "x", golden.stat().st_size, digest),))
    assert "the published good" in call(golden)


def test_a_wrong_hash_is_refused(golden, call, monkeypatch):
    call(golden, "--sha256", "0" * 64, refused="instead of 0000")
    published = released.Published("other", "x", golden.stat().st_size, "1" * 64)
    monkeypatch.setattr("symboliclight.interop.importer.PUBLISHED", (published,))
    call(golden, refused="instead of 1111")


def test_a_missing_file_says_how_to_fetch_it(tmp_path, call):
    call(tmp_path / "none.pt", refused="hf download SymbolicLight-AGI/SymbolicLight-V1")


def test_the_published_size_is_that_of_the_released_entries():
    """Weights, buffers, and less than 1 kB of names and headers an entry."""
    entries = json.loads((GOLDEN / "state_dict_08b.json").read_text())["state_dict"].values()
    data = sum(int(np.prod(shape)) * (1 if dtype == "bool" else 4) for shape, dtype in entries)
    assert data < released.PUBLISHED[0].bytes < data + 1000 * len(entries)


def test_the_page_and_the_help_say_how_to_fetch_the_files(capsys):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "import.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for command in released.FETCH:
        assert command in page and command in shown
    for file in released.PUBLISHED:
        assert f"{file.bytes:,}" in page and file.sha256 in page
