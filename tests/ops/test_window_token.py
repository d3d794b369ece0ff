"""Window attention of a single query a sequence against the loop: full and empty rings, closed gates, anchors."""

import pytest
import torch
from forms import TOLERANCE, both_dtypes, every_form, normal

from symboliclight.ops import window_attention
from symboliclight.ops.window import window_attention_loop


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 0, 2, 16, 0), (3, 7, 1, 32, 4), (2, 64, 3, 64, 2), (2, 150, 2, 64, 5)])
@every_form
def test_single_queries_equal_the_loop(form, dtype, shape):
    """(B, past keys, heads, head width, anchors); rows stand at the beginning, in the window and far beyond it."""
    B, R, H, K, A = shape
    window = max(R, 1)
    q, k, v = normal(B, 1, H, K, seed=1), normal(B, R + 1, H, K, seed=2), normal(B, R + 1, H, K, seed=3)
    anchor_k, anchor_v = normal(B, A, H, K, seed=4), normal(B, A, H, K, seed=5)
    gate, anchor_gate = normal(B, R + 1, seed=6) > -0.5, normal(B, A, seed=7) > -1
    position = torch.arange(B) * (window + 1) + 1
    for own in (True, False):
        gate[:, -1] = own
        inputs = [x.to(dtype) for x in (q, k, v)], [x.to(dtype) for x in (anchor_k, anchor_v)]
        expected = window_attention_loop(*(x.double() for x in inputs[0]), gate, *(x.double() for x in inputs[1]),
                                         anchor_gate, position, window)
        placed = [x.to(form.device) for x in (*inputs[0], gate, *inputs[1], anchor_gate, position)]
        with torch.no_grad(), form.active():
            y = window_attention(*placed, window)
        assert y.dtype == dtype
        torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=TOLERANCE[dtype] * 4)
        assert own or not y.any()
