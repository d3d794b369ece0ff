"""`bench model`: a training step of `mini` beside GPT-2, and forwards of v1-194m beside the reference forms.

Forwards run in the precision of training, and in float32, where the products that both forms share take more than half
of the time. The reference forms are those of the published definition, in plain torch: the membrane as a loop
over tokens, the decay as a length-T causal convolution, attention under a dense T x T mask, and dense products with
spikes. They share every weight with the model they are compared with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from symboliclight.benchmarks.harness import LABELS, row, turns, write
from symboliclight.benchmarks.parts import in_precision
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.core.processor import Precision
from symboliclight.model import build, encoder, ffn, mixer
from symboliclight.ops import linear_cross_entropy
from symboliclight.ops.lif import lif_scan_loop
from symboliclight.ops.native import torch_forms
from symboliclight.train.runtime import keep_freed_memory


def decay_convolution(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """The decay scan as one causal convolution with a kernel as long as the sequence: O(T²) work."""
    B, T, H, K = u.shape
    steps = torch.arange(T, device=u.device)
    kernel = (1 - decay)[:, None] * decay[:, None] ** steps
    x = F.pad(u.to(h0.dtype).permute(0, 3, 2, 1).reshape(B * K, H, T), (T - 1, 0))
    h = F.conv1d(x, kernel.flip(-1)[:, None], groups=H).view(B, K, H, T).permute(0, 3, 2, 1)
    h = h + h0[:, None] * (decay[:, None] ** (steps + 1)).T[None, :, :, None]
    return h.to(u.dtype), h[:, -1]


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """Window attention of a whole sequence with its scores held as one T x T matrix per head."""
    T, A = q.shape[1], anchor_k.shape[1]
    lag = torch.arange(T)[:, None] - torch.arange(T)
    visible = (lag >= 0) & ((lag <= window) | (torch.arange(T) < A)) & gate[:, None]
    scores = torch.einsum("bihk,bjhk->bhij", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("bhij,bjhk->bihk", weights, v) * gate[..., None, None]


@contextmanager
def reference_forms() -> Iterator[None]:
    """Run the model on the reference forms."""
    with (torch_forms(), patch.object(encoder, "lif_scan", lif_scan_loop), patch.object(ffn, "event_linear", F.linear),
          patch.object(mixer, "event_linear", F.linear), patch.object(mixer, "decay_scan", decay_convolution),
          patch.object(mixer, "window_attention", dense_attention)):
        yield


def training_step(name: str, batch: int, seq_len: int, precision: Precision) -> Callable[[], object]:
    """One optimiser step of a preset on fixed random tokens."""
    torch.manual_seed(0)
    model = build(preset(name)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, preset(name).vocab_size, (batch, seq_len + 1))

    def run() -> None:
        with in_precision(precision):
            features, _, _ = model.features(tokens[:, :-1])  # type: ignore[operator]
            terms, weights, bias = model.head.terms(features)  # type: ignore[union-attr, operator]
            loss, _ = linear_cross_entropy(terms, weights, tokens[:, 1:], bias, 1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def check(model: torch.nn.Module, tokens: Tensor) -> None:
    """The fast forms and the reference forms must give the same logits, at more than half of the tokens.

    Not at all of them: where a sum is next to its threshold, another order of summing may give another spike.
    """
    fast = model(tokens)[0]
    with reference_forms():
        slow = model(tokens)[0]
    difference = float((fast - slow).abs().amax(-1).median())
    if not difference <= 1e-3:
        raise InputError(f"bench model: fast and reference forms differ by {difference:.2g} in a logit of the median "
                         "token; not measured")


def run(directory: Path, quick: bool = False, precision: Precision = "bfloat16") -> Path:
    """Measure and write results/bench-model.json; `quick` shrinks the model to test the benchmark itself."""
    large, mini, rival = ("mini", "tiny", "gpt2-tiny") if quick else ("v1-194m", "mini", "gpt2-mini")
    short, long = (128, 512) if quick else (2048, 8192)
    batch, seq_len = (2, 64) if quick else (8, 512)
    rows: list[dict[str, Any]] = []
    keep_freed_memory()  # as training does; here for both sides

    found = turns({n: training_step(n, batch, seq_len, precision) for n in (mini, rival)}, rounds=7, twice=True)
    rates = {n: batch * seq_len / found.median(n) for n in (mini, rival)}
    rows.append(row(f"training step, {mini} against {rival}, T {seq_len}, {LABELS[precision]}", "tokens/s",
                    rates[mini], rates[rival], found.faster(mini, rival), 1.0))

    torch.manual_seed(0)
    model = build(preset(large)).eval()
    tokens = torch.randint(0, preset(large).vocab_size, (1, long))

    def forward(length: int, reference: bool = False) -> Callable[[], object]:
        def call() -> None:
            if reference:
                with reference_forms():
                    model.features(tokens[:, :length])  # type: ignore[operator]
            else:
                model.features(tokens[:, :length])  # type: ignore[operator]

        return call

    with torch.inference_mode():
        check(model, tokens[:, : short // 4])
        for each in dict.fromkeys((precision, "float32")):
            label, target = LABELS[each], 4.0 if each == "bfloat16" else None
            with in_precision(each):
                t = turns({"fast": forward(short), "reference": forward(short, True), "long": forward(long)}, 5,
                          twice=True)
            rows.append(row(f"forward to the head, {large}, T {short}, {label}, against the reference forms", "s",
                            t.median("fast"), t.median("reference"), t.faster("fast", "reference"), target))
            growth = t.faster("fast", "long")
            rows.append(row(f"forward, {large}, {label}, T {long} against T {short}: growth allowed 4.5", "x",
                            growth, 4.5, 4.5 / growth, 1.0))
    return write("model", rows, directory, threads=torch.get_num_threads(), quick=quick)
