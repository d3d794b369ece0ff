"""Spike counts against the model's own arithmetic, rasters, and charts that are really drawn."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight.core.errors import InputError
from symboliclight.measure.evaluate import evaluate
from symboliclight.measure.raster import raster, raster_svg
from symboliclight.measure.sparsity import SparsityMeter, gate_sites
from symboliclight.model.sites import spike_sites
from symboliclight.show.plots import plot_sparsity

TEXT = "春天 of the <river> & 铼\n"


def test_sites_are_named_in_forward_order_and_dense_ones_are_absent(small_config):
    def names(**changes):
        return list(spike_sites(symboliclight.build(replace(small_config, **changes))))

    assert names() == ["encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"]
    assert names(spike_source="dense") == ["ffn.0", "blocks.0", "ffn.1", "blocks.1"]
    assert names(ffn="gelu") == ["encoder", "blocks.0", "blocks.1"]
    assert names(block_spikes=False) == ["encoder", "ffn.0", "ffn.1"]
    assert names(family="gpt2", d_ff=128) == []


def test_the_meter_counts_every_spike_of_every_pass_and_stops_after_the_block(small_model):
    tokens = torch.randint(500, (3, 20), generator=torch.Generator().manual_seed(0))
    with SparsityMeter(small_model) as meter:
        small_model(tokens)
        first = meter.take()
        assert meter.take() == {}
        small_model(tokens[:, :7])
    small_model(tokens)
    spikes, _, _ = small_model.encoder(tokens, torch.zeros(3, 32), None)
    short, _, _ = small_model.encoder(tokens[:, :7], torch.zeros(3, 32), None)
    count = meter.counts["encoder"]
    assert (count.tokens, count.units) == (81, 32)
    assert count.active == int(spikes.sum() + short.sum())
    assert count.open == int(spikes.any(-1).sum() + short.any(-1).sum())
    assert count.silent == pytest.approx(1 - count.active / (81 * 32))
    assert np.array_equal(first["encoder"], spikes.sum(-1).long().numpy())
    assert meter.counts["ffn.1"].units == 64


def test_the_gate_of_a_layer_is_opened_by_the_site_below_it(small_config):
    assert gate_sites(small_config) == {0: "encoder", 1: "blocks.0"}
    assert gate_sites(replace(small_config, gate=False)) == {}


def test_a_raster_holds_every_site_and_a_label_for_every_token(small_model, small_tokenizer):
    found = raster(small_model, small_tokenizer, TEXT)
    ids = small_tokenizer.encode(TEXT, bos=True)
    assert {name: s.shape for name, s in found.spikes.items()} == {
        "encoder": (len(ids), 32), "ffn.0": (len(ids), 64), "blocks.0": (len(ids), 32),
        "ffn.1": (len(ids), 64), "blocks.1": (len(ids), 32)}
    with SparsityMeter(small_model) as meter:
        small_model(torch.tensor([ids]))
    assert {name: int(s.sum()) for name, s in found.spikes.items()} == {n: c.active for n, c in meter.counts.items()}
    assert found.labels[0] == "‹start›" and found.labels[-1] == "⏎"
    assert found.labels[-4:-1] == ["·", "·", "铼"]  # three byte pieces
    assert "".join(found.labels[1:-4]).replace("␣", "") == "春天ofthe<river>&"


def test_a_raster_is_drawn_as_valid_svg_with_its_text_escaped(small_model, small_tokenizer):
    found = raster(small_model, small_tokenizer, TEXT)
    root = ET.fromstring(raster_svg(found, units=16))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "铼" in texts and any("<" in t for t in texts)
    assert [t for t in texts if t in found.spikes] == ["encoder", "blocks.0", "blocks.1"]
    drawn = [p.get("d").count("M") for p in root.iter("{http://www.w3.org/2000/svg}path")]
    units = np.unique(np.linspace(0, 31, 16).round().astype(int))
    assert drawn == [int(found.spikes[n][:, units].sum()) for n in ("encoder", "blocks.0", "blocks.1")]
    assert f"{1 - found.spikes['encoder'].mean():.1%} silent" in texts


def test_unknown_sites_and_models_without_spikes_are_refused(small_model, small_config, small_tokenizer):
    with pytest.raises(InputError, match=r"no spike site ffn\.7"):
        raster_svg(raster(small_model, small_tokenizer, "a"), sites=["ffn.7"])
    gpt2 = symboliclight.build(replace(small_config, family="gpt2", d_ff=128))
    with pytest.raises(InputError, match="no spikes to draw"):
        raster(gpt2, small_tokenizer, "a")
    with pytest.raises(InputError, match="no spike sites to draw"):
        plot_sparsity({"sites": {}, "positions": []})


def test_the_sparsity_chart_names_what_it_shows(small_model, small_tokenizer, small_shards):
    sparsity = evaluate(small_model, small_tokenizer, small_shards, max_tokens=100, seq_len=20)["sparsity"]
    svg = plot_sparsity(sparsity)
    texts = {t.text for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"encoder", "block output", "FFN hidden units", "input", "0", "1", "silent fraction", "16–19"} <= texts
    assert plot_sparsity(sparsity) == svg
    assert plot_sparsity(sparsity, "png").startswith(b"\x89PNG")
