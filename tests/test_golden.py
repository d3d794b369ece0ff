"""The model against numbers computed in float64 from the released definitions (tests/golden/README.md)."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import symboliclight
from golden_cases import CASES, GOLDEN, config_of, golden_weights
from symboliclight.interop.released import our_name
from symboliclight.model.encoder import Neuron, Spike

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}


def golden_model(case, dtype=torch.float64):
    model = symboliclight.build(config_of(case)).to(dtype)
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in golden_weights(case).items()})
    return model.eval()


def record_spikes(model):
    """Spikes per token of every site, filled on each forward."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, (Spike, Neuron)):
            def hook(_, __, output, name=name):
                s = output[0] if isinstance(output, tuple) else output
                seen[name] = s[0].sum(-1).long().tolist()
            module.register_forward_hook(hook)
    return seen


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["head"])
def test_spikes_exactly_and_logits_closely(case, dtype):
    model = golden_model(case, dtype)
    seen = record_spikes(model)
    tokens = torch.tensor([case["tokens"]])
    with torch.no_grad():
        logits = model(tokens)[0][0].double()
    assert seen["encoder.neuron"] == case["encoder_spikes_per_token"]
    assert [seen[f"blocks.{i}.spike"] for i in range(3)] == case["block_spikes_per_token"]
    near = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(logits[:, :8], torch.tensor(case["logits_first8"], dtype=torch.float64), **near)
    torch.testing.assert_close(logits.logsumexp(-1), torch.tensor(case["logsumexp"], dtype=torch.float64), **near)
    nll = F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
    torch.testing.assert_close(nll, torch.tensor(case["nll_next"], dtype=torch.float64), **near)
    assert logits.argmax(-1).tolist() == case["argmax"]


@pytest.mark.parametrize("chunks", [[20] + [1] * 20, [13, 14, 13], [1] * 40], ids=["20+1s", "13+14+13", "1s"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["head"])
def test_whole_equals_chunks_equals_token_by_token(case, chunks):
    model = golden_model(case, torch.float32)
    seen = record_spikes(model)
    tokens = torch.tensor([case["tokens"]])
    with torch.no_grad():
        whole, end = model(tokens)
        spikes = dict(seen)
        state, parts, counts = None, [], {name: [] for name in seen}
        for chunk in tokens.split(chunks, 1):
            logits, state = model(chunk, state)
            parts.append(logits)
            for name, row in seen.items():
                counts[name] += row
    assert counts == spikes
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    assert state.tensors().keys() == end.tensors().keys()
    for name, x in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], x, rtol=0, atol=1e-5, msg=name)


def test_silent_tokens_case_closes_the_gate():
    silent = next(c for c in CASES if c["head"] == "silent_tokens")
    assert silent["encoder_spikes_per_token"].count(0) > 20
    model = golden_model(silent)
    open_ = golden_model({**silent})
    open_.config = replace(open_.config, gate=False)
    tokens = torch.tensor([silent["tokens"]])
    with torch.no_grad():
        assert (model(tokens)[0] - open_(tokens)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "file", "parameters"), [
    ("v1-194m", "state_dict_194m.json", 194_016_924), ("v1-0.8b", "state_dict_08b.json", 873_668_135)])
def test_presets_have_the_released_names_shapes_and_parameter_count(name, file, parameters):
    released = json.loads((GOLDEN / file).read_text())
    with torch.device("meta"):
        model = symboliclight.build(symboliclight.preset(name))
    ours = {n: list(p.shape) for n, p in model.named_parameters()}
    theirs = {our_name(n): shape for n, (shape, _) in released["state_dict"].items() if our_name(n)}
    assert ours == theirs
    assert sum(p.numel() for p in model.parameters()) == parameters
