"""Cross-entropy of a large vocabulary straight from features, never holding the logits of all tokens.

    logits = Σ_k f_k W_kᵀ + b;   loss = mean_t [ lse_t - logits_t[target_t] + z · lse_t² ],   lse = logsumexp(logits)

The second term is the z-loss (arXiv 2204.02311). Targets below 0 are ignored.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024  # tokens whose logits exist at one time


def wide(x: Tensor) -> Tensor:
    """At least float32: what softmax sums are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_cross_entropy_loop(
    features: Sequence[Tensor], weights: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The specification of `linear_cross_entropy`: all logits at once, differentiated by autograd."""
    logits = sum(wide(F.linear(f.flatten(0, -2), w)) for f, w in zip(features, weights, strict=True))
    assert isinstance(logits, Tensor)
    logits = logits if bias is None else logits + bias
    kept = targets.flatten() >= 0
    lse = logits.logsumexp(-1)[kept]
    picked = logits.gather(-1, targets.flatten().clamp(min=0)[:, None])[:, 0][kept]
    nll = (lse - picked).mean()
    return nll + z_loss * lse.square().mean(), nll.detach()


def linear_cross_entropy(
    features: Sequence[Tensor], weights: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Training loss and plain cross-entropy, both scalars in nats a token (float32); only the first has a gradient.

    Args: features f_k (..., D_k) and weights W_k (V, D_k) in pairs; targets (...) int64; bias (V,) or None.
    The gradients are computed in the forward pass, chunk by chunk, in the autocast dtype with float32 softmax.
    """
    dtype = features[0].dtype
    if torch.is_autocast_enabled(features[0].device.type):
        dtype = torch.get_autocast_dtype(features[0].device.type)
    flat = [f.flatten(0, -2) for f in features]
    return _LinearCrossEntropy.apply(targets.flatten(), bias, z_loss, dtype, len(flat), *flat, *weights)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, targets, bias, z_loss, dtype, pairs, *tensors):  # type: ignore[override]
        features, weights = tensors[:pairs], [w.to(dtype) for w in tensors[pairs:]]
        wanted = any(ctx.needs_input_grad)
        grads_f = [torch.empty_like(f) for f in features] if wanted else []
        grads_w = [torch.zeros_like(w) for w in tensors[pairs:]] if wanted else []
        grad_b = torch.zeros_like(bias) if wanted and bias is not None else None
        count = (targets >= 0).sum().clamp(min=1)
        total = wide(torch.zeros(2, dtype=dtype, device=targets.device))
        for start in range(0, len(targets), ROWS):
            rows = slice(start, start + ROWS)
            chunk = [f[rows].to(dtype) for f in features]
            sums, grad = _rows(chunk, weights, targets[rows], bias, z_loss, count, wanted)
            total += sums
            if not wanted:
                continue
            for k in range(pairs):
                grads_f[k][rows] = grad @ weights[k]
                grads_w[k] += grad.T @ chunk[k]
            if grad_b is not None:
                grad_b += grad.sum(0, dtype=grad_b.dtype)
        ctx.save_for_backward(*grads_f, *grads_w, *([] if grad_b is None else [grad_b]))
        ctx.pairs = pairs
        nll = total[0] / count
        ctx.mark_non_differentiable(nll)
        return nll + z_loss * total[1] / count, nll

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[override]
        saved = [None if not needed else g * grad for g, needed in _matched(ctx)]
        n = 2 * ctx.pairs
        return None, saved[n] if len(saved) > n else None, None, None, None, *saved[:n]


def _matched(ctx):
    """Saved gradients (features, weights, bias) with whether autograd wants each."""
    needed = list(ctx.needs_input_grad[5:]) + [ctx.needs_input_grad[1]]
    return zip(ctx.saved_tensors, needed, strict=False)


def _rows(chunk, weights, targets, bias, z_loss, count, wanted):
    """Sums (nll, lse²) of a chunk of rows and, if wanted, the gradient of its logits in the matrix dtype."""
    logits = F.linear(chunk[0], weights[0])
    for f, w in zip(chunk[1:], weights[1:], strict=True):
        logits = torch.addmm(logits, f, w.T)
    logits = wide(logits) if bias is None else wide(logits) + bias
    kept = (targets >= 0).to(logits.dtype)
    index = targets.clamp(min=0)[:, None]
    lse = logits.logsumexp(-1)
    nll = (lse - logits.gather(-1, index)[:, 0]) * kept
    sums = torch.stack([nll.sum(), (lse.square() * kept).sum()])
    if not wanted:
        return sums, None
    scale = kept / count
    grad = logits.sub_(lse[:, None]).exp_().mul_((scale * (1 + 2 * z_loss * lse))[:, None])
    grad.scatter_add_(-1, index, -scale[:, None])
    return sums, grad.to(chunk[0].dtype)
