"""What 16, 8 and 4 bits change, and that integers are summed exactly in every instruction set."""

import numpy as np
import pytest
import torch
from test_exact import ISAS, engine_of, random_model, tokens_of

from symboliclight.engine.layout import places
from symboliclight.engine.pack import pack, packed_shapes
from symboliclight.engine.rounding import LEVELS, from_bfloat16, to_bfloat16, to_levels
from symboliclight.engine.weights import frequent

KINDS = ["float32", "bfloat16", "int8", "int4.levels", "float32.by_input", "bfloat16.by_input", "int8.by_input"]


def unpacked(data, scale, kind, outs, ins):
    """float32 (outs, ins) that a packed matrix stands for."""
    if kind == "int8.by_input":
        return (data * scale).T
    if kind.endswith(".by_input"):
        return (from_bfloat16(data) if data.dtype == np.uint16 else data).T
    if kind == "int4.levels":
        q = LEVELS[np.stack([data & 15, data >> 4], -2)]  # (blocks, groups, 4, 16, 2, 4)
        w = q.transpose(0, 3, 1, 2, 4, 5).reshape(len(data) * 16, -1, 32)
        return (w * from_bfloat16(scale).transpose(0, 2, 1).reshape(len(w), -1, 1)).reshape(len(w), -1)[:outs, :ins]
    if kind == "float32":
        return data
    w = data.transpose(0, 2, 1, 3).reshape(len(data) * 16, -1)
    w = from_bfloat16(w) if kind == "bfloat16" else (w.astype(np.float32) - 128) * scale[:, None]
    return w[:outs, :ins]


@pytest.mark.parametrize("shape", [(16, 32), (97, 61), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packing_keeps_weights_within_half_a_step(kind, shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    data, scale = pack(w, kind)
    found = [(x.dtype, x.shape) for x in (data, scale) if x is not None]
    assert found == list(packed_shapes(*shape, kind))
    step = {"float32": 0, "bfloat16": 2**-7 * np.abs(w), "int8": np.abs(w).max(1, keepdims=True) / 127,
            "int4": np.abs(w).max(1, keepdims=True) * (127 - 101) / 127}[kind.split(".")[0]]  # its widest gap
    share = 0.62 if kind.startswith("int4") else 0.505  # the first level has no opposite
    assert np.all(np.abs(unpacked(data, scale, kind, *shape) - w) <= step * share + 1e-9)


def test_an_output_of_zeros_stays_zero():
    for kind in KINDS:
        data, scale = pack(np.zeros((3, 40), np.float32), kind)
        assert np.all(unpacked(data, scale, kind, 3, 40) == 0)


def test_bfloat16_rounds_as_torch_does():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(x)), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_int4_multiplies_by_the_levels_it_stores(isa):
    """Beside the model of the stored weights in float32 only the inputs of products are rounded, to 8 bits."""
    switches = {"ffn": "gelu", "block_spikes": False, "spike_source": "dense", "prior": "none"}  # no spike to flip
    model, stored, tokens = random_model(**switches), random_model(**switches), tokens_of((1, 30))
    weights = dict(stored.named_parameters())
    for place in places(model.config):
        w = weights[place.name].detach().numpy()
        weights[place.name].data = torch.from_numpy(unpacked(*pack(w, "int4.levels"), "int4.levels", *w.shape))
        if place.site == "head":
            rows = frequent(weights["encoder.embedding.weight"].detach().numpy())
            left = w[rows] - weights[place.name].data[rows].numpy()
            weights[place.name].data[rows] += torch.from_numpy(
                unpacked(*pack(left, "int4.levels"), "int4.levels", *left.shape))
    with torch.no_grad():
        expected, plain = (m(torch.from_numpy(tokens))[0].numpy() for m in (stored, model))
    found = engine_of(model, "int4", isa=isa)(tokens)[0]
    rounded, all_of_it = (np.sqrt(np.square(found - x).mean() / np.square(x).mean()) for x in (expected, plain))
    assert rounded < 0.02 and all_of_it > 3 * rounded


def test_levels_are_the_nearest_and_keep_zeros():
    w = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    w[:, ::7] = 0
    codes, bits = to_levels(w)
    scale = np.repeat(from_bfloat16(bits), 32, 1)
    distance = np.abs(w[..., None] - LEVELS * scale[..., None])
    np.testing.assert_allclose(np.take_along_axis(distance, codes[..., None].astype(int), -1)[..., 0], distance.min(-1),
                               atol=1e-6)
    assert np.all(LEVELS[codes[:, ::7]] == 0)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.03), ("int8", 0.12), ("int4", 0.6)])
def test_logits_drift_no_more_than_the_precision_allows(precision, bound):
    model, tokens = random_model(gate=False, ffn="gelu", block_spikes=False, spike_source="dense"), tokens_of((1, 40))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens))[0].numpy()
    error = engine_of(model, precision)(tokens)[0] - expected
    assert 0 < np.sqrt(np.square(error).mean() / np.square(expected).mean()) < bound


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_instruction_sets_agree_on_quantised_models(precision):
    model, tokens = random_model(), tokens_of((1, 12))
    first, *others = [engine_of(model, precision, isa=isa)(tokens)[0] for isa in ISAS]
    for logits in others:
        np.testing.assert_allclose(logits, first, rtol=1e-4, atol=1e-4)
