"""What a precision costs: who spiked, and the figures beside float32."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_exact import engine_of, random_model, tokens_of

from symboliclight import engine
from symboliclight.benchmarks.curves import break_even
from symboliclight.commands.cli import main
from symboliclight.core.errors import InputError
from symboliclight.measure.likelihood import nats
from symboliclight.measure.quality import compare, means, windows_of
from symboliclight.model.sites import spike_sites


def check_trace(model):
    """`trace` after a first call: the spikes of the torch model at every site, and the logits of one call over all."""
    tokens, seen = tokens_of((2, 23)), {}
    for site, module in spike_sites(model).items():
        module.register_forward_hook(
            lambda m, i, out, site=site: seen.update({site: out[0] if type(out) is tuple else out}))
    with torch.no_grad():
        model(torch.from_numpy(tokens[:, 9:]), model(torch.from_numpy(tokens[:, :9]))[1])
    ours = engine_of(model)
    _, state = ours(tokens[:, :9])
    logits, spikes, state = ours.trace(tokens[:, 9:], state)
    assert list(spikes) == list(seen)
    for site, expected in seen.items():
        np.testing.assert_array_equal(spikes[site], expected.numpy() != 0, err_msg=site)
    np.testing.assert_array_equal(logits, engine_of(model)(tokens)[0][:, 9:])
    assert state.position.tolist() == [23, 23]


@pytest.mark.parametrize("switches", [{}, {"ffn": "gelu"}, {"spike_source": "dense"}, {"block_spikes": False}], ids=str)
def test_trace_names_the_spikes_of_the_torch_model(switches):
    check_trace(random_model(**switches))


def test_nats_are_the_cross_entropy_of_torch():
    rng = np.random.default_rng(0)
    logits, targets = (rng.standard_normal((2, 5, 31)) * 9).astype(np.float32), rng.integers(0, 31, (2, 5))
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double().flatten(0, 1),
                                                 torch.from_numpy(targets).flatten(), reduction="none")
    np.testing.assert_allclose(nats(logits, targets).ravel(), expected.numpy(), atol=1e-5)


def test_a_copy_agrees_with_itself_and_int4_does_not():
    model = random_model()
    windows = {name: [(tokens_of(shape), tokens_of(shape, seed=2))] for name, shape in (("a", (2, 30)), ("b", (1, 9)))}
    seen = []
    others = {"same": engine_of(model, "certified"), "int4": engine_of(model, "int4")}
    found = compare(engine_of(model), others, windows, seen.append)
    assert seen == [60, 9]
    assert {d["tokens"] for d in found["float32"].values()} == {60, 9}
    for domain in found["same"].values():
        assert (domain["top1"], domain["perplexity_change"], set(domain["mismatch"].values())) == (1, 0, {0})
    mean = means(found["int4"])
    assert 0 < mean["mismatch"] < 0.3
    assert mean["top1"] < 1
    assert mean["perplexity_change"] != 0
    assert set(found["int4"]["a"]["mismatch"]) == {"encoder", "ffn", "blocks", "all"}


def test_windows_of_another_tokenizer_are_refused(small_shards):
    with pytest.raises(InputError, match="another tokenizer"):
        windows_of(small_shards, SimpleNamespace(hash="another"), "test", 16, 64)


def test_export_reports_by_domain(small_checkpoint, small_shards, tmp_path, capsys):
    options = ["--model", str(small_checkpoint), "--out", str(tmp_path / "out"), "--data", str(small_shards.path)]
    assert main(["export", *options, "--precision", "int8"]) == 0
    out = capsys.readouterr().out
    assert "english" in out
    assert "chinese" in out
    stored = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert set(stored["domains"]) == {"english", "chinese"}
    assert abs(stored["domains"]["english"]["perplexity_change"]) < 0.05
    assert engine.load(tmp_path / "out").precision == "int8"  # the report does not disturb the folder


def test_break_even_lies_between_the_points_that_cross():
    curve = [{"active": 0.1, "sparse": 2.0, "dense": 1.0}, {"active": 0.5, "sparse": 0.5, "dense": 1.0}]
    assert break_even(curve) == pytest.approx(0.1 + 0.4 * 1 / 1.5)
    assert break_even(curve[:1]) is None


def test_bench_quality_compares_with_torch_and_reports(small_checkpoint, small_shards, tmp_path, capsys):
    options = ["--model", str(small_checkpoint), "--data", str(small_shards.path), "--out", str(tmp_path)]
    assert main(["bench", "quality", "--quick", "--threads", "1", *options]) == 0
    capsys.readouterr()
    stored = json.loads((tmp_path / "bench-quality.json").read_text())
    rows = {r["name"]: r for r in stored["rows"]}
    assert rows["spikes certified equal to float32's"]["value"] == 1
    assert rows["perplexity certified against float32, mean over domains"]["ratio"] == 1
    layers = [p["layers"] for p in stored["depth"]]
    assert layers[0] == 2  # no limit: all of them
    assert all(1 <= x <= 2 for x in layers)
    assert (tmp_path / "bench-quality.svg").stat().st_size > 1000
    assert main(["bench", "quality", "--out", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err
