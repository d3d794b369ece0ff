"""Linear maps of binary inputs: every form against gather-and-add."""

import pytest
import torch
from forms import agree, both_dtypes, close, every_form, normal, scattered

from symboliclight.ops import event_linear, event_linear_loop, events, native


@every_form
@both_dtypes
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 63), (2, 1, 5)], ids=str)
def test_outputs_are_those_of_the_loop(form, dtype, rate, shape):
    spikes = (normal(*shape, 37).sigmoid() < rate if 0 < rate < 1 else torch.full((*shape, 37), rate > 0)).to(dtype)
    weight = normal(29, 37, seed=1, dtype=dtype)
    with form.active():
        y = event_linear(spikes.to(form.device), weight.to(form.device))
    assert y.dtype == dtype
    close(y, event_linear_loop(spikes.double(), weight.double()), 1e-6 if dtype == torch.float32 else 2**-8)


@every_form
@both_dtypes
def test_gradients_reach_silent_inputs_too(form, dtype):
    """Towards the input the map is the plain product, or the surrogate of a silent neuron would learn nothing."""
    spikes, weight = (normal(4, 65, 41) > 1).to(dtype), normal(33, 41, seed=1, dtype=dtype)
    agree(form, event_linear, torch.nn.functional.linear, [scattered(spikes), scattered(weight)])


@every_form
@both_dtypes
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_valued_spikes_weigh_their_columns(form, dtype, rate):
    """Forward and both gradients, few enough active to be gathered and too many."""
    values = normal(65, 41, seed=2, dtype=dtype) * (normal(65, 41).sigmoid() < rate)
    weight = normal(33, 41, seed=1, dtype=dtype)
    with form.active():
        y = event_linear(values.to(form.device), weight.to(form.device))
    close(y, event_linear_loop(values.double(), weight.double()), 1e-6 if dtype == torch.float32 else 2**-7)
    agree(form, event_linear, torch.nn.functional.linear, [values, weight])


@every_form
def test_any_other_input_is_the_plain_product(form):
    agree(form, event_linear, torch.nn.functional.linear, [normal(4, 65, 41), normal(33, 41, seed=1)])


@pytest.mark.skipif(not native.built(), reason="no native build here")
def test_the_break_even_is_measured_once_and_can_be_told(monkeypatch):
    monkeypatch.setattr(events, "_measured", {})
    shares = events.break_evens()
    assert set(shares) == {"float32", "bfloat16"} and set(shares.values()) <= {0.0, *events.SHARES}
    monkeypatch.setattr(events, "_measure", lambda dtype: pytest.fail("measured again"))
    assert events.break_evens() == shares
    told = {"float32": 0.0, "bfloat16": 1 / 16}
    events.set_break_evens(told)
    assert events.break_evens() == told


@pytest.mark.skipif(not native.built(), reason="no native build here")
@pytest.mark.parametrize(("gathers", "share"), [(True, events.SHARES[0]), (False, 0.0)])
def test_the_break_even_is_where_gathering_wins(monkeypatch, gathers, share):
    monkeypatch.setattr(events, "_faster", lambda one, other: gathers)
    assert events._measure(torch.float32) == share
