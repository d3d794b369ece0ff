"""The runtime without Python, on this machine: what `make arm64` runs is right here too, and finds what is wrong."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cases import write_all

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc/engine/engine.cpp", "csrc/engine/runtime.cpp", "csrc/engine/thread_pool.cpp",
           "tests/engine/runtime_test.cpp"]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread", "-Icsrc",
         "-DSYMBOLICLIGHT_ISA=portable", "-DSYMBOLICLIGHT_PORTABLE"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("native") / "runtime_test"
    subprocess.run([compiler, *FLAGS, *SOURCES, "-o", path], cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {path.name: path for path in write_all(tmp_path_factory.mktemp("cases"))}


def run(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_golden_cases_and_every_precision_give_what_python_wrote(program, cases):
    assert run(program, "portable", *cases.values()) == (0, f"{len(cases)} cases are right on portable\n")


@pytest.mark.parametrize(("case", "record", "byte", "told"), [
    ("golden-static_prior", "golden encoder", 0, "encoder has"),
    ("golden-static_prior", "golden blocks", 0, "blocks has"),
    ("golden-decay_path_only", "golden logits", 6, "golden logits of token 0"),
    ("golden-silent_tokens", "golden argmax", 0, "another golden argmax"),
    ("golden-learned_prior_weight", "vector decay 1", 3, "golden"),
    ("fed-float32", "logits", 0, "logits differs at byte 0"), ("v1-int4", "logits", 3, "of the largest"),
    ("v1-certified", "ffn", 0, "spikes of ffn"), ("v1-bfloat16", "end h", 0, "state h"),
    ("v1-int8", "half k", 0, "after half: state k"), ("v1-int8", "matrix q 0 2 0 64 64", 0, "differs"),
    ("v1-int4", "start v", 3, "spikes of encoder"), ("v1-int4", "tokens 2 45", 3, "outside the vocabulary"),
], ids=str)
def test_one_wrong_byte_is_found(program, cases, case, record, byte, told, tmp_path):
    data, name = bytearray(cases[case].read_bytes()), f"{record}\n".encode()
    data[data.index(b"\n", data.index(name) + len(name)) + 1 + byte] ^= 64
    damaged = tmp_path / case
    damaged.write_bytes(data)
    status, output = run(program, "portable", damaged)
    assert status == 1 and told in output and output.startswith(f"runtime_test: {damaged}, portable: ")


def test_a_machine_without_the_instruction_sets_asked_for_is_told(program, cases):
    assert run(program, "portable,dotprod", *cases.values()) == (
        1, "runtime_test: this machine: has portable, not portable,dotprod\n")


def test_a_damaged_file_is_told(program, cases, tmp_path):
    short = tmp_path / "short"
    short.write_bytes(cases["v1-int8"].read_bytes()[:-1])
    assert run(program, "portable", short) == (1, f"runtime_test: {short}: ends too soon\n")
    assert run(program, "portable", tmp_path / "none") == (1, f"runtime_test: {tmp_path / 'none'}: cannot be read\n")
