"""Cross-entropy straight from features: value and every gradient against the loop, and no logits of all tokens."""

import pytest
import torch
import torch.nn.functional as F
from forms import Made, agree, both_dtypes, close, every_form, normal

from symboliclight.ops import linear_cross_entropy, linear_cross_entropy_loop, loss


def inputs(N, V=19, dims=(6, 3), dtype=torch.float32, ignored=0.2):
    features = [normal(1, N, D, seed=D, dtype=dtype) for D in dims]
    weights = [(normal(V, D, seed=10 + D) / D**0.5).to(dtype) for D in dims]
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(V, (1, N), generator=generator)
    return features, weights, targets.where(torch.rand(1, N, generator=generator) >= ignored, -1)


def flat(function, pairs, bias=False):
    """`function` of separate tensors: features, weights, targets and maybe a bias."""
    def call(*arguments):
        tensors, z_loss = arguments[:-1], arguments[-1]
        b = tensors[-1] if bias else None
        return function(tensors[:pairs], tensors[pairs : 2 * pairs], tensors[2 * pairs], b, z_loss)
    return call


@every_form
@both_dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dims", [(6,), (6, 3)], ids=["one term", "two terms"])
@pytest.mark.parametrize("N", [1, 63, 500])
def test_loss_and_all_gradients_are_those_of_the_loop(form, N, dims, z_loss, bias, dtype, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS", 64 * 19)
    monkeypatch.setattr(loss, "PART", 19 * 10)
    features, weights, targets = inputs(N, dims=dims, dtype=dtype, ignored=0.0 if N == 1 else 0.2)
    tensors = [*features, *weights, targets, *([normal(19, seed=7, dtype=dtype)] if bias else [])]
    ours, loop = (flat(f, len(dims), bias) for f in (linear_cross_entropy, linear_cross_entropy_loop))
    agree(form, ours, loop, tensors, z_loss, slack=4 if dtype == torch.bfloat16 else 1)  # logits are rounded twice


def test_value_is_that_of_cross_entropy():
    features, weights, targets = inputs(40)
    value, nll = linear_cross_entropy(features, weights, targets)
    logits = sum(F.linear(f, w) for f, w in zip(features, weights, strict=True))
    close(value, F.cross_entropy(logits[0], targets[0], ignore_index=-1), 1e-6)
    assert nll == value
    assert not nll.requires_grad


def test_gradients_are_those_of_finite_differences():
    (f, g), (w, u), targets = inputs(5, V=4, dims=(3, 2), dtype=torch.float64)
    bias = normal(4, dtype=torch.float64)

    def value(f, g, w, u, bias):
        return linear_cross_entropy([f, g], [w, u], targets, bias, 0.05)[0]

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (f, g, w, u, bias)])


def test_every_target_ignored_is_no_loss_and_no_gradient():
    features, weights, targets = inputs(9, ignored=1.1)
    leaves = [t.requires_grad_() for t in (*features, *weights)]
    value, nll = linear_cross_entropy(features, weights, targets, z_loss=0.1)
    value.backward()
    assert value == nll == 0
    assert all(t.grad.eq(0).all() for t in leaves)


def test_far_apart_logits_stay_finite():
    weight = torch.tensor([[300.0], [-300.0]])
    leaf = torch.ones(1, 2, 1, requires_grad=True)
    value, _ = linear_cross_entropy([leaf], [weight], torch.tensor([[0, 1]]))
    value.backward()
    assert value.item() == pytest.approx(300.0)
    close(leaf.grad.flatten(), torch.tensor([0.0, 300.0]), 1e-6)


def test_autocast_runs_the_products_in_bfloat16_and_keeps_float32_gradients():
    features, weights, targets = inputs(50)
    leaves = [t.requires_grad_() for t in (*features, *weights)]
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = linear_cross_entropy(features, weights, targets)
    value.backward()
    exact, _ = linear_cross_entropy_loop(features, weights, targets)
    assert value.dtype == torch.float32
    assert value.item() != exact.item()
    expected = torch.autograd.grad(exact, leaves)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad.dtype == torch.float32
        close(leaf.grad, gradient, 2**-7)


@pytest.mark.parametrize("grad", [True, False], ids=["training", "evaluation"])
def test_no_tensor_holds_the_logits_of_all_tokens(grad, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS", 2**19)
    N, V = 4096, 512
    features, weights, targets = inputs(N, V=V, dims=(4,))
    leaves = [t.requires_grad_() for t in (*features, *weights)]
    with torch.set_grad_enabled(grad), Made() as count:
        value, _ = linear_cross_entropy(features, weights, targets)
        if grad:
            torch.autograd.grad(value, leaves)
    assert count.largest == 2**19


def test_evaluation_makes_no_gradient():
    features, weights, targets = inputs(300, V=64)
    leaves = [t.requires_grad_() for t in (*features, *weights)]
    with torch.no_grad(), Made() as without:
        evaluated, _ = linear_cross_entropy(features, weights, targets)
    with Made() as with_:
        trained, _ = linear_cross_entropy(features, weights, targets)
    assert evaluated == trained
    assert without.total < 0.8 * with_.total
    assert all(t.grad is None for t in leaves)
