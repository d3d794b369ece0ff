"""A SentencePiece BPE model as a fast tokenizer with the same ids.

SentencePiece joins, again and again, the neighbours whose union is the piece of highest score, leftmost first. The
`tokenizers` library ranks pairs of parts instead, so every way to cut a piece in two becomes a merge of that piece's
rank; of several cuts the one with the longest left part comes first, which is where joining from the left arrives.
Pieces hold plain spaces here, not U+2581, so that a U+2581 in the text stays what it is: three bytes.
"""

import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from symboliclight.core.errors import InputError
from symboliclight.core.pieces import Kind, proto_fields
from symboliclight.core.tokenizer import FILE_NAME, Tokenizer
from symboliclight.interop.transformers.chat import conversation_ids

_PROBE = ("  \t\n\r\n\n if (a==1)\t{ return  'x'; }  2+2=4 1234567 the sun 春天的风，吹过 é e\u0301 😀👍🏽 \u2581 <s> "
          "===== ......")


class SymbolicLightTokenizer(PreTrainedTokenizerFast):
    """`tokenizer(text)` begins with bos, as the models expect; text that looks like a control token stays text.

    Loads as a plain fast tokenizer where symboliclight is not installed. Saving keeps the SentencePiece file, so that a
    saved folder is a checkpoint of symboliclight as well.
    """

    vocab_files_names = {"vocab_file": FILE_NAME, "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def from_sentencepiece(cls, path: str | Path, **options: Any) -> "SymbolicLightTokenizer":
        """Convert a `.model` file, or the tokenizer.model of a checkpoint; `options` are those of transformers.

        Raises `InputError` if the file is no BPE model, or if the ids of a text that holds every piece differ.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        original = Tokenizer.load(file)
        backend = convert(file.read_bytes(), str(file))
        _check(original, backend, str(file))
        names = {name: backend.id_to_token(i) for name, i in (
            ("pad_token", original.pad_id), ("bos_token", original.bos_id), ("eos_token", original.eos_id),
            ("unk_token", original.unk_id)) if i >= 0}
        defaults = {"padding_side": "left", "split_special_tokens": True, "clean_up_tokenization_spaces": False}
        return cls(tokenizer_object=backend, vocab_file=str(file), **names, **defaults | options)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, tools: Any = None, documents: Any = None, chat_template: str | None = None,
        add_generation_prompt: bool = False, continue_final_message: bool = False, tokenize: bool = True,
        padding: Any = False, truncation: bool = False, max_length: int | None = None, return_tensors: Any = None,
        return_dict: bool = True, **others: Any,
    ) -> Any:
        """A conversation, or a list of them, as ids with the turns of `symboliclight chat --turns`.

        Contents are text: `<|end|>` in one does not end its turn. With tokenize=False the text, which encoded again
        would not keep that. Raises `InputError` for what is not offered, a template among it.
        """
        refused = {"tools": tools, "documents": documents, "chat_template": chat_template, "truncation": truncation,
                   **others}
        if asked := [name for name, value in refused.items() if value]:
            raise InputError(f"apply_chat_template of SymbolicLight has no {asked[0]}; leave it out, or put the ids of "
                             "a conversation together with symboliclight.core.turns")
        if not (file := getattr(self, "vocab_file", None)):
            raise InputError(f"this tokenizer has lost its {FILE_NAME}; load it from its folder")
        many = bool(conversation) and not isinstance(conversation[0], Mapping)
        original = Tokenizer.load(file)
        ids = [conversation_ids(original, one, add_generation_prompt, continue_final_message)
               for one in (conversation if many else [conversation])]
        if not tokenize:
            texts = [self.decode(one) for one in ids]
            return texts if many else texts[0]
        encoded: Any = {"input_ids": ids if many or return_tensors else ids[0]}
        whole = self.pad(encoded, padding=padding, max_length=max_length, return_tensors=return_tensors)
        return whole if return_dict else whole["input_ids"]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> Any:
        """Copy tokenizer.model, where the tokenizer still has one."""
        source, target = getattr(self, "vocab_file", None), Path(save_directory, FILE_NAME)
        if source is None or not Path(source).is_file():
            return ()
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
        return (str(target),)

    def _save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        files = super()._save_pretrained(save_directory, *args, **kwargs)
        return files + self.save_vocabulary(str(save_directory))


def convert(model: bytes, name: str = FILE_NAME) -> Backend:
    """The bytes of a SentencePiece BPE model -> a `tokenizers` tokenizer. Raises `InputError` for other model types."""
    sections = dict(proto_fields(model))
    trainer, normalizer = dict(proto_fields(sections.get(2, b""))), dict(proto_fields(sections.get(3, b"")))
    if trainer.get(3, 1) != 2:
        raise InputError(f"{name} is not a BPE model, the only kind that SymbolicLight uses; give its own file")
    pieces = list(_pieces(model))
    rules = _normalizers(normalizer)
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    unknown = next(piece for piece, _, kind in pieces if kind == Kind.UNKNOWN)
    backend = Backend(models.BPE(vocab=vocab, merges=list(_merges(pieces)), unk_token=unknown, fuse_unk=True,
                                 byte_fallback=bool(trainer.get(35, 0)), ignore_merges=bool(rules)))
    own = [piece for piece, _, kind in pieces if kind == Kind.USER_DEFINED]
    if rules:  # they see the whole text, so the user-defined pieces must be found after them
        backend.normalizer = normalizers.Sequence(rules)
        if own:
            longest_first = sorted(own, key=len, reverse=True)
            backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    else:
        backend.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    special = [piece for piece, _, kind in pieces if kind in (Kind.CONTROL, Kind.UNKNOWN)]
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    backend.encode_special_tokens = True
    prefix = bool(normalizer.get(3, 1))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(),
                                         *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    bos = Tokenizer(model, name).bos_id
    if bos >= 0:
        start = pieces[bos][0]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, bos)])
    return backend


def _pieces(model: bytes) -> Iterator[tuple[str, float, Kind]]:
    """(text, score, kind) of each piece, in the order of ids."""
    for number, value in proto_fields(model):
        if number == 1:
            entry = dict(proto_fields(value))
            score = struct.unpack("<f", entry.get(2, bytes(4)))[0]
            yield entry[1].decode().replace("\u2581", " "), score, Kind(entry.get(3, Kind.NORMAL))


def _merges(pieces: list[tuple[str, float, Kind]]) -> Iterator[tuple[str, str]]:
    """Every cut of every piece into two, best piece first, longest left part first."""
    normal = {piece: score for piece, score, kind in pieces if kind == Kind.NORMAL}
    for piece in sorted(normal, key=lambda p: -normal[p]):
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in normal and piece[cut:] in normal:
                yield piece[:cut], piece[cut:]


def _normalizers(spec: dict[int, Any]) -> list[Any]:
    """What a NormalizerSpec does to text; nothing for the models that symboliclight trains."""
    character_map, prefix, squeeze = spec.get(2), bool(spec.get(3, 1)), bool(spec.get(4, 1))
    steps: list[Any] = []
    if character_map:
        steps.append(normalizers.Precompiled(character_map))
    if squeeze:
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if prefix:
        steps.append(normalizers.Prepend(" "))
    return [*steps, normalizers.Replace("\u2581", " ")] if steps else []


def _check(original: Tokenizer, backend: Backend, name: str) -> None:
    """Raise `InputError` unless the ids of a text that holds every piece, and of some odd text, are the same."""
    every = " ".join(original.decode([i]) for i in range(original.vocab_size))
    for text in (every, _PROBE):
        if original.encode(text) != backend.encode(text, add_special_tokens=False).ids:
            raise InputError(f"the fast tokenizer made from {name} would give other ids than SentencePiece; "
                             "encode with symboliclight.core.tokenizer.Tokenizer and pass ids")
