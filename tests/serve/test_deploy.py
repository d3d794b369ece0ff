"""The files of deploy/ start the server with options that it has, and hold themselves to little."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from symboliclight.commands.cli import parser

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def service():
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str
    found.read(DEPLOY / "symboliclight.service")
    return found["Service"]


def container(instruction):
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    return json.loads(re.findall(rf"^{instruction} (\[.*\])$", text, re.MULTILINE)[-1])


def commands():
    return {"systemd": shlex.split(service()["ExecStart"]), "container": container("ENTRYPOINT") + container("CMD")}


@pytest.mark.parametrize("kind", ["systemd", "container"])
def test_the_command_is_one_that_serve_takes(kind):
    program, *arguments = commands()[kind]
    args = parser().parse_args(arguments)
    assert Path(program).name == "symboliclight" and arguments[0] == "serve" and args.key_file and args.log == "json"


def test_the_container_takes_what_the_package_is_built_from_and_no_more():
    """All of a checkout would bring virtual environments, and build folders that CMake refuses elsewhere."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    taken = [one for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for one in line.split()[:-1]]
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "src"} <= set(taken) and "." not in taken
    assert all((DEPLOY.parent / one).exists() for one in taken)


def test_systemd_waits_longer_than_texts_may_go_on():
    args = parser().parse_args(commands()["systemd"][1:])
    assert float(service()["TimeoutStopSec"]) > args.drain + 2


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_file(tmp_path):
    unit = tmp_path / "symboliclight.service"
    text = (DEPLOY / "symboliclight.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/symboliclight/venv/bin/symboliclight", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "symboliclight.service" in line]
    assert not complaints
