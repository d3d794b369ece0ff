"""The forms an op may run in, and the comparison of one form with the slow loop that specifies the op."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from symboliclight.ops import cuda, forms, torch_forms

TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 2**-7}  # of the largest entry


@dataclass(frozen=True)
class Form:
    """Where tensors live, and the context in which the public functions run this form."""

    name: str
    device: str = "cpu"
    active: Callable[[], AbstractContextManager[Any]] = nullcontext


@contextmanager
def flexible() -> Iterator[None]:
    """FlexAttention from one block of queries on, shorter than where it pays: the tests' lengths."""
    before, cuda.FEWEST = cuda.FEWEST, 128
    try:
        yield
    finally:
        cuda.FEWEST = before


NATIVE = any(form.startswith("native") for form, _ in forms().values())
FORMS = [
    pytest.param(Form("torch", active=torch_forms), id="torch"),
    pytest.param(Form("native"), id="native", marks=pytest.mark.skipif(not NATIVE, reason="no native build here")),
    pytest.param(Form("cuda", "cuda", flexible), id="cuda", marks=[
        pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]),
]
if "TRITON_INTERPRET" in os.environ:  # a process of its own, started by test_triton.py
    pytest.importorskip("triton")
    cuda.register("cpu")
    FORMS = [pytest.param(Form("triton"), id="triton")]
every_form = pytest.mark.parametrize("form", FORMS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
# Interpreted, a token of Triton's takes as long as a thousand of the loop: 200 pass through all blocks and stages too.
three_lengths = pytest.mark.parametrize("T", [1, 63, 200 if "TRITON_INTERPRET" in os.environ else 500])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers that depend on shape and seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scattered(x: Tensor) -> Tensor:
    """The same values in memory where no dimension is contiguous."""
    wide = torch.full((*x.shape[::-1], 2), torch.nan).to(x)
    view = wide[..., 0].permute(*reversed(range(x.dim())))
    return view.copy_(x)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory from torch.empty is full of NaN, so that an entry never written shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def single_thread() -> Iterator[None]:
    """Loops of tiny tensors spend their time on waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(op: Callable[..., Any], tensors: Sequence[Tensor], options: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of op(*tensors, *options), and the gradient of Σ outputs · fixed weights for each floating tensor."""
    inputs = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    leaves = [t for t in inputs if t.requires_grad]
    result = op(*inputs, *options)
    outputs = list(result) if isinstance(result, tuple) else [result]
    live = [(y, normal(*y.shape, seed=n, dtype=torch.bfloat16).to(y)) for n, y in enumerate(outputs) if y.requires_grad]
    total = [y for y, _ in live], leaves, [weight for _, weight in live]
    found = torch.autograd.grad(*total, allow_unused=True) if live else [None] * len(leaves)
    return outputs, [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Finite, and no entry off by more than `tolerance` of the largest expected one (0.05 if all are smaller)."""
    actual, expected = actual.detach().cpu().double(), expected.detach().double()
    assert actual.isfinite().all()
    limit = tolerance * max([expected.abs().max().item(), 0.05] if expected.numel() else [0])
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)


def agree(
    form: Form, op: Callable[..., Any], loop: Callable[..., Any], tensors: Sequence[Tensor], *options: Any,
    reference: torch.dtype = torch.float64, exact: Sequence[int] = (), slack: float = 1.0,
) -> None:
    """Assert that `op` in this form gives the outputs and gradients of `loop` run in the dtype `reference`.

    Outputs numbered in `exact` must be equal; all others within `slack` times the tolerance of the coarsest input.
    """
    floating = [t.dtype for t in tensors if t.is_floating_point()]
    tolerance = slack * max(TOLERANCE[d] for d in floating)
    with form.active(), poisoned():
        outputs, grads = run(op, [t.to(form.device) for t in tensors], options)
    wide = [t.to(reference) if t.is_floating_point() else t for t in tensors]
    with single_thread():
        expected, expected_grads = run(loop, wide, options)
    for n, (y, z) in enumerate(zip(outputs, expected, strict=True)):
        if n in exact:
            assert torch.equal(y.cpu().to(z.dtype), z)
        close(y, z, tolerance)
    for g, h in zip(grads, expected_grads, strict=True):
        close(g, h, tolerance)


class Made(TorchDispatchMode):
    """Counts the elements of the tensors made inside: of the `largest`, and of all in `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.total = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.largest, self.total = max(self.largest, x.numel()), self.total + x.numel()
        return result
