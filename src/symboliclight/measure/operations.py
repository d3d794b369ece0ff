"""Synaptic operations a token, by NeuroBench's rule (arXiv 2304.04640), and the operations that it leaves out.

A linear map of one call costs one operation for each nonzero input at each nonzero weight. These are accumulates (AC)
if every input of the call is -1, 0 or 1, else multiply-accumulates (MAC); `dense` counts the zeros too; biases are
free. Integer spikes are counted as the binary events that they unfold into, an AC each, where NeuroBench has a MAC.
`neurobench` marks the parts that the package itself counts (`interop.neurobench`).

The other parts are element by element or product of activations: a product, with or without a sum, is a MAC, a lone
sum an AC. Attention costs 2 D MAC a visible key (scores and values); its dense count ignores the gate, not the window.
What has no multiply-accumulate form is not counted: see `NOT_COUNTED`.

Legend: B batch, T tokens, D d_model, V vocab_size, M inputs, N outputs, A anchors, W window.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.core.errors import InputError
from symboliclight.measure.sparsity import SparsityMeter
from symboliclight.model.encoder import Shift
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.mixer import written

NOT_COUNTED = ("comparisons with thresholds and clamps", "table look-ups (embeddings, rotary angles)",
               "exponentials, divisions and scale of the softmax", "square roots of the norms",
               "GELU, sigmoid and other activation functions")


@dataclass
class Part:
    """Totals of one part over everything read."""

    neurobench: bool = False
    macs: int = 0
    acs: int = 0
    dense: int = 0


class OperationMeter:
    """Counts the operations of every forward pass made inside `with OperationMeter(model) as meter`.

    `parts`: name -> totals, linear maps under the names of their modules; `tokens`: tokens read. Raises `InputError`
    for a model of neither family.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sparsity = SparsityMeter(model)
        self._hooks: list[Any] = []
        self.tokens = 0
        self.parts: dict[str, Part] = {}

    def __enter__(self) -> "OperationMeter":
        model: Any = self._model
        if isinstance(model, SymbolicLight):
            self._watch_symboliclight(model)
        elif hasattr(model, "transformer"):
            self._watch_gpt2(model)
        else:
            raise InputError(f"the operations of {type(model).__name__} cannot be counted; use a model of this package")
        self._sparsity.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._sparsity.__exit__(kind, error, tb)
        for hook in self._hooks:
            hook.remove()

    def report(self) -> dict[str, Any]:
        """Figures of the weights and the spikes, and mean operations a token: all, by part, and NeuroBench's part."""
        if not self.tokens:
            raise InputError("no token was read while operations were counted; run the model inside the `with` block")
        linear: list[Any] = [m for m in self._model.modules() if _is_linear(m)]
        weights: list[Tensor] = [m.weight.detach() for m in linear]
        total = sum(w.numel() for w in weights)
        zeros = total - sum(int(w.count_nonzero()) for w in weights)
        counts = self._sparsity.counts
        pairs = sum(c.tokens * c.units for c in counts.values())
        return {
            "tokens": self.tokens,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "footprint_bytes": sum(x.nbytes for x in (*self._model.parameters(), *self._model.buffers())),
            "connection_sparsity": zeros / total,
            "activation_sparsity": 1 - sum(c.active for c in counts.values()) / pairs if pairs else None,
            "activation_sparsity_by_site": {name: c.silent for name, c in counts.items()},
            "per_token": self._per_token(list(self.parts.values())),
            "neurobench_per_token": self._per_token([p for p in self.parts.values() if p.neurobench]),
            "parts": {name: {"neurobench": part.neurobench, **self._per_token([part])}
                      for name, part in self.parts.items()},
            "not_counted": list(NOT_COUNTED),
        }

    def _per_token(self, parts: list[Part]) -> dict[str, float]:
        rows = [asdict(part) for part in parts]
        return {key: sum(row[key] for row in rows) / self.tokens for key in ("macs", "acs", "dense")}

    # What each kind of arithmetic costs.

    def _linear(self, name: str, x: Tensor, columns: Tensor, outputs: int, neurobench: bool) -> None:
        """x (..., M) through a weight with `columns` (M,) nonzero entries for each input and N outputs."""
        x = x.detach().reshape(-1, x.shape[-1])
        part = self.parts.setdefault(name, Part(neurobench))
        if bool((x != x.round()).any()):
            part.macs += int(((x != 0).sum(0) * columns).sum())
        else:
            part.acs += int((x.abs().sum(0, dtype=torch.float64) * columns).sum())
        part.dense += x.numel() * outputs

    def _each(self, name: str, count: int, macs: int = 0, acs: int = 0) -> None:
        """`count` elements of `macs` products and `acs` lone sums."""
        part = self.parts.setdefault(name, Part())
        part.macs += count * macs
        part.acs += count * acs
        part.dense += count * (macs + acs)

    def _attention(self, name: str, seen: Tensor, within: Tensor, width: int) -> None:
        """Keys `seen`, and keys `within` reach whatever the gate, by each query; scores and values of D = `width`."""
        part = self.parts.setdefault(name, Part())
        part.macs += 2 * width * int(seen.sum())
        part.dense += 2 * width * int(within.sum())

    def _norm(self, name: str, x: Tensor) -> None:
        """LayerNorm: mean and difference are sums; variance, 1/σ and γ, β are products."""
        self._each(name, x.numel(), macs=3, acs=2)

    # Where it happens.

    def _on(self, module: nn.Module, function: Callable[..., Any], **options: Any) -> None:
        self._hooks.append(module.register_forward_hook(function, **options))

    def _watch_linear(self, name: str, module: Any, neurobench: bool) -> None:
        weight = module.weight.detach()
        weight = weight if isinstance(module, nn.Linear) else weight.T  # transformers' Conv1D is (M, N)
        columns, outputs = weight.count_nonzero(0), len(weight)
        self._on(module, lambda _, inputs, output: self._linear(name, inputs[0], columns, outputs, neurobench))

    def _watch_modules(self, model: nn.Module, elsewhere: tuple[str, ...]) -> None:
        """Linear maps and norms that are called as modules."""
        for name, module in model.named_modules():
            if _is_linear(module) and not name.endswith(elsewhere):
                self._watch_linear(name, module, isinstance(module, nn.Linear))
            elif isinstance(module, nn.LayerNorm):
                self._on(module, lambda _, inputs, output, name=name: self._norm(name, inputs[0]))
            elif isinstance(module, Shift):
                self._on(module, lambda _, inputs, output, name=name: self._each(name, inputs[0].numel(), acs=1))

    def _watch_symboliclight(self, model: SymbolicLight) -> None:
        self._watch_modules(model, ("mixer.tcam", "ffn.down", "head.out", "head.prior_up"))
        self._on(model.encoder.embedding, self._read)
        if model.config.spike_source == "lif":
            self._on(model.encoder.neuron, lambda _, inputs, output: self._each("encoder.neuron", inputs[0].numel(), 1))
        for i, block in enumerate(model.blocks):
            self._watch_mixer(f"blocks.{i}.mixer", block.get_submodule("mixer"))
            self._watch_ffn(f"blocks.{i}.ffn", block.get_submodule("ffn"))
        self._watch_head(model.head)

    def _read(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.tokens += inputs[0].numel()
        self._each("encoder.embedding", inputs[0].numel())  # a look-up: listed, without arithmetic

    def _watch_mixer(self, name: str, mixer: Any) -> None:
        config = mixer.config
        columns = None if config.paths == "attention" else mixer.tcam.weight.detach().count_nonzero(0)

        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            s, c, gate, _, position, past, _ = inputs
            for written_ in written(config):
                self._each(f"{name}.conv_{written_}", c.numel(), macs=config.conv)
            if columns is not None:
                self._linear(f"{name}.tcam", s, columns, config.d_model, True)
                self._each(f"{name}.decay", c.numel(), macs=2)
            if config.paths != "decay":
                self._each(f"{name}.rope", 2 * c.numel(), macs=2)
                open_ = torch.cat([past.gate, gate], 1)
                seen, within = _keys(open_, output[1].anchor_gate, position, gate.shape[1], config.window)
                self._attention(f"{name}.attention", seen, within, config.d_model)
            if config.paths == "both":
                self._each(f"{name}.fuse", c.numel(), macs=1, acs=1)
            self._each(f"{name}.residual", c.numel(), acs=1)

        self._on(mixer, count)

    def _watch_ffn(self, name: str, ffn: Any) -> None:
        columns, outputs = ffn.down.weight.detach().count_nonzero(0), len(ffn.down.weight)

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._linear(f"{name}.down", output, columns, outputs, True)
            self._each(f"{name}.residual", outputs * (output.numel() // output.shape[-1]), acs=1)

        self._on(ffn.activation, count)

    def _watch_head(self, head: Any) -> None:
        columns, V = head.weight.detach().count_nonzero(0), len(head.weight)
        self._on(head, lambda _, inputs, logits: self._linear("head.out", inputs[0], columns, V, not head.tied))
        if head.prior == "static":
            self._on(head, lambda _, inputs, logits: self._each("head.prior", logits.numel(), acs=1))
        if head.prior != "dynamic":
            return
        rows = head.prior_up.weight.detach().count_nonzero(0)

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            prior = head.prior_weight * F.gelu(output)
            self._linear("head.prior_up", prior, rows, V, True)
            self._each("head.prior", prior.numel(), macs=1)
            self._each("head.prior", V * (prior.numel() // prior.shape[-1]), acs=1)

        self._on(head.prior_down, count)

    def _watch_gpt2(self, model: Any) -> None:
        """The baseline: its linear maps are transformers' Conv1D, which NeuroBench does not count either."""
        self._watch_modules(model, ())
        D, layers = model.config.d_model, model.config.n_layers
        columns = model.head.weight.detach().count_nonzero(0)

        def count(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
            tokens, mask, cache = inputs[0], named.get("attention_mask"), named.get("past_key_values")
            (B, T), hidden = tokens.shape, output.last_hidden_state
            S = T if cache is None else cache.get_seq_length()
            real = torch.ones(B, S, dtype=torch.long, device=tokens.device) if mask is None else mask
            seen = real.cumsum(1)[:, S - T :] * real[:, S - T :]
            self.tokens += tokens.numel()
            for i in range(layers):
                self._attention(f"transformer.h.{i}.attn.attention", seen, seen, D)
                self._each(f"transformer.h.{i}.residual", hidden.numel(), acs=2)
            self._each("transformer.wte", tokens.numel())  # a look-up: listed, without arithmetic
            self._each("transformer.wpe", hidden.numel(), acs=1)
            self._linear("head", hidden, columns, len(model.head.weight), False)

        self._on(model.transformer, count, with_kwargs=True)


def by_kind(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a report with the layers of a kind summed: `blocks.*.ffn.down` -> neurobench, macs, acs, dense."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, part in report["parts"].items():
        kind = kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), {"neurobench": part["neurobench"]})
        for key in ("macs", "acs", "dense"):
            kind[key] = kind.get(key, 0) + part[key]
    return kinds


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _keys(open_: Tensor, anchors: Tensor, position: Tensor, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Keys that each query sees, and would see with every gate open, both (B, T); the rule of `ops.window`.

    open_ (B, R + T) gates of the keys in time order, anchors (B, A) theirs, position (B,) of the first query.
    """
    at = position[:, None] + torch.arange(length, device=position.device)  # (B, T)
    sums = F.pad(open_.long().cumsum(1), (window + 1, 0))  # the sum before the first key is 0
    recent = (sums[:, window + 1 :] - sums[:, : -(window + 1)])[:, -length:]
    gone = at[..., None] - torch.arange(anchors.shape[1], device=at.device) > window  # (B, T, A)
    seen = (recent + (gone & anchors[:, None]).sum(-1)) * open_[:, -length:]
    within = at.clamp(max=window) + 1 + gone.sum(-1)
    return seen, within.clamp(min=0)
