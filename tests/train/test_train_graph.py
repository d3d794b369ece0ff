"""Training steps recorded as CUDA graphs take the steps of the plain loop; these tests need a GPU."""

import math
from dataclasses import replace

import pytest
import torch
from training import batch

from symboliclight.core.config import TrainConfig, preset
from symboliclight.model import build
from symboliclight.model.sites import record_rates
from symboliclight.train.graph import GraphedStep, graphs
from symboliclight.train.optim import optimizer
from symboliclight.train.step import step

MODELS = {"mini": {}, "gpt2-mini": {}, "mini pre": {"residual": "pre", "spike_fed": True, "conv": 3},
          "mini input": {"decay": "input", "learn_neuron": "all"}, "mini dropout": {"dropout": 0.1}}


def started(name, config):
    torch.manual_seed(0)
    shape = replace(preset(name.split()[0]), vocab_size=512, dropout=0.0)
    model = build(replace(shape, **MODELS[name])).cuda().train()
    return shape, model, optimizer(model, config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_recorded_steps_are_those_of_the_loop(name, kind):
    """Losses, norms, rates and weights of six steps, the third of them refused."""
    config = TrainConfig(precision="float32", optimizer=kind, batch_size=4)
    found = []
    for recorded in (False, True):
        shape, model, optim = started(name, config)
        batches = [batch(shape, n, 4, 128) for n in range(6)]
        graphed = GraphedStep(model, optim, config, batches[0]) if recorded else None
        seen = []
        for n, b in enumerate(batches):
            limit = 0.0 if n == 2 else math.inf
            with record_rates(model) as rates:
                done = step(model, optim, [b], config, 1e-3, limit) if graphed is None else graphed(b, 1e-3, limit)
            seen.append((done, dict(rates) if graphed is None else graphed.rates()))
        found.append((seen, [p.detach().clone() for p in model.parameters()], optim.param_groups[0]["lr"]))
    (plain, weights, lr), (graph, graph_weights, graph_lr) = found
    tolerance = 0.05 if "dropout" in name else 2e-4  # a recorded step draws other masks
    for (a, rates), (b, graph_rates) in zip(plain, graph, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=tolerance)
        assert a.applied == b.applied
        assert rates.keys() == graph_rates.keys()
        assert all(graph_rates[k] == pytest.approx(v, abs=tolerance) for k, v in rates.items())
    assert [a.applied for a, _ in plain] == [True, True, False, True, True, True]
    assert lr == graph_lr == 1e-3
    if "dropout" not in name:
        for p, q in zip(weights, graph_weights, strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=2e-4)
    else:
        assert len({b.loss for b, _ in graph}) == 6


def test_only_single_batches_on_cuda_are_recorded():
    assert graphs(torch.device("cuda"), TrainConfig())
    assert not graphs(torch.device("cpu"), TrainConfig())
    assert not graphs(torch.device("cuda"), TrainConfig(accumulate=2))
