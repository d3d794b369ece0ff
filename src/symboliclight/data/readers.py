"""Documents out of text, JSONL and parquet files, plain or compressed, and out of `datasets` ids.

Everything streams: at most one document, or one parquet batch, is held in memory (a compressed parquet file is
unpacked whole, because the format is read from its end).

Invalid UTF-8: a document that holds invalid bytes is dropped and counted. Replacing the bytes would teach the model
U+FFFD, and refusing the file would give up gigabytes for one bad byte. A file without one valid document is refused.
"""

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symboliclight.errors import InputError

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
DATA_SUFFIXES = (".jsonl", ".parquet")
PACK_SUFFIXES = (".gz", ".xz", ".zst")
ABOUT_FILES = re.compile(r"(README|SOURCES|LICENSE|COPYING|NOTICE)", re.IGNORECASE)  # describe data, are none
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class ReadOptions:
    """How sources are cut into documents."""

    text_field: str = "text"  # of JSONL, parquet and `datasets` records
    whole_files: bool = False  # text files: one document a file; False: documents are separated by blank lines
    on_read: Callable[[int], None] = lambda size: None  # told how many bytes of a file (as stored) were read


def find_files(path: str | Path) -> list[Path]:
    """`path` itself if it is a file; of a folder, all files with known suffixes below it, in sorted order.

    Hidden files and those that only describe the data (README, SOURCES, LICENSE...) are left out.
    Raises `InputError` if nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no file or folder {path}; check the path")
    found = [f for f in sorted(path.rglob("*")) if f.is_file() and data_suffix(f) in TEXT_SUFFIXES + DATA_SUFFIXES
             and not any(part.startswith(".") for part in f.relative_to(path).parts) and not ABOUT_FILES.match(f.name)]
    if not found:
        known = ", ".join(TEXT_SUFFIXES + DATA_SUFFIXES)
        raise InputError(f"no data in folder {path}: nothing ends in {known}; name other text files one by one")
    return found


def data_suffix(path: Path) -> str:
    """The suffix that tells the format: `.txt` of `a.txt.xz`."""
    return (path.with_suffix("") if path.suffix in PACK_SUFFIXES else path).suffix.lower()


def read_documents(source: str | Path, options: ReadOptions) -> Iterator[str | None]:
    """The documents of one file or `hf:ID[:CONFIG[:SPLIT]]`; None for each that is not valid UTF-8.

    Raises `InputError` naming the source if it is missing, empty, binary, damaged, or has not one valid document.
    """
    if str(source).startswith("hf:"):
        yield from _valid_or_refuse(_hf_documents(str(source), options.text_field), str(source))
        return
    path = Path(source)
    suffix = data_suffix(path)
    read = {".jsonl": _jsonl_documents, ".parquet": _parquet_documents}.get(suffix, _text_documents)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; remove it from the sources")
        yield from _valid_or_refuse(read(path, options), str(path))
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a good copy") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the file") from error


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


def _text_documents(path: Path, options: ReadOptions) -> Iterator[str | None]:
    lines: list[bytes] = []
    position = 0
    for line in _lines(path, options):
        if b"\0" in line:
            raise InputError(f"{path} is binary (NUL byte near {position}); convert it to UTF-8 text or remove it")
        position += len(line)
        if line.isspace() and not options.whole_files:
            if lines:
                yield _decode(b"".join(lines))
            lines = []
        else:
            lines.append(line)
    if lines:
        yield _decode(b"".join(lines))


def _lines(path: Path, options: ReadOptions) -> Iterator[bytes]:
    with open_binary(path, options.on_read) as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(b"\xef\xbb\xbf")  # byte-order mark


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _jsonl_documents(path: Path, options: ReadOptions) -> Iterator[str | None]:
    for number, line in enumerate(_lines(path, options), 1):
        if line.isspace():
            continue
        text = _decode(line)
        if text is None:
            yield None
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} line {number} is not JSON; correct or remove the line") from error
        yield _text_of(record, options.text_field, f"{path} line {number}")


def _parquet_documents(path: Path, options: ReadOptions) -> Iterator[str | None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow; run: pip install 'symboliclight[train]'") from error
    packed = path.suffix in PACK_SUFFIXES
    with open_binary(path, options.on_read) as file:
        try:
            table = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if packed else path)
            if options.text_field not in table.schema_arrow.names:
                raise InputError(f"{path} has no column {options.text_field!r}; choose one with --text-field: "
                                 f"{', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(batch_size=1024, columns=[options.text_field]):
                for text in batch.column(0).cast(pyarrow.binary()).to_pylist():
                    yield _decode(text) if text is not None else ""
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is not readable parquet with text in {options.text_field!r}: {reason}") from error
    if not packed:
        options.on_read(path.stat().st_size)


def _hf_documents(source: str, text_field: str) -> Iterator[str | None]:
    name, config, split = [*source.removeprefix("hf:").split(":"), "", ""][:3]
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{source} needs datasets; run: pip install 'symboliclight[train]'") from error
    try:
        for record in datasets.load_dataset(name, config or None, split=split or "train", streaming=True):
            yield _text_of(record, text_field, source)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot load {source}: {str(error).splitlines()[0]}; check hf:ID[:CONFIG[:SPLIT]]") from error


def _text_of(record: Any, field: str, where: str) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise InputError(f"{where} has no text in field {field!r}; choose another with --text-field")
    try:
        record[field].encode("utf-8")
    except UnicodeEncodeError:  # JSON may spell lone surrogates
        return None
    return record[field]


def open_binary(path: Path, on_read: Callable[[int], None]) -> io.BufferedReader:
    """The unpacked content of a file; `on_read` is told about the packed bytes."""
    stored: io.BufferedReader = io.BufferedReader(_Tap(path, on_read), _BLOCK)
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=stored), _BLOCK)
    if path.suffix == ".xz":
        return io.BufferedReader(lzma.LZMAFile(stored), _BLOCK)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(stored), _BLOCK)
    return stored


class _Tap(io.FileIO):
    """A file that tells how much was read."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._on_read(size or 0)
        return size


class _Zstd(io.RawIOBase):
    """Zstandard frames, one after another. Unlike the library's reader it notices a file cut short."""

    def __init__(self, file: io.BufferedReader) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise InputError("a .zst file needs zstandard; run: pip install 'symboliclight[train]'") from error
        self._file, self._library = file, zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._packed, self._plain = b"", memoryview(b"")
        self._started = False  # inside a frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._packed = self._packed or self._file.read(_BLOCK >> 4)
            if not self._packed:
                if self._started:
                    raise EOFError("compressed file ended early")
                return 0
            self._decompress()
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def _decompress(self) -> None:
        try:
            self._plain, self._started = memoryview(self._frame.decompress(self._packed)), True
        except self._library.ZstdError as error:
            raise EOFError(str(error)) from error
        self._packed = self._frame.unused_data
        if self._frame.eof:
            self._frame, self._started = self._library.ZstdDecompressor().decompressobj(), False
