"""What the processor can do, and caps on it."""

import json
import os
import subprocess
import sys

import pytest

from symboliclight import processor


def found_under(cap):
    """Instruction sets of kernels and runtime in a process with that cap."""
    code = ("import json; from symboliclight.ops import native; from symboliclight.processor import native_module;"
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
                           "avxvnni, avx512, vnni, amx, or unset it\n")


def test_caps_are_told_in_results(monkeypatch):
    from symboliclight.provenance import machine

    for name in processor.caps():
        monkeypatch.delenv(name)
    assert "caps" not in machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine()["caps"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
