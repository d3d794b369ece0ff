"""The exponential-decay scan: every form against the loop and against finite differences."""

import pytest
import torch
from forms import Made, agree, both_dtypes, every_form, normal, scattered, three_lengths

from symboliclight.ops import decay_scan, decay_scan_loop
from symboliclight.ops.decay import decay_backward, decay_backward_torch, decay_forward, decay_forward_torch


def inputs(T, dtype=torch.float32, B=2, H=3, K=5):
    return [normal(B, T, H, K, dtype=dtype), torch.linspace(0.3, 0.99, H), normal(B, H, K, seed=1)]


@every_form
def test_trace_by_hand(form):
    """d = 1/2 from 4: a pulse of 8 at t = 2."""
    u = torch.tensor([0.0, 0.0, 8.0, 0.0], device=form.device).view(1, 4, 1, 1)
    with form.active():
        h, last = decay_scan(u, torch.tensor([0.5], device=form.device), torch.full((1, 1, 1), 4.0, device=form.device))
    assert h.flatten().tolist() == [2.0, 1.0, 4.5, 2.25]
    assert last.item() == 2.25


@every_form
@both_dtypes
@three_lengths
def test_outputs_and_all_gradients_are_those_of_the_loop(form, dtype, T):
    agree(form, decay_scan, decay_scan_loop, inputs(T, dtype))


@every_form
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (3, 64, 2, 16), (2, 65, 1, 519), (1, 7, 12, 64)], ids=str)
def test_odd_sizes_and_scattered_memory(form, shape):
    B, T, H, K = shape
    agree(form, decay_scan, decay_scan_loop, [scattered(t) for t in inputs(T, B=B, H=H, K=K)])


@every_form
@pytest.mark.parametrize("rate", [0.0, 1e-30, 1.0])
def test_rates_at_the_ends_of_the_sigmoid(form, rate):
    u, _, h0 = inputs(100)
    agree(form, decay_scan, decay_scan_loop, [u, torch.tensor([rate, 0.5, 1 - 1e-6]), h0])


def in_chunks(u, decay, h0):
    states = []
    for part in u.split([1, 7, u.shape[1] - 8], 1):
        h, h0 = decay_scan(part, decay, h0)
        states.append(h)
    return torch.cat(states, 1), h0


@every_form
def test_chunks_equal_the_whole_in_outputs_and_gradients(form):
    agree(form, in_chunks, decay_scan, inputs(63))


@every_form
def test_state_keeps_its_precision_under_bfloat16_inputs(form):
    u, decay, h0 = (t.to(form.device) for t in inputs(40, torch.bfloat16))
    with form.active():
        h, last = decay_scan(u, decay, h0)
    assert h.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert not torch.equal(last, last.bfloat16().float())


@pytest.mark.parametrize("T", [1, 5, 17])
def test_gradients_are_those_of_finite_differences(T):
    leaves = [t.double().requires_grad_() for t in inputs(T, B=1, H=2, K=2)]
    assert torch.autograd.gradcheck(decay_scan, leaves)


def test_work_and_memory_are_linear_in_length():
    def made(T):
        u, decay, h0 = inputs(T)
        with Made() as count:
            h, last = decay_forward_torch(u, decay, h0)
            decay_backward_torch(h, last, u, h, decay, h0)
        return count

    short, long = made(1024), made(4096)
    assert long.largest <= 4.1 * short.largest
    assert long.total <= 4.4 * short.total


@every_form
def test_registration_is_sound(form):
    u, decay, h0 = (t.to(form.device) for t in inputs(6))
    with form.active():
        torch.library.opcheck(decay_forward, (u.requires_grad_(), decay.requires_grad_(), h0.requires_grad_()))
        u, decay, h0 = (t.detach() for t in (u, decay, h0))
        torch.library.opcheck(decay_backward, (u, h0, u, u, decay, h0))
