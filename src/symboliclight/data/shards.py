"""Corpus + tokenizer -> token files that are mapped into memory.

A shard folder is self-contained: `manifest.json`, `tokenizer.model`, and `SPLIT/DOMAIN.bin` of little-endian unsigned
ids, each document as bos, its ids, eos; conversations with the special pieces of the tokenizer between their turns.
"""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import FILE_NAME, Tokenizer
from symboliclight.data.corpus import SPLITS, Corpus
from symboliclight.data.files import hash_file, read_manifest, whole_folder, write_manifest
from symboliclight.data.turns import Document, encode_document, plain_text

MANIFEST = "manifest.json"
_MADE_BY = "symboliclight corpus shards"
_BATCH = 1 << 18  # characters handed to a thread at once


class Shards:
    """A shard folder. Use `Shards.open`.

    `manifest` is the content of manifest.json; `splits[split][domain]` its counts: tokens, documents, bytes (UTF-8
    bytes of text), sha256.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_hash: str = manifest["tokenizer_hash"]
        self.data_hash: str = manifest["data_hash"]
        self.repeats: dict[str, float] = manifest.get("repeats", {})  # domain -> passes that a recipe asks for; else 1
        self.splits: dict[str, dict[str, dict[str, Any]]] = manifest["splits"]
        self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self._maps: dict[tuple[str, str], np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> "Shards":
        """Open a folder and check every file's size; `verify` also checks the hashes, reading all of it.

        Raises `InputError` naming the first file that is missing or does not match the manifest.
        """
        path = Path(path)
        manifest = read_manifest(path / MANIFEST, _MADE_BY)
        try:
            shards = cls(path, manifest)
            shards._check(verify)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path / MANIFEST} does not describe shards; make them with: {_MADE_BY}") from error
        return shards

    @classmethod
    def of_run(cls, path: str | Path, run_file: Path) -> "Shards":
        """Open the data of a run. Raises `InputError` with the way out if it was begun before and they have moved."""
        if run_file.exists() and not (Path(path) / MANIFEST).exists():
            raise InputError(f"there are no token shards in {path}, and the run in {run_file.parent} needs those it "
                             "was begun with; say where they are now with --data NEW (data.directory)")
        return cls.open(path)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer.load(self.path)

    def domains(self, split: str) -> list[str]:
        """Domains with at least one token in the split, sorted."""
        if split not in self.splits:
            raise InputError(f"{self.path} has no split {split!r}; choose one of: {', '.join(self.splits)}")
        return sorted(name for name, counts in self.splits[split].items() if counts["tokens"])

    def tokens(self, split: str, domain: str) -> np.ndarray:
        """The ids of one file, (tokens,) uint16 or uint32, mapped read-only. Raises `InputError` if there are none."""
        if domain not in self.domains(split):
            raise InputError(f"{self.path} has no {split} tokens of domain {domain!r}; "
                             f"choose from: {', '.join(self.domains(split))}")
        if (split, domain) not in self._maps:
            self._maps[split, domain] = np.memmap(self._file(split, domain), dtype=self._dtype, mode="r")
        return self._maps[split, domain]

    def require(self, tokenizer: Tokenizer) -> None:
        """Raise `InputError` unless these shards were made with `tokenizer`."""
        if tokenizer.hash != self.tokenizer_hash:
            raise InputError(f"{self.path} was made with another tokenizer than the model's; "
                             "make shards with the tokenizer.model of the model's folder")

    def _file(self, split: str, domain: str) -> Path:
        return self.path / split / f"{domain}.bin"

    def _check(self, verify: bool) -> None:
        again = f"make the shards again with: {_MADE_BY}"
        if self.tokenizer().hash != self.tokenizer_hash:
            raise InputError(f"{self.path / FILE_NAME} is not the tokenizer of the manifest; {again}")
        for split, domains in self.splits.items():
            for domain, counts in domains.items():
                file, size = self._file(split, domain), counts["tokens"] * self._dtype.itemsize
                found = file.stat().st_size if file.is_file() else None
                if found is None:
                    raise InputError(f"{file} is missing; {again}")
                if found != size:
                    raise InputError(f"{file} holds {found} bytes instead of {size}; {again}")
                if verify and hash_file(file) != counts["sha256"]:
                    raise InputError(f"{file} does not match its hash in {MANIFEST}; {again}")


def build_shards(corpus: Corpus, tokenizer: Tokenizer, out: str | Path, threads: int | None = None,
                 replace: bool = False, on_bytes: Callable[[int], None] = lambda size: None,
                 phase: str | None = None) -> Shards:
    """Tokenise all splits of `corpus` into folder `out`, which appears whole or not at all.

    The result does not depend on `threads` (default: all cores). `on_bytes` is told the UTF-8 bytes done. `phase`: of a
    recipe; only its domains are taken, and their repeats are kept for `Batches`.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")
    repeats = _repeats(corpus, phase)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    splits: dict[str, dict[str, Any]] = {}
    with whole_folder(out, MANIFEST, replace) as folder, ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for split in SPLITS:
            (folder / split).mkdir()
            splits[split] = {}
            for domain in repeats:
                batches = _encode_all(corpus, domain, split, tokenizer, dtype, pool)
                splits[split][domain] = _write(folder / split / f"{domain}.bin", batches, on_bytes)
        tokenizer.save(folder / FILE_NAME)
        write_manifest(folder / MANIFEST, {
            "kind": "shards", "dtype": dtype.name, "vocab_size": tokenizer.vocab_size,
            "tokenizer_hash": tokenizer.hash, "data_hash": corpus.data_hash, "splits": splits,
            **({} if phase is None else {"phase": phase, "repeats": repeats})})
    return Shards.open(out)


def _repeats(corpus: Corpus, phase: str | None) -> dict[str, float]:
    """Passes over each domain that is taken."""
    domains = corpus.manifest["domains"]
    phases = sorted({name for domain in domains.values() for name in domain.get("repeats", ())})
    if phase is None and phases:
        raise InputError(f"{corpus.path} was made from a recipe with phases; add --phase with one of: "
                         + ", ".join(phases))
    if phase is not None and phase not in phases:
        raise InputError(f"{corpus.path} has no phase {phase!r}; "
                         + (f"choose one of: {', '.join(phases)}" if phases else "leave --phase out"))
    if phase is None:
        return dict.fromkeys(corpus.domains, 1)
    return {name: domains[name]["repeats"][phase] for name in corpus.domains if phase in domains[name]["repeats"]}


Encoded = tuple[np.ndarray, int, int]  # ids, documents, UTF-8 bytes of text


def _encode_all(corpus: Corpus, domain: str, split: str, tokenizer: Tokenizer, dtype: np.dtype,
                pool: ThreadPoolExecutor) -> Iterator[Encoded]:
    """Batches in the order of the documents; a few are in work at a time. SentencePiece runs outside the GIL."""

    special = corpus.manifest.get("special", True)

    def encode(batch: list[Document]) -> Encoded:
        ids = itertools.chain.from_iterable(encode_document(tokenizer, document, special) for document in batch)
        return np.fromiter(ids, dtype), len(batch), sum(len(plain_text(document).encode()) for document in batch)

    waiting: deque[Future[Encoded]] = deque()
    for batch in _batched(corpus.records(domain, split)):
        waiting.append(pool.submit(encode, batch))
        if len(waiting) > 8:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(plain_text(document))
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(path: Path, batches: Iterable[Encoded], on_bytes: Callable[[int], None]) -> dict[str, Any]:
    digest = hashlib.sha256()
    counts = {"tokens": 0, "documents": 0, "bytes": 0}
    with path.open("wb") as file:
        for ids, documents, size in batches:
            file.write(ids.data)
            digest.update(ids.data)
            counts["tokens"] += len(ids)
            counts["documents"] += documents
            counts["bytes"] += size
            on_bytes(size)
    return counts | {"sha256": digest.hexdigest()}
