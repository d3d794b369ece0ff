"""The switches of the V1+ search, one by one; what all switches share is in test_lm.py."""

from dataclasses import replace

import pytest
import torch
from test_lm import SMALL, SWITCHES, model_of, tokens_of
from torch import nn

from symboliclight import InputError, build, load, preset
from symboliclight.core import checkpoint
from symboliclight.core.config import ModelConfig, from_dict
from symboliclight.interop.nir import build as nir_build
from symboliclight.model.sites import spike_sites

SEARCH = SWITCHES["search"]
EACH = [{name: value} for name, value in SEARCH.items()] + [{"decay": "channel"}]
each = pytest.mark.parametrize("change", EACH, ids=str)


def recorded(model, tokens):
    """Inputs (first) and outputs (first) of every module in one pass, by name."""
    seen = {}
    hooks = [module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (
        x, y[0] if isinstance(y, tuple) else y)})) for name, module in model.named_modules()]
    with torch.no_grad():
        logits, _ = model(tokens)
    for hook in hooks:
        hook.remove()
    return seen, logits


def test_without_the_switches_the_weights_have_their_names_of_old():
    names = set(build(SMALL).state_dict())
    for change in ({"residual": "pre"}, {"spike_fed": True}, {"stream_threshold": 1.3}, {"decay": "channel"}):
        assert set(model_of(**change).state_dict()) == names
    assert set(model_of(tie_embeddings=True).state_dict()) == names - {"head.out.weight"}


@pytest.mark.parametrize("change", [{"learn_neuron": "all"}, {"decay": "channel"}, {"conv": 3}], ids=str)
def test_what_is_learned_starts_as_v1(change):
    torch.manual_seed(0)
    plain = build(replace(SMALL, init_std=0.2)).eval()
    torch.manual_seed(0)
    changed = build(replace(SMALL, init_std=0.2, **change)).eval()
    with torch.no_grad():
        torch.testing.assert_close(changed(tokens_of(2, 30))[0], plain(tokens_of(2, 30))[0], rtol=0, atol=2e-6)


def test_the_pre_norm_stream_is_the_sum_of_all_branches_and_all_read_its_norm():
    model = model_of(residual="pre")
    seen, logits = recorded(model, tokens_of(2, 20))
    stream = seen["encoder.norm"][1]
    read = stream
    for i in range(SMALL.n_layers):
        assert torch.equal(seen[f"blocks.{i}.mixer.q"][0][0], read)
        stream = stream + seen[f"blocks.{i}.mixer.out"][1]
        read = nn.functional.layer_norm(stream, (32,))
        torch.testing.assert_close(seen[f"blocks.{i}.ffn.up"][0][0], read)
        hidden = seen[f"blocks.{i}.ffn.activation"][1]
        stream = stream + hidden @ model.blocks[i].ffn.down.weight.T
        torch.testing.assert_close(seen[f"blocks.{i}.ffn"][1], stream)
        read = seen[f"blocks.{i}.ffn.norm"][1]
        torch.testing.assert_close(read, nn.functional.layer_norm(stream, (32,)))
        assert torch.equal(seen[f"blocks.{i}.spike"][1], (read >= 1).float())
    assert torch.equal(logits, model.head(read))


def test_spike_fed_matrices_read_nothing_but_spikes():
    model = model_of(spike_fed=True, residual="pre", learn_neuron="all", conv=3, stream_threshold=1.2)
    seen, _ = recorded(model, tokens_of(2, 30))
    for i in range(SMALL.n_layers):
        before = f"blocks.{i - 1}.spike" if i else "encoder.neuron"
        for name in ("mixer.q", "mixer.k", "mixer.v"):
            assert torch.equal(seen[f"blocks.{i}.{name}"][0][0], seen[before][1])
        assert torch.equal(seen[f"blocks.{i}.ffn.up"][0][0], seen[f"blocks.{i}.ffn.spike"][1])
        assert torch.equal(seen[f"blocks.{i}.ffn.spike"][0][0], seen[f"blocks.{i}.mixer.norm"][1])


@each
def test_every_site_of_every_switch_is_binary_and_alive(change):
    model = model_of(**change)
    assert len(spike_sites(model)) == 1 + (3 if "spike_fed" in change else 2) * SMALL.n_layers
    seen, _ = recorded(model, tokens_of(2, 30))
    names = {module: name for name, module in model.named_modules()}
    for site, module in spike_sites(model).items():
        spikes = seen[names[module]][1]
        assert ((spikes == 0) | (spikes == 1)).all() and 0 < spikes.mean() < 1, site


@pytest.mark.parametrize("theta", [1.0, 1.3])
def test_sums_of_spikes_start_with_the_variance_of_sums_of_the_stream(theta):
    config = replace(SMALL, d_model=256, head_dim=64, d_ff=512, init_std=0.05, stream_threshold=theta)
    sums = []
    for spike_fed in (False, True):
        torch.manual_seed(0)
        ffn = build(replace(config, spike_fed=spike_fed)).blocks[0].ffn
        with torch.no_grad():
            sums.append(ffn.up(ffn.spike(torch.randn(200, 256))).std().item())
    assert sums[1] == pytest.approx(sums[0], rel=0.05) and sums[0] == pytest.approx(0.8, rel=0.05)


def test_the_dense_twin_of_a_spike_fed_model_spikes_nowhere():
    twin = model_of(**SWITCHES["its twin"])
    assert spike_sites(twin) == {}
    seen, _ = recorded(twin, tokens_of(2, 20))
    assert torch.equal(seen["blocks.1.ffn.up"][0][0], seen["blocks.1.mixer.norm"][1])


def test_the_stream_threshold_moves_the_spikes_of_the_stream_alone():
    models = (model_of(stream_threshold=theta, spike_fed=True) for theta in (1.0, 1.3))
    low, high = (recorded(model, tokens_of(4, 30))[0] for model in models)
    assert torch.equal(low["encoder.neuron"][1], high["encoder.neuron"][1])
    for name in ("blocks.0.ffn.spike", "blocks.0.spike"):
        v = high[name][0][0]
        assert torch.equal(high[name][1], (v >= 1.3).float()) and high[name][1].mean() < low[name][1].mean()
    v = high["blocks.0.ffn.activation"][0][0]
    assert torch.equal(high["blocks.0.ffn.activation"][1], (v >= 1).float())


def test_a_stream_starts_as_silent_as_its_threshold_says():
    """What the pages say: 84% at 1, 90% at 1.3, 93% at 1.5."""
    for theta, silent in ((1.0, 0.841), (1.3, 0.903), (1.5, 0.933)):
        torch.manual_seed(0)
        model = build(replace(SMALL, d_model=256, head_dim=64, stream_threshold=theta)).eval()
        spikes = recorded(model, tokens_of(4, 64))[0]["blocks.0.spike"][1]
        assert 1 - spikes.mean().item() == pytest.approx(silent, abs=0.01)


def test_thresholds_are_learned_at_every_site_that_is_read_and_stay_positive():
    model = model_of(learn_neuron="all", spike_fed=True)
    logs = {name for name, _ in model.named_parameters() if name.endswith("threshold_log")}
    middle = {f"blocks.{i}.ffn.{part}.threshold_log" for i in range(3) for part in ("spike", "activation")}
    assert logs == middle | {f"{site}.threshold_log" for site in ("encoder.neuron", "blocks.0.spike", "blocks.1.spike")}
    site = model.blocks[0].spike
    with torch.no_grad():
        site.threshold_log.copy_(torch.linspace(-20, 1, 32))
    assert not site(torch.full((1, 1, 32), -1e-9)).any()
    assert torch.equal(site(torch.full((1, 1, 32), 1.0))[0, 0], (torch.linspace(-20, 1, 32) <= 0).float())


def test_a_channel_has_a_decay_of_its_own():
    model = model_of(decay="channel", paths="decay", n_layers=1)
    with torch.no_grad():
        model.blocks[0].mixer.decay_raw.copy_(torch.linspace(-4, 4, 32))
        s = (torch.rand(2, 9, 32) < 0.3).float()
        past = model.initial_state(2).layers[0]
        new = type(past)()
        mine = model.blocks[0].mixer.remember(s, past, new)
        h, d = torch.zeros(2, 32), torch.linspace(-4, 4, 32).sigmoid()
        for t in range(9):
            h = d * h + (1 - d) * model.blocks[0].mixer.tcam(s[:, t])
            torch.testing.assert_close(mine[:, t].flatten(1), h)
        torch.testing.assert_close(new.h.flatten(1), h)


def test_spikes_choose_how_long_the_memory_keeps():
    model = model_of(decay="input", paths="decay", n_layers=1)
    mixer, past = model.blocks[0].mixer, model.initial_state(1).layers[0]
    past.h = torch.ones(1, 4, 8)
    s = torch.zeros(1, 1, 32)
    s[..., 5] = 1
    with torch.no_grad():
        mixer.tcam.weight.zero_()
        mixer.decay_gate.weight.zero_()
        mixer.decay_gate.weight[2, 5] = -100.0
        kept = mixer.remember(s, past, type(past)())[0, 0, :, 0]
    torch.testing.assert_close(kept, torch.tensor([3.0, 3.0, -97.0, 3.0]).sigmoid())


def test_the_state_of_a_convolution_is_bounded():
    model = model_of(conv=4)
    with torch.no_grad():
        sizes = {n: model(tokens_of(1, n))[1].nbytes for n in (1, 2, 40)}
    assert len(set(sizes.values())) == 1
    assert sizes[1] - model_of().initial_state(1).nbytes == 3 * 3 * 3 * 32 * 4  # layers, u k v, conv - 1, D, float32


def test_early_exit_passes_over_the_tails_of_a_convolution():
    model = model_of(conv=3, exit_entropy=100.0)
    with torch.no_grad():
        _, state = model(tokens_of(1, 12))
        assert not state.layers[2].u_tail.any() and state.layers[0].u_tail.any()
        model(tokens_of(1, 3), state)


@pytest.mark.parametrize("change", [{"tie_embeddings": True}, SEARCH], ids=str)
def test_a_checkpoint_holds_a_tied_embedding_once_and_loads_again(change, tmp_path, small_tokenizer):
    config = replace(SMALL, vocab_size=small_tokenizer.vocab_size, **change)
    torch.manual_seed(0)
    model = build(config).eval()
    checkpoint.save(tmp_path / "model", config, model.state_dict(), small_tokenizer)
    again, _ = load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(tokens_of(1, 9))[0], model(tokens_of(1, 9))[0])
        again.encoder.embedding.weight.zero_()
        assert not again.head.weight.any()
    shapes = [tuple(t.shape) for t in checkpoint.load(tmp_path / "model")[1].values()]
    assert shapes.count((config.vocab_size, 32)) == 1


@each
def test_nir_refuses_each_switch_by_name(change):
    (name, _), = change.items()
    with pytest.raises(InputError, match=rf"needs model\.{name}"):
        nir_build.build(replace(SMALL, **change), {})


@pytest.mark.parametrize(("change", "word"), [
    ({"conv": 1}, "conv"), ({"conv": -1}, "conv"), ({"stream_threshold": 0.0}, "stream_threshold"),
    ({"residual": "sandwich"}, "residual"), ({"decay": "none"}, "decay"), ({"learn_neuron": "some"}, "learn_neuron")])
def test_impossible_values_are_refused_by_name(change, word):
    with pytest.raises(InputError, match=word):
        from_dict(ModelConfig, change)


def test_the_presets_are_what_they_were():
    names = ("residual", "spike_fed", "stream_threshold", "decay", "conv", "tie_embeddings", "learn_neuron")
    for name in ("v1-194m", "v1-0.8b", "mini", "tiny", "gpt2-mini"):
        assert [getattr(preset(name), field) for field in names] == ["post", False, None, "head", 0, False, False]


def test_a_z_score_is_the_share_of_a_normal_token_that_spikes_and_the_threshold_its_floor():
    """One in ten of a normal token lies 1.28 deviations above its mean, wherever that is and however wide it is."""
    site = model_of(ffn_code="shifted", ffn_threshold=0.1, ffn_zscore=1.2816).blocks[0].ffn.activation
    normal = torch.randn(4, 5, 20_000, generator=torch.Generator().manual_seed(0))
    for v in (3 * normal + 7, 0.5 * normal + 2):
        assert (site(v) > 0).float().mean(-1) == pytest.approx(0.1, abs=0.01)
    low = normal - 9
    assert torch.equal(site(low), (low - 0.1).clamp(min=0))
