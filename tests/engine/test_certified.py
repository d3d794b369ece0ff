"""Certified spikes: the results of full weights, bit by bit, however hard the sums crowd around the threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact import BASE, ISAS, engine_of, random_model, tokens_of

from symboliclight import _engine
from symboliclight.engine.pack import CERTIFIED, sketch
from symboliclight.engine.rounding import from_bfloat16, to_bfloat16

THETA = 1.0
BOTH = pytest.mark.parametrize("precision", CERTIFIED)


def same(model, tokens, precision="certified", **options):
    """Logits are the bits of the weights in full; returns the certified engine."""
    exact, certified = (engine_of(model, p, **options) for p in (CERTIFIED[precision], precision))
    for part in (tokens, tokens[:, :1], tokens[:, :3]):
        np.testing.assert_array_equal(certified(part)[0], exact(part)[0])
    state, other = certified.initial_state(len(tokens)), exact.initial_state(len(tokens))
    for t in range(tokens.shape[1]):
        a, state = certified(tokens[:, t : t + 1], state)
        b, other = exact(tokens[:, t : t + 1], other)
        np.testing.assert_array_equal(a, b)
    assert certified._native.counts()[:3] == exact._native.counts()[:3]
    return certified


@BOTH
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("switches", [{}, {"d_model": 42, "head_dim": 14, "d_ff": 61}, {"exit_entropy": 3.2}], ids=str)
def test_certified_gives_the_bits_of_weights_in_full(isa, switches, precision):
    engine = same(random_model(**switches), tokens_of((1, 30)), precision, isa=isa)
    rate = np.mean(engine.stats()["active"]["up"])
    assert 0 < rate < 0.25  # the sketch decides, and not everything


@BOTH
def test_batches_use_the_sketch_while_it_pays(precision):
    same(random_model(), tokens_of((3, 12)), precision)
    same(random_model(), tokens_of((16, 4)), precision)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("outs", "ins"), [(48, 96), (61, 42), (17, 34), (16, 8)])
def test_rows_of_bfloat16_are_brought_side_by_side(isa, outs, ins):
    """Prompts and batches, whose products read all rows: the bits of the packed matrix, for tokens of any number."""
    model = random_model(d_model=ins, head_dim=ins, n_heads=1, d_ff=outs, vocab_size=outs)
    for shape in ((1, 1), (1, 2), (5, 3), (1, 70)):
        same(model, tokens_of(shape) % outs, "certified-bfloat16", isa=isa)


def test_gelu_has_no_threshold_to_certify():
    engine = same(random_model(ffn="gelu"), tokens_of((1, 9)))
    assert "up" not in engine.stats()["active"]


@BOTH
@pytest.mark.parametrize("isa", ISAS)
def test_sums_on_the_threshold_itself(isa, precision):
    """Rows of W_up made from the very activations they meet, so that sums are the threshold within a few roundings."""
    model = random_model(n_layers=1)
    block = model.blocks[0]
    seen = []
    block.ffn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    tokens = tokens_of((1, 40))
    with torch.no_grad():
        model(torch.from_numpy(tokens))
        c = seen[0][0].double()  # (T, D)
        for j in range(BASE.d_ff):
            x = c[j % len(c)]
            row = THETA * x / x.square().sum() * (1 + (j % 7 - 3) * 2.0**-24)
            if j % 3 == 1:  # the loss of 8 bits lies along x
                row += 0.003 * row.abs().max() * x.sign()
                row *= THETA / (row @ x)
            block.ffn.up.weight[j] = row.float()
    engine = same(model, tokens, precision, isa=isa)
    assert np.mean(engine.stats()["active"]["up"]) > 0.01


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e30]), st.integers(1, 70),
       st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_bound_holds_for_any_weights(seed, size, ins, short):
    """|product in full - estimate| <= lost |x| + kept |e| where x = t k + e, rounding of the product included."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((16, ins)) * rng.choice([1e-4, 1, 50], (16, ins)) * size).astype(np.float32)
    w = from_bfloat16(to_bfloat16(w)) if short else w
    x = (rng.standard_normal(ins) * rng.choice([1e-3, 1, 20], ins)).astype(np.float32)
    parts = sketch(w)
    step = np.float32(np.abs(x).max()) / np.float32(32512)
    k = np.floor(x.astype(np.float64) / step + 0.5)
    q = parts["data"].reshape(1, -1, 16, 4).transpose(0, 2, 1, 3).reshape(16, -1)[:, :ins].astype(np.float64) - 128
    estimate = parts["scale"].astype(np.float64) * float(step) * (q @ k)
    product = np.zeros(16, np.float32)
    for i in range(ins):
        product += w[:, i] * x[i]
    slip = np.sqrt(np.square(x - k * float(step)).sum())
    radius = parts["lost"] * np.sqrt(np.square(x.astype(np.float64)).sum()) + parts["kept"] * slip
    assert np.all(np.abs(product.astype(np.float64) - estimate) <= radius + 1e-30)


def test_every_instruction_set_is_under_test():
    assert set(ISAS) == set(_engine.isas())


@BOTH
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("switches", [{}, {"prior": "none"}, {"prior": "static"}, {"ffn": "gelu"}], ids=str)
def test_the_largest_logits_are_those_of_weights_in_full(isa, switches, precision):
    model, tokens = random_model(vocab_size=419, **switches), tokens_of((2, 20))
    with torch.no_grad():  # many near ties: every fourth row of the head is the one before with a tiny change
        head = model.head.out.weight
        for row in range(3, 419, 4):
            head[row] = head[row - 1] * (1 + 2.0**-22 * (row % 5 - 2))
    exact, certified = (engine_of(model, p, isa=isa) for p in (CERTIFIED[precision], precision))
    left_out = 0
    for k in (1, 2, 13, 50, 419, 1000):
        for rows in (tokens, tokens[:1]):
            expected, found = exact.last(rows)[0], certified.last(rows, top=k)[0]
            kept = np.isfinite(found)
            np.testing.assert_array_equal(found[kept], expected[kept])
            assert np.all(np.isneginf(found[~kept]))
            for z, x in zip(found, expected, strict=True):
                least = np.sort(x)[-min(k, 419)]
                assert np.all(np.isfinite(z[x >= least]))  # all of the k largest, ties included
            left_out += int((~kept).sum())
    assert (left_out > 0) == (switches.get("prior") != "static")
    np.testing.assert_array_equal(certified.last(tokens)[0], exact.last(tokens)[0])  # without top: all


@BOTH
def test_certified_text_is_that_of_weights_in_full(small_checkpoint, small_tokenizer, precision):
    from symboliclight import engine
    from symboliclight.generate.sampling import Sampling, generate

    prompts = [small_tokenizer.encode("the sun"), small_tokenizer.encode("春天的风")]
    hows = [Sampling(0), Sampling(0.9, top_k=8), Sampling(1.0, top_k=8, top_p=0.7), Sampling(repetition_penalty=1.3)]
    for how in hows:
        texts = []
        for p in (CERTIFIED[precision], precision):
            model = engine.load(small_checkpoint, p, threads=1)
            texts.append([c.ids for c in generate(model, small_tokenizer, prompts, 30, how, seed=5)])
        assert texts[0] == texts[1]
    assert "head" not in model.stats()["active"]  # a penalty needs all logits
    model.last(np.array([[5]]), top=4)
    assert 0 < model.stats()["active"]["head"][0] < 1
    assert model.stats()["bytes"]["head"] < model.stats()["whole"]["head"]
