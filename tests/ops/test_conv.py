"""The causal convolution against the loop and against finite differences."""

import pytest
import torch
from forms import agree, both_dtypes, every_form, normal, scattered

from symboliclight.ops import causal_conv, causal_conv_loop


def inputs(T, n=3, dtype=torch.float32):
    return [normal(2, T, 5, dtype=dtype), normal(n, 5, seed=1), normal(2, n - 1, 5, seed=2)]


def test_trace_by_hand():
    """Taps 1, 10, 100 over 1, 2, 3 after 4, 5: the newest token counts once, the one before it ten times."""
    x, tail = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1), torch.tensor([4.0, 5.0]).view(1, 2, 1)
    y, last = causal_conv(x, torch.tensor([[1.0], [10.0], [100.0]]), tail)
    assert y.flatten().tolist() == [1 + 50 + 400, 2 + 10 + 500, 3 + 20 + 100]
    assert last.flatten().tolist() == [2.0, 3.0]


@every_form
@both_dtypes
@pytest.mark.parametrize("T", [1, 2, 63])
@pytest.mark.parametrize("n", [2, 4])
def test_outputs_and_all_gradients_are_those_of_the_loop(form, dtype, T, n):
    agree(form, causal_conv, causal_conv_loop, [scattered(t) for t in inputs(T, n, dtype)])


def in_chunks(x, taps, tail):
    parts = []
    for part in x.split([1, 7, x.shape[1] - 8], 1):
        y, tail = causal_conv(part, taps, tail)
        parts.append(y)
    return torch.cat(parts, 1), tail


@every_form
def test_chunks_equal_the_whole_in_outputs_and_gradients(form):
    agree(form, in_chunks, causal_conv, inputs(40, 4))


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(causal_conv, [t.double().requires_grad_() for t in inputs(6)])
