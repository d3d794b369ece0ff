"""What a run computes in is chosen once, written down and kept."""

import json
import warnings

import pytest
from training import go, lines, with_train

from symboliclight.core import processor
from symboliclight.core.errors import InputError, Slow
from symboliclight.train import precision


@pytest.fixture
def moved(monkeypatch):
    """Moves this process to a machine that multiplies bfloat16, or emulates it 40 times slower."""
    def to(multiplies):
        for module in (processor, precision):
            monkeypatch.setattr(module, "multiplies_bfloat16", lambda device="cpu": multiplies)
            monkeypatch.setattr(module, "bfloat16_speed", lambda: 8.0 if multiplies else 1 / 40)
        processor.warn_if_emulated.cache_clear()

    yield to
    processor.warn_if_emulated.cache_clear()


@pytest.fixture
def half(run):
    """Ends a run of twenty steps after the eighth."""
    def begin(directory, **changes):
        with pytest.MonkeyPatch.context() as patch:
            from symboliclight.train import loop

            advance = loop._Trainer.advance

            def stop(self):
                advance(self)
                if self.progress.step == 8:
                    raise KeyboardInterrupt

            patch.setattr(loop._Trainer, "advance", stop)
            with pytest.raises(KeyboardInterrupt):
                go(with_train(run, **changes), directory)

    return begin


def stored(directory):
    body = json.loads((directory / "run.json").read_text())
    return body["precision"], body["train"]["precision"]


@pytest.mark.parametrize(("multiplies", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_decided_by_the_machine_and_written_down(multiplies, chosen, moved, run, tmp_path):
    moved(multiplies)
    go(with_train(run, precision="auto"), tmp_path / "auto")
    assert stored(tmp_path / "auto") == (chosen, "auto")
    go(with_train(run, precision=chosen), tmp_path / "forced")
    assert stored(tmp_path / "forced") == (chosen, chosen)
    auto, forced = ([line["loss"] for line in lines(tmp_path / name, "train")] for name in ("auto", "forced"))
    assert auto == forced


def test_a_run_begun_in_float32_stays_so_where_bfloat16_is_faster(moved, half, run, tmp_path):
    moved(False)
    half(tmp_path / "run", precision="auto")
    moved(True)
    go(with_train(run, precision="auto"), tmp_path / "run")
    go(with_train(run, precision="float32"), tmp_path / "whole")
    assert stored(tmp_path / "run") == ("float32", "auto")
    assert lines(tmp_path / "run", "train")[-1]["loss"] == lines(tmp_path / "whole", "train")[-1]["loss"]


def test_a_run_begun_in_bfloat16_asks_before_it_goes_on_where_that_is_emulated(moved, half, run, tmp_path):
    moved(True)
    half(tmp_path / "run", precision="auto")
    moved(False)
    with pytest.raises(InputError, match=r"begun in bfloat16.* emulates, 40 times slower.* give --precision") as caught:
        go(with_train(run, precision="auto"), tmp_path / "run")
    assert "\n" not in str(caught.value) and stored(tmp_path / "run") == ("bfloat16", "auto")
    with pytest.warns(Slow, match="begun in bfloat16 and goes on in float32"):
        go(with_train(run, precision="float32"), tmp_path / "run")
    assert stored(tmp_path / "run") == ("float32", "float32")
    assert [line["step"] for line in lines(tmp_path / "run", "train")] == list(range(2, 21, 2))


def test_it_goes_on_slowly_if_told_so(moved, half, run, tmp_path):
    moved(True)
    half(tmp_path / "run", precision="auto")
    moved(False)
    with pytest.warns(Slow, match="40 times as long"):
        result = go(with_train(run, precision="bfloat16"), tmp_path / "run")
    assert result.steps == 20 and stored(tmp_path / "run") == ("bfloat16", "bfloat16")


def test_what_was_decided_once_holds_the_next_time(moved, half, run, tmp_path):
    moved(True)
    half(tmp_path / "run", precision="auto")
    moved(False)
    with pytest.warns(Slow):
        go(with_train(run, precision="float32"), tmp_path / "run")
    moved(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Slow)
        go(with_train(run, precision="auto"), tmp_path / "run")
    assert stored(tmp_path / "run")[0] == "float32"
