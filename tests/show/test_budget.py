"""The demo's token budget: what fits into the minutes, written down before anything is trained, and kept."""

import json
import time

import pytest

from symboliclight.commands import cli
from symboliclight.core.errors import InputError
from symboliclight.show import budget
from symboliclight.show.budget import FEWEST, Budget, Pace, agreed, fit, probe, schedule
from symboliclight.show.demo import Demo, run_config

STEP = 16 * 256  # tokens
SIZES = [9000, 30_000, 400]  # held-out tokens of three domains


def seconds(steps, paces, sizes=SIZES):
    """What a demo of so many steps takes, counted without the code under test."""
    plan = schedule(steps, STEP)
    held_out = sum(min(size, plan.evaluated) + plan.validations * min(size, plan.validated) for size in sizes)
    return sum(steps * STEP / p.train + held_out / p.evaluate for p in paces)


@pytest.mark.parametrize("left", [60.0, 200.0, 400.0])
@pytest.mark.parametrize("paces", [[Pace(6600, 17_000), Pace(3900, 20_000)], [Pace(40_000, 90_000), Pace(9000, 800)]])
def test_the_budget_is_the_largest_that_fits(left, paces):
    steps, limit = fit(left, paces, STEP, 10**4, SIZES)
    assert limit == ("time" if steps * STEP > FEWEST else "least")
    assert (seconds(steps, paces) <= left or limit == "least") and seconds(steps + 1, paces) > left


def test_there_is_a_least_and_a_most():
    paces = [Pace(1000, 1000)]
    assert fit(-5, paces, STEP, 1000, SIZES) == (FEWEST // STEP, "least")
    assert fit(10**9, paces, STEP, 1000, SIZES) == (1000, "passes")


def test_the_schedule_follows_the_budget():
    assert schedule(1172, STEP) == budget.Schedule(12, 8192, 24_576)
    short = schedule(24, STEP)
    assert (short.validations, short.validated, short.evaluated) == (3, 3072, 3072)
    assert schedule(1, STEP).validations == 1


@pytest.fixture
def runs(small_shards):
    return {name: run_config(name, small_shards, Demo(), 1e-3) for name in ("tiny", "gpt2-tiny")}


def test_it_is_written_down_first_and_kept_without_measuring_again(runs, small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "probe", lambda run, shards: Pace(20_000, 50_000))
    first = agreed(tmp_path, None, 8, time.perf_counter() + 300, runs, small_shards)
    assert first.tokens % STEP == 0 and first.minutes == 8 and "8 min" in first.reason()
    monkeypatch.setattr(budget, "probe", lambda run, shards: pytest.fail("measured again"))
    assert agreed(tmp_path, None, 3, time.perf_counter() - 99, runs, small_shards) == first
    assert agreed(tmp_path, first.tokens, 8, 0, runs, small_shards) == first
    with pytest.raises(InputError, match=f"holds a demo of {first.tokens} tokens, not 200000"):
        agreed(tmp_path, 200_000, 8, 0, runs, small_shards)


def test_tokens_that_are_given_are_taken_without_measuring(runs, small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "probe", lambda run, shards: pytest.fail("measured"))
    found = agreed(tmp_path, 163_840, 8, 0, runs, small_shards)
    assert (found.tokens, found.minutes, found.reason()) == (163_840, None, "So many were asked for.")


def test_the_probe_measures_both_models(runs, small_shards, monkeypatch):
    monkeypatch.setattr(budget, "SECONDS", 0.0)
    monkeypatch.setattr(budget, "EVALUATED", 64)
    for run in runs.values():
        pace = probe(run, small_shards)
        assert pace.train > 0 and pace.evaluate > 0


@pytest.mark.parametrize(("limit", "words"), [
    ("time", "So many fit into 8 min"), ("least", "too short"), ("passes", f"{budget.PASSES} passes")])
def test_the_reason_is_a_sentence_with_what_was_measured(limit, words):
    text = Budget(FEWEST, 8, "float32", 2, {"a": Pace(6606.4, 1), "b": Pace(3916, 1)}, limit).reason()
    assert words in text and "on 2 threads in float32: 6,606 and 3,916 tokens a second" in text and text.endswith(").")


@pytest.mark.parametrize("text", ["{", "[]", '{"tokens": 5}', json.dumps({"paces": {"a": 1}})])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / budget.FILE).write_text(text)
    with pytest.raises(InputError, match=r"budget\.json is damaged"):
        budget.read(tmp_path / budget.FILE)


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "-3"], ["--minutes", "nan"], ["--minutes", "inf"],
                                   ["--tokens", "5"]])
def test_nonsense_is_refused_in_one_line(words, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), *words]) == 2
    err = capsys.readouterr().err
    assert words[0] in err and err.count("\n") == 1 and not (tmp_path / "demo").exists()


@pytest.mark.parametrize("words", [["--minutes", "soon"], ["--minutes", "3", "--tokens", "200000"]])
def test_what_the_parser_refuses_is_one_line_too(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", *words])
    assert capsys.readouterr().err.count("\n") == 1
