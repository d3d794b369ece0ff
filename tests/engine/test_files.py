"""Model files are untrusted: whatever is in them, one line says what is wrong and nothing crashes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import symboliclight.core.checkpoint
import symboliclight.engine
from symboliclight.core.errors import InputError
from symboliclight.engine.pack import PRECISIONS


def split(data: bytes):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(change):
    """A mutation of the first tensor's description."""
    def mutate(data):
        header, body = split(data)
        name = next(n for n in header if n != "__metadata__")
        change(header[name])
        return join(header, body)
    return mutate


def header_of(change):
    def mutate(data):
        header, body = split(data)
        return join(change(header), body)
    return mutate


def with_float(value):
    """Puts a value into a float32 tensor."""
    def mutate(data):
        header, body = split(data)
        at = next(e["data_offsets"][0] for e in header.values() if e.get("dtype") == "F32")
        return join(header, body[:at] + np.float32(value).tobytes() + body[at + 4 :])
    return mutate


WEIGHTS = {
    "empty": lambda d: b"", "seven bytes": lambda d: d[:7], "header cut": lambda d: d[:40],
    "body cut": lambda d: d[:-1], "longer": lambda d: d + b"\0", "huge header length": lambda d: b"\xff" * 8 + d[8:],
    "header not JSON": lambda d: d[:8] + b"!" + d[9:], "header a list": lambda d: join([], b""),
    "header not UTF-8": lambda d: d[:8] + b"\xff\xfe" + d[10:],
    "deep JSON": lambda d: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no tensors": lambda d: join({}, b""), "metadata a number": header_of(lambda h: h | {"__metadata__": 1}),
    "tensor a number": header_of(lambda h: h | {"x": 1}),
    "unknown tensor": header_of(lambda h: h | {"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "unknown dtype": entry(lambda e: e.update(dtype="F99")),
    "other dtype": entry(lambda e: e.update(dtype="U8" if e["dtype"] == "I8" else "I8")),
    "dtype a list": entry(lambda e: e.update(dtype=["F32"])), "bool shape": entry(lambda e: e.update(shape=[True])),
    "negative shape": entry(lambda e: e.update(shape=[-1, -1])),
    "absurd shape": entry(lambda e: e.update(shape=[2**61, 2**61])),
    "float offsets": entry(lambda e: e.update(data_offsets=[0.0, 4.0])),
    "reversed offsets": entry(lambda e: e.update(data_offsets=e["data_offsets"][::-1])),
    "overlap": entry(lambda e: e.update(data_offsets=[8, 8 + e["data_offsets"][1] - e["data_offsets"][0]])),
    "offsets beyond": entry(lambda e: e.update(data_offsets=[2**40, 2**40 + e["data_offsets"][1]])),
    "transposed": entry(lambda e: e.update(shape=e["shape"][::-1] if len(e["shape"]) > 1 else [e["shape"][0], 1])),
    "extra field": entry(lambda e: e.update(x=1)), "nan": with_float("nan"), "infinity": with_float("-inf"),
}
CONFIGS = {
    "other width": {"d_model": 64, "head_dim": 32}, "absurd width": {"d_model": 2**60, "head_dim": 2**59},
    "absurd layers": {"n_layers": 10**12}, "absurd window": {"window": 10**12}, "absurd anchors": {"n_anchors": 10**15},
    "absurd ffn": {"d_ff": 10**18}, "absurd vocabulary": {"vocab_size": 10**15}, "zero heads": {"n_heads": 0},
    "other paths": {"paths": "decay"}, "unknown switch": {"paths": "neither"}, "gpt2": {"family": "gpt2"},
    "absurd convolution": {"conv": 10**12}, "other decay": {"decay": "channel"}, "other taps": {"conv": 4},
    "huge float": {"leak": 1e400}, "unknown field": {"turbo": True}, "learned": {"learn_neuron": True},
}


@pytest.fixture(scope="module")
def switched(small_config, first_weights, small_tokenizer, tmp_path_factory):
    """A checkpoint of a model with every switch of the search on."""
    config = replace(small_config, residual="pre", spike_fed=True, learn_neuron="all", decay="input", conv=3,
                     tie_embeddings=True, norm="none")
    place = tmp_path_factory.mktemp("switched") / "model"
    symboliclight.core.checkpoint.save(place, config, first_weights(config), small_tokenizer)
    return place


@pytest.fixture(params=["V1", "V1 int4", "switched", "switched int8"])
def folder(request, small_checkpoint, switched, tmp_path):
    """A small sound model that a test may damage."""
    place, (name, *precision) = tmp_path / "model", request.param.split()
    source = switched if name == "switched" else small_checkpoint
    if precision:
        symboliclight.engine.export(source, place, *precision)
    else:
        shutil.copytree(source, place)
    return place


def refuse(folder):
    with pytest.raises(InputError) as caught:
        symboliclight.engine.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or "model." in str(caught.value)


@pytest.mark.parametrize("mutate", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights_are_refused_in_one_line(folder, mutate):
    file = folder / "model.safetensors"
    file.write_bytes(mutate(file.read_bytes()))
    refuse(folder)


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit_is_refused_in_one_line(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["model"] |= change
    file.write_text(json.dumps(config))
    refuse(folder)


def test_random_bytes_never_crash(folder):
    file, random = folder / "model.safetensors", np.random.default_rng(0)
    sound = file.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(150):
        data = bytearray(sound)
        for at in random.integers(0, start, random.integers(1, 6)):
            data[at] = random.integers(256)
        file.write_bytes(bytes(data))
        try:
            engine = symboliclight.engine.load(folder, threads=1)
        except InputError:
            continue
        engine(np.array([[1, 2, 3]]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_exported_folder_gives_the_bits_of_converting_at_load(small_checkpoint, tmp_path, precision):
    out = tmp_path / "out"
    symboliclight.engine.export(small_checkpoint, out, precision)
    tokens = np.arange(20)[None]
    exported = symboliclight.engine.load(out)
    assert exported.precision == precision
    logits, _ = symboliclight.engine.load(small_checkpoint, precision)(tokens)
    np.testing.assert_array_equal(exported(tokens)[0], logits)
    with pytest.raises(InputError, match="exported at"):
        symboliclight.engine.load(out, next(p for p in PRECISIONS if p != precision))
    with pytest.raises(InputError, match="already exported"):
        symboliclight.engine.export(out, tmp_path / "again", precision)


@pytest.mark.needs("torch")
def test_an_exported_folder_is_no_checkpoint(small_checkpoint, tmp_path):
    symboliclight.engine.export(small_checkpoint, tmp_path / "out", "int8")
    with pytest.raises(InputError, match="exported at int8"):
        symboliclight.load(tmp_path / "out")


def test_the_runtime_runs_without_torch(small_checkpoint):
    code = f"""
import sys; sys.modules["torch"] = None
import numpy, symboliclight.engine
print(symboliclight.engine.load({str(small_checkpoint)!r})(numpy.array([[1, 2, 3]]))[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 3, 520)\n", done.stderr


@pytest.mark.parametrize("bad", [[[-1]], [[520]], [[]], [1, 2]], ids=["negative", "too large", "empty", "flat"])
def test_bad_tokens_are_refused(small_checkpoint, bad):
    with pytest.raises(InputError):
        symboliclight.engine.load(small_checkpoint)(np.array(bad, dtype=np.int64))


def test_tensors_that_a_writer_did_not_align_are_read_soundly(small_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_checkpoint, folder)
    file = folder / "model.safetensors"
    header, body = split(file.read_bytes())
    expected = symboliclight.engine.load(small_checkpoint)(np.arange(9)[None])[0]
    for spaces in range(4):
        text = json.dumps(header).encode() + b" " * spaces
        file.write_bytes(len(text).to_bytes(8, "little") + text + body)
        np.testing.assert_array_equal(symboliclight.engine.load(folder)(np.arange(9)[None])[0], expected)
