"""Token ids -> spikes and the continuous stream (DESIGN section 1, "Encoder")."""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.ops import event_linear, lif_scan, spike, topk_mask


class Spike(nn.Module):
    """A memoryless spike site s = code(v, θ); a module so that each site can be found and measured by name.

    With `learn_neuron="all"` θ is a channel's own and stays positive: θ e^w, where w starts at 0. With a z-score it is
    a token's own: mean + z std of its potentials, or θ where that is more.
    """

    threshold: Tensor

    def __init__(self, config: ModelConfig, units: int, threshold: float, fixed: bool = False, code: str = "binary",
                 zscore: float | None = None) -> None:
        super().__init__()
        learned = config.learn_neuron == "all" and not fixed
        self.alpha, self.start, self.code, self.zscore = config.surrogate_alpha, threshold, code, zscore
        self.levels, self.cut = config.spike_levels, config.surrogate_cut or math.inf
        self.register_buffer("threshold", torch.tensor(threshold), persistent=False)
        self.threshold_log = nn.Parameter(torch.zeros(units)) if learned else None

    def forward(self, v: Tensor) -> Tensor:
        threshold = _scaled(self.threshold, self.threshold_log)
        if self.zscore is not None:
            std, mean = torch.std_mean(v.float(), -1, correction=0, keepdim=True)
            threshold = torch.maximum(mean + self.zscore * std, threshold)
        return spike(v, threshold, self.alpha, self.code, self.levels, self.cut)

    @property
    def plain(self) -> bool:
        """Whether it is V1's: binary, with one threshold that nothing moves and a surrogate without a cut."""
        return self.code == "binary" and self.threshold_log is None and self.zscore is None and self.cut == math.inf


def _scaled(threshold: Tensor, log: Tensor | None) -> Tensor:
    return threshold if log is None else threshold * log.exp()


def stream_threshold(config: ModelConfig) -> float:
    """θ of the spikes of the stream."""
    return config.v_threshold if config.stream_threshold is None else config.stream_threshold


def stream_spike(config: ModelConfig, fixed: bool = False) -> nn.Module:
    """Spikes of the (normalised) stream; the dense twin hands on the stream itself. fixed: nothing is learned here."""
    if not config.block_spikes:
        return nn.Identity()
    return Spike(config, config.d_model, stream_threshold(config), fixed, config.stream_code)


def hidden_spike(config: ModelConfig) -> Spike:
    """Spikes of the hidden units of a feed-forward."""
    threshold = config.v_threshold if config.ffn_threshold is None else config.ffn_threshold
    return Spike(config, config.d_ff, threshold, code=config.ffn_code, zscore=config.ffn_zscore)


class Shift(nn.Module):
    """c + b with a learned b, initially 0, for each channel: what is left of a LayerNorm without its statistics."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, c: Tensor) -> Tensor:
        return c + self.bias


def stream_norm(config: ModelConfig) -> nn.Module:
    """What the residual stream passes through after each of its sums."""
    return nn.LayerNorm(config.d_model) if config.norm == "layer" else Shift(config.d_model)


class EventLinear(nn.Linear):
    """A matrix that reads spikes: the sum of its active columns, wherever that is faster."""

    def forward(self, s: Tensor) -> Tensor:
        return event_linear(s, self.weight)


def watched(*modules: nn.Module) -> bool:
    """Whether a hook waits for what one of these modules reads or gives, so that it must be called by itself."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


def apply(linear: Callable[[Tensor, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """W x by `linear`; what stands in place of the matrix, such as the adapter of a fine-tuning, is called instead."""
    return linear(x, module.weight) if isinstance(module, nn.Linear) else module(x)


def reader(config: ModelConfig, outputs: int) -> nn.Linear:
    """A matrix that reads the stream, or its spikes with `spike_fed`.

    Of a normal stream a share p = P(x >= θ) spikes; weights larger by 1/√p give the sums the variance they would have
    with the stream itself. Without that nearly all hidden units start silent.
    """
    linear = (EventLinear if config.spike_fed else nn.Linear)(config.d_model, outputs, bias=False)
    if config.spike_fed and config.block_spikes:
        linear.init_scale = NormalDist().cdf(-stream_threshold(config)) ** -0.5  # type: ignore[assignment]
    return linear


def branch_end(config: ModelConfig, inputs: int) -> nn.Linear:
    """The matrix at the end of a residual branch; without norms the stream is the plain sum of 2 n_layers of them."""
    linear = nn.Linear(inputs, config.d_model, bias=False)
    linear.init_scale = 1.0 if config.norm == "layer" else (2 * config.n_layers) ** -0.5  # type: ignore[assignment]
    return linear


class Neuron(nn.Module):
    """The encoder's spike source: LIF, memoryless threshold, top-k mask, or dense (the input itself)."""

    leak: Tensor
    threshold: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.alpha = config, config.surrogate_alpha
        threshold = config.v_threshold if config.encoder_threshold is None else config.encoder_threshold
        for name, start in (("leak", config.leak), ("threshold", threshold)):
            value = torch.full((config.d_model,), start)
            if config.learn_neuron is True or (config.learn_neuron and name == "leak"):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)
        self.threshold_log = nn.Parameter(torch.zeros(config.d_model)) if config.learn_neuron == "all" else None

    def forward(self, x: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), membrane (B, D) -> spikes (B, T, D), membrane after the last reset (B, D)."""
        c, threshold = self.config, _scaled(self.threshold, self.threshold_log)
        if c.spike_source == "lif":
            options = self.alpha, c.v_clamp, c.lif_gradient, c.encoder_code, c.surrogate_cut or math.inf
            return lif_scan(x, membrane, self.leak, threshold, *options)
        if c.spike_source == "threshold":
            return spike(x, threshold, self.alpha), membrane
        if c.spike_source == "topk":
            return topk_mask(x, c.topk_rate, self.alpha), membrane
        return x, membrane


class Encoder(nn.Module):
    """Embedding, LayerNorm, and the only stateful neuron of the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.neuron = Neuron(config)

    def forward(self, tokens: Tensor, membrane: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, T), membrane (B, D), present (B, T, 1) or None -> spikes, stream (B, T, D), membrane (B, D)."""
        x = self.norm(self.embedding(tokens))
        x = x if present is None else x * present
        s, membrane = self.neuron(x, membrane)
        return s, x, membrane
