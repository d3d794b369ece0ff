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


def stored(model, precision, isa):
    """What the first token leaves in the ring and among the anchors: keys, then values; int8 (H, K), units (H, 1)."""
    _, state = engine_of(model, precision, isa=isa)(np.array([[5]]))
    np.testing.assert_array_equal(state.anchor_k[0, 0, :, 0], state.k[0, 0, :, 0])
    np.testing.assert_array_equal(state.anchor_v[0, 0, :, 0], state.value[0, 0, :, 0])
    assert not state.k[0, 0, :, 1:].any()
    K = model.config.head_dim
    for rows in (state.k[0, 0, :, 0], state.value[0, 0, :, 0]):
        yield rows[:, :K].view(np.int8), rows[:, K:].copy().view(np.float32)


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
