"""Fuzz the runtime's loaders: damaged model folders and state files must be refused in one line or run soundly.

`make fuzz` builds the native code with sanitizers and runs this for ten minutes with atheris (libFuzzer), which keeps
inputs that reach new lines of the loaders. An input is a list of edits to sound files, so that most of it gets past the
outer checks. Only `InputError` is a refusal: any other exception, a crash or a sanitizer's report ends the run with the
input saved as ./crash-*.
"""

import argparse
import dataclasses
import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["symboliclight"]):
    from symboliclight import engine
    from symboliclight.core import checkpoint
    from symboliclight.core.config import ModelConfig, save_json
    from symboliclight.core.errors import InputError
    from symboliclight.engine.layout import checkpoint_shapes
    from symboliclight.engine.pack import PRECISIONS
    from symboliclight.engine.weights import exported_tensors

CONFIG = ModelConfig(vocab_size=37, d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=24, max_seq_len=32, window=3,
                     n_anchors=1, dropout=0.0)
SWITCHED = dataclasses.replace(CONFIG, residual="pre", spike_fed=True, learn_neuron="all", decay="input", conv=3,
                               tie_embeddings=True, norm="none")
VALUES = [0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**53, 2**63, 1e308, -0.5, "", "F32", "U8", "x" * 300, None, True,
          [], {}, [0], [2**62, 2], "float32", "symboliclight", "gpt2", "decay", "attention", "static", "gelu", "topk",
          "pre", "all", "channel", "input", "none"]


def sound_files(folder: Path, model_config: ModelConfig) -> dict[str, tuple[bytes, bytes]]:
    """Precision or "checkpoint" -> config.json and model.safetensors; "state" -> config.json and a saved state."""
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    shapes = checkpoint_shapes(model_config)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_json(folder / checkpoint.CONFIG, model=model_config)
    config = (folder / checkpoint.CONFIG).read_bytes()
    files = {"checkpoint": (config, save(tensors))}
    for precision in PRECISIONS:
        packed = exported_tensors(model_config, tensors, precision)
        files[precision] = config, save({name: np.ascontiguousarray(x) for name, x in packed.items()})
    model = write(folder, *files["int8"])
    _, state = model(np.arange(6)[None])
    state.save(folder / "state")
    files["state"] = config, (folder / "state").read_bytes()
    return files


def write(folder: Path, config: bytes, weights: bytes) -> "engine.Engine":
    """Put a model folder down and load it."""
    (folder / checkpoint.CONFIG).write_bytes(config)
    (folder / checkpoint.MODEL).write_bytes(weights)
    return engine.load(folder, threads=1)


def edit_json(data: "atheris.FuzzedDataProvider", text: bytes) -> bytes:
    """One value somewhere in a JSON text replaced, removed or added."""
    try:
        whole = json.loads(text)
    except ValueError:
        return text
    here = whole
    for _ in range(data.ConsumeIntInRange(0, 4)):
        children = [x for x in (here.values() if isinstance(here, dict) else here) if isinstance(x, dict | list) and x]
        if not children:
            break
        here = children[data.ConsumeIntInRange(0, len(children) - 1)]
    if not here:
        return text
    keys = list(here) if isinstance(here, dict) else list(range(len(here)))
    key = keys[data.ConsumeIntInRange(0, len(keys) - 1)]
    action = data.ConsumeIntInRange(0, 3)
    if action == 0:
        del here[key]
    elif action == 1 and isinstance(here, dict):
        here[data.ConsumeUnicodeNoSurrogates(8)] = here[key]
    elif action == 2:
        here[key] = data.ConsumeInt(9)
    else:
        here[key] = VALUES[data.ConsumeIntInRange(0, len(VALUES) - 1)]
    return json.dumps(whole).encode()


def edit_bytes(data: "atheris.FuzzedDataProvider", raw: bytes) -> bytes:
    """Bytes overwritten, cut or repeated somewhere."""
    at = data.ConsumeIntInRange(0, len(raw))
    new = data.ConsumeBytes(data.ConsumeIntInRange(0, 16))
    action = data.ConsumeIntInRange(0, 2)
    return raw[:at] + new + (raw[at + len(new) :] if action == 0 else raw[at:] if action == 1 else b"")


def edit_tensors(data: "atheris.FuzzedDataProvider", raw: bytes) -> bytes:
    """Edits of the header of a safetensors file, its length put right."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = edit_json(data, raw[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    seconds = parser.parse_args().seconds
    home = tempfile.TemporaryDirectory()
    folder = Path(home.name)
    files = [sound_files(folder, model_config) for model_config in (CONFIG, SWITCHED)]
    names = sorted(files[0])

    def one(raw: bytes) -> None:
        data = atheris.FuzzedDataProvider(raw)
        name = names[data.ConsumeIntInRange(0, len(names) - 1)]
        found = files[data.ConsumeIntInRange(0, 1)]
        config, body = found[name]
        for _ in range(data.ConsumeIntInRange(1, 4)):
            kind = data.ConsumeIntInRange(0, 3)
            if kind == 0:
                config = edit_json(data, config)
            elif kind == 1:
                body = edit_tensors(data, body) if len(body) > 8 else body
            elif kind == 2:
                body = edit_bytes(data, body)
            else:
                config = edit_bytes(data, config)
        tokens = np.arange(5)[None]
        try:
            if name == "state":
                model = write(folder, config, found["int8"][1])
                (folder / "state").write_bytes(body)
                state = engine.State.load(folder / "state", model.config)
                model(np.repeat(tokens, len(state.position), 0), state)
            else:
                model = write(folder, config, body)
                _, state = model(tokens)
                model.last(tokens[:, :1], state)
        except InputError:
            pass

    options = [f"-max_total_time={seconds}", "-max_len=200", "-len_control=0", "-rss_limit_mb=6000", "-timeout=30"]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
