"""A balanced sample of Chinese and other text, to train a tokenizer on."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from symboliclight.data.corpus import Corpus

_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_HEAD = 2000  # characters looked at to tell the language


def is_chinese(text: str) -> bool:
    """True if at least a quarter of the first characters are Chinese (aligned zh-en text counts as Chinese)."""
    head = text[:_HEAD]
    return 4 * len(_HAN.findall(head)) >= len(head) > 0


Domains = dict[str, list[tuple[bytes, int, int]]]  # domain -> (random order, position, UTF-8 bytes) of each document


@dataclass(frozen=True)
class Sample:
    """Documents chosen from the training split."""

    chosen: dict[str, dict[int, int]]  # domain -> position of a document -> UTF-8 bytes taken from its start
    bytes: dict[str, int]  # "chinese" and "other": UTF-8 bytes chosen of each
    corpus: Corpus

    def texts(self) -> Iterator[str]:
        """The chosen documents, domain by domain."""
        for domain, positions in self.chosen.items():
            for i, text in enumerate(self.corpus.documents(domain, "train")):
                if i in positions:
                    yield text.encode()[:positions[i]].decode(errors="ignore")


def balanced_sample(corpus: Corpus, max_bytes: int, seed: int = 0,
                    on_bytes: Callable[[int], None] = lambda size: None) -> Sample:
    """Choose up to `max_bytes` of training text, as much Chinese as other text, and within each language as even over
    the domains as they allow.

    If one language has less than half of `max_bytes`, the other is cut to the same; if it is absent, the other has
    all. The choice depends on the documents and `seed`, not on their order. `on_bytes` is told the bytes looked at.
    """
    found: dict[str, Domains] = {"chinese": defaultdict(list), "other": defaultdict(list)}
    for domain in corpus.domains:
        for i, text in enumerate(corpus.documents(domain, "train")):
            data = text.encode()
            order = hashlib.sha256(seed.to_bytes(8, "big") + data).digest()[:8]
            found["chinese" if is_chinese(text) else "other"][domain].append((order, i, len(data)))
            on_bytes(len(data))
    available = {name: sum(size for domain in domains.values() for _, _, size in domain)
                 for name, domains in found.items()}
    present = [size for size in available.values() if size]
    budget = min([max_bytes // max(1, len(present)), *present])
    chosen: dict[str, dict[int, int]] = {domain: {} for domain in corpus.domains}
    taken = {name: _take(domains, budget, chosen) for name, domains in found.items()}
    return Sample(chosen, taken, corpus)


def _take(domains: Domains, budget: int, chosen: dict[str, dict[int, int]]) -> int:
    """Fill `budget` bytes, smallest domain first, so that what it cannot give is shared by the larger ones."""
    taken = 0
    by_size = sorted(domains, key=lambda name: (sum(size for _, _, size in domains[name]), name))
    for left, domain in zip(range(len(by_size), 0, -1), by_size, strict=True):
        quota = taken + (budget - taken) // left
        for _, position, size in sorted(domains[domain]):
            if taken >= quota:
                break
            chosen[domain][position] = min(size, quota - taken)
            taken += chosen[domain][position]
    return taken
