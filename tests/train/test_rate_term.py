"""The firing-rate term of the loss: its value, its gradient, what it does, whom it refuses."""

from dataclasses import replace

import pytest
import torch
from training import CONFIG, batch, go

import symboliclight
from symboliclight.core.config import DataConfig, ModelConfig, RunConfig, TrainConfig, from_dict
from symboliclight.core.errors import InputError
from symboliclight.model.sites import record_rates, spike_sites
from symboliclight.train import step
from symboliclight.train.optim import adamw
from symboliclight.train.step import losses, ramped

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_rate_term_is_the_mean_firing_rate_and_its_gradient_that_of_the_surrogate(small_config):
    tokens, targets = batch(small_config, 3, 2)
    torch.manual_seed(0)
    model = symboliclight.build(small_config)
    ids = torch.from_numpy(tokens), torch.from_numpy(targets)
    with record_rates(model) as rates:
        plain, nats = losses(model, *ids, CONFIG)
    loss, same = losses(model, *ids, replace(CONFIG, rate_weight=0.5))
    assert torch.equal(nats, same)
    assert (loss - plain).item() == pytest.approx(0.5 * sum(rates.values()) / len(rates), rel=1e-5)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    spikes = []
    hooks = [site.register_forward_hook(lambda _, inputs, output: spikes.append(output)) for site in
             spike_sites(model).values()]
    plain, _ = losses(model, *ids, CONFIG)
    for hook in hooks:
        hook.remove()
    means = [(s[0] if isinstance(s, tuple) else s).mean() for s in spikes]
    (plain + 0.5 * sum(means) / len(means)).backward()
    for a, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-7)


def test_the_rate_term_silences_a_model_that_it_outweighs(small_config):
    batches = [batch(small_config, 4, 4)]
    rate = {}
    for weight in (0.0, 100.0):
        config = replace(CONFIG, rate_weight=weight)
        torch.manual_seed(0)
        model = symboliclight.build(small_config)
        optimizer = adamw(model, config)
        for _ in range(20):
            step(model, optimizer, batches, config, lr=3e-3)
        with record_rates(model) as rates:
            step(model, optimizer, batches, config, lr=0.0)
        rate[weight] = sum(rates.values())
    assert rate[100.0] < 0.8 * rate[0.0]


def test_a_rate_term_needs_a_model_that_spikes(run, tmp_path):
    dense = replace(run, model=replace(run.model, family="gpt2", d_ff=128), train=replace(run.train, rate_weight=0.1))
    with pytest.raises(InputError, match=r"rate_weight is 0\.1, but a model of family gpt2 has no spikes"):
        go(dense, tmp_path / "run")


def test_ramps_are_where_the_step_has_them(small_config):
    """The weight grows to its own over `rate_ramp` steps; the surrogate of every site goes in a straight line."""
    model = symboliclight.build(replace(small_config, surrogate_alpha=2.0))
    train = TrainConfig(rate_weight=4.0, rate_ramp=8, surrogate_alpha_end=6.0)
    run = RunConfig(model.config, DataConfig(), train)
    for at, weight, alpha in ((1, 0.5, 2.4), (4, 2.0, 3.6), (8, 4.0, 5.2), (10, 4.0, 6.0)):
        assert ramped(model, run, at, 10).rate_weight == weight
        assert [site.alpha for site in spike_sites(model).values()] == pytest.approx([alpha] * len(spike_sites(model)))
    assert ramped(model, replace(run, train=TrainConfig()), 3, 10) == TrainConfig()


def test_the_surrogate_that_was_set_is_the_one_that_learns(small_config):
    """A steeper one passes less on; what the model says does not change."""
    tokens, targets = (torch.from_numpy(x) for x in batch(small_config, 3, 2))
    found = {}
    for alpha in (2.0, 50.0):
        torch.manual_seed(0)
        model = symboliclight.build(small_config)
        run = RunConfig(small_config, DataConfig(), TrainConfig(surrogate_alpha_end=alpha))
        loss, _ = losses(model, tokens, targets, ramped(model, run, 10, 10))
        loss.backward()
        found[alpha] = loss.item(), model.blocks[0].ffn.up.weight.grad.norm().item()
    assert found[2.0][0] == found[50.0][0] and found[50.0][1] < 0.9 * found[2.0][1]


@pytest.mark.parametrize(("section", "fields", "message"), [
    ("model", {"ffn_code": "gradual"}, "ffn_code must be one of binary, ternary"),
    ("model", {"encoder_code": "integer"}, "encoder_code must be one of binary, graded, shifted"),
    ("model", {"encoder_code": "graded", "lif_gradient": "bptt"}, "a local gradient only"),
    ("model", {"encoder_code": "graded", "spike_source": "topk"}, "set model.spike_source to lif"),
    ("model", {"spike_levels": 16}, "spike_levels must be 1 to 15"), ("model", {"spike_levels": 0}, "1 to 15"),
    ("model", {"ffn_threshold": 0.0}, "ffn_threshold must be positive"),
    ("model", {"surrogate_cut": -1.0}, "surrogate_cut must be positive"),
    ("train", {"surrogate_alpha_end": 0.0}, "surrogate_alpha_end must be positive"),
    ("train", {"rate_ramp": -1}, "rate_ramp must not be negative"),
])
def test_fields_that_make_no_spikes_are_refused_in_one_line(section, fields, message):
    with pytest.raises(InputError, match=message):
        from_dict(ModelConfig if section == "model" else TrainConfig, fields)


def test_ternary_spikes_have_no_rate_term():
    with pytest.raises(InputError, match="rate_weight weighs nothing of ternary spikes"):
        RunConfig(ModelConfig(ffn_code="ternary"), DataConfig(), TrainConfig(rate_weight=1.0))
