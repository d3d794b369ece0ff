"""Which models have a graph of NIR: V1 and its ablations, without the switches of the searches."""

from typing import Any

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError

_SEARCH = ("residual", "spike_fed", "stream_threshold", "decay", "conv", "tie_embeddings", "encoder_code",
           "stream_code", "ffn_code", "ffn_threshold", "ffn_zscore")


def _beyond_v1(config: ModelConfig) -> tuple[str, Any, Any] | None:
    """The first switch of the searches that is not V1's: its name, V1's value and this one; None if all are."""
    if config.learn_neuron == "all":
        return "learn_neuron", "true or false", "all"
    for name in _SEARCH:
        if (value := getattr(config, name)) != getattr(ModelConfig, name):
            return name, getattr(ModelConfig, name), value
    return None


def refuse(c: ModelConfig) -> None:
    """Raise `InputError`, naming the field, for a configuration that no graph can say."""
    if c.family != "symboliclight":
        raise InputError(f"only the symboliclight family spikes; a {c.family} has no NIR form")
    if (found := _beyond_v1(c)) is not None:
        name, ours, theirs = found
        raise InputError(f"export to NIR needs model.{name} {ours}, this model has {theirs}")
    if c.exit_entropy is not None:
        raise InputError("a graph has one depth and cannot exit early; set exit_entropy to null in config.json")
    if c.spike_source in ("topk", "dense"):
        raise InputError(f"node encoder.lif: spike_source {c.spike_source} has no NIR form; train with lif or "
                         "threshold")
