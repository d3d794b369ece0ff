"""Energy: counts against the meter, NeuroBench and spikingjelly, joules against sums by hand, and fake counters."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch

import symboliclight
from symboliclight import cli
from symboliclight.config import preset
from symboliclight.energy import account, counters
from symboliclight.energy.constants import ARITHMETIC, MEMORY
from symboliclight.energy.parts import Cost, Shape, expand_rates, layout, spike_fed_share, traffic, visible_keys
from symboliclight.errors import InputError
from symboliclight.operations import OperationMeter

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


# Counters.


def zone(root, name, label, energy, wraps=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", label), ("energy_uj", energy), ("max_energy_range_uj", wraps)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_rapl_counts_packages_and_dram_and_survives_a_wrap(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    zone(tmp_path, "intel-rapl:1", "psys", 5)
    found, why = counters.rapl(tmp_path)
    assert [c.name for c in found] == ["intel-rapl:0 package-0", "intel-rapl:0:1 dram"] and why == ""
    before = found[0].read()
    package.write_text("950000\n")
    assert found[0].since(before) == pytest.approx(0.05)
    package.write_text("200000\n")
    assert found[0].since(before) == pytest.approx(0.3)


def test_missing_and_forbidden_counters_say_why(tmp_path, monkeypatch):
    assert counters.rapl(tmp_path / "none") == ([], f"no RAPL: {tmp_path}/none has no intel-rapl zone (a virtual "
                                                "machine, or a processor without it)")
    energy = zone(tmp_path, "intel-rapl:0", "package-0", "?")
    assert "cannot be read" in counters.rapl(tmp_path)[1]
    energy.unlink()
    read = type(energy).read_text

    def refuse(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(type(energy), "read_text", refuse)
    assert "only root may read" in counters.rapl(tmp_path)[1]


def test_nvml_counts_millijoules(monkeypatch):
    fake = types.SimpleNamespace(NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2,
                                 nvmlDeviceGetHandleByIndex=lambda i: i,
                                 nvmlDeviceGetTotalEnergyConsumption=lambda i: 1500 * (i + 1))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found, why = counters.nvml()
    assert [(c.name, c.read()) for c in found] == [("gpu:0", 1.5), ("gpu:1", 3.0)] and why == ""
    fake.nvmlDeviceGetCount = lambda: 0
    assert counters.nvml() == ([], "no NVML: no GPU")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert counters.nvml() == ([], "no NVML: pip install nvidia-ml-py")


def test_measured_joules_have_idle_power_taken_off(tmp_path):
    """10 W idle; a token takes 0.1 s and 3 J more, the last repetition's tokens 1 J more still; the counter wraps."""
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0, wraps=30_000_000)
    now, tokens = 0.0, 0

    def advance(seconds, joules):
        nonlocal now
        now += seconds
        energy.write_text(str((int(energy.read_text()) + round(1e6 * joules)) % 30_000_000))

    def work():
        nonlocal tokens
        tokens += 1
        advance(0.1, 1 + 3 + (tokens > 1 + 2 * 4))
        return 1

    found = counters.measure(counters.rapl(tmp_path)[0], work, seconds=0.35, repeats=3, clock=lambda: now,
                             sleep=lambda s: advance(s, 10 * s))
    assert found["label"] == "measured" and tokens == 1 + 3 * 4
    assert found["joules_per_token"] == pytest.approx({"mean": 10 / 3, "sd": (1 / 3) ** 0.5})
    assert found["idle_watts"]["intel-rapl:0 package-0"] == pytest.approx(10)
    assert found["tokens_per_second"] == pytest.approx(10)


# The command.


def test_the_command_accounts_for_a_model_its_twin_and_gpt2(small_checkpoint, small_shards, tmp_path, capsys):
    out = tmp_path / "energy.json"
    done = cli.main(["energy", "--model", str(small_checkpoint), "--data", str(small_shards.path),
                     "--preset", "gpt2-tiny", "--context", "32", "--max-tokens", "64",
                     "--constants", "horowitz-45nm-int8", "--out", str(out)])
    assert done == 0
    shown, result = capsys.readouterr().out, json.loads(out.read_text())
    assert [m["label"] for m in result["models"]] == ["model", "dense twin of model", "gpt2-tiny"]
    ours, twin, gpt2 = result["models"]
    assert ours["tokens_measured"] == 128 and ours["basis"] == "measured" and gpt2["rates"] == {}
    assert 0 < ours["mean_rate"] < 1 and twin["mean_rate"] is None
    assert ours["op_only_uj"]["horowitz-45nm-int8"] < twin["op_only_uj"]["horowitz-45nm-int8"]
    assert str(tmp_path) not in out.read_text() and "commit" in result
    assert (tmp_path / "energy.svg").read_text().count("dense twin of model") == 2
    assert "op-only, µJ a token" in shown and "any rate" in shown and "Horowitz" in shown


def test_the_command_takes_stated_rates(capsys):
    rates = "encoder=0.1,ffn=0.035,blocks=0.18"
    assert cli.main(["energy", "--preset", "v1-194m", "--rates", rates, "--preset", "gpt2-201m", "--json",
                     "--constants", "horowitz-45nm-float32"]) == 0
    v1, _, gpt2 = json.loads(capsys.readouterr().out)["models"]
    fed = 12 * (768 * 768 + 768 * 4096)
    assert v1["mean_rate"] == pytest.approx((768**2 * (0.1 + 11 * 0.18) + 12 * 768 * 4096 * 0.035) / fed)
    assert v1["operations"]["dense"] > 157e6 and v1["basis"] == "rates as stated"
    assert gpt2["operations"]["macs"] > v1["operations"]["macs"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give --model DIR or --preset NAME"),
    (["--preset", "mini"], "mini spikes and has no weights here: give --model DIR or --rates"),
    (["--preset", "mini", "--rates", "encoder"], "--rates must read like"),
    (["--model", "x"], "either --data SHARDS or --text FILE"),
    (["--preset", "gpt2-mini", "--constants", "mine"], "unknown constants 'mine'"),
    (["--preset", "gpt2-mini", "--measure"], "--measure runs a model"),
    (["--preset", "gpt2-mini", "--batch", "0"], "--batch must be at least 1, got 0"),
])
def test_the_command_refuses(arguments, message, capsys):
    assert cli.main(["energy", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_text_is_refused(small_checkpoint, tmp_path, capsys):
    text = tmp_path / "empty.txt"
    text.touch()
    assert cli.main(["energy", "--model", str(small_checkpoint), "--text", str(text)]) == 2
    assert "empty.txt is empty" in capsys.readouterr().err


def test_measuring_without_a_counter_says_so(small_checkpoint, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the old city and the river; " * 20, encoding="utf-8")
    arguments = ["energy", "--model", str(small_checkpoint), "--text", str(text), "--measure", "--seconds", "0.01"]
    monkeypatch.setattr(counters, "available", lambda: ([], ["no RAPL: none here"]))
    assert cli.main(arguments) == 0
    assert "no RAPL: none here" in capsys.readouterr().out
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    monkeypatch.setattr(counters, "available", lambda: counters.rapl(tmp_path))
    assert cli.main([*arguments, "--repeats", "2", "--precision", "int8"]) == 0
    assert "measured: model (int8) 0 ± 0 mJ a token over 2 repetitions" in capsys.readouterr().out
