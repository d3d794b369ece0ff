"""Operations against sums done by hand and against the real NeuroBench."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import symboliclight
from symboliclight.core.errors import InputError
from symboliclight.measure.operations import OperationMeter
from symboliclight.measure.sparsity import SparsityMeter

B, T = 3, 40


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(500, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned(small_config):
    """A model with zeros among its weights, so that dense, effective and connection sparsity differ."""
    torch.manual_seed(1)
    model = symboliclight.build(replace(small_config, init_std=0.2)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight[torch.rand(module.weight.shape) < 0.3] = 0
    return model


def count(model, *calls):
    with torch.no_grad(), OperationMeter(model) as meter:
        state = None
        for tokens in calls:
            _, state = model(tokens, state)
    return meter.report()


def run_neurobench(adapter, tokens):
    """Everything that NeuroBench measures, for the batch, with its own hooks and metrics."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(tokens, tokens), batch_size=len(tokens))
    metrics = [[Footprint, ConnectionSparsity, ParameterCount], [ActivationSparsity, SynapticOperations]]
    return Benchmark(adapter, loader, [], [lambda predictions: predictions], metrics).run(quiet=True)


@pytest.mark.parametrize("changes", [{}, {"block_spikes": False}, {"ffn": "gelu"}, {"paths": "decay"},
                                     {"paths": "attention"}, {"prior": "static"}, {"spike_source": "dense"}], ids=str)
def test_every_figure_of_neurobench_is_ours(pruned, changes, tokens):
    interop = pytest.importorskip("symboliclight.interop.neurobench", exc_type=InputError)
    model = symboliclight.build(replace(pruned.config, **changes)).eval()
    model.load_state_dict(pruned.state_dict(), strict=False)
    theirs, ours = run_neurobench(interop.Adapter(model), tokens), count(model, tokens)
    assert theirs["Footprint"] == ours["footprint_bytes"]
    assert theirs["ParameterCount"] == ours["parameters"]
    assert theirs["ConnectionSparsity"] == round(ours["connection_sparsity"], 4) > 0.2
    assert theirs["ActivationSparsity"] == pytest.approx(ours["activation_sparsity"], abs=1e-12)
    found = ours["neurobench_per_token"]
    assert theirs["SynapticOperations"] == pytest.approx(
        {"Effective_MACs": T * found["macs"], "Effective_ACs": T * found["acs"], "Dense": T * found["dense"]})
    assert found["acs"] > 0 or changes == {"ffn": "gelu"} or "paths" in changes or "spike_source" in changes


def test_each_module_that_neurobench_hooks_without_the_adapter_has_our_count(pruned, tokens):
    pytest.importorskip("neurobench")
    from neurobench.metrics.utils.layers import single_layer_MACs
    from neurobench.models import TorchModel

    plain, ours = TorchModel(pruned), count(pruned, tokens)
    plain.register_hooks()
    with torch.no_grad():
        plain(tokens)
    names = {module: name for name, module in pruned.named_modules()}
    seen = set()
    for hook in plain.connection_hooks:
        hook.hook.remove()
        for (x,) in hook.inputs:
            part = ours["parts"][names[hook.layer]]
            assert single_layer_MACs(x, hook.layer) == (round((part["macs"] + part["acs"]) * B * T), part["macs"] == 0)
            assert single_layer_MACs(x, hook.layer, total=True)[0] == round(part["dense"] * B * T)
            seen.add(names[hook.layer].split(".")[-1])
    assert seen == {"q", "k", "v", "out", "up", "prior_down"}


def test_the_adapter_changes_no_logit_and_leaves_no_hook(small_model, tokens):
    interop = pytest.importorskip("symboliclight.interop.neurobench", exc_type=InputError)
    adapter = interop.Adapter(small_model)
    adapter.register_hooks()
    with torch.no_grad():
        assert torch.equal(adapter(tokens), small_model(tokens)[0])
    adapter.cleanup_hooks()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small_model.modules())


def test_spikes_cost_one_accumulate_for_each_weight_they_meet(small_model, tokens):
    """By hand: encoder spikes times D outputs, FFN spikes times D, everything else in full."""
    ours = count(small_model, tokens)
    D, F, V = 32, 64, small_model.config.vocab_size
    with torch.no_grad():
        spikes, _, _ = small_model.encoder(tokens, torch.zeros(B, D), None)
    parts = ours["parts"]
    assert parts["blocks.0.mixer.tcam"]["acs"] == pytest.approx(float(spikes.sum()) * D / (B * T))
    assert parts["blocks.0.mixer.tcam"]["dense"] == D * D
    assert parts["blocks.1.ffn.up"] == {"neurobench": True, "macs": D * F, "acs": 0, "dense": D * F}
    assert parts["head.out"]["macs"] == D * V
    assert parts["blocks.0.mixer.norm"] == {"neurobench": False, "macs": 3 * D, "acs": 2 * D, "dense": 5 * D}
    assert parts["encoder.neuron"]["macs"] == D
    assert ours["per_token"]["macs"] == pytest.approx(sum(p["macs"] for p in parts.values()))
    missed = {name for name, part in parts.items() if not part["neurobench"]}
    assert parts["encoder.embedding"] == {"neurobench": False, "macs": 0, "acs": 0, "dense": 0}
    assert missed >= {"encoder.embedding", "encoder.norm", "blocks.0.mixer.attention", "blocks.0.mixer.decay",
                      "blocks.1.mixer.rope"}
    assert any("softmax" in line for line in ours["not_counted"])


@pytest.mark.parametrize("cut", [0, 1, 17, 30])
def test_attention_is_counted_by_the_rule_of_who_sees_whom(small_config, cut):
    """Gates are open and shut here; whole text and chunks count alike."""
    torch.manual_seed(3)
    W, A, length = 5, 3, 36
    model = symboliclight.build(replace(small_config, encoder_threshold=2.4, window=W, n_anchors=A)).eval()
    tokens = torch.randint(500, (2, length))
    with torch.no_grad(), SparsityMeter(model) as spikes:
        model(tokens)
    gates = (spikes.take()["encoder"] > 0).tolist()
    ours = count(model, *([tokens[:, :cut], tokens[:, cut:]] if cut else [tokens]))["parts"]
    reach = [(i, j) for i in range(length) for j in range(i + 1) if i - j <= W or j < A]
    seen = sum(gate[i] and gate[j] for gate in gates for i, j in reach)
    found = ours["blocks.0.mixer.attention"]
    assert 0 < seen < 2 * len(reach)
    assert found["macs"] * tokens.numel() == pytest.approx(2 * 32 * seen)
    assert found["dense"] * length == pytest.approx(2 * 32 * len(reach))


def test_padding_attends_to_nothing(small_model):
    tokens = torch.randint(500, (1, 6))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], 1)
    with torch.no_grad(), OperationMeter(small_model) as meter:
        small_model(padded, small_model.initial_state(1, torch.tensor([4])))
    alone = count(small_model, tokens)["parts"]["blocks.0.mixer.attention"]
    found = meter.parts["blocks.0.mixer.attention"]
    assert (found.macs, found.dense) == (alone["macs"] * 6, alone["dense"] * 6)


def test_the_dense_baseline_is_counted_too(small_config, tokens):
    model = symboliclight.build(replace(small_config, family="gpt2", d_ff=128)).eval()
    ours, V = count(model, tokens), small_config.vocab_size
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 32 * V
    assert sum(ours["parts"][n]["macs"] for n in ours["parts"] if n.split(".")[-1] in (
        "c_attn", "c_proj", "c_fc", "head")) == pytest.approx(weights)
    assert ours["parts"]["transformer.h.1.attn.attention"]["macs"] == pytest.approx(2 * 32 * (T + 1) / 2)
    assert ours["neurobench_per_token"] == {"macs": 0, "acs": 0, "dense": 0}
    assert ours["activation_sparsity"] is None and ours["tokens"] == B * T
    assert count(model, tokens[:, :9], tokens[:, 9:])["per_token"] == pytest.approx(ours["per_token"])


def test_the_meter_refuses_what_it_cannot_count(small_model):
    with pytest.raises(InputError, match="Sequential cannot be counted"), OperationMeter(nn.Sequential()):
        pass
    with pytest.raises(InputError, match="no token was read"), OperationMeter(small_model) as meter:
        meter.report()
