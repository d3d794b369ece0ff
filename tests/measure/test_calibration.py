"""Weights of 4 bits that are rounded by what they multiply, and where that comes from."""

import json
import sys

import numpy as np
import pytest
import torch
from test_exact import random_model, tokens_of

from symboliclight import engine
from symboliclight.commands.cli import main
from symboliclight.core.errors import InputError
from symboliclight.engine.rounding import LEVELS, compensated, from_bfloat16, to_levels
from symboliclight.measure import calibration


def values(codes, bits):
    return LEVELS[codes] * np.repeat(from_bfloat16(bits), 32, 1)


def correlated(outs, ins, samples=4000):
    """Weights, inputs that largely carry the same, and their moments."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((samples, 8)) @ rng.standard_normal((8, ins))
    inputs += 0.3 * rng.standard_normal((samples, ins))
    return rng.standard_normal((outs, ins)).astype(np.float32), inputs, inputs.T @ inputs / samples


def test_products_with_real_inputs_lose_less_than_by_rounding_each_weight():
    weight, inputs, moment = correlated(70, 96)
    each, together = (np.square(inputs @ (values(*found) - weight).T).mean()
                      for found in (to_levels(weight), compensated(weight, moment)))
    assert together < 0.5 * each


def test_inputs_that_share_nothing_leave_weights_where_they_are():
    """Only their scales are better chosen."""
    weight, _, _ = correlated(40, 64)
    codes, bits = compensated(weight, np.eye(64))
    scale = np.repeat(from_bfloat16(bits), 32, 1)[..., None]
    np.testing.assert_array_equal(codes, np.abs(weight[..., None] - LEVELS * scale).argmin(-1))
    assert np.square(values(codes, bits) - weight).mean() < np.square(values(*to_levels(weight)) - weight).mean()


@pytest.mark.parametrize("moment", [np.zeros((64, 64)), np.diag([1.0] * 20 + [0.0] * 44)], ids=["nothing", "some"])
def test_inputs_that_are_never_active_do_no_harm(moment):
    weight, _, _ = correlated(40, 64)
    found = values(*compensated(weight, moment))
    assert np.abs(found - weight).max() <= 0.15 * np.abs(weight).max()


def test_chunks_of_outputs_do_not_matter(monkeypatch):
    weight, _, moment = correlated(70, 64)
    whole = compensated(weight, moment)
    monkeypatch.setattr("symboliclight.engine.rounding.ROWS", 16)
    for one, other in zip(whole, compensated(weight, moment), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("switches", [{}, {"ffn": "gelu", "tie_embeddings": True},
                                      {"spike_fed": True, "residual": "pre"}], ids=str)
def test_moments_are_those_of_the_inputs_of_the_matrices(switches):
    model, windows = random_model(**switches), tokens_of((11, 20))
    found = calibration.moments(model, windows)
    assert set(found) == {place.name for place in calibration.calibrated(model.config)} | {"tokens"}
    assert found["tokens"].tolist() == [(windows == i).sum() for i in range(model.config.vocab_size)]
    hidden = model.features(torch.from_numpy(windows))[0].detach().double().flatten(0, 1)
    np.testing.assert_allclose(found["head.out.weight"], (hidden.T @ hidden / len(hidden)).numpy(), atol=1e-4)
    seen = []
    model.blocks[1].mixer.out.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].double()))
    with torch.no_grad():
        model(torch.from_numpy(windows))
    x = seen[0].flatten(0, 1)
    np.testing.assert_allclose(found["blocks.1.mixer.out.weight"], (x.T @ x / len(x)).numpy(), atol=1e-4)
    count = len(seen)
    calibration.moments(model, windows)
    assert len(seen) == count + 2 and len(model.blocks[1].mixer.out._forward_pre_hooks) == 0  # 11 rows are 8 and 3


def test_the_embedded_corpus_is_read_from_all_its_files(small_tokenizer):
    windows = calibration.read_windows(small_tokenizer, tokens=6000)
    assert windows.shape == (23, 256)  # 6 files of 1,000
    starts = [small_tokenizer.decode(row[:8].tolist()) for row in windows]
    assert len(set(starts)) == 23


def test_a_text_that_is_too_short_is_refused(small_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(InputError, match="calibrating needs 256"):
        calibration.read_windows(small_tokenizer, tmp_path / "a.txt")


def test_export_at_int4_calibrates_unless_told_not_to(small_checkpoint, tmp_path, capsys):
    text = tmp_path / "own.txt"
    text.write_text("the sun was low and the sea was calm. " * 400, encoding="utf-8")
    found = {}
    for name, options in {"demo": [], "own": ["--calibrate", str(text)], "none": ["--calibrate", "none"]}.items():
        out = tmp_path / name
        asked = ["export", "--model", str(small_checkpoint), "--out", str(out), "--precision", "int4", "--json"]
        assert main([*asked, *options]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["precision"] == "int4"
        found[name] = engine.load(out)(np.arange(30)[None])[0]
    nearest = engine.load(small_checkpoint, "int4")(np.arange(30)[None])[0]
    np.testing.assert_array_equal(found["none"], nearest)
    assert not np.array_equal(found["demo"], nearest) and not np.array_equal(found["demo"], found["own"])


@pytest.mark.parametrize(("options", "said"), [
    (["--precision", "int8", "--calibrate", "none"], "--calibrate goes with --precision int4"),
    (["--precision", "int4", "--calibrate", "nowhere.txt"], "nowhere.txt")], ids=["int8", "missing"])
def test_export_refuses_in_one_line(options, said, small_checkpoint, tmp_path, capsys):
    assert main(["export", "--model", str(small_checkpoint), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_calibrating(small_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.txt").write_text("mine")
    monkeypatch.setattr(calibration, "moments", lambda *args: pytest.fail("calibrated for nothing"))
    options = ["--model", str(small_checkpoint), "--out", str(tmp_path), "--precision", "int4"]
    assert main(["export", *options]) == 2
    error = capsys.readouterr().err
    assert "not a checkpoint" in error and error.count("\n") == 1
    assert (tmp_path / "own.txt").read_text() == "mine"


def test_without_pytorch_one_line_says_what_to_do(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "symboliclight.measure.calibration", None)
    monkeypatch.delattr("symboliclight.measure.calibration", raising=False)
    out = str(tmp_path / "out")
    assert main(["export", "--model", str(small_checkpoint), "--out", out, "--precision", "int4"]) == 2
    error = capsys.readouterr().err
    assert "--calibrate none" in error and error.count("\n") == 1


def test_a_folder_of_even_steps_is_refused(small_checkpoint, tmp_path):
    """int4 of versions before the levels: the same bytes under other names."""
    from safetensors.numpy import load_file, save_file

    engine.export(small_checkpoint, tmp_path / "out", "int4")
    file = tmp_path / "out" / "model.safetensors"
    save_file({name.replace("int4.levels", "int4"): x for name, x in load_file(file).items()}, file)
    with pytest.raises(InputError, match="int4"):
        engine.load(tmp_path / "out")
