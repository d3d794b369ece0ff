"""How repetitive and how varied the texts are that a model writes: continuations of held-out prompts in two languages.

All n-grams are of tokens. rep4: share of a continuation's 4-grams that stood in it before, 1 - distinct / all
(seq-rep-4 of arXiv 1908.04319), as the mean over continuations. distinct_n: different n-grams / all n-grams over the
continuations of a language together (arXiv 1510.03055); it falls with the number of tokens, so only equal numbers
compare. Every continuation is of the same length: an end of document is a token like others. The text that really
follows the prompts is measured in the same way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.shards import Shards
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.measure.evaluate import LANGUAGES, Languages
from symboliclight.study.measure import rounded

SPLIT = "test"  # of the prompts
PROMPTS = 16  # a language
PROMPT_TOKENS, TOKENS = 32, 128
RULES = {"top-k": Sampling(temperature=0.7, top_k=50), "adaptive": Sampling(temperature=0.7, top_k=50, adaptive=0.5)}
WRITTEN = ("zh", "en")
SHOWN = 240  # characters of a sample

Ids = Sequence[int]


def write_texts(model: Any, shards: Shards, seed: int) -> dict[str, Any]:
    """Continue held-out prompts in each language under each rule: figures, and one sample of each."""
    tokenizer = shards.tokenizer()
    found = held_out(shards, tokenizer)
    prompts = [text[:PROMPT_TOKENS] for texts in found.values() for text in texts]
    owners = [language for language, texts in found.items() for _ in texts]
    rules: dict[str, Any] = {}
    samples = []
    for rule, how in RULES.items():
        done = generate(model, tokenizer, prompts, TOKENS, how, stop_ids=(), seed=seed) if prompts else []
        rules[rule] = {}
        for language in found:
            own = [i for i, owner in enumerate(owners) if owner == language]
            rules[rule][language] = variety([done[i].ids for i in own])
            samples.append({"rule": rule, "language": language, "prompt": tokenizer.decode(prompts[own[0]]),
                            "text": done[own[0]].text[:SHOWN]})
    real = {language: variety([text[PROMPT_TOKENS:] for text in texts]) for language, texts in found.items()}
    return rounded({"prompt_tokens": PROMPT_TOKENS, "tokens": TOKENS, "seed": seed, "rules": rules, "held_out": real,
                    "samples": samples})


def held_out(shards: Shards, tokenizer: Tokenizer) -> dict[str, list[list[int]]]:
    """Language -> the starts of up to `PROMPTS` test documents, prompt and what follows it, taken in turn from every
    domain. A document is of the language that more of its first tokens are in, a quarter at least; code that reads
    like English is English here."""
    languages, size = Languages(tokenizer), PROMPT_TOKENS + TOKENS
    queues: dict[str, list[list[list[int]]]] = {language: [] for language in WRITTEN}  # language -> domain -> documents
    for domain in shards.domains(SPLIT):
        ids = shards.tokens(SPLIT, domain)
        starts = np.flatnonzero(ids == tokenizer.bos_id)
        lengths = np.diff(np.append(starts, len(ids)))
        own: dict[str, list[list[int]]] = {language: [] for language in WRITTEN}
        for start in starts[lengths > size]:
            text = ids[start : start + size].astype(np.int64)
            count = np.bincount(languages(text[None])[0], minlength=len(LANGUAGES))
            language = max(WRITTEN, key=lambda name: count[LANGUAGES.index(name)])
            if count[LANGUAGES.index(language)] >= size / 4 and len(own[language]) < PROMPTS:
                own[language].append(text.tolist())
        for language in WRITTEN:
            queues[language].append(own[language])
    taken = {language: [q[i] for i in range(PROMPTS) for q in found if i < len(q)][:PROMPTS]
             for language, found in queues.items()}
    return {language: texts for language, texts in taken.items() if texts}


def variety(texts: Sequence[Ids]) -> dict[str, Any]:
    """rep4, and distinct_1 to distinct_3, of token sequences."""
    repeated = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, 4))]
    out: dict[str, Any] = {"texts": len(texts), "tokens": sum(len(text) for text in texts),
                           "rep4": sum(repeated) / len(repeated) if repeated else None}
    for n in (1, 2, 3):
        every = [gram for text in texts for gram in ngrams(text, n)]
        out[f"distinct_{n}"] = len(set(every)) / len(every) if every else None
    return out


def ngrams(text: Ids, n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens."""
    return list(zip(*(text[i:] for i in range(n)), strict=False))
