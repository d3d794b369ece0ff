"""Keys and values of 8 bits, bit by bit: what the runtime leaves in a state is what a few lines of NumPy say."""

import numpy as np
import pytest
import torch
from test_exact import ISAS, engine_of, random_model

from symboliclight.engine.pack import pack
from symboliclight.engine.rounding import LEVELS, from_bfloat16

SHORT = pytest.mark.parametrize("precision", ["int8", "int4"])
one = np.float32


def nearest(x):
    """The nearest integer, half away from 0, of float32."""
    return np.trunc(x + np.where(x < 0, one(-0.5), one(0.5)).astype(np.float32)).astype(np.int8)


def shortened(x):
    """float32 (..., K) -> int8 (..., K), and the float32 (..., 1) that they count in, largest / 127."""
    top = np.abs(x).max(-1, keepdims=True)
    by = np.where(top > 1e-30, one(127) / np.maximum(top, one(1e-30)), one(0)).astype(np.float32)
    return nearest(x * by), top / one(127)


def product(weight, x, precision):
    """W x of 8-bit activations x, float32 as the runtime rounds it: integers are summed exactly."""
    outs, ins = weight.shape
    data, scale = pack(weight, {"int4": "int4.levels"}.get(precision, precision))
    top = np.abs(x).max()
    q = np.pad(nearest(x * (one(127) / top)).astype(np.int64), (0, -ins % 32))
    unit = top / one(127)
    if precision == "int8":
        w = data.transpose(0, 2, 1, 3).reshape(len(data) * 16, -1).astype(np.int64) - 128
        return (w @ q).astype(np.float32)[:outs] * (scale * unit)[:outs]
    w = LEVELS[np.stack([data & 15, data >> 4], -2)].astype(np.int64)  # (blocks, groups, 4, 16, 2, 4)
    w = w.transpose(0, 3, 1, 2, 4, 5).reshape(len(data) * 16, -1, 32)
    sums = np.zeros(len(w), np.float32)
    for g in range(w.shape[1]):
        sums += (w[:, g] @ q[32 * g : 32 * g + 32]).astype(np.float32) * from_bfloat16(scale)[:, g].reshape(-1)
    return sums[:outs] * unit


def opened(blocks, K, values=False):
    """Blocks of a state (..., n, bytes) -> int8 (..., 16 n, K), and the float32 (..., 16 n, 1) that they count in."""
    *front, n, size = blocks.shape
    wide = size // 16 - 4
    numbers, units = blocks[..., : 16 * wide], blocks[..., 16 * wide :].copy().view(np.float32)
    if values:  # (4, wide, 4 slots)
        numbers = numbers.reshape(*front, n, 4, wide, 4).swapaxes(-1, -2)
    else:  # (wide / 4, 16 slots, 4)
        numbers = numbers.reshape(*front, n, wide // 4, 16, 4).swapaxes(-2, -3)
    numbers = numbers.reshape(*front, 16 * n, wide)[..., :K]
    return (numbers ^ 128).view(np.int8), units.reshape(*front, 16 * n, 1)


def stored(model, precision, isa):
    """What the first token leaves in the ring and among the anchors: keys, then values; int8 (H, K), units (H, 1)."""
    _, state = engine_of(model, precision, isa=isa)(np.array([[5]]))
    K = model.config.head_dim
    for ring, anchors, values in ((state.k, state.anchor_k, False), (state.value, state.anchor_v, True)):
        numbers, units = opened(ring[0, 0], K, values)
        for found, expected in zip(opened(anchors[0, 0], K, values), (numbers, units), strict=True):
            np.testing.assert_array_equal(found[:, 0], expected[:, 0])
        assert not units[:, 1:].any() and (numbers[:, 1:] == -128).all()
        yield numbers[:, 0], units[:, 0]


def reading(x, seed=0, **switches):
    """A model of one layer whose first token, at position 0 where RoPE turns nothing, gives the encoder x exactly."""
    model = random_model(seed, n_layers=1, **switches)
    with torch.no_grad():
        model.encoder.norm.weight.zero_()
        model.encoder.norm.bias.copy_(torch.from_numpy(x))
    return model


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(48, 16), (42, 14)], ids=str)
@SHORT
def test_keys_and_values_of_the_stream_are_rounded_as_numpy_rounds_them(precision, shape, isa):
    D, K = shape
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal(D).astype(np.float32)
        x[0] = 3  # the gate opens
        model = reading(x, seed, d_model=D, head_dim=K)
        mixer = model.blocks[0].mixer
        with torch.no_grad():
            mixer.k.weight[:K] = 0  # a head of zeros has unit 0
        for rows, matrix in zip(stored(model, precision, isa), (mixer.k, mixer.v), strict=True):
            expected = product(matrix.weight.detach().numpy(), x, precision).reshape(-1, K)
            for found, value in zip(rows, shortened(expected), strict=True):
                np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("isa", ISAS)
@SHORT
def test_half_way_between_two_integers_the_larger_size_is_taken(precision, isa):
    """Keys made of two active inputs: n times 2^-9 with |n| <= 254, so that 127 n / 254 is half way at every odd n."""
    x = np.zeros(48, np.float32)
    x[[7, 30]] = 2
    model, random = reading(x, spike_fed=True), np.random.default_rng(0)
    mixer = model.blocks[0].mixer
    for matrix in (mixer.k, mixer.v):
        weight = random.integers(-127, 128, (48, 48))
        weight[:, 0] = 127  # a silent input: the step of 8-bit weights is 2^-9
        weight[::16, [7, 30]] = 127
        with torch.no_grad():
            matrix.weight.copy_(torch.from_numpy(weight * 2.0**-9))
    for (found, unit), matrix in zip(stored(model, precision, isa), (mixer.k, mixer.v), strict=True):
        n = np.rint(matrix.weight.detach().numpy()[:, [7, 30]].sum(1) * 512).astype(np.int64).reshape(3, 16)
        expected = np.sign(n) * ((np.abs(n) + 1) // 2)
        assert (n % 2 == 1).sum() > 10
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, shortened(n.astype(np.float32) * one(2.0**-9))[0])
        assert np.all(unit == 2.0**-8)


@pytest.mark.parametrize("isa", ISAS)
def test_queries_and_shares_have_sixteen_bits(isa):
    """One key has twice the share of 150 others together, by a difference of queries that eight bits would round away.

    Keys lie where RoPE turns nothing and are whole numbers of their unit; the three tokens drive two inputs each.
    """
    model = random_model(0, n_layers=1, window=256, max_seq_len=256, rope_base=1e30, spike_fed=True, paths="attention",
                         spike_source="threshold")
    mixer, encoder, still = model.blocks[0].mixer, model.encoder, np.r_[4:8, 12:16]
    first, second = np.r_[4:8], np.r_[12:16]
    key = np.zeros((16, 3))  # of tokens 0, 1 and 2 in each head
    key[first, 0] = key[second, 1] = 127
    key[second, 0] = key[first, 1] = 61
    key[still, 2] = -127
    query = np.zeros(16)
    query[first], query[second] = 15044, 15000
    with torch.no_grad():
        encoder.norm.weight.fill_(1), encoder.norm.bias.zero_(), model.blocks[0].ffn.down.weight.zero_()
        encoder.embedding.weight[:3] = torch.eye(48)[:6].view(3, 2, 48).sum(1)
        mixer.q.weight.zero_(), mixer.k.weight.zero_(), mixer.v.weight.mul_(8)
        mixer.q.weight[:, 4:6] = torch.from_numpy(np.tile(query / 2, 3)).float()[:, None]
        mixer.k.weight[:, :6:2] = torch.from_numpy(np.tile(np.ceil(key / 2) / 512, (3, 1))).float()
        mixer.k.weight[:, 1:6:2] = torch.from_numpy(np.tile(np.floor(key / 2) / 512, (3, 1))).float()
        mixer.k.weight[:, 9] = 127 / 512  # a silent input: one step of the weights is 1 / 512
        tokens = torch.tensor([[0] + 150 * [1] + [2]])
        expected, alone = (model(t)[0][0, -1].numpy() for t in (tokens, tokens[:, 1:]))
    found = engine_of(model, "int8", isa=isa).last(tokens.numpy())[0][0]
    difference = np.linalg.norm(alone - expected)
    assert difference > 0.3 * np.linalg.norm(expected)
    assert np.linalg.norm(found - expected) < 0.1 * difference


def test_windows_too_wide_for_sums_of_32_bits_keep_floats():
    engine = engine_of(random_model(0, n_layers=1, window=50_001), "int8")
    tokens = np.arange(9)[None]
    assert engine.keys == np.float32 and engine(tokens)[1].k.shape == (1, 1, 3, 50_001, 16)
    np.testing.assert_array_equal(engine.last(tokens)[0], engine(tokens)[0][:, -1])
