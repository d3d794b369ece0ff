"""Recipes: each reason for which a document goes, splits shared by near-duplicates, phases, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from symboliclight.core.errors import InputError
from symboliclight.data.corpus import SPLITS, Corpus
from symboliclight.data.recipe import Domain, Recipe, read_recipe
from symboliclight.data.recipe_corpus import REASONS, build_recipe, recipe_report
from symboliclight.data.shards import Shards, build_shards

WORDS = [f"word{i}" for i in range(2000)]


def story(seed, words=80):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def write(folder, **files):
    for name, documents in files.items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def domain(source="a.txt", **options):
    return Domain(source, "en", options.pop("repeats", {"all": 1}), **options)


def build(folder, domains, **options):
    corpus = build_recipe(Recipe(domains, **options), folder, folder / "out", replace=True)
    return corpus, {name: {k: v for k, v in d["removed"].items() if v}
                    for name, d in recipe_report(corpus)["domains"].items()}


def texts(corpus, name):
    return [text for split in SPLITS for text in corpus.documents(name, split)]


def test_every_document_that_goes_is_counted_by_its_reason(tmp_path):
    kept = story(0)
    write(tmp_path, a=["short", story(1, 500), "NEVER " + story(2), story(3) + " murder, Murder!",
                       "a murder " + story(4),
                       kept, kept,
                       kept + " more", story(5), story(6), story(7)])
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "s.txt").write_text(" ".join(story(5).split()[20:40]))
    corpus, removed = build(tmp_path, {"a": domain(shortest=10, longest=2000, never="^NEVER", without="crime",
                                                   max_mb=1.5e-3)},
                            words={"crime": ["murder"]}, evaluation_sets="sets")
    assert removed["a"] == {"too_short": 1, "too_long": 1, "pattern": 1, "words": 1, "duplicates": 1,
                            "near_duplicates": 1, "quotes": 1, "cap": 1}
    assert sorted(texts(corpus, "a")) == sorted(["a murder " + story(4), kept, story(6)])
    assert len(texts(corpus, "a")) + sum(removed["a"].values()) == 11


def test_a_domain_may_ask_for_a_pattern_and_drop_lines(tmp_path):
    write(tmp_path, a=["Chapter 1\nwww.site.net\ntext", "Preface\ntext"])
    corpus, removed = build(tmp_path, {"a": domain(only="^Chapter", drop_lines=r"www\.")})
    assert texts(corpus, "a") == ["Chapter 1\ntext"]
    assert removed["a"] == {"pattern": 1}


def test_the_first_of_a_group_stays_and_groups_do_not_see_each_other(tmp_path):
    stories = [story(i) for i in range(20)]
    write(tmp_path, a=stories, b=[f"extra {text}" for text in stories])
    _, same = build(tmp_path, {"a": domain(), "b": domain("b.txt")})
    assert same == {"a": {}, "b": {"near_duplicates": 20}}
    corpus, apart = build(tmp_path, {"a": domain(), "b": domain("b.txt", group="requests")})
    assert apart == {"a": {}, "b": {}}
    assert len(texts(corpus, "b")) == 20


def test_near_duplicates_of_other_groups_are_in_the_same_split(tmp_path):
    stories = [story(i, 200) for i in range(60)]
    write(tmp_path, a=stories)
    corpus, _ = build(tmp_path, {"a": domain(), "b": domain(group="told", requests=["Tell me a story."])},
                      validation=0.3, test=0.3)
    for split in SPLITS:
        told = [turns[1][1] for turns in corpus.records("b", split)]
        assert told == list(corpus.documents("a", split)) and told


def test_requests_name_the_topic_of_the_text(tmp_path):
    write(tmp_path, a=["A fox met a Fox. The fox ran, and a cat.", "A fox. A cat. Nothing three times."])
    corpus, _ = build(tmp_path, {"a": domain(requests=["A story.", "About a {topic}."], topics=["cat", "fox"])})
    asked = {turns[1][1][:9]: turns[0] for split in SPLITS for turns in corpus.records("a", split)}
    assert asked == {"A fox met": ("user", "About a fox."), "A fox. A ": ("user", "A story.")}


def test_phases_choose_domains_and_repeats_of_the_shards(tmp_path, small_tokenizer):
    write(tmp_path, a=[story(i) for i in range(30)], b=[f"Q: {story(i)}\nA: <|end|>" for i in range(30, 60)])
    corpus, _ = build(tmp_path, {"a": domain(repeats={"first": 3}), "b": domain("b.txt", turns=[["Q:", "A:"]],
                                                                                 repeats={"first": 1, "second": 2})})
    second = build_shards(corpus, small_tokenizer, tmp_path / "second", phase="second")
    assert second.domains("train") == ["b"] and second.repeats == {"b": 2}
    first = build_shards(corpus, small_tokenizer, tmp_path / "first", phase="first")
    assert Shards.open(tmp_path / "first", verify=True).repeats == first.repeats == {"a": 3, "b": 1}
    ids, end = first.tokens("train", "b"), small_tokenizer.special("end")
    assert (ids == end).sum() == 2 * first.splits["train"]["b"]["documents"]  # what the text holds is not one of them
    for wrong, message in ((None, "add --phase with one of: first, second"), ("third", "has no phase 'third'")):
        with pytest.raises(InputError, match=message):
            build_shards(corpus, small_tokenizer, tmp_path / "third", phase=wrong)


def test_the_same_recipe_gives_the_same_corpus(tmp_path):
    write(tmp_path, a=[story(i) for i in range(20)])
    first, _ = build(tmp_path, {"a": domain()})
    second, _ = build(tmp_path, {"a": domain()})
    assert first.data_hash == second.data_hash
    assert Corpus(tmp_path / "out").manifest["recipe"]["bands"] == 14
    assert set(recipe_report(second)["domains"]["a"]["removed"]) == set(REASONS)


GOOD = '[domains.a]\nsource = "a.txt"\nlanguage = "en"\nrepeats = {all = 1}\n'


@pytest.mark.parametrize(("text", "message"), [
    ("x = ", "not valid TOML"), ("test = 0.1", "names no domain"), ("colour = 1\n" + GOOD, "unknown key colour"),
    (GOOD + "caps = 3", "domain a: unknown key caps"),
    ('[domains.a]\nsource = "a.txt"', "language, repeats is missing"),
    (GOOD + 'max_mb = "big"', "max_mb must be a number, got 'big'"), (GOOD + "source_ = 1", "unknown key source_"),
    (GOOD + 'longest = 2.5', "longest must be a whole number"),
    (GOOD + "only = '('", "only is not a regular expression"),
    (GOOD + 'without = "crime"', "no word list 'crime'"), (GOOD + 'turns = [["Q:"]]', "turns must be pairs"),
    (GOOD.replace("all = 1", "all = -1"), "a positive number for each phase"),
    ("bands = 0\n" + GOOD, "must be positive"),
    (GOOD + 'requests = ["About a {topic}."]', "add one without"),
    (GOOD + 'requests = ["Tell."]\nturns = [["Q:", "A:"]]', "both turns and requests")])
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=r"r\.toml") as error:
        read_recipe(tmp_path / "r.toml")
    assert message in str(error.value)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read recipe .*none.toml"):
        read_recipe(tmp_path / "none.toml")


def test_the_recipe_of_the_repository_is_valid():
    file = Path(__file__).parents[2] / "recipes" / "simple.toml"
    recipe = read_recipe(file)
    assert recipe.phases == ["answers", "pretrain"]
    assert recipe.domains["zh_chat"].max_mb <= 6
    assert 3 <= recipe.domains["en_child_stories"].repeats["pretrain"] <= 4
    assert all(d.turns or d.requests for d in recipe.domains.values() if "answers" in d.repeats)
    assert json.dumps(recipe.words)
