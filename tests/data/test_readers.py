"""Reading documents: formats, compression, folders, and input that must be refused."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from symboliclight.core.errors import InputError, LeftOut
from symboliclight.data.readers import ReadOptions, find_files, read_documents


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PACK = {"": bytes, ".bz2": bz2.compress, ".gz": gzip.compress, ".xz": lzma.compress,
        ".zst": lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])}  # two frames
DOCUMENTS = ["春眠不覺曉，\n處處聞啼鳥。", "a\tline\n  another"]


def read(path, **options):
    return list(read_documents(path, ReadOptions(**options)))


def encoded(suffix, documents, field="text"):
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps({"id": 1, field: d}) + "\n" for d in documents).encode()
    if suffix == ".json":
        return json.dumps([{"id": 1, field: d} for d in documents], indent=1).encode()
    if suffix in (".csv", ".tsv"):
        table = io.StringIO()
        rows = csv.writer(table, delimiter="," if suffix == ".csv" else "\t")
        rows.writerows([["id", field], *([1, d] for d in documents)])
        return table.getvalue().encode()
    if suffix == ".parquet":
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(documents), field: documents}), buffer)
        return buffer.getvalue().to_pybytes()
    return "\n\n".join(documents).encode()


FORMATS = [".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"]


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_reads_plain_and_compressed_whatever_the_case_of_its_ending(tmp_path, suffix, pack):
    path, done = tmp_path / f"a{suffix}{pack}", []
    path.write_bytes(PACK[pack](encoded(suffix, DOCUMENTS)))
    documents = read(path, on_read=done.append)
    assert [d.strip("\n") for d in documents] == DOCUMENTS
    assert sum(done) == path.stat().st_size
    upper = path.rename(tmp_path / f"A{suffix}{pack}".upper())
    assert read(upper) == documents
    assert find_files(tmp_path) == [upper]


def test_json_may_be_an_array_or_lines_or_one_record(tmp_path):
    path = tmp_path / "a.json"
    for content in ('[{"text": "a"}, {"text": "b"}]', '\n{"text": "a"}\n\n{"text": "b"}\n', '["a", "b"]'):
        path.write_text(content)
        assert read(path) == ["a", "b"]
    path.write_text('{\n "text": "a"\n}')
    assert read(path) == ["a"]
    path.write_bytes(b'[{"text": "a"}, {"text": "\xff"}, {"text": null}]')
    assert read(path) == ["a", None, ""]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_null_is_an_empty_document_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix, ["a", None, "b"]))
    assert read(path) == ["a", "", "b"]


def test_cells_of_a_table_hold_what_was_written(tmp_path):
    cells = ['with "quotes", commas\nand lines', "tab\there", "", "中" * 200_000]
    for suffix, between in ((".csv", b","), (".tsv", b"\t")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + encoded(suffix, cells) + b"\n1" + between + b"\xff\n")
        assert read(path) == [*cells, None]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".txt.gz"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, suffix, encoding):
    path = tmp_path / f"a{suffix}"
    text = ("\ufeff" + encoded(suffix.removesuffix(".gz"), DOCUMENTS).decode()).encode(encoding)
    path.write_bytes(gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text)
    assert [d.strip("\n") for d in read(path)] == DOCUMENTS


def test_a_lone_surrogate_in_utf_16_costs_its_document_only(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff一\n\n\ud800\n\n二".encode("utf-16-le", "surrogatepass"))
    assert read(tmp_path / "a.txt") == ["一\n", None, "二"]


def test_a_zip_archive_is_read_like_a_folder(tmp_path):
    path, done = tmp_path / "a.zip", []
    path.write_bytes(zipped({"b/a.txt": b"one\n\ntwo", "b/c.jsonl.gz": gzip.compress(b'{"text": "three"}', mtime=0),
                             "README.txt": b"x", "__MACOSX/a.txt": b"x", ".hidden.txt": b"x", "page.html": b"<p>",
                             "stats.json": b"{}", "table.CSV": b"text\nfour\n"}))
    with pytest.warns(LeftOut, match=r"a\.zip: page\.html, stats\.json;"):
        assert read(path, on_read=done.append) == ["one\n", "two", "three", "four"]
    assert sum(done) == path.stat().st_size
    assert "<p>" in read(path, as_text=True)


@pytest.mark.parametrize("name", ["a.html", "a.XML", "a.rtf", "a.pdf", "a.docx", "a.tar.gz", "a.ipynb", "a.bin"])
def test_files_of_unknown_kinds_are_refused_unless_they_are_to_be_text(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"<b>text</b>", mtime=0) if name.endswith("gz") else b"<b>text</b>")
    with pytest.raises(InputError, match=r"a\.\w+(\.gz)?: files that end in .* are not read; .*--as text"):
        read(path)
    assert read(path, as_text=True) == ["<b>text</b>"]


@pytest.mark.parametrize("name", ["a.py", "a.C", "Makefile", "a.tex", "a.log.gz"])
def test_source_code_and_files_without_ending_are_text(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"x = 1", mtime=0) if name.endswith("gz") else b"x = 1")
    assert read(tmp_path / name) == ["x = 1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_the_text_field_can_be_chosen_and_a_missing_one_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix, DOCUMENTS, field="content"))
    assert read(path, text_field="content") == DOCUMENTS
    assert find_files(tmp_path, ReadOptions("content")) == [path]
    with pytest.raises(InputError, match=r"a\..*'text'.*--text-field"):
        read(path)


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), min_size=1))
def test_jsonl_returns_documents_unchanged(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(encoded(".jsonl", documents))
    assert read(path) == documents


def test_blank_lines_of_any_number_and_line_end_separate_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\none\r\ntwo\r\n\r\n \t\r\n\r\n  three\n\n")
    assert read(path) == ["one\r\ntwo\r\n", "  three\n"]
    assert read(path, whole_files=True) == ["\r\n\r\none\r\ntwo\r\n\r\n \t\r\n\r\n  three\n\n"]


@pytest.mark.parametrize("line", ["\u3000", "\u3000\u3000", "\u00a0 ", "\t\u2003", "\u200b", "\ufeff"])
def test_lines_that_show_nothing_separate_documents_as_empty_ones_do(tmp_path, line):
    path = tmp_path / "a.txt"
    path.write_text(f"\u3000\u3000第一回\n{line}\n\u3000第二回\n", encoding="utf-8")
    assert read(path) == ["\u3000\u3000第一回\n", "\u3000第二回\n"]
    assert len(read(path, whole_files=True)) == 1


def test_documents_with_invalid_utf8_are_counted_not_repaired(tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_bytes(b"good\n\nbad \xff\xfe byte\n\n\xe4\xb8\xad")
    lines.write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"text": "\\ud800"}\n')
    assert read(text) == ["good\n", None, "中"]
    assert read(lines) == ["good", None, None]


def test_parquet_strings_with_invalid_utf8_are_counted(tmp_path):
    column = pyarrow.array([b"good", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["good", None]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"", "a.txt is empty"),
    ("a.txt.gz", gzip.compress(b"", mtime=0), "a.txt.gz holds no text"),
    ("a.txt", b"\n \n\n", "a.txt holds no text"),
    ("a.txt", b"text\n\x7fELF\0\0\0", "a.txt is binary"),
    ("a.txt", "English".encode("utf-16-le"), "a.txt is binary, or UTF-16 without byte-order mark"),
    ("a.txt", "中文".encode("utf-16")[:-1], "a.txt is damaged .*byte-order mark it is UTF-16"),
    ("a.txt", b"%PDF-1.4\n% text", "a.txt is a PDF, not plain text; .*--as text"),
    ("a", b"{\\rtf1 text}", "a is rich text"),
    ("a.md", b"<!DOCTYPE html>\n<p>text", "a.md is HTML"),
    ("a.txt", "中文文本\n\n第二".encode("gb18030"), "a.txt is not UTF-8 text; .*iconv"),
    ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl line 2 is not JSON"),
    ("a.jsonl", b'["text"]\n', "a.jsonl line 1 has no text in field 'text'"),
    ("a.jsonl", b'{"text": 5}\n', "a.jsonl line 1 has no text in field 'text'"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl line 1 is not JSON"),
    ("a.ndjson", b'{"id": 5}\n', "a.ndjson line 1 has no text in field 'text' .*'id'"),
    ("a.json", b'[{"text": "a"}, {"text": "b"]', "a.json is not JSON"),
    ("a.json", b'[{"text": "a"}, {"other": "b"}]', "a.json record 2 has no text in field 'text' .*--text-field"),
    ("a.json", b"[]", "a.json holds no text"),
    ("a.csv", b"id,content\n1,a\n", "a.csv has no column 'text'; choose one with --text-field: 'id', 'content'"),
    ("a.csv", b"id,text\n1,Hello, world\n", "a.csv line 2 has 3 cells, the header has 2"),
    ("a.tsv", b'text\tid\n"Yes", he said\t1\n', "a.tsv line 2 is not a row .*quotation mark"),
    ("a.csv", b"text\n" + b"\xd6\xd0\n", "a.csv is not UTF-8 text"),
    ("a.parquet", b"PAR1 but not really", "a.parquet is not readable parquet"),
    ("a.txt.bz2", bz2.compress(b"text " * 999)[:-20], "a.txt.bz2 is damaged"),
    ("a.txt.bz2", b"not bzip2", "a.txt.bz2 is damaged"),
    ("a.zip", b"not a zip archive", "a.zip is damaged"),
    ("a.zip", zipped({"README.md": b"x", "a.html": b"<p>"}), "a.zip holds nothing .*a.html: unpack it .*--as text"),
    ("a.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-20], "a.txt.gz is damaged"),
    ("a.txt.gz", b"not gzip at all", "a.txt.gz is damaged"),
    ("a.txt.xz", lzma.compress(b"text " * 999)[:-20], "a.txt.xz is damaged"),
    ("a.txt.zst", zstandard.compress(bytes(range(32, 127)) * 99)[:-5], "a.txt.zst is damaged"),
    ("a.txt.zst", b"not zstandard", "a.txt.zst is damaged")])
def test_bad_files_are_refused_in_one_line_that_names_them(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_text_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [[1], [2]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="not readable parquet with text in 'text'"):
        read(tmp_path / "a.parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.txt: No such file"):
        read(tmp_path / "nowhere.txt")


def test_folders_are_searched_in_order_without_hidden_and_descriptive_files(tmp_path):
    for name in ["b/z.txt", "b/a.jsonl.gz", "a.md", "c.parquet", "README.md", "LICENSE-go.txt", ".git/x.txt", "d.bin"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.warns(LeftOut, match=r"left out of .*: d\.bin;"):
        found = [str(f.relative_to(tmp_path)) for f in find_files(tmp_path)]
    assert found == ["a.md", "b/a.jsonl.gz", "b/z.txt", "c.parquet"]
    assert tmp_path / "d.bin" in find_files(tmp_path, ReadOptions(as_text=True))
    assert find_files(tmp_path / "d.bin") == [tmp_path / "d.bin"]


def test_json_and_tables_of_a_folder_are_data_if_they_hold_the_text_field(tmp_path):
    for name, content in {"a.json": '[{"text": "a"}]', "b.csv": "text\nb\n", "package.json": '{"name": "x"}',
                          "labels.tsv": "id\tlabel\n1\t2\n"}.items():
        (tmp_path / name).write_text(content)
    with pytest.warns(LeftOut, match=r"labels\.tsv, package\.json;"):
        assert [f.name for f in find_files(tmp_path)] == ["a.json", "b.csv"]


def test_links_to_folders_are_followed_and_rings_of_them_end(tmp_path):
    texts, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    texts.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("x")
    (texts / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(texts)
    (elsewhere / "self").symlink_to(elsewhere)
    assert find_files(texts) == [texts / "linked" / "a.txt"]
    (texts / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.warns(LeftOut, match=r"gone\.txt"):
        find_files(texts)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", closed)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        find_files(tmp_path)


def test_a_folder_without_data_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(InputError, match="no data in folder"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="no file or folder"):
        find_files(tmp_path / "nowhere")


@pytest.mark.needs("datasets")
def test_a_datasets_id_streams_with_its_split(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data = tmp_path / "set"
    data.mkdir()
    (data / "train.jsonl").write_bytes(encoded(".jsonl", DOCUMENTS))
    (data / "validation.jsonl").write_bytes(encoded(".jsonl", ["other"]))
    assert read(f"hf:{data}") == DOCUMENTS
    assert read(f"hf:{data}:default:validation") == read(f"hf:{data}::validation") == ["other"]
    with pytest.raises(InputError, match="cannot load hf:"):
        read(f"hf:{data}:default:nosplit")
    with pytest.raises(InputError, match="cannot load hf:"):
        read(f"hf:{data}/nowhere")
