"""The executor against the torch model: every spike, every variant, what it counts and what it reads."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight.core.config import ModelConfig
from symboliclight.interop.nir import build, files
from symboliclight.interop.nir.compare import differences, torch_run, widened
from symboliclight.interop.nir.executor import Executor, clamp_share
from symboliclight.measure.operations import OperationMeter

SMALL = ModelConfig(vocab_size=61, d_model=32, n_layers=2, n_heads=4, head_dim=8, d_ff=48, max_seq_len=64, window=6,
                    n_anchors=2, dropout=0.0)
SWITCHES = {
    "v1": {}, "decay": {"paths": "decay"}, "attention": {"paths": "attention"}, "static prior": {"prior": "static"},
    "no prior": {"prior": "none"}, "memoryless": {"spike_source": "threshold", "encoder_threshold": 0.8},
    "no gate": {"gate": False}, "gelu": {"ffn": "gelu"}, "learned": {"learn_neuron": True, "learn_prior_weight": True},
    "no norm": {"norm": "none"}, "continuous blocks": {"block_spikes": False}, "no window": {"window": 0},
    "no anchors": {"n_anchors": 0}, "tight clamp": {"v_clamp": 0.5, "v_threshold": 0.4},
}


def lively(**switches):
    torch.manual_seed(0)
    model = symboliclight.build(replace(SMALL, **switches)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.mul_(12)  # lively activations: initial weights of 0.02 would hide differences
            elif not name.endswith("norm.weight"):
                p.add_(0.1 * torch.randn_like(p)).clamp_(max=0.97 if name.endswith("leak") else 9)
    return model


def executor_of(model, **options):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Executor(build.build(model.config, tensors), **options)


@pytest.mark.parametrize("language", ["en_fiction", "zh_fiction"])
@pytest.mark.parametrize("variant", ["v1", "decay-only"])
def test_every_spike_of_520_tokens_is_the_torch_models(trained, exports, texts, tmp_path, variant, language):
    export, tokens = exports[variant], texts[language]
    files.write(tmp_path / "out", build.single(export) if variant == "decay-only" else export)
    executor = Executor.load(tmp_path / "out")
    run = executor.run(tokens)
    assert len(tokens) >= 512 and set(run.spikes) == {"encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"}
    for site, spikes in run.spikes.items():
        assert 0.001 < spikes.mean() < 0.7, site
    found = differences(run, trained[variant], tokens)
    assert found["float64"]["spikes"] == 0
    assert found["float64"]["logits"] < 1e-9
    # No order of float64 sums could give other spikes: none comes nearer to its threshold than this.
    assert run.margin > 1e-10
    if found["float32"]["spikes"]:  # where float32 errs first, a sum lay within its rounding of the threshold
        assert found["float32"]["first"]["margin"] < 1e-5
    else:
        assert found["float32"]["logits"] < 1e-3


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_of_the_model(switches):
    model = lively(**switches)
    tokens = torch.randint(0, SMALL.vocab_size, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    run = executor_of(model).run(tokens)
    logits, spikes = torch_run(widened(model), tokens)
    assert sum(s.sum() for s in spikes.values()) > 50
    for site, expected in spikes.items():
        np.testing.assert_array_equal(run.spikes[site], expected, site)
    np.testing.assert_allclose(run.logits, logits, rtol=1e-9, atol=1e-9)


def test_one_graph_gives_what_its_parts_give(exports, texts):
    parts, whole = Executor(exports["decay-only"]), Executor(build.single(exports["decay-only"]))
    assert list(whole.export.parts) == ["model"] and [h.kind for h in whole.export.hosts] == ["table"]
    a, b = parts.run(texts["en_fiction"][:60]), whole.run(texts["en_fiction"][:60])
    np.testing.assert_allclose(a.logits, b.logits, rtol=1e-12, atol=1e-12)
    assert all((a.spikes[site] == b.spikes[site]).all() for site in a.spikes)


def test_a_run_begins_afresh_and_steps_go_on(exports, texts):
    executor, tokens = Executor(exports["v1"]), texts["en_fiction"][:30]
    first, again = executor.run(tokens), executor.run(tokens)
    np.testing.assert_array_equal(first.logits, again.logits)
    executor.reset()
    stepped = [executor.step(token)[0]["logits"] for token in tokens]
    np.testing.assert_array_equal(first.logits, np.stack(stepped))


def test_operations_are_those_of_neurobenchs_rule(trained, exports, texts):
    tokens = texts["zh_fiction"][:100]
    run = Executor(exports["v1"]).run(tokens)
    with OperationMeter(trained["v1"]) as meter, torch.no_grad():
        trained["v1"](torch.tensor([tokens]))
    matrices = ("tcam", ".q", ".k", ".v", "mixer.out", "up", "down", "head.out", "prior_down", "prior_up")
    linear = [part for name, part in meter.parts.items() if name.endswith(matrices)]
    assert sum(w.accumulates for w in run.work) == sum(p.acs for p in linear) > 0
    assert sum(w.multiply_accumulates for w in run.work) == sum(p.macs for p in linear)


def test_events_reads_and_active_neurons_count_what_happened(exports, texts):
    tokens, D, F = texts["en_fiction"][:20], 32, 64
    run = Executor(exports["decay-only"]).run(tokens)
    for t, work in enumerate(run.work):
        active = {site: int(spikes[t].sum()) for site, spikes in run.spikes.items()}
        assert work.active == active and work.events == sum(active.values())
        sources = (active["encoder"] + active["blocks.0"] + active["ffn.0"] + active["ffn.1"])
        assert work.accumulates == sources * D
        assert work.weight_reads == work.accumulates + work.multiply_accumulates  # no stored weight is 0
        assert work.state_reads == 3 * D  # encoder membranes and two layers of integrators
        assert work.host_reads == D  # one row of the table
    first = run.work[0]
    assert first.multiply_accumulates == 2 * D * F + first_inputs(run) * D + D * 520


def first_inputs(run):
    """Integrators that hold something after the first token: all of a layer whose source spiked."""
    return sum(32 * bool(run.spikes[site][0].any()) for site in ("encoder", "blocks.0"))


def test_spike_fed_columns_are_added_in_index_order():
    from symboliclight.interop.nir.executor import Work, _Matrix

    nir = pytest.importorskip("nir")
    weight = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32)
    spikes = np.random.default_rng(1).random(300) < 0.4
    expected = np.zeros(7, np.float32)
    for i in np.flatnonzero(spikes):
        expected += weight[:, i]
    np.testing.assert_array_equal(_Matrix(nir.Linear(weight), np.dtype(np.float32))(spikes, Work()), expected)


def test_it_reads_the_files_alone(exports, texts, tmp_path):
    files.write(tmp_path / "out", exports["v1"])
    tokens = texts["en_fiction"][:5]
    code = (
        "import sys\n"
        "for name in ('torch', 'symboliclight.model', 'symboliclight.engine', 'symboliclight.ops'):\n"
        "    sys.modules[name] = None\n"
        "from symboliclight.interop.nir.executor import Executor\n"
        f"print(repr(float(Executor.load({str(tmp_path / 'out')!r}).run({tokens!r}).logits.sum())))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(Executor(exports["v1"]).run(tokens).logits.sum()), rel=1e-12)


def test_the_share_of_clamped_membranes(exports, texts):
    tokens = texts["zh_fiction"][:200]
    share = clamp_share(exports["v1"], [tokens, tokens[:50]])
    run = Executor(exports["v1"]).run(tokens)
    again = Executor(exports["v1"]).run(tokens[:50])
    clamped = sum(w.clamped for w in run.work) + sum(w.clamped for w in again.work)
    assert share == {"active_share": clamped / (250 * 32), "tokens": 250} and clamped > 0
    assert clamp_share(exports["decay-only"], [tokens])["active_share"] == 0.0
