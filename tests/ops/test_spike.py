"""Spikes by code, the ATan surrogate, and the top-k control whose value is its mask."""

import pytest
import torch
from forms import both_dtypes, close, every_form, normal, poisoned, scattered

from symboliclight.ops import spike, surrogate, topk_mask
from symboliclight.ops.spike import CODES, spike_backward, spike_forward, spike_loop, spike_slope


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
        options = 2.0, "graded", 4, 1.0
        torch.library.opcheck(spike_forward, (v.requires_grad_(), threshold.requires_grad_(), *options))
        torch.library.opcheck(spike_backward, (v.detach(), v.detach(), threshold.detach(), *options))

CASES = [-7.0, -1.0, -0.75, -0.25, 0.0, 0.25, 0.375, 0.5, 0.75, 1.0, 1.125, 1.5, 2.0, 9.0]
BY_HAND = {  # of CASES at θ = 0.75, D = 4
    "binary": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    "ternary": [-1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    "integer": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4],  # 0.375 / 0.75 and 1.125 / 0.75 are halves: to the even
    "graded": [0, 0, 0, 0, 0, 0, 0, 0, 0.75, 1, 1.125, 1.5, 2, 9],
    "shifted": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0.25, 0.375, 0.75, 1.25, 8.25],
    "squared": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0625, 0.140625, 0.5625, 1.5625, 68.0625],
}
SLOPES = {  # of CASES[4:11] at θ = 0.75, α = 2, D = 2, cut 0.5: σ is 0.5 half a unit away, 0.64 three eighths away
    "binary": [0, 0.5, 0.64, 0.8, 1, 0.8, 0.64],
    "integer": [4 / 3, 4 / 3, 4 / 3, 4 / 3, 4 / 3, 4 / 3, 4 / 3],
    "graded": [0, 0.375, 0.48, 0.6, 1.75, 1.6, 1.48],
    "shifted": [0, 0, 0, 0, 0, 1, 1],
    "squared": [0, 0, 0, 0, 0, 0.5, 0.75],
}
every_code = pytest.mark.parametrize("code", CODES)


@every_form
@both_dtypes
@every_code
def test_values_by_hand(form, dtype, code):
    v, theta = torch.tensor(CASES, dtype=dtype), torch.tensor(0.75)
    expected = torch.tensor(BY_HAND[code], dtype=dtype)
    assert torch.equal(spike_loop(v, theta, code, 4), expected)
    with form.active():
        assert torch.equal(spike(v.to(form.device), theta.to(form.device), code=code, levels=4).cpu(), expected)


@every_form
@pytest.mark.parametrize("code", SLOPES)
def test_slopes_by_hand(form, code):
    v, theta = torch.tensor(CASES[4:11], device=form.device, requires_grad=True), torch.tensor(0.75, device=form.device)
    with form.active():
        spike(v, theta, 2.0, code, 2, 0.5).sum().backward()
    close(v.grad, torch.tensor(SLOPES[code]), 1e-6)


@every_form
@both_dtypes
@every_code
@pytest.mark.parametrize("shape", [(), (41,), (3, 29, 1)], ids=["one", "per-channel", "per-token"])
@pytest.mark.parametrize("layout", [torch.clone, scattered], ids=["contiguous", "scattered"])
def test_every_code_is_the_loop_and_its_slope(form, dtype, code, shape, layout):
    threshold = (normal(*shape, seed=2).abs() + 0.25).to(dtype).float()
    v = layout(2 * normal(3, 29, 41, dtype=dtype)).to(form.device).requires_grad_()
    weight = normal(3, 29, 41, seed=1, dtype=dtype)
    with form.active(), poisoned():
        s = spike(v, threshold.to(form.device), 3.0, code, 3, 1.5)
        s.backward(weight.to(form.device))
    x, level = v.detach().cpu(), threshold.to(dtype)
    expected = spike_loop(x, level, code, 3)
    cut = form.name == "triton" and code in ("shifted", "squared")  # its interpreter cuts bfloat16 off, a GPU rounds
    close(s, expected, 2**-7 if dtype == torch.bfloat16 and (cut or code == "squared") else 1e-6)
    assert code == "squared" or cut or torch.equal(s.cpu(), expected)
    slope = spike_slope(x.double(), level.double(), 3.0, code, 3, 1.5)
    close(v.grad, weight.double() * slope, 1e-6 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("code", ["shifted", "squared", "graded"])
def test_where_values_are_smooth_slopes_are_finite_differences(code):
    """The jump of a graded spike is left out by a cut of nothing; the threshold's slope likewise."""
    v = normal(200, seed=4).double()
    v = v[(v - 0.5).abs() > 0.01].requires_grad_()
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=code != "graded")
    assert torch.autograd.gradcheck(lambda x, t: spike(x, t, code=code, cut=1e-3), (v, theta), eps=1e-4)


@every_code
def test_the_threshold_learns_as_the_equation_says(code):
    """Where s depends on v - θ alone its slope is -ds/dv; ternary, graded and integer by hand."""
    v, theta = torch.tensor([1.5]), torch.tensor(1.0, requires_grad=True)
    spike(v, theta, 2.0, code, 4).backward(torch.ones(1))
    by_hand = {"binary": -0.5, "ternary": 1 / 26 - 0.5, "integer": -1.5, "graded": -0.5, "shifted": -1, "squared": -1}
    assert theta.grad.item() == pytest.approx(by_hand[code], abs=1e-6)


@every_form
@every_code
def test_an_integer_spike_is_a_count_of_events_and_others_keep_their_sign(form, code):
    v = 3 * normal(1000, seed=5).to(form.device)
    with form.active():
        s = spike(v, torch.tensor(0.5, device=form.device), code=code, levels=7).cpu()
    assert (s.min() < 0) == (code == "ternary")
    if code == "integer":
        assert set(s.tolist()) == set(range(8))


@pytest.mark.parametrize("code", ["Binary", "", "gradual"])
def test_unknown_codes_are_named(code):
    for v in (torch.ones(3), torch.ones(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=f"unknown code of a spike '{code}'"):
            spike(v, torch.tensor(1.0), code=code)


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
