"""Other packages' readers on the exported files: snnTorch, Norse, spikingjelly and sinabs, spike by spike."""

import json

import numpy as np
import pytest

from symboliclight.commands import cli
from symboliclight.core import checkpoint
from symboliclight.interop.nir import dialects, files, readers

PARTS = ("encoder", "blocks.0.ffn", "blocks.1.spike")


@pytest.fixture(scope="session")
def inputs(exports, texts):
    """Signals of 300 tokens of English and then Chinese."""
    found = [readers.signals(exports["v1"], tokens[:150]) for tokens in texts.values()]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def rows_of(exports, inputs, reader, name, folder):
    (signal,) = exports["v1"].parts[name].reads.values()
    return readers.compare_part(reader, exports["v1"], name, inputs[signal], folder)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("reader", dialects.DIALECTS)
def test_every_reader_gives_the_files_spikes_in_its_dialect(exports, inputs, tmp_path, reader, part):
    pytest.importorskip(reader)
    (row,) = rows_of(exports, inputs, reader, part, tmp_path / "part")
    assert row["steps"] == 300 and row["spikes"] > 100
    assert row["differ"] == 0
    assert row.get("boundary", 0) == 0  # θ itself fires, the float32 below it does not
    if reader != "sinabs":
        assert row["as_loaded"] == 0


def test_sinabs_as_loaded_resets_by_subtraction_and_emits_several_spikes(exports, inputs, tmp_path):
    pytest.importorskip("sinabs")
    (row,) = rows_of(exports, inputs, "sinabs", "encoder", tmp_path / "part")
    assert row["as_loaded"] > 0
    dialect = dialects.rewrite(exports["v1"], "sinabs", ["blocks.0.spike"])
    files.write(tmp_path / "spike", dialect)
    x = np.tile(np.float32([0.5, 1.0, 2.0, 3.5]), 8)[None]
    file = tmp_path / "spike" / "blocks.0.spike.nir"
    counts = readers.read_part("sinabs", file, x, [], adapted=False)["output"]
    np.testing.assert_array_equal(counts[0, :4], [0, 1, 2, 3])
    ones = readers.read_part("sinabs", file, x, [])["output"]
    np.testing.assert_array_equal(ones[0, :4], [0, 1, 1, 1])


def test_the_plain_file_is_not_read_alike(exports, inputs, tmp_path):
    """What the dialects are for: without one, Norse divides the input by tau and sinabs takes tau for steps."""
    for reader in ("norse", "sinabs"):
        pytest.importorskip(reader)
        (row,) = rows_of(exports, inputs, reader, "encoder", tmp_path / "part")
        assert row["plain"] > 100
    pytest.importorskip("snntorch")
    (row,) = rows_of(exports, inputs, "snntorch", "blocks.0.ffn", tmp_path / "part")
    assert "Threshold" in row["plain"]


def test_sinabs_holds_the_integrators(exports, inputs, tmp_path):
    pytest.importorskip("sinabs")
    (row,) = rows_of(exports, inputs, "sinabs", "blocks.0.memory", tmp_path / "part")
    exact = readers.reference(exports["v1"].parts["blocks.0.memory"], inputs["spikes"])["blocks.0.mixer.decay"]
    assert row["held_as"] == "LI" and row["largest_difference"] < 1e-5 < np.abs(exact).max()


def test_what_the_missing_clamp_changes_is_counted(exports, texts):
    found = [readers.signals(exports["v1"], tokens) for tokens in texts.values()]
    count = readers.unclamped(exports["v1"], found)
    assert count["values"] == 2 * 520 * 32 and 0 < count["differ"] < count["values"] / 4
    free = [readers.signals(exports["decay-only"], texts["en_fiction"][:100])]
    assert readers.unclamped(exports["decay-only"], free)["differ"] == 0


def test_the_command_writes_what_the_page_shows(trained, small_tokenizer, tmp_path, capsys):
    pytest.importorskip("sinabs")
    checkpoint.save(tmp_path / "model", trained["v1"].config, trained["v1"].state_dict(), small_tokenizer)
    (tmp_path / "text").write_text("the sun rose over the old city. 春天的风", encoding="utf-8")
    command = ["neuro", "readers", "--model", str(tmp_path / "model"), "--text", str(tmp_path / "text"), "--out",
               str(tmp_path / "readers.json")]
    assert cli.main(command) == 0
    assert "encoder.lif" in capsys.readouterr().out
    found = json.loads((tmp_path / "readers.json").read_text())
    assert {row["reader"] for row in found["readers"]} <= set(dialects.DIALECTS)
    assert all(row["differ"] == 0 for row in found["readers"] if "differ" in row)
    assert {"reader": "sinabs", "part": "head"}.items() <= found["refused"][-1].items()
