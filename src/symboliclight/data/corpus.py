"""Files -> clean, deduplicated documents, split by their hash.

A corpus is a folder with `corpus.json` and, for each domain and split, `SPLIT/DOMAIN.jsonl` of `{"text": ...}` lines,
or `{"turns": [[ROLE, TEXT], ...]}` where a recipe made conversations.
Whether a document is for training, validation or test depends on its text alone: it is never in two splits, and it
is in the same one for everybody who uses the same fractions, whatever else their corpus holds.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from symboliclight.core.errors import InputError
from symboliclight.data.files import hash_file, read_manifest, whole_folder, write_manifest
from symboliclight.data.readers import ReadOptions, find_files, read_documents
from symboliclight.data.turns import Document, plain_text

SPLITS = ("train", "validation", "test")
MANIFEST = "corpus.json"
_MADE_BY = "symboliclight corpus build"
_DOMAIN = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class CorpusOptions:
    """What is kept, and how it is split."""

    validation: float = 0.01  # fraction of the documents
    test: float = 0.01
    min_bytes: int = 1  # UTF-8 bytes; shorter documents are dropped and counted
    read: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise InputError(f"--validation and --test must be fractions with a sum below 1, "
                             f"got {self.validation} and {self.test}")
        if self.min_bytes < 1:
            raise InputError(f"--min-bytes must be at least 1, got {self.min_bytes}")


class Corpus:
    """A corpus folder. `manifest` is the content of corpus.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST, _MADE_BY)
        if self.manifest.get("kind") != "corpus" or "domains" not in self.manifest:
            raise InputError(f"{self.path / MANIFEST} does not describe a corpus; make one with: {_MADE_BY}")
        self.domains: list[str] = sorted(self.manifest["domains"])
        self.data_hash: str = self.manifest["data_hash"]

    def counts(self, domain: str, split: str) -> dict[str, Any]:
        """`{"documents", "bytes", "sha256"}` of one file; bytes are UTF-8 bytes of text."""
        return self.manifest["domains"][domain]["splits"][split]

    def documents(self, domain: str, split: str) -> Iterator[str]:
        """The texts of one file, in order. Raises `InputError` if the file is missing or not the built one."""
        return map(plain_text, self.records(domain, split))

    def records(self, domain: str, split: str) -> Iterator[Document]:
        """As `documents`, with conversations in turns."""
        path, expected = self._file(domain, split), self.counts(domain, split)["documents"]
        seen = 0
        try:
            with path.open("rb") as file:
                for line in file:
                    seen += 1
                    record = json.loads(line)
                    yield record["text"] if "turns" not in record else [(role, text) for role, text in record["turns"]]
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; make it again with: {_MADE_BY}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {seen} is damaged; make it again with: {_MADE_BY}") from error
        if seen != expected:
            raise InputError(f"{path} holds {seen} documents instead of {expected}; make it again with: {_MADE_BY}")

    def verify(self) -> None:
        """Compare every file with its hash; raises `InputError` naming the first that differs."""
        for domain in self.domains:
            for split in SPLITS:
                path = self._file(domain, split)
                if not path.is_file() or hash_file(path) != self.counts(domain, split)["sha256"]:
                    raise InputError(f"{path} is missing or changed since it was built; make it again with: {_MADE_BY}")

    def _file(self, domain: str, split: str) -> Path:
        return self.path / split / f"{domain}.jsonl"


def demo_sources() -> dict[str, list[str | Path]]:
    """The embedded demo corpus: six domains, Chinese and English, 6.6 MB; see demo/SOURCES.md for the rights."""
    return folder_sources(Path(__file__).parent / "demo")


def folder_sources(folder: str | Path, read: ReadOptions | None = None) -> dict[str, list[str | Path]]:
    """Each data file of a folder as a domain of its own, named by the file name up to its first dot."""
    sources: dict[str, list[str | Path]] = {}
    for path in find_files(folder, read):
        sources.setdefault(path.name.split(".")[0], []).append(path)
    return sources


def build_corpus(sources: Mapping[str, Sequence[str | Path]], out: str | Path,
                 options: CorpusOptions | None = None, replace: bool = False) -> Corpus:
    """Clean, deduplicate and split the documents of `sources` (domain -> files, folders, `hf:` ids) into folder `out`.

    Of exact duplicates, across all domains, the first is kept; domains go in alphabetical order, so the order of
    `sources` does not matter. Memory: a 16-byte digest a document. `out` appears whole or not at all.
    """
    options = options or CorpusOptions()
    if not sources:
        raise InputError("no sources; name at least one with --source NAME=PATH or --source-dir DIR")
    seen: set[bytes] = set()
    with whole_folder(out, MANIFEST, replace) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
        domains = {name: _build_domain(name, sources[name], folder, seen, options) for name in sorted(sources)}
        hashes = {name: [domain["splits"][split]["sha256"] for split in SPLITS] for name, domain in domains.items()}
        write_manifest(folder / MANIFEST, {
            "kind": "corpus", "validation": options.validation, "test": options.test, "min_bytes": options.min_bytes,
            "data_hash": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(), "domains": domains})
    return Corpus(out)


def split_of(digest: bytes, validation: float, test: float) -> str:
    """Split of the document with this SHA-256. Test counts from the bottom, validation from the top: changing one
    fraction moves no document between the other and the rest."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if position < test else "validation" if position >= 1 - validation else "train"


def clean(text: str) -> str:
    """Unix line ends, no blank lines before and no white space after the document."""
    return text.replace("\r\n", "\n").rstrip().lstrip("\n")


class Writer:
    """One JSONL file with its counts."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()
        self.documents = self.bytes = 0

    def add(self, document: Document, size: int) -> None:
        key = "text" if isinstance(document, str) else "turns"
        line = json.dumps({key: document}, ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._hash.update(line)
        self.documents += 1
        self.bytes += size

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"documents": self.documents, "bytes": self.bytes, "sha256": self._hash.hexdigest()}


def _build_domain(name: str, paths: Sequence[str | Path], folder: Path, seen: set[bytes],
                  options: CorpusOptions) -> dict[str, Any]:
    """Write the three files of one domain and return its part of the manifest."""
    if not _DOMAIN.fullmatch(name):
        raise InputError(f"domain name {name!r} must consist of letters, digits, and _ . + - only")
    inputs = [file for path in paths
              for file in ([path] if str(path).startswith("hf:") else find_files(path, options.read))]
    writers = {split: Writer(folder / split / f"{name}.jsonl") for split in SPLITS}
    dropped = {"invalid": 0, "duplicates": 0, "too_short": 0}
    for text in (document for source in inputs for document in read_documents(source, options.read)):
        if text is None:
            dropped["invalid"] += 1
            continue
        text = clean(text)
        data = text.encode()
        digest = hashlib.sha256(data).digest()
        if len(data) < options.min_bytes:
            dropped["too_short"] += 1
        elif digest[:16] in seen:
            dropped["duplicates"] += 1
        else:
            seen.add(digest[:16])
            writers[split_of(digest, options.validation, options.test)].add(text, len(data))
    splits = {split: writer.close() for split, writer in writers.items()}
    if not any(split["documents"] for split in splits.values()):
        raise InputError(f"domain {name} has no document left ({dropped}); check its sources")
    return {"sources": [getattr(source, "name", source) for source in inputs], **dropped, "splits": splits}
