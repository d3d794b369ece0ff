"""Rotary embedding: the angle by hand, lengths kept, scores that depend on distance alone."""

import math

import pytest
import torch
from forms import TOLERANCE, both_dtypes, close, every_form, normal, poisoned, scattered

from symboliclight.ops import rope
from symboliclight.ops.rope import rope_forward, rope_tables, rope_torch


def turn(x, positions, base=10_000.0):
    return rope(x, rope_tables(positions, x.shape[-1], base, x.dtype))


def test_angles_by_hand():
    """K = 4, base 100: the pairs (0, 2) and (1, 3) turn by p and p / 10 radians."""
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    y = turn(x, torch.tensor([[3]]), base=100.0).flatten()
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=torch.float64))


def test_position_zero_turns_nothing():
    x = normal(2, 1, 3, 8)
    assert torch.equal(turn(x, torch.zeros(2, 1, dtype=torch.long)), x)


@pytest.mark.parametrize("shift", [-7, 1, 1000])
def test_scores_depend_on_distance_alone_and_lengths_are_kept(shift):
    q, k = normal(1, 1, 2, 16, dtype=torch.float64), normal(1, 1, 2, 16, seed=1, dtype=torch.float64)
    here = torch.tensor([[5]])

    def score(i, j):
        return (turn(q, i) * turn(k, j)).sum(-1)

    torch.testing.assert_close(score(here + shift, here + shift - 3), score(here, here - 3))
    torch.testing.assert_close(turn(q, here + shift).norm(dim=-1), q.norm(dim=-1))


@both_dtypes
def test_dtype_and_rows_with_their_own_positions(dtype):
    x, positions = normal(2, 5, 3, 8, dtype=dtype), torch.arange(5) + torch.tensor([[-2], [9]])
    y = turn(x, positions)
    assert y.dtype == dtype
    for row in range(2):
        torch.testing.assert_close(y[row : row + 1], turn(x[row : row + 1], positions[row : row + 1]))


@both_dtypes
def test_native_form_is_the_torch_form_and_its_gradient_turns_back(dtype):
    x, tables = normal(2, 5, 3, 24, dtype=dtype), rope_tables(torch.arange(5).expand(2, 5), 24, 10_000.0, dtype)
    y = rope_forward(x, *tables, 1.0)
    assert torch.equal(y, rope_torch(x, *tables, 1.0))
    leaf = x.clone().requires_grad_()
    rope(leaf, tables).backward(y)
    torch.testing.assert_close(leaf.grad, x, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    torch.library.opcheck(rope_forward, (leaf, *tables, 1.0))


@every_form
@both_dtypes
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 1, 1, 2), (2, 130, 4, 24)], ids=str)
def test_every_form_turns_and_its_gradient_turns_back(form, shape, dtype):
    B, T = shape[:2]
    tables = rope_tables(torch.arange(T) + torch.arange(-2, B - 2)[:, None], shape[-1], 10_000.0, dtype)
    x = normal(*shape, dtype=dtype)
    leaf = scattered(x).to(form.device).requires_grad_()
    with form.active(), poisoned():
        y = rope(leaf, tuple(t.to(form.device) for t in tables))
        y.backward(y.detach())
    close(y, rope_torch(x.double(), *(t.double() for t in tables), 1.0), TOLERANCE[dtype])
    close(leaf.grad, x, TOLERANCE[dtype])
