"""The example notebook: its cells run in order, with and without a trained model at hand, and it is committed clean."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "spikes.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def run(namespace, name, source):
    """Execute a cell; returns the value of a last expression, as a notebook shows it."""
    tree = ast.parse(source, name)
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    return eval(compile(ast.Expression(shown.value), name, "eval"), namespace) if shown else None


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def test_every_cell_runs(trained, small_checkpoint, tmp_path, monkeypatch, capsys):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    if trained:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "tiny").symlink_to(small_checkpoint)
    namespace, shown = {"__name__": "__main__"}, []
    for name, source in code_cells():
        shown.append(run(namespace, name, source))
    plt.close("all")
    out = capsys.readouterr().out
    assert out.startswith("a trained model" if trained else "no demo/tiny: an untrained model")
    pictures = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(pictures) == 2 and all(p.startswith("<svg") for p in pictures) and ">春" in pictures[1]
    assert "encoder    English" in out and "units of the encoder that differ" in out
    differ = ast.literal_eval(out.rpartition("that differ from the first")[2].partition(":")[2].splitlines()[0].strip())
    assert len(differ) == 3 and sum(differ) > 0
    assert "English" in (tmp_path / "raster.html").read_text(encoding="utf-8")


def test_the_notebook_is_committed_without_outputs():
    body = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert body["nbformat"] == 4 and len({cell["id"] for cell in body["cells"]}) == len(body["cells"])
    assert all(not c["outputs"] and c["execution_count"] is None for c in body["cells"] if c["cell_type"] == "code")
