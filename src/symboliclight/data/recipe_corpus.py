"""Builds a corpus from a recipe: filters, near-duplicates, quotes of evaluation sets, caps; each loss is counted."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symboliclight.data.corpus import MANIFEST, SPLITS, Corpus, CorpusOptions, Writer, clean, split_of
from symboliclight.data.files import whole_folder, write_manifest
from symboliclight.data.minhash import Cluster, NearDuplicates
from symboliclight.data.ngrams import Hasher, Quotes, units
from symboliclight.data.readers import ReadOptions, read_documents
from symboliclight.data.recipe import Domain, Recipe
from symboliclight.data.turns import Document, plain_text, read_turns

REASONS = ("invalid", "too_short", "too_long", "pattern", "words", "no_turns", "duplicates", "quotes",
           "near_duplicates", "cap")  # why a document goes, in the order in which they are tried

_NAMED = 3  # times that a text about a topic names it


def build_recipe(recipe: Recipe, sources: str | Path, out: str | Path, read: ReadOptions | None = None,
                 replace: bool = False) -> Corpus:
    """Build the corpus of `recipe` from the files below `sources` into folder `out`, which appears whole or not at all.

    Domains go in the recipe's order: of duplicates within a group the first stays. Near-duplicates in different groups
    (a story, and the same behind a request) both stay, and are always in the same split.
    """
    CorpusOptions(recipe.validation, recipe.test)  # checks the fractions
    builder = _Builder(recipe, Path(sources), read or ReadOptions())
    with whole_folder(out, MANIFEST, replace) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
        domains = {name: builder.domain(name, folder) for name in recipe.domains}
        hashes = {name: [domains[name]["splits"][split]["sha256"] for split in SPLITS] for name in sorted(domains)}
        write_manifest(folder / MANIFEST, {
            "kind": "corpus", "validation": recipe.validation, "test": recipe.test, "min_bytes": 1,
            "data_hash": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(), "special": False,
            "recipe": asdict(recipe), "domains": domains})
    return Corpus(out)


def recipe_report(corpus: Corpus) -> dict[str, Any]:
    """What a recipe kept and removed of each domain, as plain JSON values."""
    return {"data_hash": corpus.data_hash, "domains": {
        name: {"language": domain["language"], "repeats": domain["repeats"],
               "kept": sum(domain["splits"][split]["documents"] for split in SPLITS),
               "bytes": sum(domain["splits"][split]["bytes"] for split in SPLITS),
               "removed": {reason: domain[reason] for reason in REASONS}}
        for name, domain in corpus.manifest["domains"].items()}}


class _Builder:
    """What is remembered from one domain to the next."""

    def __init__(self, recipe: Recipe, sources: Path, read: ReadOptions) -> None:
        self._recipe, self._sources, self._read = recipe, sources, read
        self._hasher = Hasher()
        self._near = NearDuplicates(recipe.bands, recipe.rows)
        self._seen: set[tuple[str, bytes]] = set()
        sets = recipe.evaluation_sets
        self._quotes = Quotes(sources / sets, recipe.evaluation_ngram, self._hasher) if sets is not None else None

    def domain(self, name: str, folder: Path) -> dict[str, Any]:
        """Write the files of one domain and return its part of the manifest."""
        domain, removed = self._recipe.domains[name], Counter(dict.fromkeys(REASONS, 0))
        writers = {split: Writer(folder / split / f"{name}.jsonl") for split in SPLITS}
        left = float("inf") if domain.max_mb is None else domain.max_mb * 1e6
        for document in self._filtered(domain, removed):
            text = plain_text(document)
            data = text.encode()
            cluster = self._cluster(text, data, domain, removed) if left > 0 else None
            if left <= 0:
                removed["cap"] += 1
            if cluster is None:
                continue
            left -= len(data)
            # Hashed once more: sources whose own held-out part was taken by the hash would leave the test empty.
            position = hashlib.sha256(cluster.digest).digest()
            split = split_of(position, self._recipe.validation, self._recipe.test)
            writers[split].add(document, len(data))
        splits = {split: writer.close() for split, writer in writers.items()}
        return {"sources": [Path(domain.source).name], "language": domain.language, "repeats": domain.repeats,
                **removed, "splits": splits}

    def _filtered(self, domain: Domain, removed: Counter[str]) -> Iterator[Document]:
        """The documents that pass what looks at one document alone."""
        words = set(self._recipe.words.get(domain.without or "", ()))
        drop = re.compile(domain.drop_lines) if domain.drop_lines else None
        for text in read_documents(self._sources / domain.source, self._read):
            if text is None:
                removed["invalid"] += 1
                continue
            if drop:
                text = "\n".join(line for line in text.split("\n") if not drop.search(line))
            text = clean(text)
            reason, size = None, len(text.encode())
            if size < domain.shortest:
                reason = "too_short"
            elif domain.longest is not None and size > domain.longest:
                reason = "too_long"
            elif (domain.only and not re.search(domain.only, text)) or (
                    domain.never and re.search(domain.never, text)):
                reason = "pattern"
            elif words and sum(unit in words for unit in units(text)) >= domain.most_words:
                reason = "words"
            document = None if reason else _document(text, domain)
            if document is None:
                removed[reason or "no_turns"] += 1
            else:
                yield document

    def _cluster(self, text: str, data: bytes, domain: Domain, removed: Counter[str]) -> Cluster | None:
        """The cluster that decides the document's split; None, counted, if the document is not wanted."""
        digest = hashlib.sha256(data).digest()
        if (domain.group, digest[:16]) in self._seen:
            removed["duplicates"] += 1
            return None
        self._seen.add((domain.group, digest[:16]))
        values = self._hasher.values(text)
        if self._quotes is not None and self._quotes.found_in(values):
            removed["quotes"] += 1
            return None
        cluster = self._near.cluster(self._hasher.ngrams(values, self._recipe.ngram), digest)
        if domain.group in cluster.groups:
            removed["near_duplicates"] += 1
            return None
        cluster.groups.add(domain.group)
        return cluster


def _document(text: str, domain: Domain) -> Document | None:
    """The text as the domain has it: plain, in turns, or as the answer to a request; None if it has no turns."""
    if domain.turns:
        return read_turns(text, [(user, assistant) for user, assistant in domain.turns])
    return [("user", _request(text, domain)), ("assistant", text)] if domain.requests else text


def _request(text: str, domain: Domain) -> str:
    """A request that the text answers, chosen by the text alone; about the topic it names most, if three times."""
    lower = text.lower()
    named = [(len(re.findall(rf"(?<![a-z]){re.escape(topic.lower())}(?![a-z])", lower)), len(topic), topic)
             for topic in domain.topics]
    times, _, topic = max(named, default=(0, 0, ""))
    about = times >= _NAMED and any("{topic}" in request for request in domain.requests)
    fitting = [request for request in domain.requests if ("{topic}" in request) == about]
    choice = hashlib.sha256(b"request" + text.encode()).digest()[0] % len(fitting)
    return fitting[choice].replace("{topic}", topic)
