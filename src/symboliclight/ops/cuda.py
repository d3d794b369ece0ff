"""Which form of an op runs on CUDA devices: Triton scans and FlexAttention where they serve, else the torch forms.

Triton comes with torch for CUDA on Linux. It is imported with the first tensor that wants it; without it the torch
forms run, and one warning says so.
"""

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from symboliclight.ops import decay, lif, native

HALF_TOO = (torch.float32, torch.bfloat16)
SCANS: dict[str, tuple[Any, Callable[..., Any], tuple[torch.dtype, ...]]] = {
    "lif_forward": (lif.lif_forward, lif.lif_forward_torch, (torch.float32,)),  # the dtype of the membrane
    "lif_backward": (lif.lif_backward, lif.lif_backward_torch, (torch.float32,)),
    "decay_forward": (decay.decay_forward, decay.decay_forward_torch, HALF_TOO),
    "decay_backward": (decay.decay_backward, decay.decay_backward_torch, HALF_TOO),
}
HEAD_DIMS = (16, 32, 64, 128, 256)  # what FlexAttention's kernels take
FEWEST = 128  # queries that fill a block of FlexAttention; decoding is left to the torch form


@cache
def _triton() -> ModuleType | str:
    """The module of Triton kernels, or why there is none."""
    try:
        from symboliclight.ops import triton_kernels
    except ImportError as error:
        warnings.warn(f"symboliclight has no Triton kernels ({error}): slow on a GPU; pip install triton",
                      RuntimeWarning, stacklevel=2)
        return str(error)
    return triton_kernels


def register(device: str) -> None:
    """Make Triton the form of the scans on `device`: "cuda", or "cpu" under Triton's interpreter."""
    for name, (op, torch_form, dtypes) in SCANS.items():

        def choose(first: Tensor, *rest: Any, name=name, torch_form=torch_form, dtypes=dtypes) -> Any:
            if native.torch_forced() or first.dtype not in dtypes or first.numel() == 0 or isinstance(_triton(), str):
                return torch_form(first, *rest)
            return getattr(_triton(), name)(first, *rest)

        op.register_kernel(device)(choose)


def flexes(q: Tensor) -> bool:
    """Whether FlexAttention serves these queries (B, T, H, K) now."""
    return (q.is_cuda and not native.torch_forced() and q.dtype in HALF_TOO and q.shape[-1] in HEAD_DIMS
            and q.shape[1] >= FEWEST and not isinstance(_triton(), str))


def cuda_forms() -> dict[str, tuple[str, str]]:
    """Op name -> (form in use on CUDA devices, reason)."""
    fast = {"lif_scan": "triton", "decay_scan": "triton", "window_attention": "flex_attention"}
    if not torch.cuda.is_available():
        return dict.fromkeys(fast, ("none", "no CUDA device"))
    if native.torch_forced():
        return dict.fromkeys(fast, ("torch", "asked for by torch_forms()"))
    if isinstance(missing := _triton(), str):
        return dict.fromkeys(fast, ("torch", f"no Triton: {missing}"))
    return {name: (form, f"on {torch.cuda.get_device_name()}") for name, form in fast.items()}


register("cuda")
