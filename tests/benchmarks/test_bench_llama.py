"""`bench llama`: the files that llama.cpp gets, and what is measured. llama.cpp itself runs where it is installed."""

import os
import signal
import sys
import types

import gguf
import numpy as np
import pytest
import torch
from test_exact import tokens_of

from symboliclight import build, preset
from symboliclight.benchmarks import gpt2_gguf, llama
from symboliclight.benchmarks.decode import CONTEXT, TOKENS, engine_of
from symboliclight.benchmarks.harness import Rounds
from symboliclight.commands.cli import main
from symboliclight.core.errors import InputError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(preset("gpt2-tiny")).eval()


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    found = {kind: folder / f"{kind}.gguf" for kind in llama.DRIFT}
    for kind, path in found.items():
        gpt2_gguf.write(model, path, kind)
    return found


@pytest.mark.parametrize("kind", llama.DRIFT)
def test_a_file_holds_every_weight_output_by_input(model, paths, kind):
    reader = gguf.GGUFReader(paths[kind])
    stored = {t.name: t for t in reader.tensors}
    weights = model.transformer.state_dict()
    assert set(stored) == {gpt2_gguf.tensor_name(name) for name in weights} and len(stored) == len(weights)
    allowed = {"F32": 0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.01, "Q4_0": 0.2}[kind]
    for name, x in weights.items():
        tensor = stored[gpt2_gguf.tensor_name(name)]
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = x.T if x.ndim == 2 and name.startswith("h.") else x
        error = np.linalg.norm(found.reshape(expected.shape) - expected.numpy())
        matrix = x.ndim == 2 and name != "wpe.weight"
        assert tensor.tensor_type.name == (kind if matrix else "F32")
        assert error <= (allowed if matrix else 0) * np.linalg.norm(expected.numpy())


def test_a_file_says_what_shape_it_is(model, paths):
    fields = gguf.GGUFReader(paths["F32"]).fields
    c = model.config
    assert fields["general.architecture"].contents() == "gpt2"
    asked = {"block_count": c.n_layers, "context_length": c.max_seq_len, "embedding_length": c.d_model,
             "feed_forward_length": c.d_ff, "attention.head_count": c.n_heads, "vocab_size": c.vocab_size}
    assert {name: fields[f"gpt2.{name}"].contents() for name in asked} == asked


class Rival:
    """What stands where llama.cpp would: the logits of a torch model, and nothing to time."""

    def __init__(self, path, threads, flash, sequences=1, length=512):
        self.open, self.sequences, self.flash = True, sequences, flash

    def decoder(self, tokens):
        assert len(tokens) == self.sequences
        return lambda: None

    prefill = decoder

    def close(self):
        self.open = False


def timed(contenders, **how):
    """Every contender runs; ours take 1 s, flash attention 2 s, the other 5 s."""
    for run in contenders.values():
        run()
    return Rounds({name: [1.0 if "int8" in name else 2.0 if "flash" in name else 5.0] for name in contenders})


@pytest.mark.parametrize(("isa", "targets"), [("vnni", [3.0, None, None]), ("avx2", [2.8, None, 1.0])])
def test_rows_are_those_of_the_faster_attention(isa, targets, paths, monkeypatch):
    rivals, checked = [], []
    monkeypatch.setattr(llama, "turns", timed)

    def start(*args):
        rivals.append(Rival(*args))
        return rivals[-1]

    monkeypatch.setattr(llama, "Llama", start)
    monkeypatch.setattr(llama, "check", lambda model, found, tokens: checked.append(list(found)))
    with torch.inference_mode():
        engines = {name: engine_of(build(preset("tiny")).eval(), "int8") for name in ("one int8", "two int8")}
        for engine in engines.values():
            engine.isa = isa
        rows = llama._rows(engines, None, {"Q8_0": paths["Q8_0"]}, tokens_of((1, 256), 4096), "gpt2-tiny", 32)
    assert checked == [["Q8_0", "Q8_0, flash attention"]] and [r.sequences for r in rivals] == [1, 1, 16, 16]
    assert not any(r.open for r in rivals) and len(rows) == 8
    for name, (*measured, read) in {"one": rows[:4], "two": rows[4:]}.items():
        assert [r["target"] for r in measured] == targets
        assert all(r["name"].endswith(f"{name} int8 against gpt2-tiny Q8_0, flash attention") for r in measured)
        assert all(r["ratio"] == r["value"] / r["against"] == 2 for r in measured)
        assert read["against"] == pytest.approx(paths["Q8_0"].stat().st_size / 1e6, rel=1e-3)


def test_other_logits_are_not_measured(model):
    tokens = tokens_of((1, 16), 4096)
    with torch.inference_mode():
        right = model(torch.from_numpy(tokens))[0].numpy()
        for shift, passes in ((0.0, True), (0.01 * np.abs(right).max(), False)):
            rival = types.SimpleNamespace(forget=lambda position: None, read=lambda *a, x=right + shift, **k: x)
            if passes:
                llama.check(model, {"F32, flash attention": rival}, tokens)
            else:
                with pytest.raises(InputError, match="logits of F32, flash attention are off"):
                    llama.check(model, {"F32, flash attention": rival}, tokens)


def test_without_llama_cpp_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    options = ["--out", str(tmp_path), "--threads", str(torch.get_num_threads())]
    assert main(["bench", "llama", "--quick", *options]) == 2
    error = capsys.readouterr().err
    assert "symboliclight[llama]" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def opened(path):
    assert path.read_bytes()[:4] == b"GGUF"


def crash(path):
    if path.stem == "Q8_0":
        os.kill(os.getpid(), signal.SIGSEGV)


def test_where_llama_cpp_crashes_one_line_says_on_what():
    llama.probe(opened)
    with pytest.raises(InputError, match=r"crashed on a Q8_0 file; nothing measured.*CXXFLAGS=") as found:
        llama.probe(crash)
    assert "\n" not in str(found.value)


def test_llama_cpp_reads_every_kind_of_file_to_its_end():
    pytest.importorskip("llama_cpp", reason="llama.cpp compiles for minutes: pip install '.[llama]'")
    llama.probe()


@pytest.mark.parametrize("kind", llama.DRIFT)
def test_llama_cpp_computes_the_same_model(model, paths, kind):
    pytest.importorskip("llama_cpp", reason="llama.cpp compiles for minutes: pip install '.[llama]'")
    one, many = (llama.Llama(paths[kind], 1, True, sequences, 192) for sequences in (1, 2))
    tokens = tokens_of((2, CONTEXT + TOKENS), 4096)
    with torch.inference_mode():
        llama.check(model, {kind: one, f"{kind}, two": many}, tokens[:1, :32])
        expected = model(torch.from_numpy(tokens))[0][:, -1].numpy()
    run = many.decoder(tokens[:, CONTEXT:])
    for _ in range(2):  # each call begins after the same context
        run()
    many.forget(0)
    many.read(tokens[:, :CONTEXT], 0)
    for t in range(CONTEXT, CONTEXT + TOKENS):
        found = many.read(tokens[:, t : t + 1], t).copy()
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert error <= llama.DRIFT[kind]
    one.close(), many.close()
