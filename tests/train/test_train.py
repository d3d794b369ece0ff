"""One step is the step of the big batch; a run learns, logs, validates, rolls back and keeps the right checkpoints."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from training import CONFIG, batch, checkpoints, go, lines, with_train

import symboliclight
from symboliclight.core.errors import InputError
from symboliclight.model.sites import record_rates
from symboliclight.train import loop, step, train, validate
from symboliclight.train.optim import adamw

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(config, batches, train_config=CONFIG):
    torch.manual_seed(0)
    model = symboliclight.build(config)
    result = step(model, adamw(model, train_config), batches, train_config, lr=0.0)
    return result, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("aux", [(), (0,)])
def test_accumulated_micro_batches_give_the_gradient_of_the_big_batch(small_config, aux):
    config = replace(small_config, aux_layers=aux)
    tokens, targets = batch(config, 1, 6)
    targets[0, :9] = -1  # ignored: the micro-batches count unequally many targets
    targets[4] = -1
    whole, expected = gradients(config, [(tokens, targets)])
    parts, found = gradients(config, [(tokens[i:i + 2], targets[i:i + 2]) for i in range(0, 6, 2)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_cross_entropy_of_the_models_own_logits(small_config):
    torch.manual_seed(0)
    model = symboliclight.build(small_config)
    tokens, targets = batch(small_config, 2, 3)
    logits = model(torch.from_numpy(tokens))[0]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    found = step(model, adamw(model, CONFIG), [(tokens, targets)], CONFIG, 0.0)
    assert found.loss == pytest.approx(expected.item(), rel=1e-6)


def test_auxiliary_cross_entropy_reaches_the_gradient_with_its_weight(small_config):
    config, data = replace(small_config, aux_layers=(0,)), [batch(small_config, 3, 2)]
    none, one, two = (gradients(config, data, replace(CONFIG, aux_weight=w, clip=1e9))[1] for w in (0.0, 0.5, 1.0))
    plain = gradients(small_config, data, replace(CONFIG, clip=1e9))[1]
    for a, b, c, d in zip(none, one, two, plain, strict=True):
        assert torch.allclose(a, d, atol=1e-8)
        assert torch.allclose(2 * b, a + c, atol=1e-6)
    assert not torch.allclose(none[0], two[0], atol=1e-6)


def test_the_z_loss_moves_the_gradient_but_not_the_reported_loss(small_config):
    data = [batch(small_config, 3, 2)]
    (a, without), (b, with_z) = (gradients(small_config, data, replace(CONFIG, z_loss=z)) for z in (0.0, 0.1))
    assert a.loss == b.loss
    assert not torch.allclose(without[0], with_z[0])


def test_the_update_uses_the_clipped_gradient_and_the_given_rate(small_config):
    torch.manual_seed(0)
    model = symboliclight.build(small_config)
    config = replace(CONFIG, clip=1e-3)
    optimizer = adamw(model, config)
    result = step(model, optimizer, [batch(small_config, 4, 2)], config, lr=0.123)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
    assert result.grad_norm > 1e-3 and norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.123}


@pytest.mark.parametrize("harm", ["limit", "weights"])
def test_a_step_that_diverged_changes_nothing(small_config, harm):
    model = symboliclight.build(small_config)
    if harm == "weights":
        with torch.no_grad():
            model.head.out.weight[0, 0] = torch.nan
    before = {name: p.clone() for name, p in model.state_dict().items()}
    optimizer = adamw(model, CONFIG)
    result = step(model, optimizer, [batch(small_config, 5, 2)], CONFIG, 1.0, limit=1.0 if harm == "limit" else 1e9)
    assert not result.applied and not optimizer.state
    assert all(torch.equal(p, before[name]) or name == "head.out.weight" for name, p in model.state_dict().items())


def test_rates_are_recorded_for_every_site_and_only_inside_the_block(small_config):
    model = symboliclight.build(small_config)
    tokens = torch.from_numpy(batch(small_config, 6, 2)[0])
    with record_rates(model) as rates:
        model(tokens)
    spikes, _, _ = model.encoder(tokens, torch.zeros(2, small_config.d_model), None)
    assert list(rates) == ["encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"]
    assert rates["encoder"] == pytest.approx(spikes.mean().item())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_learns_validates_and_logs(run, tmp_path):
    result = go(run, tmp_path / "run")
    assert (result.steps, result.tokens, result.rollbacks, result.interrupted) == (20, 1280, 0, False)
    steps = lines(tmp_path / "run", "train")
    assert [line["step"] for line in steps] == list(range(2, 21, 2))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert set(steps[0]["spikes"]) == {"encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"}
    assert all(0 <= rate <= 1 for rate in steps[0]["spikes"].values())
    assert steps[0]["trained_tokens"] == 2 * 64 and steps[0]["tokens_per_second"] > 0
    assert set(steps[0]["epochs"]) == {"chinese", "english"}
    checks = lines(tmp_path / "run", "validation")
    assert [line["step"] for line in checks] == [8, 16, 20]
    assert result.validation["nats_per_token"] == checks[-1]["nats_per_token"]
    assert result.best == min(line["nats_per_token"] for line in checks)


def test_validation_weighs_domains_by_their_tokens_and_bytes(run, small_shards, small_tokenizer, small_model):
    found = validate(small_model, small_shards, small_tokenizer, run)
    domains = found["domains"].values()
    tokens = sum(d["tokens"] for d in domains)
    nats = sum(d["nats_per_token"] * d["tokens"] for d in domains)
    assert set(found["domains"]) == {"chinese", "english"} and found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens)
    size = sum(d["nats_per_token"] * d["tokens"] / np.log(2) / d["bits_per_byte"] for d in domains)
    assert found["bits_per_byte"] == pytest.approx(nats / np.log(2) / size)


def test_only_domains_with_weight_are_trained_on_and_validated(run, tmp_path):
    result = go(replace(run, data=replace(run.data, weights={"english": 1.0})), tmp_path / "run")
    assert set(result.validation["domains"]) == {"english"}
    assert set(lines(tmp_path / "run", "train")[-1]["epochs"]) == {"english"}


def test_the_newest_checkpoints_the_best_and_the_last_are_kept(run, tmp_path, monkeypatch):
    nats = iter([2.0, 3.0, 4.0])
    monkeypatch.setattr(loop, "validate", lambda *_: {"nats_per_token": next(nats)})
    result = go(run, tmp_path / "run")
    assert result.best == 2.0
    assert checkpoints(tmp_path / "run") == ["step-00000008", "step-00000016", "step-00000020"]
    assert os.readlink(tmp_path / "run" / "best") == "step-00000008"
    assert os.readlink(tmp_path / "run" / "last") == "step-00000020"
    model, _ = symboliclight.load(tmp_path / "run")
    assert model.config == run.model


def test_a_validation_that_is_not_finite_is_never_the_best(run, tmp_path, monkeypatch):
    nats = iter([float("nan"), 3.0, float("inf")])
    monkeypatch.setattr(loop, "validate", lambda *_: {"nats_per_token": next(nats)})
    assert go(run, tmp_path / "run").best == 3.0
    assert os.readlink(tmp_path / "run" / "best") == "step-00000016"
    assert [line["step"] for line in lines(tmp_path / "run", "validation")] == [16]


def test_the_run_file_says_where_the_result_comes_from(run, tmp_path, small_shards):
    go(run, tmp_path / "run")
    body = json.loads((tmp_path / "run" / "run.json").read_text())
    assert body["seed"] == 42 and body["data_hash"] == small_shards.data_hash
    assert body["tokenizer_hash"] == small_shards.tokenizer_hash
    assert body["commit"] and body["machine"]["cores"] and body["result"]["steps"] == 20
    assert body["parameters"] == sum(p.numel() for p in symboliclight.build(run.model).parameters())


def test_running_a_finished_run_again_changes_nothing(run, tmp_path):
    first = go(run, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert go(run, tmp_path / "run") == first
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused_with_its_differences(run, tmp_path):
    go(with_train(run, tokens=128), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.lr was 0\.003, now 0\.1, train\.tokens was 128, now 1280;"):
        go(with_train(run, lr=0.1), tmp_path / "run")


def test_a_run_is_not_resumed_against_the_users_will(run, tmp_path):
    go(with_train(run, tokens=128), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        go(with_train(run, tokens=128), tmp_path / "run", resume=False)


def test_a_folder_with_something_else_is_refused(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        go(run, tmp_path)


def test_data_and_configuration_must_fit(run, tmp_path):
    for changed, message in [
        (replace(run, model=replace(run.model, vocab_size=600)), r"model\.vocab_size is 600, but .* has 520 pieces"),
        (replace(run, data=replace(run.data, seq_len=65)), r"data\.seq_len is 65, more than model\.max_seq_len 64"),
        (replace(run, data=replace(run.data, weights={"french": 1.0})), "unknown domain french"),
        (replace(run, data=replace(run.data, directory=str(tmp_path / "no"))), "no"),
        (with_train(run, tokens=10), "less than one step"),
    ]:
        with pytest.raises(InputError, match=message):
            go(changed, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="--device tpu is not available"):
        train(run, tmp_path / "run", device="tpu")


def test_tensorboard_gets_every_figure_if_it_is_installed(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(with_train(run, tokens=256), tmp_path / "run", device="cpu")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4]
    assert {"train/spikes/encoder", "validation/domains/chinese/bits_per_byte"} <= set(events.Tags()["scalars"])


def test_gpt2_is_trained_by_the_same_loop(run, tmp_path):
    pytest.importorskip("transformers")
    result = go(replace(run, model=replace(run.model, family="gpt2")), tmp_path / "run")
    steps = lines(tmp_path / "run", "train")
    assert result.steps == 20 and steps[-1]["loss"] < steps[0]["loss"] - 1 and steps[0]["spikes"] == {}
