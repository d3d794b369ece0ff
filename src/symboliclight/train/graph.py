"""A training step recorded as CUDA graphs: two launches instead of thousands, most of the time of a small model's step.

The kernels are those of `step`, with the same inputs. Recorded once for one shape of batch; a step copies its batch in,
replays, reads loss and gradient norm, and replays the update if they pass. AdamW is recorded too, its rate in a tensor;
any other optimiser runs as it is.
"""

import math

import torch
from torch import Tensor, nn

from symboliclight.core.config import TrainConfig
from symboliclight.model.sites import watch_sites
from symboliclight.train.step import Batch, StepResult, autocast, losses

WARM_UP = 3  # passes before recording: libraries choose and load their kernels


class GraphedStep:
    """`step` for one micro-batch of a fixed shape. Weights and optimiser state must stay the tensors that they are:
    make another one after loading either."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, batch: Batch) -> None:
        self._model, self._optimizer, self._config = model, optimizer, config
        self._parameters = list(model.parameters())
        self._device = self._parameters[0].device
        self._batch = [torch.from_numpy(ids).to(self._device) for ids in batch]
        self._lr = torch.zeros((), device=self._device)
        self._update: torch.cuda.CUDAGraph | None = None
        optimizer.zero_grad(set_to_none=True)
        random, stream = torch.cuda.get_rng_state(self._device), torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._pass()
                optimizer.zero_grad(set_to_none=True)  # so that the recorded pass writes gradients and adds to none
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.set_rng_state(random, self._device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), watch_sites(model) as means:
            self._figures = self._pass()
            self._rates = {name: torch.stack(parts).mean() for name, parts in means.items() if parts}

    def __call__(self, batch: Batch, lr: float, limit: float = math.inf) -> StepResult:
        """As `step` with one micro-batch."""
        for place, ids in zip(self._batch, batch, strict=True):
            place.copy_(torch.from_numpy(ids))
        self._graph.replay()
        loss, norm = self._figures.tolist()
        applied = math.isfinite(loss) and math.isfinite(norm) and loss <= limit
        if applied:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._apply(lr)
        return StepResult(loss, norm, applied)

    def rates(self) -> dict[str, float]:
        """Each site's spikes per unit and token in the last step."""
        if not self._rates:
            return {}
        return dict(zip(self._rates, torch.stack(list(self._rates.values())).tolist(), strict=True))

    def _pass(self) -> Tensor:
        """Gradients, clipped, and a tensor of the loss (nats a token) and the gradient norm before clipping."""
        tokens, targets = self._batch
        with autocast(self._device, self._config.precision):
            loss, plain = losses(self._model, tokens, targets, self._config)
        loss.backward()
        return torch.stack([plain, nn.utils.clip_grad_norm_(self._parameters, self._config.clip)])

    def _apply(self, lr: float) -> None:
        if type(self._optimizer) is not torch.optim.AdamW:
            self._optimizer.step()
            return
        self._lr.fill_(lr)
        if self._update is not None:
            self._update.replay()
            return
        self._update, groups = torch.cuda.CUDAGraph(), self._optimizer.param_groups
        for group in groups:
            group.update(lr=self._lr, capturable=True)  # a tensor from the first step on: the same roundings
        self._optimizer.step()  # makes the state that the recorded update will use
        with torch.cuda.graph(self._update, pool=self._graph.pool()):
            self._optimizer.step()
        for group in groups:
            group.update(lr=lr, capturable=False)


def graphs(device: torch.device, config: TrainConfig) -> bool:
    """Whether steps on this device are recorded: on CUDA, with one micro-batch a step that nothing ramps."""
    ramped = config.rate_ramp > 0 or config.surrogate_alpha_end is not None
    return device.type == "cuda" and config.accumulate == 1 and not ramped
