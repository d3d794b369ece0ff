"""WikiText in its own format."""

import pytest

from symboliclight.core.errors import InputError
from symboliclight.interop.wikitext import articles, dataset, process_results

FIRST = " = Old City = \n \n One word . \n \n = = Parts = = \n \n a = b , = \n x = Not a title = \n \n"
SECOND = " = Two = \n \n = = = Deep = = = \n 春天 \x85 \n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n" + FIRST + SECOND, encoding="utf-8", newline="\n")
    return path


@pytest.mark.needs("datasets")
def test_articles_begin_at_titles_and_keep_their_text(file):
    assert articles(file) == [FIRST, SECOND] == articles(file.parent)
    assert dataset(str(file), metadata="other things")["test"]["page"][:] == [FIRST, SECOND]


def test_a_title_stands_between_blank_lines(tmp_path):
    text = " = One = \n \n text \n = Formula = \n text \n \n = Two = \n \n text \n"
    (tmp_path / "wiki.test.raw").write_text(text, encoding="utf-8", newline="\n")
    assert [page.split("\n")[0] for page in articles(tmp_path)] == [" = One = ", " = Two = "]


def test_words_line_ends_and_bytes_are_those_of_the_file():
    found = process_results({"page": " = Two = \n \n 春天 a \n"}, (-3.5,))
    assert found == {"word_perplexity": (-3.5, 5), "token_perplexity": (-3.5, 8), "byte_perplexity": (-3.5, 23),
                     "bits_per_byte": (-3.5, 23)}


@pytest.mark.parametrize(("data", "message"), [
    (b" = A = \n \n the <unk> city \n", "<unk>"), (b"plain text\n", "does not begin with a title"),
    (b"", "does not begin"), (b" = A = \n \n caf\xe9 \n", "not UTF-8"),
])
def test_files_of_another_kind_are_refused(tmp_path, data, message):
    (tmp_path / "wiki.test.raw").write_bytes(data)
    with pytest.raises(InputError, match=message):
        articles(tmp_path)


@pytest.mark.needs("datasets")
def test_a_file_must_be_named():
    with pytest.raises(InputError, match="--wikitext FILE"):
        dataset()
    with pytest.raises(InputError, match="cannot read"):
        articles("/nowhere/wiki.test.raw")
