"""Context-conditioned output head (DESIGN section 1, "Head")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig


class Head(nn.Module):
    """logits = W_o c + w · W_2 GELU(W_1 c); the static prior adds w · b instead, `none` adds nothing.

    With `tie_embeddings` W_o is the embedding, held here out of sight of the state dict, which has it once.
    """

    prior_weight: Tensor

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        D, V = config.d_model, config.vocab_size
        self.prior = config.prior
        self.tied = (embedding,) if config.tie_embeddings else ()
        if not self.tied:
            self.out = nn.Linear(D, V, bias=False)
        if config.prior == "dynamic":
            self.prior_down = nn.Linear(D, D // 4, bias=False)
            self.prior_up = nn.Linear(D // 4, V, bias=False)
        elif config.prior == "static":
            self.log_prior = nn.Parameter(torch.zeros(V))
        weight = torch.tensor(config.prior_weight)
        if config.learn_prior_weight and config.prior != "none":
            self.prior_weight = nn.Parameter(weight)
        else:
            self.register_buffer("prior_weight", weight, persistent=False)

    @property
    def weight(self) -> Tensor:
        """W_o (V, D)."""
        return self.tied[0].weight if self.tied else self.out.weight

    @property
    def adapted(self) -> bool:
        """Does something else, such as the adapter of a fine-tuning, stand where a weight of `terms` is expected?"""
        return any(not isinstance(getattr(self, name, None), nn.Linear | None) for name in ("out", "prior_up"))

    def terms(self, c: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Features f_k, weights W_k and bias b with logits = Σ f_k W_kᵀ + b: what the training loss consumes."""
        if self.prior == "dynamic":
            prior = self.prior_weight * F.gelu(self.prior_down(c))
            return [c, prior], [self.weight, self.prior_up.weight], None
        bias = self.prior_weight * self.log_prior if self.prior == "static" else None
        return [c], [self.weight], bias

    def forward(self, c: Tensor) -> Tensor:
        """c (..., D) -> logits (..., V)."""
        features, weights, bias = self.terms(c)
        if self.adapted:  # what stands there must be called
            logits = F.linear(c, self.weight) if self.tied else self.out(c)
            logits = logits if len(features) == 1 else logits + self.prior_up(features[1])
            return logits if bias is None else logits + bias
        logits = F.linear(features[0], weights[0], bias)
        return logits if len(features) == 1 else logits + F.linear(features[1], weights[1])
