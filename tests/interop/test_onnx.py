"""The exported single step in onnxruntime: the same spikes and logits as the model, from the file alone."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

import symboliclight
from symboliclight.commands.cli import main
from symboliclight.core import checkpoint
from symboliclight.core.config import to_dict
from symboliclight.interop.onnx import Step

STEPS = 40


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def export(folder, *options, code=0):
    assert main(["export", "--format", "onnx", "--model", str(folder), *map(str, options)]) == code


def zeros(run, batch):
    """A fresh state, from what the file says of its inputs."""
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    return {i.name: np.zeros((batch, *i.shape[1:]), types[i.type]) for i in run.get_inputs() if i.name != "token"}


def compare(run, model, tokens, padding=None):
    """Step both through tokens (B, T); spikes must be identical, logits and state equal to rounding."""
    names, step = [o.name for o in run.get_outputs()], Step(model)
    ours = model.initial_state(len(tokens), padding).tensors()
    theirs = zeros(run, len(tokens))
    if padding is not None:
        theirs["position"] -= padding.numpy()
    assert theirs.keys() == ours.keys()
    spikes = 0
    for token in tokens.split(1, 1):
        with torch.no_grad():
            logits, ours, expected = step(token, ours)
        found = dict(zip(names, run.run(None, {"token": token.numpy(), **theirs}), strict=True))
        np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-5)
        for site, s in expected.items():
            sent = found[f"spikes.{site}"]
            assert np.array_equal(sent != 0, (s != 0).numpy()), site
            np.testing.assert_allclose(sent, s.numpy(), rtol=1e-4, atol=1e-4, err_msg=site)  # their values
            spikes += int(s.sum())
        theirs = {name: found[f"next.{name}"] for name in theirs}
    for name, x in ours.items():
        np.testing.assert_allclose(theirs[name], x.numpy(), atol=1e-5, err_msg=name)
    return spikes


@pytest.fixture(scope="module")
def exported(small_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    export(small_checkpoint, "--out", path)
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_spikes_are_identical_and_logits_equal_step_by_step(exported, small_model, batch):
    """Past the window and the anchors, for batches that were not the one exported."""
    tokens = torch.randint(500, (batch, STEPS), generator=torch.Generator().manual_seed(batch))
    assert compare(session(exported), small_model, tokens) > 0


def test_left_padded_rows_take_no_trace_of_the_padding(exported, small_model):
    tokens = torch.randint(500, (2, 12), generator=torch.Generator().manual_seed(5))
    assert compare(session(exported), small_model, tokens, torch.tensor([0, 7])) > 0


def test_the_file_holds_its_configuration_and_nothing_is_left_beside_it(exported, small_config):
    found = session(exported).get_modelmeta().custom_metadata_map["symboliclight.core.config"]
    assert json.loads(found) == to_dict(small_config)
    assert [file.name for file in exported.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("changes", "single_file"), [
    ({"paths": "decay", "prior": "static", "learn_neuron": True, "ffn": "gelu"}, True),
    ({"paths": "attention", "gate": False, "n_anchors": 0, "spike_source": "topk", "prior": "none"}, False),
    ({"ffn_code": "squared", "ffn_threshold": 0.5, "stream_code": "ternary", "encoder_code": "shifted"}, True),
    ({"ffn_code": "integer", "stream_code": "graded", "spike_fed": True}, True),
    ({"residual": "pre", "spike_fed": True, "stream_threshold": 1.2, "learn_neuron": "all", "decay": "input", "conv": 3,
      "tie_embeddings": True}, True),
], ids=str)
def test_switches_are_exported_and_large_weights_lie_beside_the_file(small_config, tmp_path, monkeypatch,
                                                                     changes, single_file):
    torch.manual_seed(2)
    model = symboliclight.build(replace(small_config, n_layers=1, window=4, **changes)).eval()
    checkpoint.save(tmp_path / "run", model.config, model.state_dict(), None)  # no text, no tokenizer
    if not single_file:
        monkeypatch.setattr("symboliclight.interop.onnx.SINGLE_FILE", 0)
    export(tmp_path / "run", "--out", tmp_path / "out" / "model.onnx")
    expected = ["model.onnx"] if single_file else ["model.onnx", "model.onnx.data"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == expected
    assert compare(session(tmp_path / "out" / "model.onnx"), model, torch.randint(500, (2, 8))) > 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"family": "gpt2", "d_ff": 128}, "only the symboliclight family"), ({"exit_entropy": 0.3}, "cannot exit early"),
], ids=["gpt2", "early exit"])
def test_models_without_a_fixed_graph_are_refused_in_one_line(small_config, small_tokenizer, tmp_path, capsys, changes,
                                                              message):
    model = symboliclight.build(replace(small_config, **changes))
    checkpoint.save(tmp_path / "run", model.config, model.state_dict(), small_tokenizer)
    export(tmp_path / "run", "--out", tmp_path / "model.onnx", code=2)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "model.onnx").exists()
