"""The share between two paths: every form against the equation."""

import pytest
import torch
from forms import agree, both_dtypes, every_form, normal, scattered

from symboliclight.ops import mix, mix_loop


@every_form
@both_dtypes
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 63, 5, 41)], ids=str)
@pytest.mark.parametrize("layout", [torch.clone, scattered], ids=["contiguous", "scattered"])
def test_output_and_all_gradients_are_those_of_the_equation(form, dtype, shape, layout):
    d, x = layout(normal(*shape, dtype=dtype)), layout(normal(*shape, seed=1, dtype=dtype))
    agree(form, mix, mix_loop, [d, x, torch.tensor([0.3])], slack=4)


@every_form
def test_the_gradient_of_the_share_sums_pieces_of_any_number(form):
    """Ones against zeros: the sum is their number."""
    n = 2 * (1 << 14) + 5
    a = torch.tensor([0.5], device=form.device, requires_grad=True)
    with form.active():
        mix(torch.zeros(n, device=form.device), torch.ones(n, device=form.device), a).sum().backward()
    assert a.grad.item() == n
