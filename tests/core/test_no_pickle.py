"""No load path of ours unpickles: the sources say so, and a process that refuses to unpickle does all the work."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import symboliclight
from symboliclight.commands import cli

ROOT = Path(symboliclight.__file__).parent
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
ALLOWED = {("importer.py", "UnpicklingError")}  # an exception's name, to catch what torch's restricted reader raises
WATCHED = """
import collections, json, pickle, sys
import torch, datasets, transformers  # whatever they do while they are imported is their own affair
from torch.utils import tensorboard
from symboliclight import engine, model
from symboliclight.commands import cli

found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
pickle.loads(pickle.dumps(collections.OrderedDict()))
assert found, "the hook sees unpickling"
found.clear()

class Refused(pickle.Unpickler):
    def __init__(self, *args, **options):
        raise AssertionError("something was unpickled")

def refuse(*args, **options):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = refuse
pickle.Unpickler = pickle._Unpickler = Refused
for command in json.loads(sys.argv[1]):
    assert cli.main(command) == 0, command
assert not found, found
"""


def sources():
    return sorted(ROOT.rglob("*.py"))


def attributes(tree):
    """(module, name) of every `module.name` and `from module import name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (((node.module or "").split(".")[0], alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_source_names_no_unpickler(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {(module, name) for module, name in attributes(tree) if module in UNSAFE}
    assert {(path.name, name) for _, name in used} <= ALLOWED
    imported = {alias.name.split(".")[0]: alias.asname for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}
    assert not any(imported[name] for name in imported.keys() & UNSAFE), "a renamed pickle would escape this test"
    assert not imported.keys() & UNSAFE or path.name in {name for name, _ in ALLOWED}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_readers_that_could_unpickle_are_told_not_to(path):
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert options.get("allow_pickle", "False") == "False", f"line {call.lineno}"
        if ast.unparse(call.func) in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
            assert options.get("weights_only") == "True", f"line {call.lineno}"


@pytest.mark.needs("torch")
def test_resuming_a_run_and_using_its_model_unpickles_nothing(small_shards, tmp_path):
    run, text, exported = tmp_path / "run", tmp_path / "text.txt", tmp_path / "int8"
    text.write_text("the river 春天", encoding="utf-8")
    train = ["train", "--data", str(small_shards.path), "--out", str(run), "--batch-size", "2", "--seq-len", "16",
             *(f"--set=model.{name}" for name in ("d_model=16", "n_heads=1", "head_dim=16", "d_ff=32", "n_layers=1")),
             "--tokens", "64", "--set=train.eval_tokens=64", "--set=train.save_every=1"]
    assert cli.main(train) == 0
    before, last = sorted(run.glob("step-*"))[-2:]
    shutil.rmtree(last)  # as if the run had been cut off before its last step
    for link in (run / "last", run / "best"):
        link.unlink()
        link.symlink_to(before.name)
    commands = [
        train, ["info", "--model", run, "--json"],
        ["eval", "--model", run, "--data", small_shards.path, "--split", "test", "--max-tokens", "32"],
        ["eval", "--model", run, "--text", text, "--operations"],
        ["generate", "the", "--model", run, "--max-tokens", "3", "--dataset", tmp_path / "samples"],
        ["export", "--model", run, "--out", exported], ["generate", "the", "--model", exported, "--max-tokens", "3"],
    ]
    listed = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WATCHED, listed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert last.exists(), "the run went on"
    written = {file.suffix for file in run.rglob("*") if file.is_file()}
    assert ".safetensors" in written and not written & {".pt", ".pth", ".pkl", ".bin", ".ckpt"}
