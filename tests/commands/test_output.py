"""Tables in a terminal, wide and narrow, and in a file."""

import json
from pathlib import Path

import pytest

from symboliclight.commands import bench, output

RESULTS = sorted((Path(__file__).parents[2] / "results").glob("bench-*.json"))
HEADER = ("text", "tokens", "perplexity")
ROWS = [("zh_modern", 16384, "60.7"), ("中文故事", 5, "")]


def test_a_table_that_fits_is_aligned_by_columns_of_the_terminal(capsys):
    output.print_table(HEADER, ROWS, width=40)
    assert capsys.readouterr().out == ("text       tokens  perplexity\n"
                                       "zh_modern  16,384        60.7\n"
                                       "中文故事        5\n")


def test_a_table_that_does_not_fit_names_each_figure(capsys):
    output.print_table(HEADER, ROWS, width=20)
    assert capsys.readouterr().out == ("zh_modern\n  tokens 16,384\n  perplexity 60.7\n中文故事\n  tokens 5\n")


def test_a_file_gets_the_whole_table(capsys):
    output.print_table([f"column {i}" for i in range(60)], [range(60)])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("file", RESULTS, ids=lambda p: p.stem)
@pytest.mark.parametrize("width", [80, 50])
def test_benchmarks_fit_the_terminal_and_lose_no_row(file, width, capsys, monkeypatch):
    monkeypatch.setattr(bench, "terminal_width", lambda: width)
    rows = json.loads(file.read_text())["rows"]
    bench.print_rows(file.stem, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(" to " in line and line.startswith("  ") for line in lines) == len(rows)


def test_rows_that_differ_in_precision_share_a_heading():
    rows = [{"name": f"decode v1-194m {p} against gpt2-201m {q}", "unit": "tokens/s"}
            for p, q in (("float32", "F32"), ("int8", "Q8_0"))]
    rows.append({"name": "decode v1-194m: certified against float32, same spikes", "unit": "tokens/s"})
    found = {heading: [label for label, _ in rows] for (heading, _), rows in bench.grouped(rows).items()}
    assert found == {"decode v1-194m against gpt2-201m": ["float32 F32", "int8 Q8_0"],
                     "decode v1-194m: against float32, same spikes": ["certified"]}
