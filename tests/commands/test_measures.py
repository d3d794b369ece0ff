"""eval --pairs, --cloze and --words as a person calls them: tables, files, charts, exit codes, mistakes."""

import json
import math

import pytest

from symboliclight.commands import cli
from symboliclight.measure import items

PAIRS = [("The cat sleeps.", "The cat sleep."), ("Nobody sees the river.", "Nobody see the river."),
         ("The light is old.", "The light are old."), ("A river.", "A river.")]
CORPUS = " = City = \n \n The sun rose over the <unk> city . \n Nobody in the house was awake . \n"


@pytest.fixture(autouse=True)
def only_this_command(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("eval",))


@pytest.fixture
def call(capsys, small_checkpoint):
    def run(*arguments, code=0):
        assert cli.main(["eval", "--model", str(small_checkpoint), *map(str, arguments)]) == code
        return capsys.readouterr()
    return run


@pytest.fixture
def blimp(tmp_path):
    folder = tmp_path / "blimp"
    folder.mkdir()
    for name in ("agreement_1", "agreement_2"):
        rows = [{"sentence_good": good, "sentence_bad": bad, "field": "morphology", "linguistics_term": "agreement",
                 "UID": name} for good, bad in PAIRS[: 3 + (name == "agreement_2")]]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.mark.needs("matplotlib")
def test_pairs_of_a_folder_make_a_table_a_file_and_a_chart(call, blimp, tmp_path):
    out, chart = tmp_path / "found.json", tmp_path / "found.svg"
    shown = call("--pairs", blimp, "--precision", "float32", "--threads", 1, "--out", out, "--chart", chart)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["kind"], found["precision"], found["limit"], found["partial"]) == ("pairs", "float32", None, False)
    lines = [line.split() for line in shown.out.splitlines()]
    for name, count in (("agreement_1", "3"), ("agreement_2", "4")):
        row = found["paradigms"][name]
        assert [name, "agreement", count, f"{row['accuracy']:.2%}"] in [line[:4] for line in lines]
    assert ["agreement", "7", f"{found['phenomena']['agreement']['accuracy']:.2%}"] in [line[:3] for line in lines]
    assert shown.err.count("\n") == 1 and f"{blimp / 'agreement_2.jsonl'}:4 has two equal sentences" in shown.err
    svg = chart.read_text(encoding="utf-8")
    assert "agreement (7)" in svg and "all pairs (7)" in svg


@pytest.mark.needs("torch")
def test_the_runtime_and_torch_find_the_same(call, blimp):
    both = [json.loads(call("--pairs", blimp, "--json", *options).out) for options in ((), ("--precision", "float32"))]
    assert both[0]["paradigms"] == both[1]["paradigms"] and both[0]["precision"] == "torch"


def test_limit_takes_a_sample_of_each_paradigm(call, blimp):
    found = json.loads(call("--pairs", blimp, "--limit", 2, "--json").out)
    assert found["all"]["count"] == 4 and found["limit"] == 2


def test_cloze_has_one_row_a_file(call, tmp_path):
    words, questions = tmp_path / "lambada.jsonl", tmp_path / "valid.jsonl"
    words.write_text('{"text": "The light fell on the river"}\n', encoding="utf-8")
    questions.write_text('{"goal": "see", "sol1": "look up", "sol2": "sleep"}\n', encoding="utf-8")
    (tmp_path / "valid-labels.lst").write_text("1\n", encoding="utf-8")
    shown = call("--cloze", words, questions, "--seq-len", 50).out.splitlines()
    found = json.loads(call("--cloze", words, questions, "--seq-len", 50, "--json").out)
    assert found["max_length"] == 50 and found["files"][str(questions)]["kind"] == "choice"
    assert shown[1].split()[:3] == [str(words), "1", "0.00%"] and shown[1].endswith(
        f"{found['files'][str(words)]['perplexity']:,.2f}")
    assert shown[2].startswith(str(questions)) and shown[2].endswith("50.00%")


@pytest.mark.parametrize("precision", [(), ("--precision", "int8")])
def test_words_print_both_ways(call, tmp_path, precision):
    file = tmp_path / "wiki.test.tokens"
    file.write_text(CORPUS, encoding="utf-8")
    shown = call("--words", file, "--windows", 20, *precision).out.splitlines()
    found = json.loads(call("--words", file, "--windows", 20, "--json", *precision).out)
    assert (found["words"], found["line_ends"], found["window"]) == (18, 4, 20)
    for line, name, way in ((shown[1], "state carried", "carried"), (shown[2], "windows of 20 pieces", "windows")):
        own = found[way]
        assert line.split() == [*name.split(), "22", f"{own['perplexity']:,.2f}", f"{own['word_perplexity']:,.2f}",
                                f"{own['bits_per_byte']:.4f}"]
        assert own["perplexity"] == pytest.approx(math.exp(own["nats"] / 22))


def test_ctrl_c_prints_what_is_done_and_says_so(call, blimp, monkeypatch):
    monkeypatch.setattr(items, "AT_ONCE", 2)
    score, calls = items.loglikelihoods, []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(items, "loglikelihoods", interrupted)
    shown = call("--pairs", blimp, code=1)
    assert "Interrupted: the figures are of the part that was done." in shown.out
    assert [line.split()[2] for line in shown.out.splitlines() if line.startswith("all pairs")] == ["4"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--pairs", "F", "--words", "F"], "give either"), (["--pairs", "F", "--tasks", "piqa"], "give either"),
    (["--pairs", "F", "--operations"], "--operations counts"), (["--pairs", "F", "--limit", 0], "--limit must be"),
    (["--words", "F", "--limit", 3], "--words reads the whole file"),
    (["--words", "F", "--windows", 0], "--windows must be positive"),
    (["--pairs", "F", "--windows", 3], "--windows goes with --words"),
    (["--pairs", "F", "--seq-len", 3], "--seq-len goes with"),
    (["--pairs", "F", "--chart", "a.pdf"], "must end with .svg or .png"),
    (["--cloze", "F", "--chart", "a.svg"], "--chart draws what --pairs found"),
    (["--text", "F", "--threads", 1], "--threads goes with"), (["--words", "F"], "F has no words"),
    (["--pairs", "F"], "F holds no minimal pair"), (["--cloze", "F"], "F holds no question"),
    (["--pairs", "N"], "cannot read"), (["--pairs", "D"], "D has no .jsonl file"),
])
def test_mistakes_are_one_line(call, tmp_path, arguments, message):
    (tmp_path / "empty").write_text(" \n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    places = {"F": tmp_path / "empty", "D": tmp_path / "folder", "N": tmp_path / "nothing"}
    shown = call(*(places.get(a, a) for a in arguments), code=2)
    for name, place in places.items():
        message = message.replace(f"{name} h", f"{place} h")
    assert shown.out == "" and shown.err.count("\n") == 1 and message in shown.err, shown.err
