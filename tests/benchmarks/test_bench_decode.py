"""`bench decode` on a model with changed fields: the parts that are not a matter of time."""

from dataclasses import replace

import pytest
import torch
from test_exact import tokens_of

from symboliclight import build, preset
from symboliclight.benchmarks import curves, decode, memory
from symboliclight.benchmarks.harness import Rounds, row, turns
from symboliclight.commands.cli import main
from symboliclight.core.errors import InputError
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import PRECISIONS

CHANGES = {"spike_fed": True, "stream_threshold": 1.5, "learn_neuron": "all", "conv": 3, "decay": "input",
           "residual": "pre", "tie_embeddings": True}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(replace(decode.changed("tiny", CHANGES), init_std=0.03)).eval()


def test_contenders_take_turns_and_are_compared_round_by_round():
    calls = []
    found = turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert calls == ["a", "b"] * 5 and [len(x) for x in found.seconds.values()] == [4, 4]
    calls.clear()
    turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, twice=True)
    assert calls == [*"ab", *"aabb" * 3]
    slowing = Rounds({"a": [1.0, 1.0, 9.0, 9.0, 9.0], "b": [2.0, 2.0, 18.0, 18.0, 1.0]})  # the machine gets slower
    assert slowing.faster("a", "b") == 2 and slowing.median("a") == 9 and slowing.median("b") == 2


def test_rounds_are_also_reported_apart_where_the_threads_moved():
    def report(found):
        return row("speed", "x", found.median("a"), 1, found.faster("a", "b"), 2.0)

    still = Rounds({"a": [1.0] * 12, "b": [2.0] * 12, "meeting": [1.0] * 11 + [9.0]})
    assert memory.everywhere(still, report) == [row("speed", "x", 1, 1, 2, 2.0)]
    moving = Rounds({"a": [1.0, 2.0] * 6, "b": [2.0, 8.0] * 6, "meeting": [1.0, 5.0] * 6})
    assert memory.everywhere(moving, report) == [
        row("speed", "x", 1.5, 1, 3, 2.0), row("speed (threads near)", "x", 1, 1, 2),
        row("speed (threads far apart)", "x", 2, 1, 4)]
    alone = Rounds(moving.seconds | {"meeting": [1e-6, 5e-6] * 6})  # one thread: nobody to wait for
    assert memory.everywhere(alone, report) == [row("speed", "x", 1.5, 1, 3, 2.0)]


def test_threads_meet_and_one_alone_does_not_wait(model):
    for threads in (1, 3):
        engine = Engine(model.config, decode.engine_of(model, "int8").weights, threads)
        memory.meeting(engine)()
        assert engine.last(tokens_of((1, 4), 4096))[0].shape == (1, 4096)


def test_fields_are_changed_and_others_kept():
    assert decode.changed("v1-194m", CHANGES) == replace(preset("v1-194m"), **CHANGES)
    assert decode.changed("v1-194m", {}) == preset("v1-194m")


@pytest.mark.parametrize("options", [
    ["decode", "--set", "model.spikes=true"], ["decode", "--set", "model.conv=many"], ["decode", "--set", "model.conv"],
    ["decode", "--set", "train.lr=1"], ["ops", "--set", "model.conv=3"]], ids=" ".join)
def test_other_fields_and_benchmarks_are_refused_in_one_line(options, tmp_path, capsys):
    assert main(["bench", *options, "--out", str(tmp_path), "--threads", str(torch.get_num_threads())]) == 2
    error = capsys.readouterr().err
    assert "--set" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_changed_model_passes_the_check_at_every_precision_and_another_does_not(model):
    with torch.inference_mode():
        decode.check(model, {p: decode.engine_of(model, p) for p in PRECISIONS}, 4096)
        with pytest.raises(InputError, match="logits of float32 are off"):
            decode.check(model, {"float32": decode.engine_of(build(model.config), "float32")}, 4096)


def test_bytes_and_the_curve_of_sparsity_count_every_spike_fed_matrix(model):
    engine = decode.engine_of(model, "int8")
    read, whole = decode.bytes_per_token(engine, tokens_of((1, 64), 4096)), {}
    for m in engine.weights.matrices:
        whole[m.site] = whole.get(m.site, 0) + m.data.nbytes + (0 if m.scale is None else m.scale.nbytes)
    assert all(read[site] < 0.5 * whole[site] for site in ("tcam", "decay_gate", "q", "k", "v", "up", "down"))
    low, high = curves.sparsity(model, decode.decoder, tokens_of((1, 200), 4096), (0.5, 1.5))
    assert 0 < low["active"] < high["active"] < 1 and set(low) == {"active", "tcam", "down", "sparse", "dense"}
