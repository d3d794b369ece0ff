"""Reading documents: formats, compression, folders, and input that must be refused."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from symboliclight.data.readers import ReadOptions, find_files, read_documents
from symboliclight.errors import InputError

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress,
        ".zst": lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])}  # two frames
DOCUMENTS = ["春眠不覺曉，\n處處聞啼鳥。", "a\tline\n  another"]


def read(path, **options):
    return list(read_documents(path, ReadOptions(**options)))


def encoded(suffix, documents, field="text"):
    if suffix == ".jsonl":
        return "".join(json.dumps({"id": 1, field: d}) + "\n" for d in documents).encode()
    if suffix == ".parquet":
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(documents), field: documents}), buffer)
        return buffer.getvalue().to_pybytes()
    return "\n\n".join(documents).encode()


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".parquet"])
def test_every_format_reads_plain_and_compressed(tmp_path, suffix, pack):
    path, done = tmp_path / f"a{suffix}{pack}", []
    path.write_bytes(PACK[pack](encoded(suffix, DOCUMENTS)))
    documents = read(path, on_read=done.append)
    assert [d.strip("\n") for d in documents] == DOCUMENTS
    assert sum(done) == path.stat().st_size


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_text_field_can_be_chosen_and_a_missing_one_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix, DOCUMENTS, field="content"))
    assert read(path, text_field="content") == DOCUMENTS
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
    ("a.txt.gz", gzip.compress(b""), "a.txt.gz holds no text"),
    ("a.txt", b"\n \n\n", "a.txt holds no text"),
    ("a.txt", b"text\n\x7fELF\0\0\0", "a.txt is binary"),
    ("a.txt", "中文".encode("utf-16"), "a.txt is not UTF-8|a.txt is binary"),
    ("a.txt", "中文文本\n\n第二".encode("gb18030"), "a.txt is not UTF-8 text; .*iconv"),
    ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl line 2 is not JSON"),
    ("a.jsonl", b'["text"]\n', "a.jsonl line 1 has no text in field 'text'"),
    ("a.jsonl", b'{"text": 5}\n', "a.jsonl line 1 has no text in field 'text'"),
    ("a.parquet", b"PAR1 but not really", "a.parquet is not readable parquet"),
    ("a.txt.gz", gzip.compress(b"text " * 999)[:-20], "a.txt.gz is damaged"),
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
    found = [str(f.relative_to(tmp_path)) for f in find_files(tmp_path)]
    assert found == ["a.md", "b/a.jsonl.gz", "b/z.txt", "c.parquet"]
    assert find_files(tmp_path / "d.bin") == [tmp_path / "d.bin"]


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
