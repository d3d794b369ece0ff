"""The firing-rate term of the loss: its value, its gradient, what it does, whom it refuses."""

from dataclasses import replace

import pytest
import torch

import symboliclight
from symboliclight.errors import InputError
from symboliclight.model.sites import record_rates, spike_sites
from symboliclight.optim import adamw
from symboliclight.train import step
from symboliclight.train.step import losses
from training import CONFIG, batch, go

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
