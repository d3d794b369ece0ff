"""Documents out of records: JSON and JSONL, CSV and TSV, parquet, `datasets` ids. One field of a record is the text.

Each function yields a document, None for one that is not valid Unicode, and "" for null.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.data.unpack import Member, utf8

OnRead = Callable[[int], None]
_NOTHING = ("\t\n\v\f\r \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
            "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b")
_BLANK = re.compile(b"(?:" + b"|".join(re.escape(c.encode()) for c in _NOTHING) + b")*")
_LONGEST_CELL = (1 << 31) - 1  # characters; the library's own limit is less than a long document


class NotData(InputError):
    """A file of a kind that is not read, or in which no record has the text field."""


def lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Lines in UTF-8 without byte-order mark."""
    for number, line in enumerate(utf8(file)):
        yield line if number else line.removeprefix(b"\xef\xbb\xbf")


def is_blank(line: bytes) -> bool:
    """Whether a line shows nothing: also one of ideographic (U+3000) or other spaces of Unicode."""
    return _BLANK.fullmatch(line) is not None


def valid(text: str) -> str | None:
    """`text`, or None if it holds surrogates: JSON may spell them, and they stand for bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return text


def text_of(record: Any, field: str, where: str) -> str | None:
    """The text of a record, which may be a bare string."""
    text = record.get(field, record) if isinstance(record, dict) else record
    if text is None and isinstance(record, dict):
        return ""
    if not isinstance(text, str):
        names = f" (fields: {_names(record)})" if isinstance(record, dict) and record else ""
        raise NotData(f"{where} has no text in field {field!r}{names}; choose another with --text-field")
    return valid(text)


def _names(names: Iterable[str]) -> str:
    """Names for a message: a few, short, on one line."""
    names = list(names)
    return ", ".join(repr(name[:30]) for name in names[:8]) + ", ..." * (len(names) > 8)


def jsonl_documents(member: Member, field: str) -> Iterator[str | None]:
    """One record a line."""
    return _line_records(lines(member.file), field, member.where)


def _line_records(found: Iterable[bytes], field: str, where: str) -> Iterator[str | None]:
    for number, line in enumerate(found, 1):
        if is_blank(line):
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            yield None
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} line {number} is not JSON; correct or remove the line") from error
        yield text_of(record, field, f"{where} line {number}")


def json_documents(member: Member, field: str) -> Iterator[str | None]:
    """An array of records or one record, which are held whole; or one record a line."""
    found = lines(member.file)
    before: list[bytes] = []
    for line in found:
        before.append(line)
        if not is_blank(line):
            break
    if before and _is_object(before[-1]):
        yield from _line_records(itertools.chain(before, found), field, member.where)
        return
    try:
        body = json.loads(b"".join(itertools.chain(before, found)).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{member.where} is not JSON ({error}); correct the file") from error
    for number, record in enumerate(body if isinstance(body, list) else [body], 1):
        yield text_of(record, field, f"{member.where} record {number}")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8", "surrogateescape")), dict)
    except (ValueError, RecursionError):
        return False


def table_documents(member: Member, field: str, delimiter: str) -> Iterator[str | None]:
    """One row a document; the first row names the columns."""
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(utf8(member.file), "utf-8-sig", "surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        head = next(rows, [])
        if field not in head:
            raise NotData(f"{member.where} has no column {field!r}; choose one with --text-field: {_names(head)}")
        column = head.index(field)
        for row in rows:
            if row and len(row) != len(head):
                raise InputError(f"{member.where} line {rows.line_num} has {len(row)} cells, the header has "
                                 f"{len(head)}; put quotation marks around a cell that holds {delimiter!r}")
            if row:
                yield valid(row[column])
    except csv.Error as error:
        raise InputError(f"{member.where} line {rows.line_num} is not a row of the table ({error}); a cell that begins "
                         "with a quotation mark must end with one, and those inside are doubled") from error


def parquet_documents(member: Member, field: str, on_read: OnRead) -> Iterator[str | None]:
    """One row a document. A packed file is unpacked whole, because the format is read from its end."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{member.where} needs pyarrow; run: pip install 'symboliclight[train]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(member.stored or io.BytesIO(member.file.read()))
        if field not in table.schema_arrow.names:
            raise NotData(f"{member.where} has no column {field!r}; choose one with --text-field: "
                          f"{_names(table.schema_arrow.names)}")
        for batch in table.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).cast(pyarrow.binary()).to_pylist():
                yield "" if text is None else valid(text.decode("utf-8", "surrogateescape"))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{member.where} is not readable parquet with text in {field!r}: {reason}") from error
    if member.stored:
        on_read(member.stored.stat().st_size)


def hf_documents(source: str, field: str) -> Iterator[str | None]:
    """The records of `hf:ID[:CONFIG[:SPLIT]]`."""
    name, config, split = [*source.removeprefix("hf:").split(":"), "", ""][:3]
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{source} needs datasets; run: pip install 'symboliclight[train]'") from error
    try:
        for record in datasets.load_dataset(name, config or None, split=split or "train", streaming=True):
            yield text_of(record, field, source)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot load {source}: {str(error).splitlines()[0]}; check hf:ID[:CONFIG[:SPLIT]]") from error
