"""Energy: counts against the meter, NeuroBench and spikingjelly, joules against sums by hand, and fake counters."""

from dataclasses import replace

import pytest
import torch

import symboliclight
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.measure.energy import account
from symboliclight.measure.energy.constants import ARITHMETIC, MEMORY
from symboliclight.measure.energy.parts import (
    Cost,
    Shape,
    expand_rates,
    layout,
    operations,
    spike_fed_share,
    traffic,
    visible_keys,
)
from symboliclight.measure.operations import OperationMeter

B, T = 3, 40
FLOAT32, INT8 = ARITHMETIC["horowitz-45nm-float32"], ARITHMETIC["horowitz-45nm-int8"]
DENSE = {"spike_source": "dense", "block_spikes": False, "ffn": "gelu"}
CONFIGS = [{}, {"paths": "decay"}, {"paths": "attention"}, {"prior": "static"}, {"prior": "none"},
           {"block_spikes": False}, {"ffn": "gelu"}, {"spike_source": "topk", "topk_rate": 0.2}, DENSE,
           {"learn_neuron": True, "learn_prior_weight": True}, {"norm": "none"},
           {"residual": "pre", "stream_threshold": 1.2}, {"spike_fed": True},
           {"learn_neuron": "all", "spike_fed": True}, {"decay": "channel"}, {"decay": "input"}, {"conv": 3},
           {"conv": 2, "paths": "attention"}, {"tie_embeddings": True}, {"family": "gpt2", "d_ff": 128}]


def measured(config):
    torch.manual_seed(0)
    model = symboliclight.build(replace(config, init_std=0.2)).eval()
    tokens = torch.randint(500, (B, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), OperationMeter(model) as meter:
        model(tokens)
    return model, tokens, account.from_report("small", config, meter.report(), T)


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_what_is_expected_at_given_rates_is_what_the_meter_counts(small_config, changes):
    config = replace(small_config, gate=False, **changes)  # a shut gate spares products, which nobody can state before
    _, _, found = measured(config)
    expected = account.subject("", config, found.rates, T, "")
    assert set(found.costs) == set(expected.costs)
    for name, cost in found.costs.items():
        if name != "head.prior_up":  # GELU gives a few exact zeros
            assert (cost.macs, cost.acs) == pytest.approx((expected.costs[name].macs, expected.costs[name].acs)), name
        assert cost.dense == pytest.approx(expected.costs[name].dense)


@pytest.mark.parametrize("changes", [
    DENSE, DENSE | {"prior": "static", "norm": "none"}, DENSE | {"conv": 3, "decay": "channel", "residual": "pre"},
    DENSE | {"decay": "input", "spike_fed": True, "tie_embeddings": True}, CONFIGS[-1]], ids=str)
def test_a_dense_model_reads_every_parameter_but_the_embedding_rows_of_other_tokens(small_config, changes):
    config = replace(small_config, **changes)
    model, _, found = measured(config)
    read = sum(t.weights for t in account.moved(found, FLOAT32).values()) / 4
    D, parameters = config.d_model, sum(p.numel() for p in model.parameters())
    unread = D * (config.vocab_size - 1)
    if config.tie_embeddings:
        unread = -D  # the head reads it all, and the look-up one row once more
    if config.family == "gpt2":  # its head reads the whole embedding, and positions have an embedding too
        unread = D * (config.max_seq_len - 1) - D
    assert read == parameters - unread


def test_spikes_feed_all_that_spike_fed_names(small_config):
    """By hand: per layer, tcam, q, k and v read D spikes each, up reads D and down F."""
    config = replace(small_config, spike_fed=True, learn_neuron="all")
    D, F, L = config.d_model, config.d_ff, config.n_layers
    _, _, found = measured(config)
    fed = {name for name, p in layout(config).items() if p.site}
    assert fed == {name for name, cost in found.costs.items() if cost.acs and not cost.macs and "residual" not in name}
    assert sum(found.costs[name].dense for name in fed) == L * (4 * D * D + 2 * D * F)
    assert layout(config)["blocks.0.ffn.up"].site == "mixer.0" and layout(config)["blocks.1.mixer.q"].site == "blocks.0"
    learned = [layout(config)[f"blocks.{name}"].extra for name in ("1.ffn.up", "0.ffn.norm", "1.ffn.norm")]
    assert learned == [F, 2 * D + D, 2 * D]  # nobody reads the last spikes


def test_missing_rates_are_asked_for_by_the_kinds_of_site_that_the_model_has(small_config):
    with pytest.raises(InputError, match=r"no firing rate for mixer\.0; give --rates encoder=R,mixer=R,ffn=R,blocks=R"):
        expand_rates(replace(small_config, spike_fed=True), {"encoder": 0.1, "ffn": 0.1, "blocks": 0.1})


def test_the_share_that_spikes_feed():
    assert spike_fed_share(preset("v1-194m")) == pytest.approx(0.285, abs=5e-4)  # as published
    assert spike_fed_share(replace(preset("v1-194m"), spike_fed=True)) == pytest.approx(0.661, abs=5e-4)
    assert spike_fed_share(preset("gpt2-mini")) == 0


@pytest.mark.parametrize("changes", [{}, {"spike_fed": True, "residual": "pre", "tie_embeddings": True,
                                          "decay": "input"}], ids=str)
def test_neurobench_counts_the_same(small_config, changes):
    interop = pytest.importorskip("symboliclight.interop.neurobench", exc_type=InputError)
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from torch.utils.data import DataLoader, TensorDataset

    config = replace(small_config, **changes)
    model, tokens, found = measured(config)
    loader = DataLoader(TensorDataset(tokens, tokens), batch_size=B)
    theirs = Benchmark(interop.Adapter(model), loader, [], [lambda x: x], [[], [SynapticOperations]]).run(quiet=True)
    linear = [found.costs[name] for name, part in layout(config).items()
              if part.kind == "linear" and not (name == "head.out" and config.tie_embeddings)]
    assert theirs["SynapticOperations"] == pytest.approx({
        "Effective_MACs": T * sum(c.macs for c in linear), "Effective_ACs": T * sum(c.acs for c in linear),
        "Dense": T * sum(c.dense for c in linear)})


def test_spikingjelly_counts_the_same(small_config):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

    config = replace(small_config, paths="decay")  # its counters see attention products as well, which have other names
    model, tokens, _ = measured(config)
    tokens = tokens[:1]
    synops, macs = SynOpCounter(), MACCounter()
    with torch.no_grad(), OperationMeter(model) as meter:
        model(tokens)
    with torch.no_grad(), DispatchCounterMode([synops, macs]):
        model(tokens)
    found = account.from_report("", config, meter.report(), T)
    linear = {name: found.costs[name] for name, part in layout(config).items() if part.kind == "linear"}
    assert synops.get_total() == round(T * sum(c.acs for c in linear.values())) > 0
    zeros = linear["head.prior_up"].dense - linear["head.prior_up"].macs  # theirs skips none
    assert macs.get_total() == round(T * (sum(c.macs for c in linear.values()) + zeros))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_constants_are_those_of_spikingjelly(precision):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based.op_counter import simple_energy

    theirs = getattr(simple_energy.SimpleEnergyCostConfig, {"float32": "fp32", "float16": "fp16"}[precision])()
    ours = ARITHMETIC[f"horowitz-45nm-{precision}"]
    assert (theirs.e_mac_pj, theirs.e_ac_pj) == pytest.approx((ours.mac_pj, ours.add_pj))


def test_energy_of_a_matrix_by_hand():
    part, rate, M, N = Shape("linear", 100, 50, "encoder"), 0.1, 100, 50
    cost = Cost(acs=rate * M * N, dense=M * N)
    t = traffic(part, cost, {"encoder": rate}, INT8, "scatter")
    assert (t.weights, t.sums, t.activations) == pytest.approx((500, 2 * 500 * 4, 100 / 8 + 50))
    assert traffic(part, cost, {"encoder": rate}, INT8).sums == 0
    shared = traffic(part, cost, {"encoder": rate}, INT8, batch=2)
    assert shared.weights == pytest.approx(M * N * (1 - 0.9**2) / 2)
    assert account.op_only([cost], INT8) == pytest.approx(500 * 0.1)
    assert account.op_only([Cost(macs=7)], FLOAT32) == pytest.approx(7 * 4.6)


def test_energy_of_a_model_is_the_sum_of_its_parts(small_config):
    _, _, s = measured(small_config)
    moved = account.moved(s, FLOAT32)
    far = sum(t.weights + t.keys for t in moved.values()) * 1300 / 8
    near = sum(t.state + t.activations for t in moved.values()) * 20 / 8
    macs, acs = (sum(getattr(c, x) for c in s.costs.values()) for x in ("macs", "acs"))
    assert account.with_memory(s, FLOAT32, MEMORY["dram"]) == pytest.approx(far + near + 4.6 * macs + 0.9 * acs)
    only = account.describe(s, ARITHMETIC)
    assert only["op_only_uj"]["horowitz-45nm-float32"] == pytest.approx((4.6 * macs + 0.9 * acs) / 1e6)
    assert only["mean_rate"] == pytest.approx(sum(
        s.costs[n].acs for n, p in layout(small_config).items() if p.site) / (2 * (32 * 32 + 32 * 64)))


@pytest.mark.parametrize(("memory", "rate"), [("sram-8kb", (0.3 + 1.25) / (0.1 + 1.25 + 10)),
                                              ("dram", (0.3 + 162.5) / (0.1 + 162.5 + 20))])
def test_break_even_is_where_a_synaptic_operation_costs_what_a_dense_one_does(memory, rate):
    """By hand, for 8 bits: (product + sum + weight) / (sum + weight + accumulator read and written)."""
    config = preset("v1-194m")
    found = account.break_even(config, 512, INT8, MEMORY[memory], "scatter")
    assert found == pytest.approx(rate, rel=0.01)
    assert account.break_even(config, 512, INT8, MEMORY[memory], "gather") == 1.0
    spiking = account.with_memory(account.at_rate(config, found, 512), INT8, MEMORY[memory], "scatter")
    twin = account.subject("", account.dense_twin(config), {}, 512, "")
    assert spiking == pytest.approx(account.with_memory(twin, INT8, MEMORY[memory]), rel=1e-4)


def test_keys_in_sight(small_config):
    assert visible_keys(replace(small_config, window=2, n_anchors=1), 5) == (1 + 2 + 3 + 4 + 4) / 5
    assert visible_keys(preset("gpt2-tiny"), 5) == 3


def test_rates_are_checked(small_config):
    assert expand_rates(small_config, {"encoder": 0.1, "ffn": 0.2, "ffn.1": 0.3, "blocks": 0.4}) == {
        "encoder": 0.1, "ffn.0": 0.2, "ffn.1": 0.3, "blocks.0": 0.4}
    for rates, message in (({"encoder": 0.1}, "no firing rate for ffn.0"), ({"head": 0.1}, "no spike site 'head'"),
                           ({"encoder": 2.0}, r"must be in \[0, 1\], got 2.0")):
        with pytest.raises(InputError, match=message):
            expand_rates(small_config, rates)


@pytest.mark.parametrize(("code", "macs", "acs"), [("binary", 0, 0.1), ("ternary", 0, 0.1), ("integer", 0, 0.4),
                                                   ("graded", 0.1, 0), ("shifted", 0.1, 0), ("squared", 0.1, 0)])
def test_what_a_spike_says_decides_what_it_costs_and_its_silence_what_is_read(code, macs, acs):
    """W_down of F x D weights at a rate of 0.1; an integer spike unfolds into 4 events at most."""
    config = replace(preset("tiny"), ffn_code=code)
    rates = dict.fromkeys((p.site for p in layout(config).values() if p.site), 0.1)
    cost, part = operations(config, rates, 8.0)["blocks.0.ffn.down"], layout(config)["blocks.0.ffn.down"]
    size = config.d_ff * config.d_model
    assert (cost.macs, cost.acs, cost.dense) == pytest.approx((macs * size, acs * size, size))
    int8 = ARITHMETIC["horowitz-45nm-int8"]
    assert traffic(part, cost, rates, int8).weights == pytest.approx(0.1 * size * int8.value_bytes)
