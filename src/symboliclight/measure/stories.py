"""A story test: first answers to fixed openings, and what a check without understanding can see of them.

A story passes a check, or the check has nothing to look at and passes:

- `ends`: the model ended the text itself.
- `repeats_no_sentence`: no sentence of at least `LONG` characters comes twice, opening included.
- `keeps_its_people`: it does not bring in a new name while never coming back to one of the opening. Names in English
  are words that begin with a capital inside a sentence and are never written small; in Chinese 小 or 老 and a
  character, as in 小明, 小熊, 老虎.
- `keeps_its_language`: at least 19 of 20 letters belong to the script of the opening.
"""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.distribution import Sampling
from symboliclight.generate.sampling import generate

CHECKS = ("ends", "repeats_no_sentence", "keeps_its_people", "keeps_its_language")
LONG = 8  # characters of a sentence that may not come twice
LANGUAGE = 0.95
_SENTENCES = re.compile(r"[.!?。！？\n]+[\"'”’」』]*\s*")
_INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")  # a capital after a word: no beginning of a sentence
_CHINESE_NAME = re.compile(r"[小老]([一-鿿])")
_NO_NAMES = frozenset("时心的小是人家声学孩子朋友伙组路河溪屋事偷说话虽师实远年板是了在大去早天爷奶奶婆")
_TITLES = frozenset((
    "Mom", "Mommy", "Mum", "Mummy", "Mama", "Dad", "Daddy", "Papa", "Grandma", "Grandpa", "Granny", "Mr", "Mrs", "Miss",
    "Ms", "God", "Christmas", "Halloween", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
    "Sunday"))
_HAN, _LATIN = re.compile(r"[一-鿿]"), re.compile(r"[A-Za-z]")


def read_openings(path: Path) -> list[str]:
    """One opening a line; empty lines and lines that begin with # are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a UTF-8 text file with an opening a line") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise InputError(f"{path} holds no opening; write one a line")
    return found


def measure(
    model: Any, tokenizer: Tokenizer, openings: Sequence[str], how: Sampling, max_tokens: int = 300, seed: int = 0,
    stop_ids: Collection[int] | None = None, on_story: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """The first answer to each opening with `seed`, what each check says, and the share that passes, by language.

    `stop_ids` end a story, by default the eos.
    """
    stories: list[dict[str, Any]] = []
    for opening in openings:
        written = generate(model, tokenizer, [tokenizer.encode(opening, bos=True)], max_tokens, how, stop_ids=stop_ids,
                           seed=seed)[0]
        checks = check(opening, written.text, written.finish == "stop")
        stories.append({"opening": opening, "text": written.text, "tokens": len(written.ids), **checks})
        on_story(1)
    groups = {"all": stories, **{name: [s for s in stories if _script(s["opening"]) is script]
                                 for name, script in (("en", _LATIN), ("zh", _HAN))}}
    shares = {name: {key: sum(s[key] for s in group) / len(group) for key in (*CHECKS, "passes")}
              for name, group in groups.items() if group}
    return {"shares": shares, "stories": stories}


def check(opening: str, text: str, ended: bool) -> dict[str, bool]:
    """What each check says of one story."""
    found = {"ends": ended, "repeats_no_sentence": not repeats(opening + text),
             "keeps_its_people": not drops(opening, text), "keeps_its_language": share_of(opening, text) >= LANGUAGE}
    return {**found, "passes": all(found.values())}


def repeats(text: str) -> list[str]:
    """Sentences that come twice, without regard to capitals."""
    sentences = [s.strip().lower() for s in _SENTENCES.split(text)]
    long = [s for s in sentences if len(s) >= LONG]
    return sorted({s for s in long if long.count(s) > 1})


def names(text: str) -> set[str]:
    """Who is named in a text."""
    words = set(re.findall(r"[A-Za-z]+", text))
    english = {name for name in _INSIDE.findall(text) if name not in _TITLES and name.lower() not in words}
    return english | {found[0] for found in _CHINESE_NAME.finditer(text) if found[1] not in _NO_NAMES}


def drops(opening: str, text: str) -> bool:
    """Whether the people of the opening do not come back although new ones are named."""
    whole = names(opening + text)
    known = {name for name in whole if name in opening}
    return bool(known) and not any(name in text for name in known) and bool(whole - known)


def share_of(opening: str, text: str) -> float:
    """Share of letters of `text` that belong to the script of the opening; 1 without letters."""
    own = len(_script(opening).findall(text))
    letters = len(_HAN.findall(text)) + len(_LATIN.findall(text))
    return own / letters if letters else 1.0


def _script(text: str) -> re.Pattern[str]:
    return _HAN if _HAN.search(text) else _LATIN
