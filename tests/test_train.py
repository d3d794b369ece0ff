"""One step is the step of the big batch; a run learns, logs, validates, rolls back and keeps the right checkpoints."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight import checkpoint
from symboliclight.config import DataConfig, RunConfig, TrainConfig
from symboliclight.errors import InputError
from symboliclight.model.sites import record_rates, spike_sites
from symboliclight.optim import adamw
from symboliclight.train import loop, step, train, validate
from symboliclight.train.step import losses

CONFIG = TrainConfig(tokens=20 * 64, batch_size=2, lr=3e-3, warmup_steps=2, precision="float32", log_every=2,
                     eval_every=8, eval_tokens=64, save_every=4, keep=2)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(small_config, small_shards):
    return RunConfig(small_config, DataConfig(str(small_shards.path), seq_len=32), CONFIG)


def go(run, directory, **options):
    return train(run, directory, tensorboard=False, device="cpu", **options)


def with_train(run, **changes):
    return replace(run, train=replace(run.train, **changes))


def lines(directory, event):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def checkpoints(directory):
    return sorted(p.name for p in directory.glob("step-*"))


def batch(config, seed, rows, length=16):
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))
    return ids[:, :-1], ids[:, 1:].copy()


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


def diverge_at(monkeypatch, *calls):
    """Make the given calls of step() (from 1) see a weight that became NaN."""
    count, real = iter(range(1, 1000)), loop.step

    def step(model, *args):
        if next(count) in calls:
            with torch.no_grad():
                model.head.out.weight[0, 0] = torch.nan
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)


def test_divergence_goes_back_to_the_last_checkpoint_with_half_the_rate(run, tmp_path, monkeypatch):
    diverge_at(monkeypatch, 7, 9)  # at step 7, and again at step 6 after the rollback to 4
    result = go(with_train(run, log_every=1), tmp_path / "run")
    assert (result.steps, result.rollbacks) == (20, 2)
    rollbacks = lines(tmp_path / "run", "rollback")
    keys = ("step", "to", "lr_scale", "loss")
    assert [tuple(line[key] for key in keys) for line in rollbacks] == [(7, 4, 0.5, None), (6, 4, 0.25, None)]
    steps = lines(tmp_path / "run", "train")
    assert [line["step"] for line in steps] == list(range(1, 21))
    plain = [loop.learning_rate(line["step"], 20, run.train) for line in steps]
    assert [line["lr"] for line in steps] == [lr * (1 if i < 4 else 0.25) for i, lr in enumerate(plain)]


def test_after_a_rollback_the_data_goes_on_past_the_bad_batches(run, tmp_path, monkeypatch):
    seen, real = [], loop.step

    def step(model, optimizer, batches, *args):
        seen.append(batches[0][0].tobytes())
        return real(model, optimizer, batches, *args)

    monkeypatch.setattr(loop, "step", step)
    diverge_at(monkeypatch, 7)
    go(run, tmp_path / "run")
    assert len(seen) == 23 and len(set(seen)) == 23


def test_a_loss_far_above_the_running_mean_is_a_divergence(run, tmp_path, monkeypatch):
    calls, real = iter(range(1, 1000)), loop.step

    def step(model, *args):
        if next(calls) == 7:
            with torch.no_grad():
                model.head.out.weight.mul_(1000)
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)
    assert go(run, tmp_path / "run").rollbacks == 1
    assert lines(tmp_path / "run", "rollback")[0]["loss"] > 10


def test_too_many_rollbacks_end_the_run_and_leave_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    diverge_at(monkeypatch, *range(7, 50))
    with pytest.raises(InputError, match=r"diverged at step 5 after 3 rollbacks .*lower train\.lr.*step-00000004"):
        go(run, tmp_path / "run")
    symboliclight.load(tmp_path / "run")


@pytest.mark.parametrize(("number", "optimizer"), [(signal.SIGINT, "adamw"), (signal.SIGTERM, "muon")])
def test_a_signal_ends_the_step_saves_and_can_be_resumed(run, tmp_path, monkeypatch, number, optimizer):
    run = with_train(run, optimizer=optimizer)
    whole = go(run, tmp_path / "whole")
    real = loop.step

    def step(model, *args):
        if not (tmp_path / "sent").exists() and (tmp_path / "run" / "step-00000004").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), number)
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)
    handler = signal.getsignal(number)
    stopped = go(run, tmp_path / "run")
    assert (stopped.steps, stopped.interrupted) == (5, True)
    assert os.readlink(tmp_path / "run" / "last") == "step-00000005"
    assert signal.getsignal(number) is handler
    done = go(run, tmp_path / "run")
    assert (done.steps, done.interrupted, done.loss) == (20, False, whole.loss)
    losses = [[line["loss"] for line in lines(tmp_path / name, "train")] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        ends = [checkpoint.read_tensors(tmp_path / name / "last" / file)[0] for name in ("run", "whole")]
        assert ends[0].keys() == ends[1].keys() and all(torch.equal(x, ends[1][key]) for key, x in ends[0].items())


def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(run, tmp_path, monkeypatch):
    real = checkpoint._write_tensors

    def full(file, tensors, metadata):
        if "step-00000008" in str(file):
            raise OSError(28, "No space left on device")
        real(file, tensors, metadata)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(InputError, match=r"step-00000008: No space left on device"):
        go(run, tmp_path / "run")
    monkeypatch.undo()
    assert os.readlink(tmp_path / "run" / "last") == "step-00000004"
    assert go(run, tmp_path / "run").steps == 20


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
