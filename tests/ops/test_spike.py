"""Threshold spikes, the ATan surrogate, and the top-k control whose value is its mask."""

import pytest
import torch
from forms import both_dtypes, close, every_form, normal, poisoned, scattered

from symboliclight.ops import spike, surrogate, topk_mask
from symboliclight.ops.spike import spike_backward, spike_forward


def test_surrogate_by_hand():
    """α = 2, θ = 1: 1 at the threshold, 1/2 half a unit away, 1/5 one unit away."""
    v = torch.tensor([1.0, 0.5, 1.5, 0.0, 2.0])
    torch.testing.assert_close(surrogate(v, 1.0, 2.0), torch.tensor([1.0, 0.5, 0.5, 0.2, 0.2]))


@every_form
def test_spike_fires_from_the_threshold_on(form):
    v = torch.tensor([0.0, 1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)), 7.0, -1.0], device=form.device)
    with form.active():
        assert spike(v, torch.tensor(1.0, device=form.device)).tolist() == [0, 1, 0, 1, 0]


@every_form
@both_dtypes
@pytest.mark.parametrize("shape", [(), (41,), (3, 1, 1)], ids=["one", "per-channel", "per-row"])
@pytest.mark.parametrize("layout", [torch.clone, scattered], ids=["contiguous", "scattered"])
def test_spikes_and_gradients_match_the_equation(form, dtype, shape, layout):
    threshold = normal(*shape, seed=2)
    v = layout(normal(3, 29, 41, dtype=dtype)).to(form.device).requires_grad_()
    theta = threshold.clone().to(form.device).requires_grad_()
    weight = normal(3, 29, 41, seed=1, dtype=dtype)
    with form.active(), poisoned():
        s = spike(v, theta, 3.0)
        s.backward(weight.to(form.device))
    level = threshold.to(dtype)
    assert torch.equal(s.cpu(), (v.detach().cpu() >= level).to(dtype))
    expected = weight.double() / (1 + (3 * (v.detach().cpu().double() - level.double())) ** 2)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    close(v.grad, expected, tolerance)
    close(theta.grad, -expected.sum_to_size(threshold.shape), 10 * tolerance)


@every_form
def test_every_second_entry_and_an_expanded_gradient(form):
    v = normal(10).to(form.device)[::2].requires_grad_()
    with form.active():
        spike(v, torch.tensor(0.0, device=form.device)).sum().backward()
    close(v.grad, surrogate(v.detach().cpu(), 0.0, 2.0), 1e-6)


@every_form
def test_registration_is_sound(form):
    v, threshold = normal(3, 5).to(form.device), torch.tensor(1.0, device=form.device)
    with form.active():
        torch.library.opcheck(spike_forward, (v.requires_grad_(), threshold.requires_grad_(), 2.0))
        torch.library.opcheck(spike_backward, (v.detach(), v.detach(), threshold.detach(), 2.0))


@both_dtypes
@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("layout", [torch.clone, scattered], ids=["contiguous", "scattered"])
def test_topk_value_is_the_mask_of_the_largest(dtype, rate, layout):
    x = layout(normal(3, 7, 101, dtype=dtype)).requires_grad_()
    s = topk_mask(x, rate)
    k = max(round(rate * 101), 1)
    assert set(s.unique().tolist()) <= {0.0, 1.0}
    assert (s.sum(-1) == k).all()
    kept, dropped = x.masked_fill(s == 0, torch.inf).amin(-1), x.masked_fill(s == 1, -torch.inf).amax(-1)
    assert (kept >= dropped).all()


def test_topk_keeps_exactly_k_of_equals():
    assert topk_mask(torch.ones(4, 10), 0.3).sum(-1).tolist() == [3, 3, 3, 3]


def test_topk_gradient_by_hand():
    """The two largest of 3, 1, 2, 0 are kept; the level is 1.5, midway between smallest kept, largest dropped."""
    x = torch.tensor([3.0, 1.0, 2.0, 0.0], requires_grad=True)
    s = topk_mask(x, 0.5, alpha=2.0)
    s.backward(torch.tensor([1.0, 1.0, -1.0, 2.0]))
    assert s.tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(x.grad, torch.tensor([0.1, 0.5, -0.5, 0.2]))


def test_topk_of_everything_takes_the_smallest_as_level():
    x = torch.tensor([3.0, 1.0], requires_grad=True)
    topk_mask(x, 1.0, alpha=1.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.2, 1.0]))


def test_topk_teaches_what_is_before_it():
    """The published control very likely gave the encoder no gradient: here raising a dropped entry's score pays."""
    weight = torch.zeros(8, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.5)
    x = torch.linspace(1, 0, 8)
    for _ in range(20):
        optimiser.zero_grad()
        (-topk_mask(x + weight, 0.25)[-1]).backward()
        optimiser.step()
    assert topk_mask(x + weight, 0.25)[-1] == 1
