"""Window attention without a gradient against the loop: single queries and tiles, closed gates, anchors."""

import pytest
import torch
from forms import TOLERANCE, both_dtypes, every_form, normal

from symboliclight.ops import window_attention
from symboliclight.ops.window import window_attention_loop

SHAPES = [(1, 0, 1, 2, 16, 0), (3, 7, 1, 1, 32, 4), (2, 64, 1, 3, 64, 2), (2, 150, 1, 2, 64, 5),
          (2, 0, 5, 2, 16, 2), (3, 9, 70, 1, 32, 0), (2, 40, 131, 2, 64, 3), (1, 100, 64, 1, 16, 17)]


@both_dtypes
@pytest.mark.parametrize("shape", SHAPES)
@every_form
def test_queries_equal_the_loop(form, dtype, shape):
    """(B, past keys, queries, heads, head width, anchors); rows begin with the text, in the window and far beyond."""
    B, R, T, H, K, A = shape
    window = max(R, 1)
    q, k, v = normal(B, T, H, K, seed=1), normal(B, R + T, H, K, seed=2), normal(B, R + T, H, K, seed=3)
    anchor_k, anchor_v = normal(B, A, H, K, seed=4), normal(B, A, H, K, seed=5)
    gate, anchor_gate = normal(B, R + T, seed=6) > -0.5, normal(B, A, seed=7) > -1
    position = torch.arange(B) * (window + 1) + 1
    for own in (True, False):
        gate[:, -1] = own
        rows, anchors = [x.to(dtype) for x in (q, k, v)], [x.to(dtype) for x in (anchor_k, anchor_v)]
        expected = window_attention_loop(*(x.double() for x in rows), gate, *(x.double() for x in anchors),
                                         anchor_gate, position, window)
        placed = [x.to(form.device) for x in (*rows, gate, *anchors, anchor_gate, position)]
        with torch.no_grad(), form.active():
            y = window_attention(*placed, window)
        assert y.dtype == dtype
        torch.testing.assert_close(y.cpu().double(), expected, rtol=0,
                                   atol=4 * TOLERANCE[dtype] * float(expected.abs().max()))
        assert own or not y[:, -1].any()
