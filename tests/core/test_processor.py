"""What the processor can do, and caps on it."""

import json
import os
import platform
import subprocess
import sys
import warnings

import pytest

from symboliclight.core import errors, processor


def found_under(cap):
    """Instruction sets of kernels and runtime in a process with that cap."""
    code = ("import json; from symboliclight.core.processor import native_module;"
            "print(json.dumps([native_module('_native').isas(), native_module('_engine').isas()]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, processor.MAX_ISA: cap})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("cap", processor.ISAS)
def test_a_cap_leaves_the_instruction_sets_up_to_it(cap, monkeypatch):
    monkeypatch.delenv(processor.MAX_ISA, raising=False)
    up_to = processor.ISAS[: processor.ISAS.index(cap) + 1]
    for isas, uncapped in zip(found_under(cap), found_under(processor.ISAS[-1]), strict=True):
        assert isas == [isa for isa in uncapped if isa in up_to] and isas[0] == "portable"


def test_an_unknown_cap_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "-m", "symboliclight", "generate", "a", "--max-tokens", "1"],
                          capture_output=True, text=True, env={**os.environ, processor.MAX_ISA: "sse9"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("symboliclight: error: SYMBOLICLIGHT_MAX_ISA is 'sse9'; set it to one of portable, avx2, "
                           "avxvnni, avx512, vnni, amx, dotprod, i8mm, or unset it\n")


@pytest.fixture
def pretend(monkeypatch):
    """Makes this processor one with those abilities, on which torch multiplies bfloat16 so many times as fast."""
    def to_be(abilities, speed):
        processor.multiplies_bfloat16.cache_clear()
        processor.warn_if_emulated.cache_clear()
        monkeypatch.setattr(processor, "flags", lambda: set(abilities))
        monkeypatch.setattr(processor, "bfloat16_speed", lambda: speed)

    yield to_be
    processor.multiplies_bfloat16.cache_clear()
    processor.warn_if_emulated.cache_clear()


@pytest.mark.parametrize(("abilities", "speed", "chosen"), [
    (["avx2", "amx_bf16"], 7.4, "bfloat16"), (["avx512_bf16"], 0.6, "bfloat16"), (["asimd", "bf16"], 2.0, "bfloat16"),
    (["avx2"], 0.02, "float32"), (["avx512f"], 0.2, "float32"),
    (["avx2", "amx_bf16"], 0.02, "float32"),  # capped, or a torch that does not use what is there
    (["avx2"], 3.0, "float32")])
def test_auto_is_bfloat16_where_the_processor_says_so_and_shows_it(abilities, speed, chosen, pretend):
    pretend(abilities, speed)
    assert processor.training_precision("auto") == processor.precision_facts()["precision"] == chosen
    assert processor.training_precision("float32") == "float32"


def test_bfloat16_that_is_emulated_is_obeyed_with_one_warning_that_names_the_factor(pretend):
    pretend(["avx2"], 1 / 53)
    with pytest.warns(errors.Slow, match="53 times as long as in float32, which --precision float32"):
        assert processor.training_precision("bfloat16") == "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert processor.training_precision("bfloat16") == "bfloat16"
        pretend(["amx_bf16"], 5.0)
        assert processor.training_precision("bfloat16") == "bfloat16"


def probed(cap):
    """What the probe found and what auto chooses, in a process where oneDNN is held there."""
    code = ("from symboliclight.core import processor;"
            "print(processor.bfloat16_speed(), processor.training_precision('auto'))")
    env = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": cap} if cap else {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    speed, chosen = done.stdout.split()
    return float(speed), chosen


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a cap of x86-64")
def test_the_probe_tells_emulation_apart():
    speed, chosen = probed("AVX2")
    assert speed < processor.EMULATED and chosen == "float32"


def test_a_cap_that_onednn_does_not_know_changes_nothing(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert probed("quark")[1] == probed(None)[1]


def test_what_auto_chooses_stands_in_info_and_in_results(tmp_path, capsys):
    from symboliclight.commands import cli
    from symboliclight.core.provenance import write_result

    assert cli.main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    write_result(tmp_path / "result.json", {})
    stored = json.loads((tmp_path / "result.json").read_text())["machine"]
    facts = processor.precision_facts()
    assert facts["precision"] in ("bfloat16", "float32") and facts["bfloat16_speed"] > 0
    assert facts.items() <= told.items() and facts.items() <= stored.items()


def test_caps_are_told_in_results(monkeypatch):
    from symboliclight.core.provenance import machine

    for name in processor.caps():
        monkeypatch.delenv(name)
    assert "caps" not in machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine()["caps"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
