"""The membrane scan: traces by hand, and every form against the loop."""

import pytest
import torch
from forms import agree, both_dtypes, close, every_form, normal, poisoned, run, scattered, three_lengths

from symboliclight.ops import lif_scan, lif_scan_loop
from symboliclight.ops.lif import LIF_CODES, lif_backward, lif_forward

MODES = ["local", "bptt", "bptt_detached"]
every_mode = pytest.mark.parametrize("mode", MODES)


def inputs(T, dtype=torch.float32, B=2, D=37):
    """Currents strong enough to spike, to stay below, and to meet both bounds of the clamp."""
    x, r0 = 2 * normal(B, T, D, dtype=dtype), normal(B, D, seed=1)
    return [x, r0, torch.linspace(0.5, 1.0, D), torch.linspace(0.3, 1.5, D)]


@every_form
def test_trace_by_hand(form):
    """λ = 1/2, θ = 1, bounds ±3: just reaches θ, hits +3, hits -3, climbs back, reaches θ again."""
    x = [0.5, 0.5, 0.5, 0.5625, 5.0, -8.0, 1.0, 1.25, 0.25]
    # v:  0.5  0.75 0.875 1.0   3.0  -3.0 -0.5 1.0   0.25
    spikes = [0, 0, 0, 1, 1, 0, 0, 1, 0]
    from_one = [1, 0, 0, 0, 1, 0, 0, 1, 0]  # r_0 = 1: v = 1.0, then 0.5, 0.75, 0.9375
    currents = torch.tensor([x, x], device=form.device)[..., None]
    with form.active():
        s, r = lif_scan(currents, torch.tensor([[0.0], [1.0]], device=form.device),
                        torch.tensor([0.5], device=form.device), torch.tensor([1.0], device=form.device))
    assert s[..., 0].tolist() == [spikes, from_one]
    assert r[:, 0].tolist() == [0.25, 0.25]


@every_form
@pytest.mark.parametrize(("mode", "expected"), [("local", 0.0), ("bptt_detached", 0.25), ("bptt", 0.1875)])
def test_gradient_by_hand(form, mode, expected):
    """v_1 = v_2 = 1/2, σ = 1/2 at both; ∂s_2/∂x_1 = σ_2 · λ · (1 - s_1 - v_1 σ_1), the last term in bptt only."""
    x = torch.tensor([[[0.5], [0.25]]], device=form.device, requires_grad=True)
    neuron = torch.tensor([0.5], device=form.device), torch.tensor([1.0], device=form.device)
    with form.active():
        s, _ = lif_scan(x, torch.zeros(1, 1, device=form.device), *neuron, gradient=mode)
        s[0, 1, 0].backward()
    assert x.grad.flatten().tolist() == [expected, 0.5]


@every_form
@every_mode
@both_dtypes
@three_lengths
def test_outputs_and_all_gradients_are_those_of_the_loop(form, mode, dtype, T):
    agree(form, lif_scan, lif_scan_loop, inputs(T, dtype), 2.0, 3.0, mode, reference=torch.float32, exact=[0, 1])


@every_form
@both_dtypes
@three_lengths
@pytest.mark.parametrize("code", LIF_CODES[1:])
def test_valued_spikes_and_their_gradients_are_those_of_the_loop(form, dtype, T, code):
    agree(form, lif_scan, lif_scan_loop, inputs(T, dtype), 2.0, 3.0, "local", code, 0.7, reference=torch.float32)


@every_form
def test_a_valued_trace_by_hand(form):
    """The trace above: where it fires the graded spike is the membrane, the shifted one what is above θ = 1."""
    x = torch.tensor([0.5, 0.5, 0.5, 0.5625, 5.0, -8.0, 1.0, 1.25, 0.25], device=form.device)[None, :, None]
    neuron = [torch.tensor([value], device=form.device) for value in (0.5, 1.0)]
    for code, at in (("graded", [1, 3, 1]), ("shifted", [0, 2, 0])):
        with form.active():
            s, r = lif_scan(x, torch.zeros(1, 1, device=form.device), *neuron, code=code)
        assert s[0, [3, 4, 7], 0].tolist() == at and s.count_nonzero() == sum(value != 0 for value in at)
        assert r.item() == 0.25


@every_form
@every_mode
@pytest.mark.parametrize("shape", [(1, 5, 1), (3, 17, 16), (1, 4, 1031)], ids=str)
def test_odd_sizes_and_scattered_memory(form, mode, shape):
    B, T, D = shape
    tensors = [scattered(t) for t in inputs(T, B=B, D=D)]
    agree(form, lif_scan, lif_scan_loop, tensors, 3.0, 2.5, mode, reference=torch.float32, exact=[0, 1])


@every_form
def test_one_leak_and_one_threshold_serve_all_channels(form):
    x, r0, _, _ = inputs(20)
    agree(form, lif_scan, lif_scan_loop, [x, r0, torch.tensor(0.9), torch.tensor([1.0])], 2.0, 3.0, "bptt",
          reference=torch.float32, exact=[0, 1])


@every_form
@every_mode
def test_double_precision_is_kept(form, mode):
    agree(form, lif_scan, lif_scan_loop, [t.double() for t in inputs(30)], 2.0, 3.0, mode, exact=[0])


def in_chunks(x, r0, leak, threshold, *options):
    spikes = []
    for part in x.split([1, 7, x.shape[1] - 8], 1):
        s, r0 = lif_scan(part, r0, leak, threshold, *options)
        spikes.append(s)
    return torch.cat(spikes, 1), r0


@every_form
@every_mode
def test_chunks_equal_the_whole_in_outputs_and_gradients(form, mode):
    agree(form, in_chunks, lif_scan, inputs(63), 2.0, 3.0, mode, reference=torch.float32, exact=[0, 1])


@every_form
def test_state_keeps_its_precision_under_bfloat16_currents(form):
    x, r0, leak, threshold = (t.to(form.device) for t in inputs(40, torch.bfloat16))
    with form.active():
        s, r = lif_scan(x, r0, leak, threshold)
    assert s.dtype == torch.bfloat16
    assert r.dtype == torch.float32
    assert not torch.equal(r, r.bfloat16().float())


@every_form
def test_gradient_through_the_state_alone(form):
    def last(*arguments):
        return lif_scan(*arguments)[1]

    def last_of_loop(*arguments):
        return lif_scan_loop(*arguments)[1]

    agree(form, last, last_of_loop, inputs(25), 2.0, 3.0, "bptt", reference=torch.float32, exact=[0])


@every_form
def test_fixed_neuron_costs_no_neuron_gradient(form):
    x, r0, leak, threshold = (t.to(form.device) for t in inputs(12))
    with form.active(), poisoned():
        _, whole = run(lambda a, b: lif_scan(a, b, leak, threshold, 2.0, 3.0, "bptt"), [x, r0], [])
        _, learned = run(lif_scan, [x, r0, leak, threshold], [2.0, 3.0, "bptt"])
    for g, h in zip(whole, learned[:2], strict=True):
        close(g, h.cpu(), 1e-6)


@every_form
@every_mode
def test_registration_is_sound(form, mode):
    x, r0, leak, threshold = (t.to(form.device) for t in inputs(4, D=5))
    with form.active():
        torch.library.opcheck(lif_forward, (x.requires_grad_(), r0, leak, threshold, 2.0, 3.0, mode))
        v = lif_forward(x, r0, leak, threshold, 2.0, 3.0, mode)[1].detach()
        torch.library.opcheck(lif_backward, (normal(*x.shape).to(v), r0, v, r0, leak, threshold, 2.0, 3.0, mode, True))
