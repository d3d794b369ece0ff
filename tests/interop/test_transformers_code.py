"""An exported folder: its code computes the same where symboliclight is not installed, and its config is checked."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.ops import torch_forms

transformers = pytest.importorskip("transformers")
from test_transformers import VARIANTS  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402

from symboliclight.interop.transformers import (  # noqa: E402
    SymbolicLightConfig,
    SymbolicLightForCausalLM,
    from_checkpoint,
)

ELSEWHERE = """
import json, sys
sys.modules["symboliclight"] = None  # as if it were not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
first, second = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(first, trust_remote_code=True)
batch = tokenizer(["the sun rose", "春天"], return_tensors="pt", padding=True)
with torch.no_grad():
    logits = model(tokenizer("the sun rose over", return_tensors="pt").input_ids).logits[0, -1]
text = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=8, do_sample=False), skip_special_tokens=True)
tokens = torch.arange(40)[None]
model.train()(tokens, labels=tokens).loss.backward()
gradient = float(model.blocks[0].mixer.tcam.weight.grad.abs().sum())
model.eval().save_pretrained(second)
tokenizer.save_pretrained(second)
again = AutoModelForCausalLM.from_pretrained(second, trust_remote_code=True)
with torch.no_grad():
    same = torch.equal(again(tokens).logits, model(tokens).logits)
assert not [name for name in sys.modules if name.startswith("symboliclight.")]
print(json.dumps({"logits": logits.tolist(), "text": text, "gradient": gradient, "same": same,
                  "fast": tokenizer.is_fast, "module": type(model).__module__}))
"""


def elsewhere(code, *args, cwd):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cwd / "modules"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=cwd,
                          env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_loads_where_symboliclight_is_not_installed(folder, model, tokenizer, tmp_path):
    found = json.loads(elsewhere(ELSEWHERE, folder, tmp_path / "again", cwd=tmp_path))
    with torch.no_grad():
        logits = model(tokenizer("the sun rose over", return_tensors="pt").input_ids).logits[0, -1]
    assert np.allclose(found["logits"], logits, atol=1e-5)
    batch = tokenizer(["the sun rose", "春天"], return_tensors="pt", padding=True)
    here = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert found["text"] == tokenizer.batch_decode(here, skip_special_tokens=True)
    assert found["module"].startswith("transformers_modules.") and found["fast"]
    assert found["gradient"] > 0 and found["same"]
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "again")  # and home again
    assert isinstance(back, SymbolicLightForCausalLM)


@pytest.fixture(scope="module")
def bundled(folder, tmp_path_factory):
    """The model class that the code in a folder defines, beside that of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        return get_class_from_dynamic_module("modeling_symboliclight.SymbolicLightForCausalLM", str(folder))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
def test_the_code_of_a_folder_computes_what_our_torch_forms_do(changes, bundled, small_config):
    config = dataclasses.replace(small_config, dropout=0.1, **changes)
    ours = SymbolicLightForCausalLM(SymbolicLightConfig(**dataclasses.asdict(config)))
    theirs = bundled(bundled.config_class(**dataclasses.asdict(config)))
    assert type(theirs) is not type(ours)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 500, (2, 50))
    found = []
    with torch_forms():
        for model in (ours, theirs):
            torch.manual_seed(3)
            out = model.train()(tokens, labels=tokens, use_cache=True)
            out.loss.backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found.append({"logits": out.logits} | out.past_key_values.state.tensors() | gradients)
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_code_of_a_folder_tells_padding_and_documents_apart_too(bundled, small_config):
    theirs = bundled(bundled.config_class(**dataclasses.asdict(small_config))).eval()
    tokens, mask = torch.arange(4, 12)[None], torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        alone = theirs(tokens[:, 3:]).logits
        cache = theirs(tokens[:, :2], attention_mask=mask[:, :2]).past_key_values
        found = theirs(tokens[:, 2:], attention_mask=mask, past_key_values=cache).logits[:, 1:]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        packed = theirs(tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])).logits[:, 3:]
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
        hidden = theirs.base_model(tokens[:, 3:]).last_hidden_state
        torch.testing.assert_close(theirs.get_output_embeddings()(hidden), alone, rtol=1e-4, atol=1e-5)


def test_what_is_registered_comes_before_the_code_of_a_folder(folder):
    assert type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)) is SymbolicLightForCausalLM


def test_config_fields_are_attributes_under_both_names(folder):
    config = AutoConfig.from_pretrained(folder, dropout=0.3)
    assert (config.n_layers, config.num_hidden_layers, config.hidden_size, config.dropout) == (2, 2, 32, 0.3)
    again = SymbolicLightConfig(**json.loads(config.to_json_string()))
    assert again.core() == config.core()
    three = dataclasses.replace(symboliclight.ModelConfig(), n_layers=3)
    assert SymbolicLightConfig(num_hidden_layers=3).core() == three


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 99}, "format 99.*upgrade"),
    ({"model": {"d_model": 32, "quantum": True}}, "unknown field quantum"),
    ({"model": {"d_model": "32"}}, "d_model must be int"),
    ({"model": {"d_model": 33}}, "must equal n_heads"),
])
def test_configs_from_the_future_or_of_nonsense_are_refused(change, message, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(change)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_a_gpt2_baseline_is_sent_home(tmp_path, small_tokenizer):
    config = dataclasses.replace(symboliclight.preset("gpt2-tiny"), vocab_size=520, d_model=32, head_dim=16, n_heads=2,
                                 n_layers=1, d_ff=64)
    checkpoint.save(tmp_path / "gpt2", config, symboliclight.build(config).state_dict(), small_tokenizer)
    with pytest.raises(InputError, match="GPT2LMHeadModel"):
        from_checkpoint(tmp_path / "gpt2")
