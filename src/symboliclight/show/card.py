"""What the card of a model for the torch-free runtime says: losses and silence on held-out text, what it writes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import ends, reply, turn
from symboliclight.data.shards import Shards
from symboliclight.engine.model import Engine
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.measure.evaluate import Languages, Tally, figures
from symboliclight.measure.likelihood import nats
from symboliclight.measure.quality import windows_of

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

HOW = Sampling(temperature=0.8, top_k=50)  # what `generate` does unless told otherwise
CHECKS = (("ends", "ends"), ("repeats no sentence", "repeats_no_sentence"), ("keeps its people", "keeps_its_people"),
          ("keeps its language", "keeps_its_language"), ("all four", "passes"))


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


def answer(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[str], max_tokens: int,
    on_answer: Callable[[int], None] = lambda count: None,
) -> list[dict[str, str]]:
    """The first answer to every question, as a turn of its own, by `HOW`, seed 0."""
    found = []
    for question in questions:
        ids = [tokenizer.bos_id, *turn(tokenizer, "user", question), *reply(tokenizer)]
        done = generate(engine, tokenizer, [ids], max_tokens, HOW, stop_ids=ends(tokenizer), seed=0)[0]
        found.append({"question": question, "text": done.text})
        on_answer(1)
    return found


def domains(result: dict[str, Any]) -> Table:
    """Losses by domain and language, with what the stored precision and 4 bits cost."""
    rows: list[tuple[str, ...]] = []
    for group in ("domains", "languages"):
        rows += [_loss(name, *(result[kind][group][name] for kind in ("shipped", "float32", "int4")))
                 for name in result["shipped"][group]]
    rows.append(_loss("all", *(result[kind]["mean"]["token_weighted"] for kind in ("shipped", "float32", "int4"))))
    return ("text", "tokens", "perplexity", "bits/byte", "against float32", "4 bits against float32"), rows


def _loss(name: str, found: dict[str, Any], whole: dict[str, Any], small: dict[str, Any]) -> tuple[str, ...]:
    return (name, f"{found['tokens']:,}", f"{found['perplexity']:.1f}", f"{found['bits_per_byte']:.3f}",
            *(f"{kind['perplexity'] / whole['perplexity'] - 1:+.2%}" for kind in (found, small)))


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
    rows: list[tuple[str, ...]] = [("parameters", f"{result['parameters']:,}"),
                                   ("weights", f"{result['precision']}, {result['bytes'] / 1e6:.1f} MB")]
    for i, t in enumerate(result["training"], 1):
        on = "all but what users say" if t["loss"] == "answers" else "all tokens"
        rows.append((f"phase {i}", f"{t['tokens']:,} tokens, loss on {on}; batch {t['batch_size']} × {t['seq_len']}, "
                                   f"peak rate {t['lr']:g}, seed {t['seed']}; {_time(t)}"))
    known = result["memorised"]
    return ("what", "figure"), [
        *rows, ("data hash", f"`{result['training'][-1]['data_hash'][:16]}`"),
        (f"training text that comes back: {known['tokens']} tokens after {known['tokens']}, greedily",
         f"{known['verbatim']} of {known['passages']:,} passages")]


def _time(t: dict[str, Any]) -> str:
    if t["device"] != "cpu":
        return f"{60 * t['hours']:.0f} minutes on one {t['device']}, shared"
    return f"{t['hours']:.1f} hours on {t['threads']} thread{'s' * (t['threads'] > 1)}"


def benchmarks(result: dict[str, Any]) -> Table:
    """Minimal pairs and multiple choice, beside other models."""
    found = result["benchmarks"]
    rows = [(label, *(_share(found[name][label]["all"]) for name in ("blimp", "zhoblimp")),
             *(_share(found["c3"][label][kind]) for kind in ("c3-d-test", "c3-m-test"))) for label in found["blimp"]]
    chance = [found["c3"]["shipped"][kind]["chance"] for kind in ("c3-d-test", "c3-m-test")]
    return (("model", "BLiMP", "ZhoBLiMP", "C3 dialogue", "C3 mixed"),
            [*rows, ("chance", "50.0%", "50.0%", *(f"{share:.1%}" for share in chance))])


def _share(found: dict[str, Any]) -> str:
    return f"{found['accuracy']:.1%}"


def checks(result: dict[str, Any]) -> Table:
    """The share of stories that passes each check."""
    return (("stories", *(name for name, _ in CHECKS)),
            [({"all": "all", "en": "English", "zh": "Chinese"}[language], *(f"{shares[key]:.0%}" for _, key in CHECKS))
             for language, shares in result["stories"]["shares"].items()])


def stories(result: dict[str, Any]) -> Table:
    """All stories, with the checks that each fails."""
    return ("opening", "first answer", "fails"), [
        (_line(s["opening"]), _line(s["text"]), ", ".join(name for name, key in CHECKS[:-1] if not s[key]))
        for s in result["stories"]["stories"]]


def answers(result: dict[str, Any]) -> Table:
    """All answers."""
    return ("question", "first answer"), [(_line(a["question"]), _line(a["text"])) for a in result["answers"]]


def _line(text: str) -> str:
    """One line of a table: line breaks are shown as ⏎."""
    return text.replace("\n", " ⏎ ").replace("|", "\\|").replace("<", "&lt;").strip()


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "facts": facts, "domains": domains, "sites": sites, "benchmarks": benchmarks, "checks": checks, "stories": stories,
    "answers": answers}
