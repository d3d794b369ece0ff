"""`symboliclight export`, and text from the runtime."""

import json
import signal
import subprocess
import sys
from functools import partial

import pytest

from symboliclight.commands.cli import main


def run(capsys, *args):
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_generate_writes_the_same_text_on_the_runtime_as_on_torch(small_checkpoint, tmp_path, capsys):
    options = ["generate", "the sun", "--max-tokens", 24, "--temperature", 0, "--json"]
    texts = []
    exported = ["--out", tmp_path / "out", "--precision", "float32"]
    assert run(capsys, "export", "--model", small_checkpoint, *exported)[0] == 0
    for where in (["--model", small_checkpoint], ["--model", small_checkpoint, "--precision", "float32"],
                  ["--model", tmp_path / "out"]):
        code, out, _ = run(capsys, *options, *where)
        assert code == 0
        texts.append(json.loads(out)["samples"][0]["text"])
    assert texts[0] == texts[1] == texts[2] != ""


def test_export_makes_the_file_smaller(small_checkpoint, tmp_path, capsys):
    code, out, _ = run(capsys, "export", "--model", small_checkpoint, "--out", tmp_path / "out", "--json")
    sizes = json.loads(out)
    assert code == 0
    assert sizes["bytes"] < 0.6 * sizes["bytes_before"]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_checkpoint_without_its_optimiser_runs_everywhere(precision, small_checkpoint, tmp_path, capsys):
    """bfloat16 weights are those of float32, rounded, to torch and to the runtime alike."""
    import numpy as np
    import torch

    from symboliclight import engine, load

    options = ["--out", tmp_path / "out", "--format", "checkpoint", "--precision", precision, "--json"]
    assert run(capsys, "export", "--model", small_checkpoint, *options)[0] == 0
    (whole, _), (model, _) = load(small_checkpoint), load(tmp_path / "out")
    for name, x in whole.state_dict().items():
        expected = x.to(getattr(torch, precision)).float() if x.dtype == torch.float32 else x
        assert torch.equal(model.state_dict()[name], expected), name
    tokens = np.arange(12)[None]
    logits, _ = engine.load(tmp_path / "out", "float32")(tokens)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(tokens))[0].numpy(), atol=1e-5)


@pytest.mark.needs("torch")
def test_a_checkpoint_is_not_stored_in_integers(small_checkpoint, tmp_path, capsys):
    options = ["--out", tmp_path / "out", "--format", "checkpoint"]
    code, _, err = run(capsys, "export", "--model", small_checkpoint, *options)
    assert code == 2 and "float32 or bfloat16" in err and not (tmp_path / "out").exists()


@pytest.mark.needs("torch")
def test_a_checkpoint_may_be_the_mean_of_the_newest_of_a_run(small_checkpoint, tmp_path, capsys):
    import torch

    from symboliclight.core import checkpoint

    config, weights = checkpoint.load(small_checkpoint)
    tokenizer, shares = checkpoint.load_tokenizer(small_checkpoint), (5.0, 1.0, 2.0, 6.0)  # the oldest is left out
    for step, share in enumerate(shares):
        scaled = {name: x * share if x.dtype == torch.float32 else x for name, x in weights.items()}
        checkpoint.save(tmp_path / f"run/step-{step:08d}", config, scaled, tokenizer)
    (tmp_path / "run/last").symlink_to("step-00000003")
    options = ["--model", tmp_path / "run", "--out", tmp_path / "out", "--precision", "float32"]
    assert run(capsys, "export", "--format", "checkpoint", "--mean", 3, *options)[0] == 0
    for name, x in checkpoint.load(tmp_path / "out")[1].items():
        assert torch.equal(x, weights[name] * 3 if x.dtype == torch.float32 else weights[name]), name
    for count in (0, 5):
        code, _, err = run(capsys, "export", "--format", "checkpoint", "--mean", count, *options)
        assert code == 2 and "holds 4 checkpoints" in err
    code, _, err = run(capsys, "export", "--mean", 3, *options)
    assert code == 2 and "--format checkpoint" in err


def test_generate_runs_without_torch(small_checkpoint):
    code = ("import sys; sys.modules['torch'] = None; from symboliclight.commands.cli import main; "
            "sys.exit(main(sys.argv[1:]))")
    args = ["generate", "the sun", "--model", str(small_checkpoint), "--precision", "int8", "--max-tokens", "5"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the sun")


@pytest.mark.parametrize("args", [["--model", "nowhere"], []], ids=["missing", "nothing"])
def test_export_refuses_in_one_line(args, tmp_path, capsys):
    try:
        code = main(["export", "--out", str(tmp_path / "out"), *args])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_ends_generation_cleanly(small_checkpoint):
    args = ["generate", "the sun", "--model", str(small_checkpoint), "--precision", "int8", "--max-tokens", "10000000",
            "--temperature", "0"]  # sampling could draw the end of the text before the signal comes
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background of a shell ignores it
    process = subprocess.Popen([sys.executable, "-m", "symboliclight.commands.cli", *args], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=heeded)
    assert process.stdout.read(7) == b"the sun"  # it is at work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.decode().strip() == "symboliclight: interrupted"
