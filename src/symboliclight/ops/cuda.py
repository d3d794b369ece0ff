"""Which form of an op runs on CUDA devices: Triton kernels and FlexAttention where they serve, else the torch forms.

Triton comes with torch for CUDA on Linux. It is imported with the first tensor that wants it; without it the torch
forms run, and one warning says so.
"""

import warnings
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from symboliclight.core.errors import Slow
from symboliclight.ops import decay, lif, native, rope, spike

HALF_TOO = (torch.float32, torch.bfloat16)
OPS: dict[str, tuple[Any, Callable[..., Any], tuple[torch.dtype, ...]]] = {
    "lif_forward": (lif.lif_forward, lif.lif_forward_torch, (torch.float32,)),  # the dtype of the membrane
    "lif_backward": (lif.lif_backward, lif.lif_backward_torch, (torch.float32,)),
    "decay_forward": (decay.decay_forward, decay.decay_forward_torch, HALF_TOO),
    "decay_backward": (decay.decay_backward, decay.decay_backward_torch, HALF_TOO),
    "spike_forward": (spike.spike_forward, spike.spike_forward_torch, HALF_TOO),
    "spike_backward": (spike.spike_backward, spike.spike_backward_torch, HALF_TOO),
    "rope_forward": (rope.rope_forward, rope.rope_torch, HALF_TOO),
}
HEAD_DIMS = (16, 32, 64, 128, 256)  # what FlexAttention's kernels take
_devices: set[str] = set()  # where Triton kernels serve
FEWEST = 4096  # queries from which FlexAttention is taken; at 1024 the torch form was faster on an H100


@cache
def _triton() -> SimpleNamespace | str:
    """The Triton kernels, or why there is none."""
    try:
        from symboliclight.ops import triton_kernels, triton_pointwise, triton_window
    except ImportError as error:
        warnings.warn(f"symboliclight has no Triton kernels ({error}): slow on a GPU; pip install triton",
                      Slow, stacklevel=2)
        return str(error)
    return SimpleNamespace(**vars(triton_pointwise) | vars(triton_kernels) | vars(triton_window))


def takes(x: Tensor, dtypes: tuple[torch.dtype, ...] = HALF_TOO) -> bool:
    """Whether a Triton kernel serves this tensor now."""
    return (x.device.type in _devices and not native.torch_forced() and x.dtype in dtypes and x.numel() > 0
            and not isinstance(_triton(), str))


def register(device: str) -> None:
    """Make Triton the form of the ops on `device`: "cuda", or "cpu" under Triton's interpreter."""
    _devices.add(device)
    for name, (op, torch_form, dtypes) in OPS.items():

        def choose(first: Tensor, *rest: Any, name=name, torch_form=torch_form, dtypes=dtypes) -> Any:
            return getattr(_triton(), name)(first, *rest) if takes(first, dtypes) else torch_form(first, *rest)

        op.register_kernel(device)(choose)


def softmax_loss(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float, wanted: bool) -> Tensor:
    """`native.softmax_loss` in Triton, for logits that `takes` accepts."""
    return _triton().softmax_loss(logits, targets, scale, z_loss, wanted)  # type: ignore[union-attr]


def infers(q: Tensor) -> bool:
    """Whether the kernels of window attention without a gradient serve these queries (B, T, H, K) now."""
    return q.shape[-1] in HEAD_DIMS and not torch.is_grad_enabled() and takes(q)


def window_inference(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`ops.window_attention` in Triton, for queries that `infers` accepts."""
    kernel = _triton().window_inference  # type: ignore[union-attr]
    return kernel(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, window)


def flexes(q: Tensor) -> bool:
    """Whether FlexAttention serves these queries (B, T, H, K) now."""
    return (q.is_cuda and not native.torch_forced() and q.dtype in HALF_TOO and q.shape[-1] in HEAD_DIMS
            and q.shape[1] >= FEWEST and not isinstance(_triton(), str))


def cuda_forms() -> dict[str, tuple[str, str]]:
    """Op name -> (form in use on CUDA devices, reason)."""
    fast = {op._name: "triton" for name, (op, _, _) in OPS.items() if name.endswith("forward")}
    fast |= {"softmax_loss": "triton", "window_attention": "flex_attention"}
    if not torch.cuda.is_available():
        return dict.fromkeys(fast, ("none", "no CUDA device"))
    if native.torch_forced():
        return dict.fromkeys(fast, ("torch", "asked for by torch_forms()"))
    if isinstance(missing := _triton(), str):
        return dict.fromkeys(fast, ("torch", f"no Triton: {missing}"))
    return {name: (form, f"on {torch.cuda.get_device_name()}") for name, form in fast.items()}


register("cuda")
