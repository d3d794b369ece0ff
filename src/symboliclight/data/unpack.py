"""Files as they are stored -> streams of their content: packed ones unpacked, UTF-16 and UTF-32 turned into UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from symboliclight.core.errors import InputError

PACK_SUFFIXES = (".gz", ".xz", ".zst", ".bz2")
ZIP = ".zip"
DAMAGE = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)  # raised while reading
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",  # before those that they begin with
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_BLOCK = 1 << 20  # bytes


class Member(NamedTuple):
    """One unpacked file."""

    where: str  # what errors call it
    suffix: str  # tells its kind: `.txt` of `a.TXT.xz`
    file: io.BufferedReader
    stored: Path | None  # where it lies, if it was not packed


def data_suffix(path: Path) -> str:
    """The suffix that tells the kind: `.txt` of `a.TXT.xz`."""
    return (path.with_suffix("") if path.suffix.lower() in PACK_SUFFIXES else path).suffix.lower()


def open_members(path: Path, on_read: Callable[[int], None]) -> Iterator[Member]:
    """The file at `path`, unpacked, or all files of a zip archive; `on_read` is told about the packed bytes."""
    if path.suffix.lower() == ZIP:
        yield from _zipped(path, on_read)
        return
    tap: Any = _Tap(path, on_read)
    with io.BufferedReader(tap, _BLOCK) as stored:
        packed = path.suffix.lower() in PACK_SUFFIXES
        yield Member(str(path), data_suffix(path), _unpacked(stored, path.suffix), None if packed else path)


def _zipped(path: Path, on_read: Callable[[int], None]) -> Iterator[Member]:
    told = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                name = Path(info.filename)
                file: Any  # a typed IO is less than it is
                with archive.open(info) as file:
                    yield Member(f"{path}/{name}", data_suffix(name),
                                 _unpacked(io.BufferedReader(file, _BLOCK), name.suffix), None)
                on_read(info.compress_size)
                told += info.compress_size
    except RuntimeError as error:  # a password, or a method that Python does not have
        raise InputError(f"{path} cannot be unpacked here ({error}); unpack it first") from error
    on_read(path.stat().st_size - told)  # names and places


def _unpacked(stored: io.BufferedReader, suffix: str) -> io.BufferedReader:
    openers: dict[str, Callable[[Any], Any]] = {
        ".gz": lambda file: gzip.GzipFile(fileobj=file), ".xz": lzma.LZMAFile, ".bz2": bz2.BZ2File,
        ".zst": lambda file: _Stream(_zstd(file))}
    opener = openers.get(suffix.lower())
    return io.BufferedReader(opener(stored), _BLOCK) if opener else stored


def utf8(file: io.BufferedReader) -> io.BufferedReader:
    """The stream in UTF-8: re-encoded if it begins with the byte-order mark of UTF-16 or UTF-32, else as it is."""
    head = file.peek(4)[:4]
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return io.BufferedReader(_Stream(_reencoded(file, encoding)), _BLOCK) if encoding else file


def _reencoded(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    """Lone surrogates pass: in UTF-8 they are invalid bytes, which cost their document only."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        while block := file.read(_BLOCK):
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise EOFError(f"by its byte-order mark it is {encoding.upper()}, but: {error.reason}") from error


class _Tap(io.FileIO):
    """A file that tells how much was read."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._on_read(size or 0)
        return size


class _Stream(io.RawIOBase):
    """Pieces of bytes, one behind the other, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _zstd(file: io.BufferedReader) -> Iterator[bytes]:
    """Zstandard frames, one after another. Unlike the library's reader it notices a file cut short."""
    try:
        import zstandard
    except ImportError as error:
        raise InputError("a .zst file needs zstandard; run: pip install 'symboliclight[train]'") from error
    frame, inside, packed = zstandard.ZstdDecompressor().decompressobj(), False, b""
    while packed := packed or file.read(_BLOCK >> 4):
        try:
            plain = frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        packed, inside = frame.unused_data, not frame.eof
        if frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        yield plain
    if inside:
        raise EOFError("compressed file ended early")
