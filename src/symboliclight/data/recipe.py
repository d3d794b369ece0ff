"""Recipe files: which documents of which files make a corpus, in TOML.

    validation = 0.01                    # fraction of the documents; test likewise
    evaluation_sets = "bench"            # folder; documents that share an n-gram of 13 with it are left out
    [words]                              # named lists; a document with `most_words` of them or more is left out
    crime = ["murder", "corpse"]
    [domains.en_stories]
    source = "simple/en_stories.txt.xz"  # below the folder given with --sources
    language = "en"
    repeats = {pretrain = 1}             # passes over the domain in each phase; its weight is tokens x repeats
    without = "crime"

The other keys are those of `Domain`.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Domain:
    """Where a domain comes from, and what of it is kept. Sizes are UTF-8 bytes."""

    source: str
    language: str
    repeats: dict[str, float]  # phase -> passes; absent: the phase leaves the domain out
    group: str = "texts"  # near-duplicates are looked for among the domains of one group
    max_mb: float | None = None  # documents are taken in their order up to this many million bytes
    shortest: int = 1
    longest: int | None = None
    only: str | None = None  # regular expression that a document must hold
    never: str | None = None  # regular expression that no document may hold
    drop_lines: str | None = None  # regular expression of lines that are left out
    without: str | None = None  # name of a word list
    most_words: int = 2  # a document with this many words of the list, or more, is left out
    turns: list[list[str]] = field(default_factory=list)  # pairs of marks, user's and assistant's; empty: plain text
    requests: list[str] = field(default_factory=list)  # each document answers one of these
    topics: list[str] = field(default_factory=list)  # the first of them that a text names is its {topic} in a request


@dataclass(frozen=True)
class Recipe:
    """A whole recipe file."""

    domains: dict[str, Domain]
    validation: float = 0.01
    test: float = 0.01
    ngram: int = 5  # of near-duplicates
    bands: int = 14
    rows: int = 8
    evaluation_sets: str | None = None
    evaluation_ngram: int = 13
    words: dict[str, list[str]] = field(default_factory=dict)

    @property
    def phases(self) -> list[str]:
        """Names of the phases, sorted."""
        return sorted({phase for domain in self.domains.values() for phase in domain.repeats})


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; raises `InputError` naming what is wrong in it."""
    path = Path(path)
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML ({error}); correct it") from error
    tables = body.get("domains")
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"recipe {path} names no domain; add a table [domains.NAME]")
    domains = {name: _checked(Domain, table, f"recipe {path}: domain {name}") for name, table in tables.items()}
    recipe: Recipe = _checked(Recipe, {**body, "domains": domains}, f"recipe {path}")
    for name, domain in domains.items():
        _check_domain(domain, recipe, f"recipe {path}: domain {name}")
    if min(recipe.ngram, recipe.bands, recipe.rows, recipe.evaluation_ngram) < 1 or recipe.bands > 255:
        raise InputError(f"recipe {path}: ngram, bands (at most 255), rows and evaluation_ngram must be positive")
    return recipe


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"), "int": ((int,), "a whole number"), "float": ((int, float), "a number"),
    "dict": ((dict,), "a table"), "list": ((list,), "a list")}


def _checked(kind: Callable[..., Any], table: dict[str, Any], where: str) -> Any:
    """`kind(**table)` after checking that its keys are known and there, and of the right type."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown key {', '.join(unknown)}; known are: {', '.join(known)}")
    missing = [name for name, f in known.items()
               if f.default is MISSING and f.default_factory is MISSING and name not in table]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} is missing; add it")
    for name, value in table.items():
        types, word = _KINDS[re.split(r"\W", str(getattr(known[name].type, "__name__", known[name].type)))[0]]
        if not isinstance(value, types) or isinstance(value, bool):
            raise InputError(f"{where}: {name} must be {word}, got {value!r}")
    return kind(**table)


def _check_domain(domain: Domain, recipe: Recipe, where: str) -> None:
    for name in ("only", "never", "drop_lines"):
        _check_pattern(getattr(domain, name) or "", f"{where}: {name}")
    if not domain.repeats or not all(isinstance(n, int | float) and 0 < n < 1e6 for n in domain.repeats.values()):
        raise InputError(f"{where}: repeats must give a positive number for each phase, as in {{pretrain = 1}}")
    if domain.without is not None and domain.without not in recipe.words:
        raise InputError(f"{where}: there is no word list {domain.without!r} under [words]; add it")
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(str, pair)) for pair in domain.turns):
        raise InputError(f'{where}: turns must be pairs of marks, as in [["Q:", "A:"]]')
    if domain.turns and domain.requests:
        raise InputError(f"{where}: has both turns and requests; choose one")
    if any("{topic}" in text for text in domain.requests) and all("{topic}" in text for text in domain.requests):
        raise InputError(f"{where}: every request has a {{topic}}; add one without, for texts that name none")


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{where} is not a regular expression ({error}); correct it") from error
