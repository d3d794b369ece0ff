"""The learned mean against its definition and against finite differences."""

import pytest
import torch
from forms import agree, both_dtypes, every_form, normal, scattered

from symboliclight.ops import blend

SIZES = [(1, 1, 1, 1), (2, 63, 3, 5), (2, 100, 4, 32)]  # the last is longer than what a thread takes at a time


def blend_loop(a, b, share):
    """One element at a time would take a minute; the definition as it stands does as well."""
    w = share.to(a.dtype)
    return (1 - w) * a + w * b


@every_form
@both_dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_all_gradients_are_those_of_the_definition(form, dtype, size):
    a, b = normal(*size, dtype=dtype), normal(*size, seed=1, dtype=dtype)
    agree(form, blend, blend_loop, [scattered(a), scattered(b), torch.tensor([0.3])])


def test_gradients_are_those_of_finite_differences():
    a, b = normal(2, 3, 4, dtype=torch.float64), normal(2, 3, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(blend, [x.requires_grad_() for x in (a, b, torch.tensor([0.7]).double())])


def test_an_end_of_the_range_is_one_of_the_two():
    a, b = normal(5, 7), normal(5, 7, seed=1)
    assert torch.equal(blend(a, b, torch.tensor(0.0)), a)
    assert torch.equal(blend(a, b, torch.tensor(1.0)), b)
