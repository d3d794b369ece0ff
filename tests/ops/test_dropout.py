"""Dropout: the native mask is the formula's, the share and scale are right, and the gradient uses the same mask."""

import pytest
import torch
from forms import both_dtypes, normal

from symboliclight.ops import dropout
from symboliclight.ops.dropout import dropout_forward, dropout_torch


@both_dtypes
@pytest.mark.parametrize("shape", [(1,), (7, 33), (3, 5, 16_411)])
def test_native_mask_is_the_formula(shape, dtype):
    x = normal(*shape, dtype=dtype)
    for seed in (0, 1, 2**31 - 1):
        assert torch.equal(dropout_forward(x, 0.3, seed), dropout_torch(x, 0.3, seed))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p):
    y = dropout_forward(torch.ones(400_000), p, 12345)
    kept = y != 0
    assert abs(kept.float().mean() - (1 - p)) < 4 * (p * (1 - p) / 400_000) ** 0.5
    torch.testing.assert_close(y[kept].unique(), torch.tensor([1 / (1 - p)]))


def test_masks_of_different_seeds_and_of_neighbours_are_independent():
    a, b = (dropout_forward(torch.ones(400_000), 0.5, seed) != 0 for seed in (1, 2))
    for x, y in ((a, b), (a[1:], a[:-1]), (a[::2], a[1::2]), (a[4096:], a[:-4096])):
        assert abs((x == y).float().mean() - 0.5) < 0.004


def test_gradient_has_the_mask_of_the_output():
    x = normal(4, 100).requires_grad_()
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0, 1 / 0.6))


def test_torch_seed_decides_the_mask_and_evaluation_changes_nothing():
    x = normal(50, 50)
    torch.manual_seed(3)
    first, second = dropout(x, 0.2, True), dropout(x, 0.2, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.2, True), first) and not torch.equal(first, second)
    assert dropout(x, 0.2, False) is x and dropout(x, 0.0, True) is x


def test_non_contiguous_input_is_dropped_in_memory_order_of_the_output():
    x = normal(6, 9).t()
    assert torch.equal(dropout_forward(x, 0.5, 9), dropout_forward(x.contiguous(), 0.5, 9))


def test_registration_is_complete():
    torch.library.opcheck(dropout_forward, (normal(3, 4).requires_grad_(), 0.5, 7))
