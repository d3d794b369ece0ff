"""Documents out of files: which files of a folder are data, of which kind each is, and its reader.

Everything streams: at most one document, or one parquet batch, is held in memory (but a .json file that is not lines,
and a packed parquet file, are held whole).

Invalid UTF-8: a document that holds invalid bytes is dropped and counted. Replacing the bytes would teach the model
U+FFFD, and refusing the file would give up gigabytes for one bad byte. A file without one valid document is refused.
"""

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from symboliclight.core.errors import InputError, LeftOut
from symboliclight.data import records
from symboliclight.data.records import NotData, is_blank, lines
from symboliclight.data.unpack import DAMAGE, ZIP, Member, data_suffix, open_members

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
DATA_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
PEEK_SUFFIXES = (".json", ".csv", ".tsv", ZIP)  # in folders, data only if the text field is in them
PLAIN_SUFFIXES = ("", *re.findall(r"\S+", """
    .adoc .log .markdown .org .tex
    .asm .bash .bat .c .cc .cfg .clj .cmake .conf .cpp .cs .css .cu .cuh .cxx .dart .diff .el .erl .ex .exs .f .f90 .fs
    .go .h .hh .hpp .hs .ini .java .jl .js .jsx .kt .lean .lisp .lua .m .mjs .mk .ml .mli .mm .nim .patch .php .pl .pm
    .proto .ps1 .py .pyi .pyx .r .rb .rs .s .scala .scm .scss .sh .sql .swift .toml .ts .tsx .v .vhd .vim .yaml .yml
    .zig .zsh"""))  # text too, mostly source code: if a file is named; folders hold much that is no data
ABOUT_FILES = re.compile(r"(README|SOURCES|LICENSE|COPYING|NOTICE)", re.IGNORECASE)  # describe data, are none
_FOREIGN = {b"%pdf-": "a PDF", b"{\\rtf": "rich text (RTF)", b"%!ps": "PostScript",  # what text may turn out to be
            b"<!doctype html": "HTML", b"<html": "HTML"}


@dataclass(frozen=True)
class ReadOptions:
    """How sources are cut into documents."""

    text_field: str = "text"  # of JSON and `datasets` records; the column of CSV, TSV and parquet
    whole_files: bool = False  # text files: one document a file; False: documents are separated by blank lines
    on_read: Callable[[int], None] = lambda size: None  # told how many bytes of a file (as stored) were read
    as_text: bool = False  # files of unknown kinds are plain text; False: they are refused


def find_files(path: str | Path, options: ReadOptions | None = None) -> list[Path]:
    """`path` itself if it is a file; of a folder, all data files below it, in sorted order. Links are followed.

    Hidden files and those that only describe the data (README, SOURCES, LICENSE...) are left out; what else is left
    out is named in a warning. Raises `InputError` if nothing is there or a folder cannot be read.
    """
    path, options = Path(path), options or ReadOptions()
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError(f"no file or folder {path}; check the path")
        taken: list[Path] = []
        left: list[str] = []
        for file in sorted(_below(path, ())):
            (taken.append(file) if _is_data(file, options) else left.append(str(file.relative_to(path))))
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}; check the permissions") from error
    if not taken:
        known = (f"{', '.join(TEXT_SUFFIXES + DATA_SUFFIXES)} or, with {options.text_field!r} in it (--text-field), "
                 f"{', '.join(PEEK_SUFFIXES)}")
        others = f"; name one by one, or add --as text: {_some(left)}" if left else ""
        raise InputError(f"no data in folder {path}: nothing ends in {known}{others}")
    if left:
        warnings.warn(f"left out of {path}: {_some(left)}; name a file to have it read or see why not, or add "
                      "--as text", LeftOut, stacklevel=1)
    return taken


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """What lies below, but for hidden and descriptive files; a link back to a folder `above` is not followed again."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry, (*above, here))
        elif not ABOUT_FILES.match(entry.name):
            yield entry


def _is_data(file: Path, options: ReadOptions) -> bool:
    """Whether a file of a folder is read. Tables and JSON often describe data, so they are when they hold the field."""
    if not file.is_file():  # a link that leads nowhere
        return False
    if data_suffix(file) not in PEEK_SUFFIXES:
        return options.as_text or data_suffix(file) in TEXT_SUFFIXES + DATA_SUFFIXES
    try:
        next(read_documents(file, ReadOptions(options.text_field, as_text=options.as_text)), None)
    except NotData:
        return False
    return True


def read_documents(source: str | Path, options: ReadOptions) -> Iterator[str | None]:
    """The documents of one file or `hf:ID[:CONFIG[:SPLIT]]`; None for each that is not valid UTF-8.

    Raises `InputError` naming the source if it is missing, empty, binary, damaged, of a kind that is not read, or has
    not one valid document.
    """
    if str(source).startswith("hf:"):
        yield from _valid_or_refuse(records.hf_documents(str(source), options.text_field), str(source))
        return
    path = Path(source)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; remove it from the sources")
        yield from _valid_or_refuse(_documents(path, options), str(path))
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a good copy") from error
    except OSError as error:
        if error.errno is None:  # as bz2 and pyarrow report damage
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is damaged ({reason}); restore it from a good copy") from error
        raise InputError(f"cannot read {path}: {error.strerror}; check the file") from error


def _valid_or_refuse(documents: Iterable[str | None], name: str) -> Iterator[str | None]:
    valid = invalid = 0
    for document in documents:
        valid += document is not None
        invalid += document is None
        yield document
    if not valid and invalid:
        raise InputError(f"{name} is not UTF-8 text; convert it, for example with: iconv -f GB18030 -t UTF-8")
    if not valid:
        raise InputError(f"{name} holds no text; remove it from the sources")


def _documents(path: Path, options: ReadOptions) -> Iterator[str | None]:
    if path.suffix.lower() == ZIP:
        yield from _archived(path, options)
        return
    for member in open_members(path, options.on_read):
        yield from _read(member, options)


def _archived(path: Path, options: ReadOptions) -> Iterator[str | None]:
    """The documents of an archive, which is treated as a folder is."""
    found, left = False, []
    for member in open_members(path, options.on_read):
        parts = Path(member.where).relative_to(path).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts) or ABOUT_FILES.match(parts[-1]):
            continue
        try:
            if member.suffix in PLAIN_SUFFIXES and not options.as_text:
                raise NotData(f"{member.where} must be named")
            documents = _read(member, options)
            first = list(itertools.islice(documents, 1))
        except NotData:
            left.append("/".join(parts))
            continue
        found = True
        yield from itertools.chain(first, documents)
    if not found:
        raise NotData(f"{path} holds nothing with text in {options.text_field!r} (--text-field) of a kind that is read"
                      + f", but {_some(left)}: unpack it and name the files, or add --as text" * bool(left))
    if left:
        warnings.warn(f"left out of {path}: {_some(left)}; unpack it and name a file to see why, or add --as text",
                      LeftOut, stacklevel=1)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _read(member: Member, options: ReadOptions) -> Iterator[str | None]:
    """The documents of one unpacked file, by its kind."""
    field = options.text_field
    if member.suffix in (".jsonl", ".ndjson"):
        return records.jsonl_documents(member, field)
    if member.suffix == ".json":
        return records.json_documents(member, field)
    if member.suffix in (".csv", ".tsv"):
        return records.table_documents(member, field, "," if member.suffix == ".csv" else "\t")
    if member.suffix == ".parquet":
        return records.parquet_documents(member, field, options.on_read)
    if member.suffix in TEXT_SUFFIXES + PLAIN_SUFFIXES or options.as_text:
        return _text_documents(member, options)
    raise NotData(f"{member.where}: files that end in {member.suffix} are not read; convert it to .txt or .jsonl, or "
                  "read it as plain text with: corpus build --as text")


def _text_documents(member: Member, options: ReadOptions) -> Iterator[str | None]:
    document: list[bytes] = []
    position = 0
    for line in lines(member.file):
        foreign = next((name for start, name in _FOREIGN.items() if line[:20].lower().startswith(start)), None)
        if position == 0 and foreign and not options.as_text:
            raise NotData(f"{member.where} is {foreign}, not plain text; convert it to text, or read it as it is with: "
                          "corpus build --as text")
        if b"\0" in line:
            raise InputError(f"{member.where} is binary, or UTF-16 without byte-order mark (NUL byte near {position}); "
                             "convert it to UTF-8 text or remove it")
        position += len(line)
        if is_blank(line) and not options.whole_files:
            if document:
                yield _decoded(document)
            document = []
        else:
            document.append(line)
    if document:
        yield _decoded(document)


def _decoded(found: list[bytes]) -> str | None:
    try:
        return b"".join(found).decode("utf-8")
    except UnicodeDecodeError:
        return None
