"""SentencePiece BPE with byte fallback: train, encode, decode.

Models trained here round-trip every Unicode string exactly (`Tokenizer.exact`). SentencePiece alone cannot: it writes
a space as U+2581 and reads it back as a space, so a literal U+2581 would be lost. Such characters are therefore
encoded as their three bytes, and decoding maps ids to bytes by a table of our own. Models trained elsewhere, with
other normalisation, encode and decode as SentencePiece does.
"""

import codecs
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from symboliclight.core.atomic import remedy, write_atomic
from symboliclight.core.errors import InputError
from symboliclight.core.pieces import markers, proto_fields, without_markers

FILE_NAME = "tokenizer.model"  # inside a checkpoint or a shard folder
CONTROL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
SPECIAL_PIECES = ("<|stream|>", "<|system|>", "<|think|>", "<|user|>", "<|assistant|>", "<|end|>",
                  *(f"<|reserved_{i}|>" for i in range(10)))
_FIXED_PIECES = len(CONTROL_PIECES) + len(SPECIAL_PIECES) + 2 + 256  # 2: newline and tab; 256: bytes
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_UNTRAINABLE = "\n\t\0\u2581\u2585"  # pieces of their own, or reserved by the SentencePiece trainer
_LINE = 4096  # characters; the BPE trainer addresses positions in a line with 16 bits
_CHUNK = 4096  # characters; SentencePiece slows down on long strings


class Tokenizer:
    """Text <-> ids of one SentencePiece model. Immutable; safe to share between threads."""

    def __init__(self, model: bytes, name: str = FILE_NAME) -> None:
        """`model` holds the bytes of a `.model` file; `name` is used in error messages."""
        spm.set_min_log_level(5)  # SentencePiece would print its own errors beside ours
        try:
            self._sp = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"{name} is not a SentencePiece model, or damaged; restore it from a good copy") from error
        if self._sp.vocab_size() == 0:
            raise InputError(f"{name} is empty; restore it from a good copy")
        self._model, self._name = model, name
        self.hash: str = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._sp.vocab_size()
        self.pad_id: int = self._sp.pad_id()  # these are -1 where the model has no such piece
        self.bos_id: int = self._sp.bos_id()
        self.eos_id: int = self._sp.eos_id()
        self.unk_id: int = self._sp.unk_id()
        rules = _Rules.read(model)
        self.exact: bool = rules.exact  # every valid Unicode string round-trips
        self._strip = rules.strip
        self._bytes = [self._piece(i) for i in range(self.vocab_size)]
        self.piece_bytes = np.array([len(b) for b in self._bytes], dtype=np.int64)  # (V,) UTF-8 text bytes
        self.piece_bytes[self.unk_id] = 0  # stands for text that nobody knows
        # A newline in its own piece and the byte only: nothing merges over it, so lines can be encoded apart.
        self._split_lines = self.exact and sum(b"\n" in b for b in self._bytes) == 2
        self.markers: list[str] = markers(model)  # pieces such as <|user|>, which mark and are no text

    def __copy__(self) -> "Tokenizer":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tokenizer":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._model, self._name)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `.model` file, or the tokenizer.model of a checkpoint or shard folder."""
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            return cls(file.read_bytes(), str(file))
        except OSError as error:
            raise InputError(f"cannot read tokenizer {file}: {error.strerror}; check the path") from error

    def save(self, path: str | Path) -> None:
        """Write the `.model` file atomically; raises `InputError` if it cannot be written."""
        try:
            write_atomic(path, self._model)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; nothing was changed, {remedy(error)}") from error

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = True) -> list[int]:
        """Ids of `text`. The text of a special piece such as `<|user|>` gives that piece's id; not with special=False,
        for text of people who must not write turns: there it is spelt in other pieces, and decodes to the same text.

        Raises `InputError` for lone surrogates, which are not Unicode text.
        """
        check_unicode(text)
        sp = self._sp if special or not any(m in text for m in self.markers) else self._unmarked
        ids = self._encode_exact(text, sp) if self.exact else sp.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    @cached_property
    def _unmarked(self) -> spm.SentencePieceProcessor:
        """The model to which special pieces are text. Made when a text first holds one."""
        return spm.SentencePieceProcessor(model_proto=without_markers(self._model))

    def _encode_exact(self, text: str, sp: spm.SentencePieceProcessor) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):
            if i:
                ids += [self._sp.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
            for chunk in _chunks(part) if self._split_lines else [part]:
                ids += sp.encode(chunk)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, control ids vanish."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of `ids`, possibly cut inside a character. Raises `InputError` for ids outside the vocabulary."""
        data = b"".join(self._lookup(i) for i in ids)
        if self._strip == "all":
            return data.lstrip(b" ")
        return data.removeprefix(b" ") if self._strip == "one" else data

    def stream(self) -> "Stream":
        """A decoder for ids that arrive one by one."""
        return Stream(self)

    def special(self, name: str) -> int:
        """Id of a user-defined piece, by its text (`<|user|>`) or its name (`user`)."""
        piece = name if name.startswith("<") else f"<|{name}|>"
        found = self._sp.piece_to_id(piece)
        if self._sp.id_to_piece(found) != piece:
            raise InputError(f"the tokenizer has no special piece {piece}; use one that has it")
        return found

    def piece(self, index: int) -> tuple[str, bytes]:
        """The name of a piece, and the text bytes that it stands for: none for a control piece."""
        data = self._lookup(index)
        return self._sp.id_to_piece(index), data

    def _lookup(self, index: int) -> bytes:
        if not 0 <= index < self.vocab_size:
            raise InputError(f"token id {index} is outside the tokenizer's vocabulary of {self.vocab_size}; "
                             "use the tokenizer that the ids were made with")
        return self._bytes[index]

    def _piece(self, index: int) -> bytes:
        """Text bytes that one id stands for."""
        piece = self._sp.id_to_piece(index)
        if self._sp.is_control(index):
            return b""
        if self._sp.is_unknown(index):
            return " \u2047 ".encode()  # as SentencePiece shows it
        if self._sp.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()


class Stream:
    """Turns ids into text as they arrive, never showing half a character. It continues a text: no space is stripped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """Text that became complete with this id, often empty for a character made of byte pieces."""
        return self._decoder.decode(self._tokenizer._lookup(index))

    def flush(self) -> str:
        """The rest: U+FFFD if the ids stopped inside a character."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class Trained:
    """A new tokenizer and what its vocabulary could hold."""

    tokenizer: Tokenizer
    characters: int  # different characters with a piece of their own; all others are spelt in bytes
    coverage: float  # share of the training text's characters that those make up
    wanted_coverage: float  # what was asked for; more than `coverage` where the vocabulary is too small for it


def train(texts: Iterable[str], vocab_size: int, path: str | Path | None = None,
          character_coverage: float = 0.9999) -> Trained:
    """Train a BPE model of exactly `vocab_size` pieces and write it to `path`.

    The same texts in the same order give the same file. Half of the free vocabulary is kept for merges: where
    `character_coverage` asks for more characters than the other half holds, the rarest are left to byte fallback.
    Raises `InputError` if the vocabulary is too small to hold the fixed pieces or too large for the text.
    """
    room = (vocab_size - _FIXED_PIECES) // 2
    if room < 1:
        raise InputError(f"--vocab-size {vocab_size} is too small: {_FIXED_PIECES} pieces are fixed; use 512 or more")
    texts = list(texts)
    counts: Counter[str] = Counter()
    for text in texts:
        check_unicode(text)
        counts.update(text)
    kept, coverage = _choose_characters(counts, character_coverage, room)
    breaks = {ord(c): "\n" for c in [*counts.keys() - kept, *_UNTRAINABLE]}
    lines = (line[i:i + _LINE] for text in texts for line in text.translate(breaks).split("\n")
             for i in range(0, len(line), _LINE))
    tokenizer = Tokenizer(_run_trainer(lines, vocab_size))
    if path:
        tokenizer.save(path)
    return Trained(tokenizer, len(kept), coverage, character_coverage)


def _choose_characters(counts: Counter[str], wanted: float, room: int) -> tuple[set[str], float]:
    """The most frequent characters, as many as reach the wanted coverage or fit, and the coverage reached."""
    for character in _UNTRAINABLE:
        counts.pop(character, None)
    total, covered = counts.total(), 0
    if not total:
        raise InputError("there is no text to train a tokenizer on; check the corpus")
    kept: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) == room or covered >= wanted * total:
            break
        kept.add(character)
        covered += count
    return kept, covered / total


def _run_trainer(lines: Iterator[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            split_digits=True, allow_whitespace_only_pieces=True, character_coverage=1.0,
            user_defined_symbols=[*SPECIAL_PIECES, "\n", "\t"], pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            max_sentence_length=4 * _LINE, num_threads=1, minloglevel=5)
    except RuntimeError as error:
        most = re.search(r"<= (\d+)", str(error))
        if most is None:
            raise
        raise InputError(f"--vocab-size {vocab_size} is too large for this text, which yields {most[1]} pieces; "
                         "use fewer, or more text") from error
    return model.getvalue()


@dataclass(frozen=True)
class _Rules:
    """What a model does to text besides splitting it."""

    exact: bool
    strip: str  # leading spaces that decoding removes: "none", "one" or "all"

    @classmethod
    def read(cls, model: bytes) -> "_Rules":
        """Field numbers are those of sentencepiece_model.proto."""
        sections = dict(proto_fields(model))  # 2 TrainerSpec, 3 NormalizerSpec
        trainer, normalizer = (dict(proto_fields(sections.get(number, b""))) for number in (2, 3))
        plain = not normalizer.get(2) and bool(normalizer.get(5, 1))  # no character map; spaces escaped
        prefix, squeeze = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
        exact = plain and not prefix and not squeeze and bool(trainer.get(35, 0))  # 35: byte fallback
        return cls(exact, "all" if squeeze else "one" if prefix else "none")


def _chunks(text: str) -> Iterator[str]:
    """Cut after a newline about every `_CHUNK` characters."""
    start = 0
    while start < len(text):
        newline = text.find("\n", start + _CHUNK)
        end = len(text) if newline < 0 else newline + 1
        yield text[start:end]
        start = end


def check_unicode(text: str) -> None:
    """Raise `InputError` if `text` holds a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text has a lone surrogate at character {error.start}, not Unicode; remove it") from error
