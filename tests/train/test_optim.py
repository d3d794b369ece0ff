"""Which weights decay, the schedule, and the optimiser's state as named tensors."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import symboliclight
from symboliclight.core.config import TrainConfig
from symboliclight.core.errors import InputError
from symboliclight.train.optim import (
    adamw,
    decays,
    is_hidden,
    learning_rate,
    load_state_tensors,
    optimizer,
    state_tensors,
    total_steps,
)

BLOCK = {"mixer.tcam", "mixer.q", "mixer.k", "mixer.v", "mixer.out", "ffn.up", "ffn.down"}


def decayed(config):
    named = symboliclight.build(config).named_parameters()
    return {name.removesuffix(".weight") for name, p in named if decays(name, p)}


def test_weight_decay_falls_on_matrices_but_not_on_norms_priors_gates_and_decays(small_config):
    blocks = {f"blocks.{i}.{name}" for i in range(2) for name in BLOCK}
    assert decayed(small_config) == {"encoder.embedding", "head.out"} | blocks
    assert decayed(replace(small_config, learn_neuron=True, learn_prior_weight=True, prior="static")) == \
        {"encoder.embedding", "head.out"} | blocks
    search = replace(small_config, learn_neuron="all", decay="input", conv=3, tie_embeddings=True)
    assert decayed(search) == {"encoder.embedding"} | blocks


def test_weight_decay_of_gpt2_falls_on_its_matrices_and_embeddings(small_config):
    pytest.importorskip("transformers")
    names = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    blocks = {f"transformer.h.{i}.{name}" for i in range(2) for name in names}
    assert decayed(replace(small_config, family="gpt2")) == {"transformer.wte", "transformer.wpe"} | blocks


def test_every_parameter_is_in_exactly_one_group(small_config):
    model = symboliclight.build(small_config)
    groups = adamw(model, TrainConfig()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


def test_the_rate_warms_up_to_its_peak_and_ends_at_its_minimum():
    config = TrainConfig(lr=1e-3, min_lr=1e-4, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(1, 111)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == 1e-3
    assert rates[59] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[-1] == pytest.approx(1e-4)
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_without_warm_up_the_first_step_is_on_the_cosine():
    config = TrainConfig(lr=1.0, min_lr=0.0, warmup_steps=0)
    assert learning_rate(1, 3, config) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


def test_the_budget_is_never_exceeded_and_pays_for_at_least_a_step():
    config = TrainConfig(tokens=1000, batch_size=2, accumulate=3)
    assert total_steps(config, 16) == 10
    with pytest.raises(InputError, match=r"less than one step of 3 x 2 x 200 = 1200 tokens"):
        total_steps(config, 200)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_goes_through_named_tensors_unchanged(small_config, name):
    torch.manual_seed(0)
    model, config = symboliclight.build(small_config), TrainConfig(optimizer=name)
    made = optimizer(model, config)
    tokens = torch.randint(0, small_config.vocab_size, (1, 8))

    def update(made):
        made.zero_grad()
        model(tokens)[0].square().mean().backward()
        made.step()
        return [p.detach().clone() for p in model.parameters()]

    update(made)
    start = {name: p.clone() for name, p in model.state_dict().items()}
    tensors = {name: t.clone() for name, t in state_tensors(made, model).items()}
    assert {key.rpartition(":")[0] for key in tensors} == {name for name, _ in model.named_parameters()}
    expected = update(made)
    model.load_state_dict(start)
    other = optimizer(model, config)
    load_state_tensors(other, model, tensors)
    assert all(torch.equal(a, b) for a, b in zip(update(other), expected, strict=True))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(small_config):
    changed = replace(small_config, decay="input", conv=3, prior="dynamic")
    model = symboliclight.build(changed)
    hidden = {name.removesuffix(".weight") for name, p in model.named_parameters() if is_hidden(name, p)}
    assert hidden == {f"blocks.{i}.{name}" for i in range(2) for name in BLOCK}
    made = optimizer(model, TrainConfig(optimizer="muon"))
    assert [len(g["params"]) for g in made.param_groups] == [14, 2, len(list(model.parameters())) - 16]
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0.1, 0.0]


def test_an_update_of_muon_has_equal_singular_values_and_the_size_of_adamws(small_config):
    torch.manual_seed(0)
    model = symboliclight.build(small_config)
    config = TrainConfig(optimizer="muon", weight_decay=0.0)
    made, before = optimizer(model, config), model.blocks[0].ffn.up.weight.detach().clone()
    for group in made.param_groups:
        group["lr"] = 0.5
    model(torch.randint(0, small_config.vocab_size, (4, 32)))[0].square().mean().backward()
    made.step()
    change = before - model.blocks[0].ffn.up.weight.detach()
    singular = torch.linalg.svdvals(change)[:-1]  # normalised inputs have no part along their mean
    assert singular.max() < 2 * singular.min()  # Newton-Schulz leaves them between about 0.7 and 1.2
    assert change.square().mean().sqrt() == pytest.approx(0.5 * 0.2, rel=0.3)


def test_a_torch_without_muon_is_told_in_one_line(small_config, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"train\.optimizer muon needs torch 2\.9 or newer, this is .*; upgrade torch"):
        optimizer(symboliclight.build(small_config), TrainConfig(optimizer="muon"))


@pytest.mark.parametrize("key", ["nowhere:exp_avg", "head.out.weight:exp_avg"])
def test_a_state_of_another_model_is_refused(small_config, key):
    model = symboliclight.build(small_config)
    with pytest.raises(InputError, match="does not belong to this model"):
        load_state_tensors(adamw(model, TrainConfig()), model, {key: torch.zeros(3)})
