"""The model: causality, padding, state, switches and gradients."""

import copy
from dataclasses import replace

import pytest
import torch

from symboliclight import InputError, ModelConfig, build, preset
from symboliclight.model import State, SymbolicLight
from symboliclight.model.encoder import Neuron, Spike
from symboliclight.ops.spike import CODES

SMALL = ModelConfig(vocab_size=61, d_model=32, n_layers=3, n_heads=4, head_dim=8, d_ff=48, max_seq_len=64, window=6,
                    n_anchors=2, dropout=0.0)
SWITCHES = {
    "v1": {}, "decay": {"paths": "decay"}, "attention": {"paths": "attention"}, "static prior": {"prior": "static"},
    "no prior": {"prior": "none"}, "memoryless": {"spike_source": "threshold"}, "topk": {"spike_source": "topk"},
    "dense encoder": {"spike_source": "dense"}, "no gate": {"gate": False}, "gelu": {"ffn": "gelu"},
    "bptt": {"lif_gradient": "bptt"}, "detached": {"lif_gradient": "bptt_detached"}, "learned": {"learn_neuron": True},
    "dense twin": {"spike_source": "dense", "ffn": "gelu", "block_spikes": False}, "aux": {"aux_layers": (0, 1)},
    "silent": {"v_threshold": 2.1}, "no window": {"window": 0}, "no anchors": {"n_anchors": 0},
    "no norm": {"norm": "none"},
    "pre-norm": {"residual": "pre"}, "spike-fed": {"spike_fed": True}, "stream": {"stream_threshold": 1.3},
    "all thresholds": {"learn_neuron": "all"}, "channel decay": {"decay": "channel"}, "input decay": {"decay": "input"},
    "conv": {"conv": 3}, "conv, decay": {"conv": 4, "paths": "decay"},
    "conv, attention": {"conv": 2, "paths": "attention"},
    "tied": {"tie_embeddings": True}, "tied, static": {"tie_embeddings": True, "prior": "static"},
    "search": {"residual": "pre", "spike_fed": True, "stream_threshold": 1.2, "learn_neuron": "all", "decay": "input",
               "conv": 3, "tie_embeddings": True},
    "its twin": {"residual": "pre", "spike_fed": True, "decay": "channel", "conv": 3, "spike_source": "dense",
                 "ffn": "gelu", "block_spikes": False},
    **{code: {"ffn_code": code, "stream_code": code, "spike_fed": code == "graded"} for code in CODES[1:]},
    "valued encoder": {"encoder_code": "shifted", "encoder_threshold": 0.8, "ffn_code": "graded"},
    "z-score": {"ffn_code": "shifted", "ffn_threshold": 0.1, "ffn_zscore": 1.3, "surrogate_cut": 1.0},
}


def model_of(seed=0, **switches) -> SymbolicLight:
    torch.manual_seed(seed)
    model = build(replace(SMALL, **switches)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "conv_" in name:
                p.add_(torch.randn_like(p) / 3)  # at first taps leave everything as it is
            elif p.dim() == 2:
                p.mul_(12)  # lively activations: initial weights of 0.02 would hide differences
    return model


def tokens_of(batch, length, seed=1):
    return torch.randint(0, SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_future_tokens_never_change_the_past(switches):
    model, tokens = model_of(**switches), tokens_of(2, 30)
    changed = tokens.clone()
    changed[:, 17:] = (changed[:, 17:] + 7) % SMALL.vocab_size
    with torch.no_grad():
        before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:, :17], after[:, :17])
    assert (before[:, 17:] != after[:, 17:]).any()


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_chunks_and_single_tokens_equal_the_whole(switches):
    model, tokens = model_of(**switches), tokens_of(2, 41)
    with torch.no_grad():
        whole, _ = model(tokens)
        for sizes in ([1] * 41, [7, 1, 20, 13]):
            state, parts = None, []
            for chunk in tokens.split(sizes, 1):
                logits, state = model(chunk, state)
                parts.append(logits)
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_left_padded_batch_equals_single_sequences(switches):
    model, lengths, T = model_of(**switches), [25, 9, 1, 16], 25
    rows = [tokens_of(1, n, seed=n) for n in lengths]
    padding = torch.tensor([T - n for n in lengths])
    batch = torch.cat([torch.nn.functional.pad(r, (T - r.shape[1], 0), value=3) for r in rows])
    step = tokens_of(4, 5, seed=9)
    with torch.no_grad():
        logits, state = model(batch, model.initial_state(4, padding))
        more, _ = model(step, state)
        chunked = model.initial_state(4, padding)
        for chunk in batch.split([4, 1, 20], 1):
            _, chunked = model(chunk, chunked)
        torch.testing.assert_close(model(step, chunked)[0], more, rtol=0, atol=5e-5)
        for b, row in enumerate(rows):
            alone, own = model(row)
            torch.testing.assert_close(logits[b, T - lengths[b]:], alone[0], rtol=0, atol=5e-5)
            torch.testing.assert_close(more[b], model(step[b : b + 1], own)[0][0], rtol=0, atol=5e-5)


def test_state_is_bounded_and_survives_rows_batch_copy_and_tensors():
    model = model_of()
    with torch.no_grad():
        _, short = model(tokens_of(3, 2))
        _, state = model(tokens_of(3, 64))
        assert short.nbytes == state.nbytes
        again = State.from_tensors(state.tensors(), len(state.layers))
        joined = State.batch([state.rows([2]), again.copy().rows([0, 1])])
        step = tokens_of(3, 3, seed=5)
        torch.testing.assert_close(model(step[[2, 0, 1]], joined)[0], model(step, state)[0][[2, 0, 1]])


def test_a_call_leaves_the_state_it_was_given_unchanged():
    model = model_of()
    with torch.no_grad():
        _, state = model(tokens_of(2, 12))
        before = state.copy()
        model(tokens_of(2, 12, seed=3), state)
    for name, x in before.tensors().items():
        assert torch.equal(x, state.tensors()[name]), name


def test_state_of_v1_194m_is_about_19_megabytes():
    with torch.device("meta"):
        model = build(preset("v1-194m"))
        state = model.initial_state(1)
    assert 18e6 < state.nbytes < 20e6


def test_anchors_stay_visible_beyond_the_window():
    tokens = tokens_of(1, 40)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % SMALL.vocab_size
    differs = {}
    for anchors in (0, 2):
        model = model_of(paths="attention", n_anchors=anchors, n_layers=1, spike_source="threshold", gate=False)
        with torch.no_grad():
            differs[anchors] = bool((model(tokens)[0][0, -1] != model(changed)[0][0, -1]).any())
    assert differs == {0: False, 2: True}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_parameter_gets_a_finite_gradient(switches):
    model = model_of(**switches).train()
    features, aux, _ = model.features(tokens_of(2, 30))
    assert len(aux) == len(switches.get("aux_layers", ()))
    sum(model.head(c).logsumexp(-1).mean() for c in [features, *aux]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_spike_sites_hold_only_zeros_and_ones_and_the_dense_twin_has_none():
    model = model_of()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, (Spike, Neuron)):
            def hook(_, __, output, name=name):
                seen[name] = output[0] if isinstance(output, tuple) else output
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(tokens_of(2, 20))
    assert len(seen) == 1 + 2 * SMALL.n_layers
    assert all(((s == 0) | (s == 1)).all() and 0 < s.mean() < 1 for s in seen.values())
    twin = model_of(**SWITCHES["dense twin"])
    assert not any(isinstance(m, Spike) for m in twin.modules())


def test_topk_source_fires_exactly_the_set_rate():
    model = model_of(spike_source="topk", topk_rate=0.25)
    with torch.no_grad():
        x = model.encoder.norm(model.encoder.embedding(tokens_of(2, 20)))
        s, _ = model.encoder.neuron(x, torch.zeros(2, 32))
    assert ((s == 0) | (s == 1)).all() and (s.sum(-1) == 8).all()


def test_learned_neuron_starts_at_the_fixed_one():
    fixed, learned, tokens = model_of(), model_of(learn_neuron=True), tokens_of(2, 20)
    assert {"encoder.neuron.leak", "encoder.neuron.threshold"} <= {n for n, _ in learned.named_parameters()}
    with torch.no_grad():
        assert torch.equal(fixed(tokens)[0], learned(tokens)[0])


def test_early_exit_stops_only_when_certain_and_keeps_the_state_usable():
    model, tokens = model_of(), tokens_of(1, 12)
    calls = []
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        full, _ = model(tokens)
        model.config = replace(model.config, exit_entropy=1e-9)
        calls.clear()
        assert torch.equal(model(tokens)[0], full) and len(calls) == 3
        model.config = replace(model.config, exit_entropy=100.0)
        calls.clear()
        logits, state = model(tokens)
        assert len(calls) == 1 and not torch.equal(logits, full)
        model(tokens, state)


def test_bfloat16_autocast_runs_and_stays_near_float32():
    model, tokens = model_of(), tokens_of(2, 30)
    with torch.no_grad():
        exact = model(tokens)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(tokens)[0].float()
    agreement = (exact.argmax(-1) == rough.argmax(-1)).float().mean()
    assert agreement > 0.8


@pytest.mark.parametrize(("change", "word"), [
    ({"d_model": 33}, "d_model"), ({"head_dim": 7, "d_model": 28}, "head_dim"), ({"dropout": 1.0}, "dropout"),
    ({"leak": 0.0}, "leak"), ({"vocab_size": 0}, "vocab_size"), ({"aux_layers": (5,)}, "aux_layers"),
    ({"topk_rate": 0.0}, "topk_rate"), ({"window": -1}, "window")])
def test_impossible_configs_are_refused_by_name(change, word):
    with pytest.raises(InputError, match=word):
        replace(SMALL, **change)


def test_mini_and_tiny_are_small_enough_for_a_laptop():
    sizes = {n: sum(p.numel() for p in build(preset(n)).parameters()) for n in ("tiny", "mini")}
    assert 4e6 < sizes["mini"] < 9e6
    assert sizes["tiny"] < 4e6


@pytest.mark.parametrize("shape", [{}, {"family": "gpt2", "d_ff": 128}], ids=["symboliclight", "gpt2"])
def test_no_tokens_are_one_clear_line(small_config, shape):
    model = build(ModelConfig(**{**vars(small_config), **shape}))
    for call in (model, model.eval()):
        with pytest.raises(InputError, match="no tokens to read; give at least one"):
            call(torch.zeros(1, 0, dtype=torch.long))


def test_a_copy_of_a_state_is_a_fork(small_model):
    with torch.inference_mode():
        state = small_model(torch.arange(9)[None])[1]
    assert copy.copy(state).v.data_ptr() != state.v.data_ptr()
