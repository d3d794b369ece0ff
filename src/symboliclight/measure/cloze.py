"""What comes next: the last word of LAMBADA (arXiv 1606.06031), the answer of PIQA (1911.11641) or C3 (1904.09679).

The prompts of LAMBADA and PIQA are those of the harness; of C3, which it does not have, those of OpenCompass.
A word is right if greedy decoding would write it, piece by piece. Of the choices of a question the likeliest is taken,
by the sum over its pieces or by that sum a byte of its text; k choices that tie share the credit.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.measure.items import Score, accuracy, credit, json_lines, sampled, score_each, text_of
from symboliclight.measure.likelihood import Pair, encode_pair, fitted

PIQA = "Question: {goal}\nAnswer:"
C3 = "文章：{passage}\n问题：{question}\n答案："


@dataclass(frozen=True)
class Question:
    """A context and what may follow it; a single choice is a last word."""

    context: str
    choices: tuple[str, ...]
    answer: int
    before: str  # between the context and a choice, not counted in its bytes
    file: str


def parse(text: str, name: str, labels: str | None = None) -> list[Question]:
    """The questions of a file: a jsonl of LAMBADA (`text`) or PIQA (`goal`, `sol1`, `sol2`), or a JSON list of C3.

    labels: the answers of PIQA, a number a line, unless its lines have a `label`. Raises `InputError`, with the line,
    for what is none of these.
    """
    if text.lstrip().startswith("["):
        questions = _c3(text, name)
    else:
        rows = list(json_lines(text, name))
        answers = [None] * len(rows) if labels is None else _labels(labels, len(rows), name)
        questions = [_piqa(row, where, name, answer) if "goal" in row else _lambada(row, where, name)
                     for (where, row), answer in zip(rows, answers, strict=True)]
    if not questions:
        raise InputError(f"{name} holds no question; give a file of LAMBADA, PIQA or C3")
    return questions


def labels_file(path: str | Path) -> Path:
    """Where PIQA keeps the answers of valid.jsonl: in valid-labels.lst."""
    return Path(path).with_name(Path(path).stem + "-labels.lst")


def _lambada(row: dict[str, Any], where: str, name: str) -> Question:
    context, space, word = text_of(row, "text", where).rpartition(" ")
    if not (space and context.strip() and word):
        raise InputError(f"{where}: text must end with a word and a space before it; take the line out")
    return Question(context, (word,), 0, " ", name)


def _piqa(row: dict[str, Any], where: str, name: str, label: int | None) -> Question:
    label = row.get("label", label)
    if label is None:
        raise InputError(f"{where} has no label; put {labels_file(name).name} beside it, a 0 or 1 a line")
    if isinstance(label, bool) or label not in (0, 1):
        raise InputError(f"{where}: the label must be 0 or 1, got {label!r}; restore the file from a good copy")
    solutions = tuple(text_of(row, key, where) for key in ("sol1", "sol2"))
    return Question(PIQA.format(goal=text_of(row, "goal", where)), solutions, label, " ", name)


def _labels(text: str, count: int, name: str) -> list[int | None]:
    found = text.split()
    file = labels_file(name)
    if len(found) != count:
        raise InputError(f"{file} has {len(found)} labels for {count} lines of {name}; give one a line")
    for number, label in enumerate(found, 1):
        if label not in ("0", "1"):
            raise InputError(f"{file}:{number} is not 0 or 1; restore it from a good copy")
    return [int(label) for label in found]


def _c3(text: str, name: str) -> list[Question]:
    try:
        passages = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name} is not JSON ({error}); restore it from a good copy") from error
    out = []
    for number, entry in enumerate(passages, 1):
        where = f"{name}, passage {number}"
        try:
            lines, questions = entry[0], entry[1]
            passage = "\n".join(lines)
            asked = [(q["question"], tuple(q["choice"]), q["answer"]) for q in questions]
        except (LookupError, TypeError) as error:
            raise InputError(f"{where} is not [lines, questions with question, choice and answer, id]; "
                             "give a file of C3") from error
        for question, choices, answer in asked:
            if answer not in choices or not all(isinstance(c, str) and c.strip() for c in choices):
                raise InputError(f"{where}: the answer {answer!r} is not among the choices, or one of them is empty")
            context = C3.format(passage=passage, question=question)
            out.append(Question(context, choices, choices.index(answer), "", name))
    return out


def sample(questions: Sequence[Question], limit: int | None = None) -> list[Question]:
    """At most `limit` questions of each file, in an order that is random and always the same."""
    return sampled(questions, lambda question: question.file, limit)


def measure(
    model: Any, tokenizer: Tokenizer, questions: Sequence[Question], max_length: int | None = None,
    on_questions: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Figures by file; `on_questions` is told the questions done.

    Contexts that do not fit into `max_length` tokens (default: the model's max_seq_len) lose their beginning. After
    Ctrl-C the figures are of the questions that were done, and "partial".
    """
    length = max_length or model.config.max_seq_len

    def pairs(question: Question) -> list[Pair]:
        return [fitted(*encode_pair(tokenizer, question.context, question.before + choice), length)
                for choice in question.choices]

    scores = score_each(model, questions, pairs, on_questions)
    if not scores:
        raise InputError("not one question was scored; wait longer before Ctrl-C, or take a sample with --limit")
    files: dict[str, list[tuple[Question, list[Score]]]] = {}
    for question, own in zip(questions, scores, strict=False):
        files.setdefault(question.file, []).append((question, own))
    return {"max_length": length, "partial": len(scores) < len(questions),
            "files": {name: figures(found) for name, found in sorted(files.items())}}


def figures(found: Sequence[tuple[Question, list[Score]]]) -> dict[str, Any]:
    """All that is reported of one file: a perplexity of the last word, or an accuracy by bytes as well."""
    if all(len(question.choices) == 1 for question, _ in found):
        nats = -sum(scores[0][0] for _, scores in found) / len(found)
        return {"kind": "last word", **accuracy([float(scores[0][1]) for _, scores in found]),
                "perplexity": math.exp(nats)}
    by_sum = [credit([score for score, _ in scores], question.answer) for question, scores in found]
    by_byte = [credit([score / len(choice.encode()) for (score, _), choice in
                       zip(scores, question.choices, strict=True)], question.answer) for question, scores in found]
    return {"kind": "choice", **accuracy(by_sum), "by_byte": accuracy(by_byte),
            "chance": sum(1 / len(question.choices) for question, _ in found) / len(found)}
