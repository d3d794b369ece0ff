"""The scan with a rate per token: the chunked form against the loop and against finite differences."""

import pytest
import torch
from forms import Made, agree, both_dtypes, every_form, normal, scattered, three_lengths

from symboliclight.ops import decay_scan, gated_scan, gated_scan_loop
from symboliclight.ops.gated import CHUNK


def inputs(T, dtype=torch.float32, B=2, H=3, K=5):
    return [normal(B, T, H, K, dtype=dtype), normal(B, T, H, seed=3).add(2), normal(B, H, K, seed=1)]


def test_trace_by_hand():
    """From 4: halve, forget all, take nothing in."""
    u, logits = torch.tensor([0.0, 8.0, 100.0]).view(1, 3, 1, 1), torch.tensor([0.0, -99.0, 99.0]).view(1, 3, 1)
    h, last = gated_scan(u, logits, torch.full((1, 1, 1), 4.0))
    torch.testing.assert_close(h.flatten(), torch.tensor([2.0, 8.0, 8.0]))
    assert last.item() == h.flatten()[-1]


@every_form
@both_dtypes
@three_lengths
def test_outputs_and_all_gradients_are_those_of_the_loop(form, dtype, T):
    agree(form, gated_scan, gated_scan_loop, [scattered(t) for t in inputs(T, dtype)])


@every_form
@pytest.mark.parametrize("logit", [-30.0, 0.0, 15.0])
def test_rates_at_the_ends_of_the_sigmoid(form, logit):
    u, logits, h0 = inputs(100)
    logits = torch.where(logits > 2, logits, logit)  # sums of 64 such logarithms leave few digits
    agree(form, gated_scan, gated_scan_loop, [u, logits, h0], slack=10)


def in_chunks(u, logits, h0):
    states = []
    for x, z in zip(u.split([1, 70, 29], 1), logits.split([1, 70, 29], 1), strict=True):
        h, h0 = gated_scan(x, z, h0)
        states.append(h)
    return torch.cat(states, 1), h0


@every_form
def test_chunks_equal_the_whole_in_outputs_and_gradients(form):
    agree(form, in_chunks, gated_scan, inputs(100))


def test_a_constant_rate_gives_the_decay_scan():
    u, _, h0 = inputs(150)
    rates = torch.tensor([0.3, 0.9, 0.99])
    for mine, theirs in zip(gated_scan(u, rates.logit().expand(2, 150, 3), h0), decay_scan(u, rates, h0), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(gated_scan, [t.double().requires_grad_() for t in inputs(7, B=1, H=2, K=2)])


def test_the_state_keeps_its_precision_under_bfloat16():
    u, logits, h0 = inputs(40, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        h, last = gated_scan(u, logits, h0)
    assert h.dtype == torch.bfloat16 and last.dtype == torch.float32
    torch.testing.assert_close(last, gated_scan_loop(u.float(), logits, h0)[1])


def test_memory_is_linear_in_length():
    def made(T):
        with Made() as count:
            gated_scan(*inputs(T))
        return count.total

    assert made(16 * CHUNK) <= 4.1 * made(4 * CHUNK)
