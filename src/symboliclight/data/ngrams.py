"""Hashed n-grams of words, or of characters where the text is Chinese: which texts share them."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError

_UNIT = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|"  # a Chinese character, or a word of others
                   "[^\\W\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it loses no bit
_SUFFIXES = (".json", ".jsonl", ".txt", ".dev", ".devtest", ".csv")


def units(text: str) -> list[str]:
    """Words in lower case, and Chinese characters one by one; punctuation counts for nothing."""
    return _UNIT.findall(text.lower())


class Hasher:
    """Text -> 64-bit values of its n-grams, the same on every machine. Remembers the values of words."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}

    def values(self, text: str) -> np.ndarray:
        """(units,) uint64."""
        known, found = self._values, units(text)
        for unit in found:
            if unit not in known:
                known[unit] = int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "little")
        return np.fromiter((known[unit] for unit in found), np.uint64, len(found))

    def ngrams(self, values: np.ndarray, n: int) -> np.ndarray:
        """(units - n + 1,) uint64, Σ_i v_i · f^(n-1-i) mod 2^64; empty for texts shorter than n."""
        count = max(0, len(values) - n + 1)
        total = np.zeros(count, np.uint64)
        for i in range(n if count else 0):
            total = total * _FACTOR + values[i:i + count]
        return total


class Quotes:
    """The n-grams of evaluation sets. A document that holds one of them quotes a set, or the set quotes it."""

    def __init__(self, folder: Path, n: int, hasher: Hasher) -> None:
        """Read every .json, .jsonl, .txt, .csv and FLORES file below `folder`; raises `InputError` if there is none."""
        files = [file for file in sorted(folder.rglob("*")) if file.suffix in _SUFFIXES and file.is_file()]
        if not files:
            raise InputError(f"no evaluation sets ({', '.join(_SUFFIXES)}) in {folder}; check the path")
        self._n, self._hasher = n, hasher
        self.files = len(files)
        parts = [hasher.ngrams(hasher.values(text), n) for file in files for text in _texts(file)]
        self._sorted = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._sorted)

    def found_in(self, values: np.ndarray) -> bool:
        """Whether a document with these units (`Hasher.values`) shares an n-gram."""
        grams = self._hasher.ngrams(values, self._n)
        if not len(grams) or not len(self._sorted):
            return False
        places = np.searchsorted(self._sorted, grams).clip(max=len(self._sorted) - 1)
        return bool((self._sorted[places] == grams).any())


def _texts(file: Path) -> Iterator[str]:
    """The strings of a JSON file, wherever they stand; the lines of any other."""
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            yield from _strings(json.loads(content))
        else:
            for line in filter(str.strip, content.splitlines()):
                yield from _strings(json.loads(line)) if file.suffix == ".jsonl" else [line]
    except ValueError as error:  # of UTF-8 or JSON
        raise InputError(f"evaluation set {file} is damaged ({error}); restore it from a good copy") from error
    except OSError as error:
        raise InputError(f"cannot read evaluation set {file}: {error.strerror}; check the file") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
