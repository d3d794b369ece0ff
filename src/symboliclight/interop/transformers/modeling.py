"""SymbolicLight as a causal language model of transformers: the same modules, parameters and logits."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from symboliclight.core.processor import warn_if_emulated
from symboliclight.interop.transformers.cache import SymbolicLightCache
from symboliclight.interop.transformers.configuration import SymbolicLightConfig
from symboliclight.interop.transformers.output import OutputLayer
from symboliclight.interop.transformers.positions import (
    REPEAT,
    after_padding,
    check_starts,
    document_starts,
    left_padding,
    present_columns,
    read_documents,
)
from symboliclight.model.encoder import Neuron, Shift, Spike
from symboliclight.model.ffn import FeedForward
from symboliclight.model.head import Head
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.mixer import Mixer
from symboliclight.model.state import State

LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")  # of forward, for the loss


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
        self.output = OutputLayer(self.head)
        for module in self.blocks.modules():
            if isinstance(module, (Mixer, FeedForward)):
                module.__class__ = CheckpointedMixer if isinstance(module, Mixer) else CheckpointedFeedForward
        self.post_init()

    def forward(  # type: ignore[override]
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: SymbolicLightCache | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0, return_dict: bool | None = None, **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids (B, T) -> logits (B, T, V), the cache, and with `labels` (B, T) the mean loss in nats.

        Padding goes on the left: attention_mask (B, columns read + T) is 0 there. In a call without a continuation
        it may also lie on the right, where it changes nothing before it. Where position_ids (B, T) start again, so
        does the state: documents packed into a row do not see each other. `logits_to_keep` n > 0 computes the last n
        logits only. `kwargs` are those of the loss. Raises ValueError for a mask with gaps, and naming any argument
        that would be ignored.
        """
        loss_options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        c, cache = self._read(input_ids, attention_mask, position_ids, past_key_values, use_cache,
                              inputs_embeds=inputs_embeds, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(c[:, kept])
        loss = None
        if labels is not None or loss_options.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_options)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def body(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Arguments of `forward` up to use_cache -> what `get_output_embeddings()` multiplies, prior included."""
        c, cache = self._read(*args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=torch.cat(self.head.terms(c)[0], -1), past_key_values=cache)

    @property
    def base_model(self) -> Any:
        """What trl asks for `last_hidden_state`; there is no module of that kind."""
        return self.body

    def _read(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: SymbolicLightCache | None = None,
        use_cache: bool | None = None, **others: Any,
    ) -> tuple[Tensor, SymbolicLightCache | None]:
        """The stream (B, T, D) that the head reads, and the cache after it."""
        _refuse(input_ids, past_key_values, others)
        assert input_ids is not None
        _warn_if_slow(self.encoder.embedding.weight)
        past = past_key_values or SymbolicLightCache()
        c, state = self._advance(input_ids, attention_mask, position_ids, past, others)
        cache = past_key_values
        if cache is None and (not self.training if use_cache is None else use_cache):
            cache = SymbolicLightCache()
        if cache is not None:
            cache.advance(state, input_ids.shape[1])
        return c, cache

    def _advance(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, past: SymbolicLightCache,
                 others: dict[str, Any]) -> tuple[Tensor, State]:
        """The stream (B, T, D) and the state after tokens (B, T) that follow `past`."""
        state, present = past.state, None
        if mask is not None:
            present = present_columns(mask, len(tokens), past.length + tokens.shape[1])
            left, present = left_padding(present), present[:, past.length :]
            if state is not None:
                state = after_padding(state, past.length, left)
            elif bool(left.any()):
                state = self.initial_state(len(tokens), left)
        starts = None
        if positions is not None:
            starts = document_starts(positions, present, state, past.length, tokens.shape)
        check_starts(starts, tokens.shape, others)
        if starts is not None:
            return read_documents(self, tokens, starts)
        c, _, state = self.features(tokens, state)
        return c, state

    def get_input_embeddings(self) -> nn.Module:
        """The embedding (V, D)."""
        return self.encoder.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head as one layer."""
        return self.output

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Refused where it would change anything: embedding, head and prior are made for one tokenizer."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(f"the vocabulary of SymbolicLight is fixed at {self.config.vocab_size} tokens; "
                             "its tokenizer has unused pieces such as <|reserved_0|> for new meanings")
        return self.encoder.embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # see below

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any,
    ) -> None:
        """`generate` begins with our cache, which a prompt in pieces (prefill_chunk_size) needs from its first on."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # type: ignore[misc]
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = SymbolicLightCache()

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


def _refuse(input_ids: Tensor | None, cache: Any, others: dict[str, Any]) -> None:
    """Raise ValueError naming what cannot be read, and any argument that asks for something and would be ignored."""
    if input_ids is None or others.get("inputs_embeds") is not None:
        raise ValueError("SymbolicLight reads input_ids, not inputs_embeds")
    if input_ids.dim() != 2 or not input_ids.shape[1]:
        raise ValueError(f"input_ids must be (rows, columns), one column at least, got {tuple(input_ids.shape)}; "
                         "beside past_key_values, generate() wants the whole text, or an attention_mask of its length")
    if cache is not None and not isinstance(cache, SymbolicLightCache):
        raise ValueError(f"past_key_values must be a SymbolicLightCache, got {type(cache).__name__}")
    if cache is not None and cache.state is not None and cache.batch_size != len(input_ids):
        raise ValueError(f"past_key_values holds {cache.batch_size} rows, input_ids {len(input_ids)}")
    names = [name for name, value in others.items()
             if value is not None and value is not False and name not in REPEAT]
    if names:
        raise ValueError(f"SymbolicLight has no use for {', '.join(names)}, which would be ignored; leave it out")
