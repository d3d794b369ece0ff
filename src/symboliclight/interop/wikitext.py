"""WikiText in its own format: lines of words and marks apart, ` = Title = ` before an article, ` = = Part = = ` inside.

Perplexity is normalised by what the corpus counts, not by what a tokenizer makes of it (arXiv 1609.07843):
word_perplexity by words between white space, token_perplexity by words and line ends, as the corpus counts its tokens
and word-level models predict them. Bytes are those of the file, UTF-8.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError

FILE = "wiki.test.raw"
_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = ")


def articles(path: str | Path) -> list[str]:
    """The articles of a file, or of `wiki.test.raw` in a folder, as they stand there, titles included.

    Raises `InputError` if it cannot be read, holds no article, or has its rare words replaced by <unk>.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); take {FILE} from wikitext-103-raw") from error
    found = ["".join(lines) for lines in _split(text) if "".join(lines).strip()]
    if not found or not _TITLE.fullmatch(found[0].split("\n", 1)[0]):
        raise InputError(f"{file} does not begin with a title like ` = Title = `; take {FILE} from wikitext-103-raw")
    if " <unk> " in text:
        raise InputError(f"{file} has <unk> for rare words, which no text has; take {FILE} from wikitext-103-raw")
    return found


def _split(text: str) -> Iterator[list[str]]:
    """Lines of each article; a title stands between blank lines."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    article: list[str] = []
    for i, line in enumerate(lines):
        blank = all(not neighbour.strip() for neighbour in (*lines[max(i - 1, 0) : i], *lines[i + 1 : i + 2]))
        if blank and _TITLE.fullmatch(line.rstrip("\n")):
            yield article
            article = []
        article.append(line)
    yield article


def dataset(wikitext: str | None = None, **_: Any) -> dict[str, Any]:
    """What the harness loads for the task wikitext103: the articles as documents with a `page`."""
    from datasets import Dataset

    if wikitext is None:
        raise InputError(f"wikitext103 needs --wikitext FILE, the path of {FILE} (lm_eval: --metadata wikitext=FILE)")
    return {"test": Dataset.from_list([{"page": page} for page in articles(wikitext)])}


def process_results(doc: dict[str, str], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Metric -> (nats, weight) of one article, from its log-probability."""
    page, nats = doc["page"], results[0]
    words, size = len(page.split()), len(page.encode())
    return {"word_perplexity": (nats, words), "token_perplexity": (nats, words + page.count("\n")),
            "byte_perplexity": (nats, size), "bits_per_byte": (nats, size)}
