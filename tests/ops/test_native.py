"""Native kernels: every instruction set of this machine, thread counts, odd memory, fuzzed shapes, refusals."""

import os
import subprocess
import sys

import pytest
import torch
from forms import Form, agree, both_dtypes, normal, run
from hypothesis import given, settings
from hypothesis import strategies as st

from symboliclight.ops import (
    blend,
    causal_conv,
    causal_conv_loop,
    decay_scan,
    decay_scan_loop,
    event_linear,
    forms,
    lif_scan,
    lif_scan_loop,
    native,
    spike,
    torch_forms,
    window_attention,
    window_attention_loop,
)
from symboliclight.ops.conv import conv_forward
from symboliclight.ops.events import _event_linear, _weight_gradient
from symboliclight.ops.native import event_product

_native = pytest.importorskip("symboliclight._native", reason="no native build here")
NATIVE = Form("native")
MODES = ["local", "bptt", "bptt_detached"]
every_isa = pytest.mark.parametrize("isa", _native.isas(), indirect=True)


@pytest.fixture
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def misaligned(x):
    """The same tensor, contiguous, one element behind an allocation's start."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def lif_inputs(B, T, D, dtype):
    shapes = (B, T, D), (B, D), (D,), (D,)
    x, r0, leak, threshold = (normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return [x * 2, r0, leak.sigmoid(), threshold.exp()]


def decay_inputs(B, T, H, K, dtype):
    return [normal(B, T, H, K, dtype=dtype), normal(H, seed=1).sigmoid(), normal(B, H, K, seed=2)]


def conv_inputs(B, T, D, n, dtype):
    return [normal(B, T, D, dtype=dtype), normal(n, D, seed=1), normal(B, n - 1, D, seed=2)]


def window_inputs(B, T, R, H, K, A, position, dtype):
    q, *rest = (normal(B, n, H, K, seed=i, dtype=dtype) for i, n in enumerate((T, R + T, R + T, A, A)))
    gate, anchor_gate = normal(B, R + T, seed=5) > -1, normal(B, A, seed=6) > -0.5
    return [q, *rest[:2], gate, *rest[2:], anchor_gate, torch.arange(B) * 7 + position]


WINDOWS = [  # B, T, R, H, K, A, position, window
    (2, 1, 0, 1, 4, 0, 0, 0), (1, 1, 16, 2, 32, 3, 40, 16), (2, 63, 5, 2, 20, 4, 5, 17),
    (1, 130, 40, 1, 64, 40, 60, 33), (1, 40, 0, 1, 34, 2, -9, 8),
]
CASES = {
    "lif": (lif_scan, lif_inputs(2, 63, 301, torch.float32), (2.0, 3.0, "bptt")),
    "decay": (decay_scan, decay_inputs(3, 63, 5, 29, torch.float32), ()),
    "blend": (blend, [normal(3, 63, 7, 29), normal(3, 63, 7, 29, seed=1), torch.tensor([0.4])], ()),
    "conv": (causal_conv, conv_inputs(3, 63, 145, 3, torch.float32), ()),
    "spike": (lambda v: spike(v, torch.tensor(0.3)), [normal(3, 5000, 17)], ()),
    "window": (window_attention, window_inputs(2, 63, 5, 3, 20, 4, 5, torch.float32), (17,)),
    "tiles": (window_attention, window_inputs(2, 63, 5, 3, 20, 4, 5, torch.bfloat16), (17,)),
    "events": (event_linear, [(normal(300, 130) > 1.8).float(), normal(95, 130, seed=1)], ()),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_isa
@both_dtypes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 37), (1, 20, 600)], ids=str)
def test_membrane_scan_equals_the_loop_bit_for_bit(isa, dtype, mode, shape):
    inputs = lif_inputs(*shape, dtype)
    outputs, grads = run(lif_scan, inputs, (2.0, 3.0, mode))
    expected, expected_grads = run(lif_scan_loop, inputs, (2.0, 3.0, mode))
    assert all(torch.equal(y, z) for y, z in zip(outputs, expected, strict=True))
    tolerance = 2**-5 if dtype == torch.bfloat16 else 1e-5  # the loop rounds after every operation, the kernel once
    for g, h in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(g, h, rtol=0, atol=tolerance * (1 + h.abs().max().item()))


@every_isa
@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 63, 3, 7), (1, 20, 5, 120)], ids=str)
def test_decay_scan_is_the_loop(isa, dtype, shape):
    agree(NATIVE, decay_scan, decay_scan_loop, decay_inputs(*shape, dtype))


@every_isa
@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 63, 37, 3), (1, 2, 600, 5)], ids=str)
def test_short_convolution_is_the_loop(isa, dtype, shape):
    agree(NATIVE, causal_conv, causal_conv_loop, conv_inputs(*shape, dtype))


@every_isa
@both_dtypes
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_window_attention_is_the_loop(isa, dtype, shape):
    agree(NATIVE, window_attention, window_attention_loop, window_inputs(*shape[:7], dtype), shape[7])


@every_isa
@both_dtypes
@pytest.mark.parametrize(("R", "M", "N"), [(1, 1, 1), (70, 65, 33), (130, 1100, 260)])
def test_gathered_products_are_the_dense_ones(isa, dtype, R, M, N):
    spikes = (normal(R, M) > 1).to(dtype)
    weight, grad = normal(M, N, seed=1, dtype=dtype), normal(R, N, seed=2, dtype=dtype)
    close = {"rtol": 2**-7 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-4}
    torch.testing.assert_close(event_product(spikes, weight).double(), spikes.double() @ weight.double(), **close)
    turned = event_product(spikes, grad, by_columns=True).double()
    torch.testing.assert_close(turned, grad.double().t() @ spikes.double(), **close)
    v = normal(R, M, seed=3, dtype=dtype)  # exact in both: a threshold that is an entry spikes
    level = float(v[0, 0])
    fired = (v >= level).double()
    torch.testing.assert_close(event_product(v, weight, threshold=level).double(), fired @ weight.double(), **close)
    turned = event_product(v, grad, by_columns=True, threshold=level).double()
    torch.testing.assert_close(turned, grad.double().t() @ fired, **close)
    assert native.active_share(spikes) == float((spikes != 0).double().mean()) or R > 256
    assert native.active_share(v, level) == float(fired.mean()) or R > 256


@every_isa
@both_dtypes
def test_spikes_and_surrogates_are_those_of_the_torch_form(isa, dtype):
    for threshold in (torch.tensor(0.5), normal(37)):
        inputs = [normal(3, 41, 37, dtype=dtype), threshold]
        outputs, grads = run(spike, inputs, ())
        with torch_forms():
            expected, expected_grads = run(spike, inputs, ())
        assert torch.equal(outputs[0], expected[0])
        tolerance = 2**-5 if dtype == torch.bfloat16 else 1e-6  # the torch form rounds after every operation
        torch.testing.assert_close(grads[0], expected_grads[0], rtol=tolerance, atol=1e-6)


@every_case
def test_results_are_the_same_bits_for_any_number_of_threads(case):
    op, inputs, options = case
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs, grads = run(op, inputs, options)
        found.append(outputs + grads)
    torch.set_num_threads(before)
    for other in found[1:]:
        for i, (x, y) in enumerate(zip(found[0], other, strict=True)):
            if case is CASES["events"] and i == 1:  # the gradient of spikes is torch's product, rounded by its library
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(x, y), i


@every_case
def test_memory_off_by_one_element_changes_nothing(case):
    op, inputs, options = case
    expected, expected_grads = run(op, inputs, options)
    moved = [misaligned(x) if x.dim() else x for x in inputs]
    assert all(x.is_contiguous() for x in moved)
    outputs, grads = run(op, moved, options)
    assert all(torch.equal(x, y) for x, y in zip(outputs + grads, expected + expected_grads, strict=True))


@settings(max_examples=40, deadline=None)
@given(B=st.integers(1, 3), T=st.integers(1, 70), D=st.integers(1, 300), mode=st.sampled_from(MODES),
       isa=st.sampled_from(_native.isas()))
def test_membrane_scan_of_any_shape_is_the_loop(B, T, D, mode, isa):
    best = _native.isa()
    _native.set_isa(isa)
    try:
        agree(NATIVE, lif_scan, lif_scan_loop, lif_inputs(B, T, D, torch.float32), 2.0, 3.0, mode,
              reference=torch.float32, exact=(0, 1))
    finally:
        _native.set_isa(best)


@settings(max_examples=40, deadline=None)
@given(B=st.integers(1, 2), T=st.integers(1, 80), R=st.integers(0, 70), H=st.integers(1, 3),
       K=st.integers(1, 40).map(lambda n: 2 * n), A=st.integers(0, 35), position=st.integers(-5, 100),
       window=st.integers(0, 80), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_window_attention_of_any_shape_is_the_torch_form(B, T, R, H, K, A, position, window, dtype):
    R = min(R, window)
    inputs = window_inputs(B, T, R, H, K, A, position, dtype)

    def torch_form(*args):
        with torch_forms():
            return window_attention(*args)

    # AMX rounds the scores' gradients to bfloat16, and their sums over few keys cancel.
    slack = 2 if dtype == torch.bfloat16 and _native.isa() == "amx" else 1
    agree(NATIVE, window_attention, torch_form, inputs, window, slack=slack)


def test_not_a_number_reaches_the_result():
    x, r0, leak, threshold = lif_inputs(1, 5, 20, torch.float32)
    x[0, 2, 3] = torch.nan
    _, r = lif_scan(x, r0, leak, threshold)
    assert r[0, 3].isnan() and r.isnan().sum() == 1
    inputs = window_inputs(1, 40, 0, 1, 8, 0, 0, torch.float32)
    inputs[3].fill_(True)
    inputs[0][0, 7] = torch.nan
    assert window_attention(*inputs, 16)[0, :, 0, 0].isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_take_the_torch_forms(dtype):
    assert not native.takes(torch.zeros(3, dtype=dtype))
    x = lif_inputs(1, 9, 5, dtype)
    assert torch.equal(lif_scan(*x)[0], lif_scan_loop(*x)[0])


def test_operators_meet_the_contract_of_torch_library():
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.requires_grad_(x.is_floating_point()) for x in window_inputs(2, 5, 3, 2, 8, 2, 9, dtype)]
        torch.library.opcheck(native.window_attention, (*inputs, 4))
        torch.library.opcheck(native.window_backward, (inputs[0].detach(), *(x.detach() for x in inputs), 4))
        convolved = [x.requires_grad_() for x in conv_inputs(2, 7, 5, 3, dtype)]
        torch.library.opcheck(conv_forward, [x.to(dtype) for x in convolved])
    spikes, weight = (normal(70, 20) > 1.5).float().requires_grad_(), normal(9, 20).requires_grad_()
    torch.library.opcheck(_event_linear, (spikes, weight))
    torch.library.opcheck(_weight_gradient, (normal(70, 9), spikes.detach()))


def test_bindings_refuse_what_kernels_cannot_read():
    x, r0, leak, threshold = lif_inputs(2, 3, 8, torch.float32)
    out = torch.empty_like(x), torch.empty_like(x), torch.empty_like(r0)
    refusals = [(x.double(), r0, "float32 or bfloat16"), (x, r0.bfloat16(), "dtype"), (x, r0[:1], "shape"),
                (x, r0.t().contiguous().t(), "contiguous"), (x.to("meta"), r0, "CPU")]
    for bad_x, bad_r0, why in refusals:
        with pytest.raises((TypeError, ValueError), match=why):
            _native.lif_forward(bad_x, bad_r0, leak, threshold, *out, 3.0, 1)
    with pytest.raises(ValueError, match="no such"):
        _native.set_isa("such")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_on_its_own_thread():
    torch.set_num_threads(2)
    x = lif_inputs(4, 20, 600, torch.float32)
    expected = lif_scan(*x)[0]
    child = os.fork()
    if child == 0:
        found = native.lif_forward(*x, 2.0, 3.0, "local")[0]
        os._exit(0 if (found.numpy() == expected.numpy()).all() else 1)  # torch's own threads would hang here
    assert os.waitpid(child, 0)[1] == 0


def test_a_missing_build_warns_once_and_runs_the_torch_forms():
    code = ("import sys, warnings; sys.modules['symboliclight._native'] = None\n"
            "with warnings.catch_warnings(record=True) as seen:\n"
            "    warnings.simplefilter('always')\n"
            "    import torch; from symboliclight import ops, build, preset; from symboliclight.ops import native\n"
            "    ops.lif_scan(torch.ones(1, 2, 3), torch.zeros(1, 3), torch.tensor(0.9), torch.tensor(1.0))\n"
            "ours = [str(w.message) for w in seen if 'native kernels' in str(w.message)]\n"
            "assert len(ours) == 1 and 'compiler' in ours[0], ours\n"
            "assert {form for form, _ in ops.forms().values()} == {'torch'}, ops.forms()\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_form_in_use_is_named_with_its_reason():
    assert {"lif_scan", "lif_scan_backward", "decay_scan", "causal_conv", "blend_backward", "spike",
            "window_attention", "event_linear"} <= set(forms())
    form, reason = forms()["lif_scan"]
    assert form == f"native {_native.isa()}" and "portable" in reason
    with torch_forms():
        assert forms()["lif_scan"] == ("torch", "asked for by torch_forms()")
