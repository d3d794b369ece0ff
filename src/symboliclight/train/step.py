"""One optimiser step.

    loss = CE(head(c)) + z · lse² + aux_weight · mean_i CE(head(c_i)) + rate_weight · mean_k rate_k,

i in model.aux_layers, k the spike sites, rate_k the mean spike of site k, its firing rate where spikes are binary,
with the gradient of those; all of it averaged over all targets of all micro-batches, so that accumulation gives the
gradient of the one big batch.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from symboliclight.core.config import RunConfig, TrainConfig
from symboliclight.core.processor import training_precision
from symboliclight.model.sites import differentiable_rates, set_surrogate_alpha
from symboliclight.ops import linear_cross_entropy
from symboliclight.train.distributed import ALONE, Group

Batch = tuple[np.ndarray, np.ndarray]  # tokens and targets, each (B, T) int64; a target below 0 is ignored


@dataclass(frozen=True)
class StepResult:
    """What one step measured, before its update."""

    loss: float  # cross-entropy of the final head, nats a token
    grad_norm: float  # global norm before clipping
    applied: bool  # False: the loss or a gradient was not finite or the loss above the limit; weights are as before


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Products in `precision` (`train.precision`); weights and sums stay float32."""
    chosen = training_precision(precision, str(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16")


def losses(model: nn.Module, tokens: Tensor, targets: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Training loss and plain cross-entropy of one micro-batch, both scalars in nats a token."""
    watched: AbstractContextManager[list[Tensor]] = (
        differentiable_rates(model) if config.rate_weight else nullcontext([]))
    with watched as rates:
        c, aux, _ = model.features(tokens)  # type: ignore[operator]
    head = model.head
    features, weights, bias = head.terms(c)  # type: ignore[union-attr, operator]
    loss, plain = linear_cross_entropy(features, weights, targets, bias, config.z_loss)
    for stream in aux:
        features, weights, bias = head.terms(stream)  # type: ignore[union-attr, operator]
        inner, _ = linear_cross_entropy(features, weights, targets, bias)
        loss = loss + config.aux_weight / len(aux) * inner
    if rates:
        loss = loss + config.rate_weight * torch.stack(rates).mean()
    return loss, plain


def ramped(model: nn.Module, run: RunConfig, at: int, total: int) -> TrainConfig:
    """The configuration of step `at` of `total`: the weight of the rate term is where its ramp has it, and so is the
    surrogate of the model, which is told."""
    c = run.train
    if c.surrogate_alpha_end is not None:
        start = run.model.surrogate_alpha
        set_surrogate_alpha(model, start + (c.surrogate_alpha_end - start) * at / total)
    return replace(c, rate_weight=c.rate_weight * min(at / c.rate_ramp, 1)) if c.rate_ramp else c


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], config: TrainConfig,
         lr: float, limit: float = math.inf, group: Group = ALONE, seed: int = 0) -> StepResult:
    """Update `model` once with the mean gradient over `batches` (micro-batches), at learning rate `lr`.

    Of several processes each takes its share of the micro-batches; what micro-batch i drops out is then a function of
    (`seed`, i), so that it does not depend on who takes it.

    Nothing is updated if the loss is above `limit` nats or anything is not finite: the gradient norm that clipping
    needs anyway tells, and is read together with the loss, once.
    """
    parameters = list(model.parameters())
    device = parameters[0].device
    kept = [int((targets >= 0).sum()) for _, targets in batches]
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for i in group.mine(len(batches)):
        (tokens, targets), share = batches[i], kept[i] / max(sum(kept), 1)
        if group.size > 1:
            torch.manual_seed(seed * len(batches) + i)
        with autocast(device, config.precision):
            loss, plain = losses(model, _on(device, tokens), _on(device, targets), config)
        (loss * share).backward()
        total += plain * share
    group.sum([*(p.grad for p in parameters if p.grad is not None), total])
    norm = nn.utils.clip_grad_norm_(parameters, config.clip)
    mean, grad_norm = torch.stack([total, norm]).tolist()
    applied = math.isfinite(mean) and math.isfinite(grad_norm) and mean <= limit
    if applied:
        for settings in optimizer.param_groups:
            settings["lr"] = lr
        optimizer.step()
    return StepResult(mean, grad_norm, applied)


def _on(device: torch.device, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids).to(device, non_blocking=True)
