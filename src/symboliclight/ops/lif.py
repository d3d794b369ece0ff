"""Membrane scan of the leaky integrate-and-fire encoder (DESIGN section 1, "Encoder").

    v_t = clamp(λ · r_{t-1} + x_t, -c, c);   s_t = 1[v_t >= θ];   r_t = v_t (1 - s_t)

r is the membrane after the hard reset; r_0 = 0 at the start of a sequence and r_T is the state handed on.

Gradients. `local` (the V1 default): s_t depends on x_t alone, r_{t-1} is a constant, and the state carries no
gradient. `bptt`: the true recurrence, with the surrogate for ds/dv in the reset as well. `bptt_detached`: the
recurrence with the reset factor (1 - s_t) held constant. The hard reset makes the recurrence no associative scan of
bounded size, so the torch form still walks over T, but without an autograd tape; its local gradient has no loop.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from symboliclight.ops.spike import spike, surrogate


def lif_scan_loop(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float = 2.0, clamp: float = 3.0, gradient: str = "local"
) -> tuple[Tensor, Tensor]:
    """The specification of `lif_scan`: one step a token, differentiated by autograd."""
    r, spikes = r0, []
    for x_t in x.unbind(1):
        r = r.detach() if gradient == "local" else r
        v = (leak * r + x_t).clamp(-clamp, clamp)
        s = spike(v, threshold, alpha)
        r = v * (1 - (s.detach() if gradient == "bptt_detached" else s))
        spikes.append(s)
    return torch.stack(spikes, 1), r.detach() if gradient == "local" else r


def lif_scan(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float = 2.0, clamp: float = 3.0, gradient: str = "local"
) -> tuple[Tensor, Tensor]:
    """Integrate, fire and reset along T.

    Args: x (B, T, D) input current; r0 (B, D) membrane after reset; leak λ and threshold θ (D,); clamp bounds |v|.
    Returns: spikes (B, T, D) and the membrane after the last reset (B, D), both in the dtype of x.
    """
    D = x.shape[-1]
    leak, threshold = leak.to(x.dtype).expand(D), threshold.to(x.dtype).expand(D)
    s, _, r = lif_forward(x, r0.to(x.dtype), leak, threshold, alpha, clamp, gradient)
    return s, r.detach() if gradient == "local" else r


@custom_op("symboliclight::lif_scan", mutates_args=())
def lif_forward(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes (B, T, D), membrane before reset (B, T, D), membrane after the last reset (B, D)."""
    v, r = torch.empty_like(x), r0.clone()
    for t in range(x.shape[1]):
        v_t = torch.mul(r, leak, out=r).add_(x[:, t]).clamp_(-clamp, clamp)
        v[:, t] = v_t
        r = v_t.masked_fill_(v_t >= threshold, 0)
    return (v >= threshold).to(x.dtype), v, r


@lif_forward.register_fake
def _(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x), torch.empty_like(r0)


@custom_op("symboliclight::lif_scan_backward", mutates_args=())
def lif_backward(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, T, D), r0 (B, D), leak (D,), threshold (D,); the last two are 0 unless `learned`."""
    slope = surrogate(v, threshold, alpha)
    inside = v.abs() < clamp
    if gradient == "local":
        grad_x, grad_fire, carry = grad_s * slope * inside, grad_s, torch.zeros_like(r0)
    else:
        grad_x, grad_fire, carry = _walk_back(grad_s, grad_r, v, slope, inside, leak, threshold, gradient == "bptt")
    if not learned:
        return grad_x, carry, torch.zeros_like(leak), torch.zeros_like(threshold)
    r = torch.cat([r0[:, None], (v * (v < threshold))[:, :-1]], 1)
    return grad_x, carry, (grad_x * r).sum((0, 1)), -(grad_fire * slope).sum((0, 1))


def _walk_back(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, slope: Tensor, inside: Tensor, leak: Tensor, threshold: Tensor, attached: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """True recurrence from T back to 0: gradients of x, of every spike (reset path included), and of r0."""
    grad_x, grad_fire, carry = torch.empty_like(v), grad_s.clone(), grad_r
    for t in reversed(range(v.shape[1])):
        if attached:
            grad_fire[:, t] -= carry * v[:, t]
        grad_v = grad_fire[:, t] * slope[:, t] + carry * (v[:, t] < threshold)
        grad_x[:, t] = grad_v * inside[:, t]
        carry = grad_x[:, t] * leak
    return grad_x, grad_fire, carry


@lif_backward.register_fake
def _(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(r0), torch.empty_like(leak), torch.empty_like(threshold)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, r0, leak, threshold, alpha, clamp, gradient = inputs
    ctx.save_for_backward(output[1], r0, leak, threshold)
    ctx.options = alpha, clamp, gradient


def _differentiate(ctx, grad_s, _, grad_r):  # type: ignore[no-untyped-def]
    learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    return *lif_backward(grad_s, grad_r, *ctx.saved_tensors, *ctx.options, learned), None, None, None


lif_forward.register_autograd(_differentiate, setup_context=_save)
