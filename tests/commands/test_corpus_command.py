"""`symboliclight corpus` and `symboliclight tokenizer`, from files to shards, as a person runs them."""

import io
import json
import lzma
from pathlib import Path

import pytest

from symboliclight.commands import cli
from symboliclight.core.errors import LeftOut

DEMO = Path(cli.__file__).parents[1] / "data" / "demo"
RECIPE = '[domains.a]\nsource = "a.txt"\nlanguage = "en"\nrepeats = {first = 2}\nturns = [["Q:", "A:"]]\n'


@pytest.fixture(autouse=True)
def only_these_commands(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("corpus", "tokenizer"))


@pytest.fixture
def run(capsys):
    """Run one command; returns (exit code, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus of two demo files, a tokenizer of 1024 pieces and the shards."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "text").mkdir()
    for name in ("zh_poetry", "en_reference"):
        (folder / "text" / f"{name}.txt.xz").write_bytes((DEMO / f"{name}.txt.xz").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "COMMANDS", ("corpus", "tokenizer"))
        for argv in (["corpus", "build", "--source-dir", folder / "text", "--out", folder / "corpus"],
                     ["tokenizer", "train", folder / "corpus", "--vocab-size", 1024, "--out", folder / "t.model"],
                     ["corpus", "shards", folder / "corpus", "--tokenizer", folder / "t.model", "--out",
                      folder / "shards"]):
            assert cli.main([str(a) for a in argv]) == 0
    return folder


def test_the_demo_corpus_is_one_command(run, tmp_path):
    code, out, err = run("corpus", "demo", "--out", tmp_path / "c", "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)["domains"]) == {f.name.split(".")[0] for f in DEMO.glob("*.xz")}


def test_sources_may_be_named_and_joined(run, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    code, _, _ = run("corpus", "build", "--source", f"x={tmp_path}/a.txt,{tmp_path}/b.txt", "--source",
                     f"y={tmp_path}/c.txt", "--out", tmp_path / "out", "--validation", 0, "--test", 0)
    info = json.loads(run("corpus", "info", tmp_path / "out", "--json")[1])
    assert code == 0
    assert {name: d["splits"]["train"]["documents"] for name, d in info["domains"].items()} == {"x": 2, "y": 1}


def test_as_text_reads_what_is_refused_otherwise_and_what_a_folder_leaves_out_is_said(run, tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page.html").write_text("<p>text</p>")
    (tmp_path / "pages" / "rows.jsonl").write_text('{"text": "row"}\n')
    fractions = ("--validation", 0, "--test", 0)
    with pytest.warns(LeftOut, match=r"left out of .*page\.html"):
        assert run("corpus", "build", "--source", f"a={tmp_path}/pages", "--out", tmp_path / "out", *fractions)[0] == 0
    code, _, err = run("corpus", "build", "--source", f"a={tmp_path}/pages", "--out", tmp_path / "all", "--as", "text",
                       *fractions)
    assert (code, err) == (0, "")
    assert (tmp_path / "all" / "train" / "a.jsonl").read_text() == '{"text": "<p>text</p>"}\n{"text": "row"}\n'


def test_info_shows_corpus_and_shards_in_numbers_that_agree_with_json(run, built):
    _, table, _ = run("corpus", "info", built / "corpus", "--verify")
    corpus = json.loads(run("corpus", "info", built / "corpus", "--json")[1])
    documents = corpus["domains"]["zh_poetry"]["splits"]["train"]["documents"]
    assert f"zh_poetry     {documents:,}" in table
    assert corpus["data_hash"] in table
    _, table, _ = run("corpus", "info", built / "shards", "--verify")
    shards = json.loads(run("corpus", "info", built / "shards", "--json")[1])
    assert f"{shards['splits']['train']['zh_poetry']['tokens']:,}" in table
    assert shards["data_hash"] == corpus["data_hash"]


def test_a_domain_without_validation_documents_is_pointed_out(run, tmp_path):
    (tmp_path / "a.txt").write_text("one document")
    _, out, _ = run("corpus", "build", "--source", f"a={tmp_path}/a.txt", "--out", tmp_path / "out", "--test", 0,
                    "--validation", 0)
    assert "note: a has no validation and no test document" in out


def test_the_report_gives_bytes_per_token_of_each_domain(run, built):
    report = json.loads(run("tokenizer", "report", built / "corpus", "--tokenizer", built / "t.model", "--json")[1])
    corpus = json.loads(run("corpus", "info", built / "corpus", "--json")[1])
    for name, counts in corpus["domains"].items():
        measured = report["domains"][name]
        assert measured["bytes"] == counts["splits"]["validation"]["bytes"]
        assert measured["bytes_per_token"] == measured["bytes"] / measured["tokens"] > 1
    assert report["domains"]["total"]["tokens"] == sum(report["domains"][n]["tokens"] for n in corpus["domains"])
    _, table, _ = run("tokenizer", "report", built / "corpus", "--tokenizer", built / "t.model")
    assert f"{report['domains']['total']['bytes_per_token']:.3f}" in table


def test_a_small_vocabulary_says_that_characters_do_not_fit(run, built, tmp_path):
    argv = ("tokenizer", "train", built / "corpus", "--vocab-size", 1024, "--out", tmp_path / "t.model")
    _, out, _ = run(*argv)
    assert "note: 99.99% do not fit" in out
    assert (tmp_path / "t.model").read_bytes() == (built / "t.model").read_bytes()
    code, _, err = run(*argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "--replace" in err
    figures = json.loads(run(*argv, "--replace", "--json")[1])
    assert figures["coverage"] < 0.99
    assert figures["sample_bytes"]["chinese"] == figures["sample_bytes"]["other"]


def test_encode_and_decode_are_inverse_through_pipes(run, built, monkeypatch):
    text = " 春眠\n\t不覺曉  dawn \n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    _, ids, _ = run("tokenizer", "encode", "--tokenizer", built / "t.model", "--bos", "--eos")
    assert ids.split()[0] == "1" and ids.split()[-1] == "2"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ids.encode())))
    assert run("tokenizer", "decode", "--tokenizer", built / "t.model")[1] == text
    listed = json.loads(run("tokenizer", "encode", text, "--tokenizer", built / "t.model", "--json")[1])["ids"]
    decoded = run("tokenizer", "decode", *listed, "--tokenizer", built / "t.model", "--json")[1]
    assert json.loads(decoded)["text"] == text


def test_a_recipe_becomes_a_corpus_a_report_and_the_shards_of_a_phase(run, built, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("Q: One?\nA: Two.\n\nno turns\n")
    code, out, _ = run("corpus", "recipe", tmp_path / "r.toml", "--sources", tmp_path, "--out", tmp_path / "c",
                       "--report", tmp_path / "report.json")
    assert code == 0
    assert "near duplicates" in out
    report = json.loads((tmp_path / "report.json").read_text())["domains"]["a"]
    assert (report["kept"], report["removed"]["no_turns"]) == (1, 1)
    shards = ("corpus", "shards", tmp_path / "c", "--tokenizer", built / "t.model", "--out", tmp_path / "s", "--json")
    code, out, err = run(*shards)
    assert (code, out) == (2, "")
    assert "add --phase with one of: first" in err
    code, out, _ = run(*shards, "--phase", "first")
    assert code == 0
    assert json.loads(out)["repeats"] == {"a": 2}
    assert run("corpus", "info", tmp_path / "c")[0] == run("corpus", "info", tmp_path / "s")[0] == 0


@pytest.mark.parametrize(("argv", "message"), [
    (["corpus", "build", "--out", "o"], "no sources"),
    (["corpus", "build", "--source", "a", "--out", "o"], "--source a must look like NAME=PATH"),
    (["corpus", "build", "--source", "a=nowhere.txt", "--out", "o"], "nowhere.txt"),
    (["corpus", "build", "--source", "a=bin.txt", "--out", "o"], "bin.txt is binary"),
    (["corpus", "build", "--source", "a=empty.txt", "--out", "o"], "empty.txt is empty"),
    (["corpus", "build", "--source", "a=page.html", "--out", "o"], "page.html: files that end in .html are not read"),
    (["corpus", "build", "--source", "a=table.csv", "--out", "o"], "table.csv has no column 'text'; choose one with"),
    (["corpus", "build", "--source", "a=cut.txt.xz", "--out", "o"], "cut.txt.xz is damaged"),
    (["corpus", "demo", "--out", "o", "--test", "2"], "--validation and --test"),
    (["corpus", "shards", ".", "--tokenizer", "t", "--out", "o"], "corpus.json"),
    (["corpus", "recipe", "none.toml", "--sources", ".", "--out", "o"], "cannot read recipe none.toml"),
    (["corpus", "recipe", "r.toml", "--sources", ".", "--out", "o"], "no file a.txt for domain a; check --sources"),
    (["corpus", "recipe", "wrong.toml", "--sources", ".", "--out", "o"], "domain a: unknown key caps"),
    (["corpus", "info", "."], "manifest.json"),
    (["tokenizer", "encode", "x", "--tokenizer", "bin.txt"], "bin.txt is not a SentencePiece model"),
    (["tokenizer", "decode", "1", "x", "--tokenizer", "bin.txt"], "token id 'x'"),
    (["tokenizer", "train", ".", "--vocab-size", "1024", "--out", "t", "--coverage", "2"], "--coverage")])
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("bin.txt").write_bytes(b"\0\1\2\n")
    Path("empty.txt").touch()
    Path("page.html").write_text("<p>text</p>")
    Path("table.csv").write_text("id,content\n1,a\n")
    Path("r.toml").write_text(RECIPE)
    Path("wrong.toml").write_text(RECIPE + "caps = 1")
    Path("cut.txt.xz").write_bytes(lzma.compress(b"text" * 100)[:-8])
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not Path("o").exists()
