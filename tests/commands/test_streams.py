"""Commands into full, closed and non-UTF-8 streams; text from a locale that says nothing of UTF-8."""

import json
import os
import subprocess
import sys

import pytest

from symboliclight.generate.runner import SHIPPED

CLI = [sys.executable, "-m", "symboliclight.commands.cli"]
TOKENIZER = ("--tokenizer", str(SHIPPED))
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def call(*arguments, code=0, env=None, **options):
    options = {"stdout": subprocess.PIPE, **options}
    options |= {"stderr": subprocess.PIPE, "env": os.environ | (env or {}), "timeout": 120}
    done = subprocess.run([*CLI, *arguments], **options)
    assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [
    ("info",), ("info", "--json"), ("--help",), ("generate", "a", "--precision", "int8", "--max-tokens", "3"),
    ("tokenizer", "encode", "a", *TOKENIZER), ("tokenizer", "decode", "310", *TOKENIZER),
])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device_is_one_line(command, unbuffered):
    with open("/dev/full", "wb") as full:
        done = call(*command, code=2, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert done.stderr == (b"symboliclight: error: cannot write to standard output: No space left on device; free some "
                           b"space, or write elsewhere\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_of_another_encoding_is_escaped(encoding):
    env = {"PYTHONIOENCODING": encoding}
    assert call("info", env=env).stdout.startswith(b"symboliclight")
    write = ("generate", "春天", "--precision", "int8", "--max-tokens", "2")
    assert call(*write, env=env).stdout.startswith(b"\\u6625\\u5929")
    assert json.loads(call(*write, "--json", env=env).stdout)["prompt"] == "春天"


def test_a_pipe_gets_the_bytes_of_ids_also_half_a_character():
    ids = call("tokenizer", "encode", "a🙂", *TOKENIZER).stdout.decode().split()
    parts = [call("tokenizer", "decode", *some, *TOKENIZER).stdout for some in (ids[:-1], ids[-1:])]
    assert b"".join(parts).decode() == "a🙂"


@pytest.mark.parametrize("env", [PLAIN, {}], ids=["C", "UTF-8"])
def test_text_is_utf8_in_any_locale(env):
    expected = call("tokenizer", "encode", "春天", *TOKENIZER).stdout
    assert call("tokenizer", "encode", "春天", *TOKENIZER, env=env).stdout == expected
    found = json.loads(call("generate", "春天", "--stop", "风", "--precision", "int8", "--max-tokens", "2", "--json",
                            env=env).stdout)
    assert found["prompt"] == "春天"
    for command in (("tokenizer", "encode", b"caf\xe9", *TOKENIZER), ("generate", b"caf\xe9"),
                    ("generate", "a", "--stop", b"caf\xe9")):
        assert b"is not UTF-8 (byte 3); convert it first" in call(*command, code=2, env=env).stderr


def test_a_chat_goes_on_after_a_line_that_is_not_utf8():
    done = call("chat", "--precision", "int8", "--max-tokens", "2", input=b"caf\xe9\n\xe6\x98\xa5\n")
    assert b"not UTF-8 (byte 3)" in done.stderr and len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("closed", ["0<&-", "1>&-"])
def test_closed_streams_are_no_traceback(closed):
    command = [*CLI, "generate", *(["a"] if closed[0] == "1" else []), "--precision", "int8", "--max-tokens", "2"]
    done = subprocess.run(["sh", "-c", f"exec {' '.join(command)} {closed}"], capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr and done.returncode == 0
