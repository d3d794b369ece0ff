"""What fits on neuromorphic targets: placements by hand, limits with sources, and rounding that is really applied."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch

from symboliclight.commands import cli
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.interop.hardware import SOURCES, TARGETS, Limit
from symboliclight.interop.mapping import fit, place, placements, quantise

KI = 1024
MINI = preset("mini")  # tcam 192 -> 192, down 1024 -> 192


@pytest.mark.parametrize(("target", "pieces"), [
    # 192 KiB a core: a neuron takes 1024 weights and three bytes of state, so 191 of 192 neurons fit
    ("loihi2", (96, 96)),
    # 1024 signed inputs are 2048 rows of 256: 8 circuits joined, 64 neurons on 512 circuits
    ("brainscales2", (64, 64, 64)),
    # 128 KiB a core: 127 neurons of 1024 + 4 bytes
    ("spinnaker2", (96, 96)),
    # 64 Ki entries hold 64 outputs of 1024 inputs, 32 Ki hold 32
    ("speck", (64, 64, 32, 32)),
])
def test_a_down_projection_of_mini_is_split_as_by_hand(target, pieces):
    found = place(TARGETS[target], "down", 1024, 192)
    assert found.pieces == pieces and sum(pieces) == found.neurons == 192
    assert found.synapses == 1024 * 192 and 0.4 < found.fill <= 1


def test_speck_gives_the_next_matrix_the_cores_that_are_left():
    found = place(TARGETS["speck"], "tcam", 192, 192, taken=2)  # the two of 64 Ki are gone: 32 Ki, 32 Ki, then 16 Ki
    assert found.pieces == (128, 64) and found.fill == pytest.approx(192 * 192 / (64 * KI))
    found = place(TARGETS["speck"], "tcam", 192, 192, taken=4)
    assert found.pieces == (64, 64, 64) and "a core sends to 2" in found.notes[0]


@pytest.mark.parametrize(("target", "M", "why"), [
    ("loihi2", 200_000, "exceed the 196,608 bytes of a core"), ("spinnaker2", 140_000, "exceed the 131,072 bytes"),
    ("brainscales2", 70_000, "would need 547 circuits"), ("speck", 4096, "4096 inputs exceed 1024 channels"),
])
def test_what_cannot_be_split_does_not_fit_and_says_why(target, M, why):
    found = place(TARGETS[target], "wide", M, 8)
    assert not found.fits and found.fill == 0 and why in found.notes[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["mini", "mini-neuro", "v1-194m"])
def test_no_core_holds_more_than_it_can(target, name):
    t, config = TARGETS[target], preset(name)
    used = 0
    for p in placements(config, t):
        assert sum(p.pieces) in (0, p.neurons)
        for neurons in p.pieces:
            if t.kernels:
                size = sorted(t.kernels, reverse=True)[used % 9]
                assert p.fan_in * 2 ** (neurons - 1).bit_length() <= size and p.fan_in <= 1024
            elif t.join:
                assert neurons * -(-2 * p.fan_in // 256) <= 512
            else:
                assert neurons * (p.fan_in + t.state_bits.value / 8) <= t.memory.value
            used += 1
    assert fit(config, t)["totals"]["cores"] == used


def test_every_limit_has_a_source_or_is_unknown():
    for t in TARGETS.values():
        for name, value in vars(t).items():
            if isinstance(value, Limit):
                assert (value.value is None) == (value.source is None), f"{t.name}: {name}"
                assert value.source is None or re.search(r"https://\S+", SOURCES[value.source])


def test_what_is_not_placed_is_named_with_its_reason():
    where = {e["part"]: (e["where"], e["why"]) for e in fit(MINI, TARGETS["loihi2"])["elsewhere"]}
    assert where["blocks.*.mixer.attention"] == ("host", "products of two activations")
    assert where["blocks.*.ffn.norm"][0] == "host" and "LayerNorm" in where["blocks.*.ffn.norm"][1]
    assert where["head.prior"] == ("host", "GELU prior") and where["encoder.neuron"][0] == "chip"
    assert where["blocks.*.mixer.q"][0] == "chip or host"
    where = {e["part"]: e["where"] for e in fit(preset("mini-neuro"), TARGETS["loihi2"])["elsewhere"]}
    assert where["blocks.*.ffn.norm"] == "chip" and "blocks.*.mixer.attention" not in where
    where = {e["part"]: e["where"] for e in fit(MINI, TARGETS["speck"])["elsewhere"]}
    assert where["encoder.neuron"] == where["blocks.*.mixer.decay"] == where["blocks.*.mixer.q"] == "host"


def test_a_model_without_spikes_is_refused():
    with pytest.raises(InputError, match="no matrix of this model reads spikes"):
        fit(preset("gpt2-mini"), TARGETS["loihi2"])


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_rounded_to_the_levels_of_the_target_and_no_others(small_model, small_config, target):
    t, rounded = TARGETS[target], copy.deepcopy(small_model)
    done = quantise(rounded, small_config, t)
    assert done == ["blocks.0.mixer.tcam", "blocks.0.ffn.down", "blocks.1.mixer.tcam", "blocks.1.ffn.down"]
    for name, old in small_model.state_dict().items():
        new = rounded.state_dict()[name]
        if name.removesuffix(".weight") not in done:
            assert torch.equal(old, new)
            continue
        for before, after in zip(*[w.split(1 if t.scale == "channel" else len(w)) for w in (old, new)], strict=True):
            step = before.abs().max() / t.levels
            steps = after / step
            assert torch.allclose(steps, steps.round(), atol=1e-3) and (before - after).abs().max() <= 0.501 * step
            assert not torch.equal(before, after)


def test_a_core_has_a_scale_of_its_own(small_config):
    config = replace(small_config, d_ff=1024, d_model=192, n_heads=6, head_dim=32)
    import symboliclight

    model = symboliclight.build(config)
    weight = model.blocks[0].ffn.down.weight.data
    weight[:96] *= 100  # the first of two cores
    quantise(model, config, TARGETS["loihi2"])
    assert len(weight[96:].unique()) > 100  # one scale for all would leave three values here


def test_the_command_maps_and_measures(small_checkpoint, small_shards, tmp_path, capsys):
    out = tmp_path / "map.json"
    assert cli.main(["neuro", "map", "--target", "loihi2", "--target", "brainscales2", "--model", str(small_checkpoint),
                     "--data", str(small_shards.path), "--max-tokens", "256", "--out", str(out)]) == 0
    shown, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "Nothing here has run on hardware" in shown and "limit fan in: unknown" in shown
    rows = result["perplexity"]["rows"]
    assert [(r["weights"], r["bits"], r["matrices"]) for r in rows] == [("float32", 32, 0), ("loihi2", 8, 4),
                                                                        ("brainscales2", 6, 4)]
    assert rows[0]["change"] == 0 != rows[2]["change"] and set(rows[1]["domains"]) == {"english", "chinese"}
    assert str(tmp_path) not in out.read_text() and result["targets"][0]["totals"]["chips"] == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["--target", "loihi2"], "give either --model DIR or --preset NAME"),
    (["--target", "loihi2", "--preset", "mini", "--data", "x"], "--data measures a trained model"),
    (["--target", "loihi2", "--preset", "gpt2-mini"], "no matrix of this model reads spikes"),
    (["--target", "loihi2", "--preset", "mini", "--max-tokens", "0"], "--max-tokens must be positive"),
])
def test_the_command_refuses(arguments, message, capsys):
    assert cli.main(["neuro", "map", *arguments]) == 2
    assert message in capsys.readouterr().err
