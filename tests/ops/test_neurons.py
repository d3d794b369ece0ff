"""Our encoder neuron beside the LIF neurons of snnTorch and spikingjelly, step by step: where they agree and differ."""

import math

import pytest
import snntorch
import torch
from snntorch import surrogate as snntorch_surrogate

from symboliclight.ops import lif_scan_loop, spike, surrogate
from symboliclight.ops.lif import lif_forward

LEAK, THRESHOLD, CLAMP = 0.95, 1.0, 3.0


@pytest.fixture(scope="module")
def currents():
    """(B, T, D) float64, strong enough to spike, weak enough never to meet the clamp."""
    return 0.1 + 0.3 * torch.randn(2, 200, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights():
    return torch.randn(2, 200, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ours(x, clamp=CLAMP):
    """Spikes and membrane before the reset, each (B, T, D), as the registered op gives them."""
    leak, threshold = (torch.full(x.shape[2:], value, dtype=x.dtype) for value in (LEAK, THRESHOLD))
    s, v, _ = lif_forward(x, torch.zeros_like(x[:, 0]), leak, threshold, 2.0, clamp, "local")
    loop, _ = lif_scan_loop(x, torch.zeros_like(x[:, 0]), leak, threshold, 2.0, clamp)
    assert torch.equal(s, loop)
    return s, v


def leaky(x, **options):
    """snnTorch: its `mem` is the membrane before the reset, which it applies one step later."""
    beta = torch.tensor(LEAK, dtype=x.dtype)  # of a plain number it keeps float32
    neuron = snntorch.Leaky(**{"beta": beta, "threshold": THRESHOLD, "reset_mechanism": "zero", **options})
    membrane, steps = torch.zeros_like(x[:, 0]), []
    for x_t in x.unbind(1):
        s, membrane = neuron(x_t, membrane)
        steps.append((s.to(x.dtype), membrane))
    return tuple(torch.stack(part, 1) for part in zip(*steps, strict=True))


def lif_node(x, detach=False, **options):
    """spikingjelly: `v` after a step is the membrane after the reset."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = neuron.LIFNode(**{"tau": 1 / (1 - LEAK), "decay_input": False, "v_threshold": THRESHOLD, "v_reset": 0.0,
                             **options})
    steps = []
    for x_t in x.unbind(1):
        steps.append((node(x_t), node.v))
        if detach:
            node.v = node.v.detach()
    return tuple(torch.stack(part, 1) for part in zip(*steps, strict=True))


def test_snntorch_leaky_with_reset_to_zero_has_our_membrane_at_every_step(currents):
    s, v = ours(currents)
    spikes, membrane = leaky(currents)
    assert 0.02 < s.mean() < 0.5 and v.abs().max() < CLAMP
    assert torch.equal(spikes, s)
    torch.testing.assert_close(membrane, v, rtol=0, atol=1e-12)


def test_spikingjelly_lif_node_without_input_decay_has_our_membrane_at_every_step(currents):
    s, v = ours(currents)
    spikes, membrane = lif_node(currents)
    assert torch.equal(spikes, s)
    torch.testing.assert_close(membrane, v * (1 - s), rtol=0, atol=1e-12)


def test_on_the_threshold_ours_and_spikingjelly_fire_and_snntorch_does_not():
    x = torch.full((1, 1, 1), THRESHOLD, dtype=torch.float64)
    assert ours(x)[0].item() == lif_node(x)[0].item() == 1
    assert leaky(x)[0].item() == 0


def test_the_defaults_of_both_reset_or_scale_otherwise(currents):
    s, _ = ours(currents)
    assert not torch.equal(leaky(currents, reset_mechanism="subtract")[0], s)
    assert not torch.equal(lif_node(currents, v_reset=None)[0], s)
    later = leaky(currents, reset_mechanism="subtract")[0]  # θ goes after the leak here, before it in spikingjelly
    assert not torch.equal(later, lif_node(currents, v_reset=None)[0])
    scaled = lif_node(currents / (1 - LEAK), decay_input=True)[0]  # decay_input=True divides the current by tau
    assert torch.equal(scaled, s) and not torch.equal(lif_node(currents, decay_input=True)[0], s)


def test_neither_has_our_clamp_which_matters_below_zero_only():
    x = torch.tensor([10.0, 0.2, -10.0, 2.0, 2.0], dtype=torch.float64)[None, :, None]
    s, v = ours(x)
    free, unbounded = ours(x, clamp=math.inf)
    assert v.flatten()[[0, 2]].tolist() == [CLAMP, -CLAMP] and unbounded.max() == 10
    assert s.flatten().tolist() == [1, 0, 0, 0, 1] and free.flatten().tolist() == [1, 0, 0, 0, 0]
    for spikes in (leaky(x)[0], lif_node(x)[0]):
        assert torch.equal(spikes, free)


def test_the_surrogate_is_the_atan_of_both_under_another_scale():
    """σ(u) = 1 / (1 + (α u)²) is theirs with alpha' = 2 α / π, divided by alpha' / 2."""
    u, alpha = torch.linspace(-2, 2, 81, dtype=torch.float64), 2.0
    theirs = 2 * alpha / math.pi
    module = pytest.importorskip("spikingjelly.activation_based.surrogate")
    for atan in (snntorch_surrogate.atan(alpha=theirs), module.ATan(alpha=theirs)):
        v = u.clone().requires_grad_()
        atan(v).sum().backward()
        torch.testing.assert_close(v.grad / (theirs / 2), surrogate(u, 0.0, alpha))


@pytest.mark.parametrize(("gradient", "library"), [
    ("bptt_detached", lambda x: leaky(x, spike_grad=fire)),
    ("bptt_detached", lambda x: lif_node(x, surrogate_function=fire, detach_reset=True)),
    ("bptt", lambda x: lif_node(x, surrogate_function=fire)),
    ("local", lambda x: lif_node(x, surrogate_function=fire, detach=True)),
], ids=["snnTorch", "spikingjelly, detach_reset=True", "spikingjelly", "spikingjelly, membrane detached"])
def test_each_gradient_mode_is_what_a_setting_of_theirs_does(currents, weights, gradient, library):
    gradients = []
    for run in (lambda x: lif_scan_loop(x, torch.zeros_like(x[:, 0]), torch.tensor(LEAK, dtype=x.dtype),
                                        torch.tensor(THRESHOLD, dtype=x.dtype), gradient=gradient), library):
        x = currents.clone().requires_grad_()
        (run(x)[0] * weights).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def fire(u):
    """Our spike and surrogate in the place of theirs."""
    return spike(u, torch.zeros((), dtype=u.dtype))
