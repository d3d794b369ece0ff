"""What the tests of published checkpoints share, and those of an exported transformers folder."""

import pytest

from golden_cases import CASES
from symboliclight.commands.cli import main


@pytest.fixture
def golden(tmp_path):
    from test_import import golden_file  # needs PyTorch

    return golden_file(tmp_path / "golden.pt", CASES[0])


@pytest.fixture
def call(tmp_path, capsys):
    """Run `symboliclight import` into tmp_path/out; a refusal is one line, exit code 2, and writes nothing."""
    def run(file, *arguments, refused=""):
        code = main(["import", str(file), "--out", str(tmp_path / "out"), *map(str, arguments)])
        out, err = capsys.readouterr()
        if refused:
            assert code == 2 and err.count("\n") == 1 and refused in err, err
            assert not (tmp_path / "out").exists()
            return err
        assert code == 0, err
        return out
    return run


@pytest.fixture(scope="module")
def folder(small_checkpoint, tmp_path_factory):
    """The small model as a transformers folder."""
    transformers = pytest.importorskip("transformers")
    from symboliclight.interop.transformers import export

    transformers.utils.logging.disable_progress_bar()
    return export(small_checkpoint, tmp_path_factory.mktemp("transformers") / "small")


@pytest.fixture(scope="module")
def model(folder):
    """That folder, loaded by transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
