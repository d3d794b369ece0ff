"""The model card of an exported folder: what was counted, and what `symboliclight eval` measured. Nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from symboliclight.core.config import ModelConfig, to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer

_TEXT = """---
library_name: transformers
pipeline_tag: text-generation
tags: [symboliclight, spiking-neural-network]
---

# {name}

A SymbolicLight language model ([arXiv 2605.21333](https://arxiv.org/abs/2605.21333)): spikes beside a continuous
residual stream, an exponential-decay memory beside gated window attention.

| | |
|---|---|
{facts}

{measured}

## Use

```python
import symboliclight.interop.transformers  # or, without the package, trust_remote_code=True below
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

It continues text; it was not trained to follow instructions. The folder is also a checkpoint of symboliclight:
`symboliclight generate "..." --model FOLDER`.
"""


def read_evaluation(file: str | Path, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `symboliclight eval --out` wrote. Raises `InputError` unless it is about this architecture and tokenizer."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        same = found["config"] == to_dict(config) and found["tokenizer_hash"] == tokenizer.hash
        if not same or not {"domains", "mean", "sparsity"} <= set(found):
            raise InputError(f"{file} is the evaluation of another model; make one: symboliclight eval --out {file}")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is not what `symboliclight eval --out` writes; make it again") from error
    return found


def model_card(name: str, parameters: int, state_bytes: int, config: ModelConfig, evaluation: dict[str, Any] | None
) -> str:
    """Markdown. Without an evaluation the card says that nothing was measured."""
    facts = [("parameters", f"{parameters:,}"),
             ("layers, width, heads", f"{config.n_layers}, {config.d_model}, {config.n_heads}"),
             ("vocabulary", f"{config.vocab_size:,}"),
             ("attention window", f"{config.window} tokens and the first {config.n_anchors}"),
             ("trained at", f"up to {config.max_seq_len} tokens"),
             ("state of a running sequence", f"{state_bytes:,} bytes, whatever its length")]
    return _TEXT.format(name=name, facts=_rows(facts), measured=_measured(evaluation))


def _measured(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "No evaluation came with this export, so no quality is claimed."
    domains = evaluation["domains"] | {"all tokens": evaluation["mean"]["token_weighted"]}
    rows = [(name, f"{d['tokens']:,}", f"{d['perplexity']:.2f}", _digits(d["bits_per_byte"]))
            for name, d in domains.items()]
    where = f"on the {evaluation['split']} split" if "split" in evaluation else "on one text"
    lines = [f"## Measured\n\nBy `symboliclight eval` {where}, windows of {evaluation['seq_len']} tokens, "
             f"commit {evaluation.get('commit') or 'unknown'}.\n",
             "| domain | tokens | perplexity | bits/byte |\n|---|---|---|---|", _rows(rows)]
    sites = evaluation["sparsity"]["sites"]
    if sites:
        silent = [(site, f"{100 * share:.2f}%") for site, share in sites.items()]
        lines += ["\nSilent share of (token, unit) pairs at each spike site:\n", "| site | silent |\n|---|---|",
                  _rows(silent)]
    return "\n".join(lines)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rows(rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
