"""`bench ops`: each native kernel against the loop, the convolution or the torch form that it replaces.

Every row is a forward and a backward pass together, but for the linear maps over active inputs.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from symboliclight import ops
from symboliclight.benchmarks.harness import Rounds, row, turns, write
from symboliclight.benchmarks.model import decay_convolution
from symboliclight.core.errors import InputError
from symboliclight.core.processor import Precision
from symboliclight.ops.native import event_product
from symboliclight.train.runtime import keep_freed_memory

HEADS, HEAD_DIM, WINDOW, ANCHORS = 12, 64, 256, 4  # those of v1-194m
Op = Callable[..., Any]


def run(out: Path, quick: bool = False, precision: Precision = "bfloat16") -> Path:
    """Check and time every op; returns the file written. `quick` takes small shapes, float32 leaves out bfloat16."""
    if all(form == "torch" for form, _ in ops.forms().values()):
        raise InputError("bench ops needs the native kernels: install a C++ compiler and reinstall symboliclight")
    keep_freed_memory()  # as training does; here for both sides
    torch.manual_seed(0)
    tokens = 64 if quick else 512
    rows = membrane(tokens) + decay(4 * tokens)
    for dtype in dict.fromkeys((getattr(torch, precision), torch.float32)):
        rows += window(dtype, tokens) + window(dtype, 4 * tokens) + events(dtype, 8 * tokens)
    return write("ops", rows, out, threads=torch.get_num_threads(), forms=ops.forms())


def gradients(op: Op, leaves: list[Tensor], *rest: Any) -> Callable[[], list[Tensor]]:
    """Forward and backward of op(*leaves, *rest): its first output and the gradients of the leaves."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    weight = torch.ones_like(leaves[0])  # every op here returns the shape of its first input

    def step() -> list[Tensor]:
        y = op(*leaves, *rest)
        y = y[0] if isinstance(y, tuple) else y
        return [y.detach(), *torch.autograd.grad(y, leaves, weight)]

    return step


def check(name: str, fast: list[Tensor], slow: list[Tensor], tolerance: float) -> None:
    """Refuse to time a wrong kernel: no entry may be off by more than `tolerance` of the largest."""
    for x, y in zip(fast, slow, strict=True):
        worst = (x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-3)
        if not worst <= tolerance:
            raise InputError(f"bench ops: {name} is off by {worst:.1e} of the largest entry; run the tests of ops")


def milliseconds(*steps: Op) -> Rounds:
    """Milliseconds of each step, named "0", "1" and so on. A turn repeats its step for 20 ms."""
    repeats = []
    for step in steps:
        step()
        start = time.perf_counter()
        step()
        repeats.append(1 + int(0.02 / (time.perf_counter() - start)))

    def turn(step: Op, times: int) -> Callable[[], object]:
        def repeat() -> None:
            for _ in range(times):
                step()

        return repeat

    runs = {str(i): turn(step, n) for i, (step, n) in enumerate(zip(steps, repeats, strict=True))}
    taken = turns(runs, rounds=15, twice=True).seconds.values()
    return Rounds({str(i): [s * 1e3 / n for s in each] for i, (each, n) in enumerate(zip(taken, repeats, strict=True))})


def contest(name: str, fast: Op, slow: Op, target: float | None = None) -> dict[str, Any]:
    """One row: milliseconds of `fast` against `slow`."""
    found = milliseconds(fast, slow)
    return row(name, "ms", found.median("0"), found.median("1"), found.faster("0", "1"), target)


def in_torch(op: Op) -> Op:
    """The torch form of an op."""

    def call(*args: Any) -> Any:
        with ops.torch_forms():
            return op(*args)

    return call


def membrane(tokens: int) -> list[dict[str, Any]]:
    """Membrane scan, B 8, D 768, against the loop under autograd."""
    rows = []
    for mode in ("local", "bptt"):
        rest = torch.zeros(8, 768), torch.tensor(0.95), torch.tensor(1.0), 2.0, 3.0, mode
        x = torch.randn(8, tokens, 768)
        fast, slow = gradients(ops.lif_scan, [x], *rest), gradients(ops.lif_scan_loop, [x], *rest)
        check("lif_scan", fast(), slow(), 1e-5)
        name = f"membrane scan {mode}, B 8, T {tokens}, D 768, against the loop"
        rows.append(contest(name, fast, slow, 20))
    return rows


def decay(tokens: int) -> list[dict[str, Any]]:
    """Decay scan, B 1, against the convolution over the whole sequence, and its growth with T."""

    def inputs(T: int) -> list[Tensor]:
        return [torch.randn(1, T, HEADS, HEAD_DIM), torch.linspace(0.5, 0.99, HEADS)]

    state = torch.zeros(1, HEADS, HEAD_DIM)
    short, long = inputs(tokens), inputs(4 * tokens)
    fast, slow = gradients(ops.decay_scan, short, state), gradients(decay_convolution, short, state)
    check("decay_scan", fast(), slow(), 1e-4)
    name = f"decay scan, T {tokens}, against the convolution"
    rows = [contest(name, fast, slow, 50)]
    found = milliseconds(fast, gradients(ops.decay_scan, long, state))
    name = f"decay scan, T {4 * tokens}, against four times T {tokens}"
    return [*rows, row(name, "ms", found.median("1"), 4 * found.median("0"), 4 * found.faster("1", "0"), 4 / 4.3)]


def window(dtype: torch.dtype, tokens: int) -> list[dict[str, Any]]:
    """Window attention of 4,096 tokens against its torch form."""
    B = max(1, 4096 // tokens)
    q, k, v = (torch.randn(B, tokens, HEADS, HEAD_DIM).to(dtype) for _ in range(3))
    gate, position = torch.ones(B, tokens, dtype=torch.bool), torch.zeros(B, dtype=torch.long)
    rest = gate, k[:, :ANCHORS], v[:, :ANCHORS], gate[:, :ANCHORS], position, WINDOW
    fast = gradients(ops.window_attention, [q, k, v], *rest)
    slow = gradients(in_torch(ops.window_attention), [q, k, v], *rest)
    check("window_attention", fast(), slow(), 2**-6 if dtype == torch.bfloat16 else 1e-4)
    name = f"window attention {_short(dtype)}, B {B}, T {tokens}, W {WINDOW}, against the torch form"
    return [contest(name, fast, slow)]


def events(dtype: torch.dtype, rows: int) -> list[dict[str, Any]]:
    """W_down of v1-194m (4096 to 768) and its weight gradient, always gathered, against the dense products."""
    table, grad = torch.randn(4096, 768).to(dtype), torch.randn(rows, 768).to(dtype)
    weight = table.t().contiguous()
    found = []
    for silent in (50, 75, 84, 90, 95, 97, 99):
        spikes = (torch.rand(rows, 4096) * 100 >= silent).to(dtype)
        pairs = {
            "linear": (lambda s=spikes: event_product(s, weight.t()), lambda s=spikes: F.linear(s, weight)),
            "its weight gradient": (lambda s=spikes: event_product(s, grad, True), lambda s=spikes: grad.t() @ s),
        }
        for name, (fast, slow) in pairs.items():
            check(f"event_linear, {name}", [fast()], [slow()], 2**-7 if dtype == torch.bfloat16 else 1e-5)
            found.append(contest(f"active-input {name} {_short(dtype)}, {silent}% silent, against dense", fast, slow))
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
