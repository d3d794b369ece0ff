"""Cross-entropy of a large vocabulary straight from features, never holding the logits of all tokens.

    logits = Σ_k f_k W_kᵀ + b;   loss = mean_t [ lse_t - logits_t[target_t] + z · lse_t² ],   lse = logsumexp(logits)

The second term is the z-loss (arXiv 2204.02311). Targets below 0 are ignored.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from symboliclight.ops import cuda, native

LOGITS = 2**25  # that exist at one time, in the dtype of the matrix products
PART = 2**20  # logits whose float32 softmax exists at one time, so that it stays in cache


def wide(x: Tensor) -> Tensor:
    """At least float32: what softmax sums are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_cross_entropy_loop(
    features: Sequence[Tensor], weights: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The specification of `linear_cross_entropy`: all logits at once, differentiated by autograd."""
    logits = sum(wide(F.linear(f.flatten(0, -2), w)) for f, w in zip(features, weights, strict=True))
    assert isinstance(logits, Tensor)
    logits = logits if bias is None else logits + bias
    kept = targets.flatten() >= 0
    lse = logits.logsumexp(-1)[kept]
    picked = logits.gather(-1, targets.flatten().clamp(min=0)[:, None])[:, 0][kept]
    count = kept.sum().clamp(min=1)
    nll = (lse - picked).sum() / count
    return nll + z_loss * lse.square().sum() / count, nll.detach()


def linear_cross_entropy(
    features: Sequence[Tensor], weights: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Training loss and plain cross-entropy, both scalars in nats a token (float32); only the first has a gradient.

    Args: features f_k (..., D_k) and weights W_k (V, D_k) in pairs; targets (...) int64; bias (V,) or None.
    Without a target that counts, both are 0. The gradients are computed in the forward pass, chunk by chunk, in the
    autocast dtype with float32 softmax.
    """
    dtype = features[0].dtype
    if torch.is_autocast_enabled(features[0].device.type):
        dtype = torch.get_autocast_dtype(features[0].device.type)
    flat = [f.flatten(0, -2) for f in features]
    wanted = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(targets.flatten(), bias, z_loss, dtype, wanted, len(flat), *flat, *weights)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, targets, bias, z_loss, dtype, wanted, pairs, *tensors):  # type: ignore[override]
        features, weights = tensors[:pairs], tensors[pairs:]
        widths = [f.shape[1] for f in features]
        x, w = (torch.cat([t.to(dtype) for t in some], 1) for some in (features, weights))  # one product of the sum
        grad_x, grad_w = torch.empty_like(x), wide(x[:0]).new_zeros(w.shape[::-1])
        grad_b = None if bias is None else torch.zeros_like(bias)
        scale = wide((targets >= 0).to(dtype))
        scale = scale / scale.sum().clamp(min=1)
        sums = scale.new_zeros(2)
        step = max(LOGITS // len(w), 1)
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            logits = F.linear(x[rows], w)
            sums += _softmax_(logits, targets[rows], scale[rows], bias, z_loss, wanted)
            if not wanted:
                continue
            torch.mm(logits, w, out=grad_x[rows])
            _add_product_(grad_w, x[rows].T, logits)  # this way round: no transposed copy of the logits
            if grad_b is not None:
                grad_b += logits.sum(0, dtype=grad_b.dtype)
        grads_f = [g.to(f.dtype) for g, f in zip(grad_x.split(widths, 1), features, strict=True)]
        grads_w = [g.T.to(v.dtype) for g, v in zip(grad_w.split(widths), weights, strict=True)]
        ctx.save_for_backward(grad_b, *grads_f, *grads_w)
        nll = sums[0].clone()
        ctx.mark_non_differentiable(nll)
        return nll + z_loss * sums[1], nll

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[override]
        whole = grad.device.type == "cpu" and float(grad) == 1  # the usual case: saves reading all weights
        grad_b, *grads = (g if g is None or whole else g * grad for g in ctx.saved_tensors)
        return None, grad_b, None, None, None, None, *grads


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in one pass over it where the dtypes allow."""
    if total.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a.contiguous() @ b


def _softmax_(
    logits: Tensor, targets: Tensor, scale: Tensor, bias: Tensor | None, z_loss: float, wanted: bool
) -> Tensor:
    """Weighted sums of nll and lse² over all rows (2,); turns `logits` into its gradient, in place, if wanted."""
    if bias is None and cuda.takes(logits):
        return cuda.softmax_loss(logits, targets, scale, z_loss, wanted)
    if bias is None and native.takes(logits):
        return native.softmax_loss(logits, targets, scale, z_loss, wanted)
    n = max(PART // logits.shape[1], 1)
    parts = zip(logits.split(n), targets.split(n), scale.split(n), strict=True)
    return torch.stack([_softmax_part_(*part, bias, z_loss, wanted) for part in parts]).sum(0)


def _softmax_part_(
    logits: Tensor, targets: Tensor, scale: Tensor, bias: Tensor | None, z_loss: float, wanted: bool
) -> Tensor:
    x = wide(logits) if bias is None else wide(logits) + bias
    index = targets.clamp(min=0)[:, None]
    log_p = x.log_softmax(-1)
    nll = -log_p.gather(-1, index)[:, 0]
    lse = x.gather(-1, index)[:, 0] + nll
    if wanted:
        grad = log_p.exp_().mul_((scale * (1 + 2 * z_loss * lse))[:, None])
        logits.copy_(grad.scatter_add_(-1, index, -scale[:, None]))
    return torch.stack([(nll * scale).sum(), (lse.square() * scale).sum()])
