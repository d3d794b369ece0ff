"""SymbolicLight as a causal language model of transformers: the same modules, parameters and logits."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from symboliclight.interop.transformers.cache import SymbolicLightCache
from symboliclight.interop.transformers.configuration import SymbolicLightConfig
from symboliclight.model.encoder import Neuron, Shift, Spike
from symboliclight.model.ffn import FeedForward
from symboliclight.model.head import Head
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.mixer import Mixer
from symboliclight.processor import warn_if_emulated


class CheckpointedMixer(GradientCheckpointingLayer, Mixer):
    """A mixer that transformers can recompute in the backward pass."""


class CheckpointedFeedForward(GradientCheckpointingLayer, FeedForward):
    """A feed-forward block that transformers can recompute in the backward pass."""


class SymbolicLightForCausalLM(SymbolicLight, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A `SymbolicLight` (so `features`, `head` and `initial_state` are there) with the interface of transformers."""

    config_class = SymbolicLightConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _is_stateful = True  # no step can be taken back
    _no_split_modules = ["Block"]  # noqa: RUF012
    config: Any  # a SymbolicLightConfig, which has every field of ModelConfig

    def __init__(self, config: SymbolicLightConfig) -> None:
        PreTrainedModel.__init__(self, config)
        model = SymbolicLight(config.core())
        self.encoder, self.blocks, self.head = model.encoder, model.blocks, model.head
        for module in self.blocks.modules():
            if isinstance(module, (Mixer, FeedForward)):
                module.__class__ = CheckpointedMixer if isinstance(module, Mixer) else CheckpointedFeedForward
        self.post_init()

    def forward(  # type: ignore[override]
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        past_key_values: SymbolicLightCache | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0, inputs_embeds: Tensor | None = None, **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V), the cache, and with `labels` (B, T) the mean loss in nats.

        Padding goes on the left: attention_mask (B, columns read + T) is 0 there. In a call without a continuation
        it may also lie on the right, where it changes nothing before it. `logits_to_keep` n > 0 computes the last n
        logits only. Raises ValueError for a mask with gaps and for `inputs_embeds`.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("SymbolicLight reads input_ids, not inputs_embeds")
        _warn_if_slow(self.encoder.embedding.weight)
        if past_key_values is not None and not isinstance(past_key_values, SymbolicLightCache):
            raise ValueError(f"past_key_values must be a SymbolicLightCache, got {type(past_key_values).__name__}")
        state = None if past_key_values is None else past_key_values.state
        padding = None if attention_mask is None else left_padding(attention_mask)
        if state is None and padding is not None and bool(padding.any()):
            state = self.initial_state(len(input_ids), padding)
        c, _, state = self.features(input_ids, state)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(c[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        cache = past_key_values
        if cache is None and (not self.training if use_cache is None else use_cache):
            cache = SymbolicLightCache()
        if cache is not None:
            cache.advance(state, input_ids.shape[1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding (V, D)."""
        return self.encoder.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The linear part of the head (V, D)."""
        return self.encoder.embedding if self.config.tie_embeddings else self.head.out

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Refused where it would change anything: embedding, head and prior are made for one tokenizer."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(f"the vocabulary of SymbolicLight is fixed at {self.config.vocab_size} tokens; "
                             "its tokenizer has unused pieces such as <|reserved_0|> for new meanings")
        return self.encoder.embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes its own

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start values of what a module holds itself, as its constructor sets them; what was loaded is left alone."""
        config, init = self.config, nn.init
        if isinstance(module, (Neuron, Spike)) and module.threshold_log is not None:
            init.zeros_(module.threshold_log)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=config.init_std * getattr(module, "init_scale", 1.0))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Shift):
            init.zeros_(module.bias)
        elif isinstance(module, Neuron):
            own = config.encoder_threshold
            init.constant_(module.threshold, config.v_threshold if own is None else own)
            init.constant_(module.leak, config.leak)
        elif isinstance(module, Spike):
            init.constant_(module.threshold, module.start)
        elif isinstance(module, Mixer):
            for name, parameter in module.named_parameters(recurse=False):
                init.constant_(parameter, 3.0 if name == "decay_raw" else 0.0)
                if name.startswith("conv_"):
                    init.ones_(parameter[0])
        elif isinstance(module, Head):
            init.constant_(module.prior_weight, config.prior_weight)
            if config.prior == "static":
                init.zeros_(module.log_prior)


def _warn_if_slow(weight: Tensor) -> None:
    """Once, if `weight` or autocast asks a CPU for products in bfloat16 that it emulates."""
    device = weight.device.type
    if device == "cpu" and not torch.compiler.is_compiling():
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        if dtype == torch.bfloat16:
            warn_if_emulated()


def left_padding(mask: Tensor) -> Tensor:
    """Absent tokens on the left of each row, (B,), of mask (B, columns). Raises ValueError if a row has a gap."""
    if mask.dim() != 2:
        raise ValueError(f"attention_mask must be (rows, columns), got {mask.dim()} dimensions")
    present = mask.long()
    left = (present.cumsum(1) == 0).sum(1)
    right = (present.flip(1).cumsum(1) == 0).sum(1)
    if bool((present.sum(1) < mask.shape[1] - left - right).any()):
        raise ValueError("attention_mask has gaps between tokens; pad on the left: tokenizer.padding_side = 'left'")
    return left
