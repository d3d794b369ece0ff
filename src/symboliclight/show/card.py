"""What the card of a model for the torch-free runtime says: losses and silence on held-out text, samples."""

from collections.abc import Callable
from typing import Any

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.shards import Shards
from symboliclight.engine.model import Engine
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.measure.evaluate import Languages, Tally, figures
from symboliclight.measure.likelihood import nats
from symboliclight.measure.quality import windows_of

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

HOW = Sampling(temperature=0.7, top_k=50)
PROMPTS = (  # chosen before any answer was seen; all are shown
    "Once upon a time", "The king looked at the sea and", "Water boils at", "def fibonacci(n):",
    "话说天下大势", "春眠不觉晓", "水的沸点是", "他走进房间，",
)
TOKENS = 60  # of each sample


def measure(
    engine: Engine, tokenizer: Tokenizer, shards: Shards, split: str, seq_len: int, max_tokens: int,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """`evaluate.figures` of a runtime model on at most `max_tokens` a domain of `split`, in windows of `seq_len`."""
    languages, tallies = Languages(tokenizer), {}
    for domain, windows in windows_of(shards, tokenizer, split, seq_len, max_tokens).items():
        tally = tallies[domain] = Tally()
        for tokens, targets in windows:
            logits, spikes, _ = engine.trace(tokens)
            tally.add_loss(nats(logits, targets), tokenizer.piece_bytes[targets], languages(targets))
            for site, fired in spikes.items():
                tally.add_spikes(site, fired.sum(-1).astype(np.float64), fired.shape[-1], languages(tokens), seq_len)
            on_tokens(targets.size)
    return figures(tallies, {})


def write_samples(engine: Engine, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """One continuation of every prompt by `HOW`, seed 0."""
    ids = [tokenizer.encode(prompt, bos=True) for prompt in PROMPTS]
    done = [generate(engine, tokenizer, [one], TOKENS, HOW, seed=0)[0] for one in ids]
    return [{"prompt": prompt, "text": one.text} for prompt, one in zip(PROMPTS, done, strict=True)]


def domains(result: dict[str, Any]) -> Table:
    """Losses by domain and language, with what the stored precision costs."""
    rows: list[tuple[str, ...]] = []
    for group in ("domains", "languages"):
        for name, found in result["shipped"][group].items():
            whole = result["float32"][group][name]
            rows.append((name, f"{found['tokens']:,}", f"{found['perplexity']:.1f}", f"{found['bits_per_byte']:.3f}",
                         f"{found['perplexity'] / whole['perplexity'] - 1:+.2%}"))
    found, whole = (result[kind]["mean"]["token_weighted"] for kind in ("shipped", "float32"))
    rows.append(("all", f"{found['tokens']:,}", f"{found['perplexity']:.1f}", f"{found['bits_per_byte']:.3f}",
                 f"{found['perplexity'] / whole['perplexity'] - 1:+.2%}"))
    return ("text", "tokens", "perplexity", "bits/byte", "perplexity against float32"), rows


def sites(result: dict[str, Any]) -> Table:
    """Silent share of every spike site, over all domains and in the one where it is least silent."""
    silent = result["shipped"]["sparsity"]
    rows: list[tuple[str, ...]] = []
    for site, share in silent["sites"].items():
        least = min(silent["domains"], key=lambda name: silent["domains"][name][site])
        rows.append((site, f"{share:.1%}", f"{silent['domains'][least][site]:.1%} ({least})"))
    return ("site", "silent", "least silent domain"), rows


def facts(result: dict[str, Any]) -> Table:
    """What the file is and how it was trained."""
    t = result["training"]
    return ("what", "figure"), [
        ("parameters", f"{result['parameters']:,}"),
        ("weights", f"{result['precision']}, {result['bytes'] / 1e6:.1f} MB"),
        ("training", f"{t['tokens']:,} tokens; batch {t['batch_size']} × {t['seq_len']}, "
                     f"peak rate {t['lr']:g}, seed {t['seed']}"),
        ("training time", f"{t['hours']:.1f} hours on {t['threads']} thread{'s' * (t['threads'] > 1)}"
         if t.get("device", "cpu") == "cpu" else f"{60 * t['hours']:.0f} minutes on one {t['device']}, shared"),
        ("data hash", f"`{t['data_hash'][:16]}`"),
    ]


def samples(result: dict[str, Any]) -> Table:
    """All samples; line breaks are shown as ⏎."""
    rows: list[tuple[str, ...]] = [(_line(s["prompt"]), _line(s["text"])) for s in result["samples"]]
    return ("prompt", "continuation"), rows


def _line(text: str) -> str:
    return text.replace("\n", " ⏎ ").replace("|", "\\|").replace("<", "&lt;").strip()


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "facts": facts, "domains": domains, "sites": sites, "samples": samples}
