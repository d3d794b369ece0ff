"""`bench llama`: the torch-free runtime, models of 194M, beside llama.cpp on GPT-2 201M, at the same number of bits.

llama.cpp is the fastest dense runtime for CPUs that we know. It is compiled on this machine and called through its C
interface, which `llama-cpp-python` brings. Weights are random on both sides. First its logits must be those of the
torch model that the files were written from. It runs with flash attention and without, at 16 bits with both of its
formats, and the fastest counts.
"""

import ctypes
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight.benchmarks import asked, decode, gpt2_gguf
from symboliclight.benchmarks.curves import many
from symboliclight.benchmarks.harness import Rounds, row, turns, write
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import CERTIFIED, PRECISIONS
from symboliclight.model import build

KINDS = {"float32": ("F32",), "bfloat16": ("BF16", "F16"), "int8": ("Q8_0",), "int4": ("Q4_0",)}
DRIFT = {"F32": 0.002, "F16": 0.005, "BF16": 0.02, "Q8_0": 0.05, "Q4_0": 0.4}  # root mean square, relative
ATTENTION = {"": False, ", flash attention": True}
BATCH = 16
# GCC 12 leaves out what llama.cpp writes on its stack for the instruction that sets up AMX tiles.
REBUILD = "CXXFLAGS='-fno-tree-dse -fno-dse' pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
OURS, OURS_QUICK = ("v1-194m", "v1-fed-194m"), ("mini", "v1-fed")  # spikes feed two matrices of a block, or nearly all


class Llama:
    """A GGUF file in llama.cpp that reads and writes `sequences` texts of up to `length` tokens side by side."""

    def __init__(self, path: Path, threads: int, flash: bool, sequences: int = 1, length: int = 512) -> None:
        self.library = c = _library()
        self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        if not self.model:
            raise InputError(f"bench llama: llama.cpp cannot load {path}")
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        how = c.llama_context_default_params()
        how.n_ctx, how.n_seq_max, how.n_batch, how.n_ubatch = sequences * length, sequences, sequences * length, 512
        how.n_threads = how.n_threads_batch = threads
        how.flash_attn_type = int(flash)
        self.context = c.llama_init_from_model(self.model, how)
        if not self.context:
            raise InputError(f"bench llama: llama.cpp has no memory for {sequences} texts of {length} tokens")
        self.batch = c.llama_batch_init(sequences * length, 0, 1)

    def read(self, tokens: np.ndarray, position: int, every: bool = False) -> np.ndarray:
        """tokens (B, T) from `position` on -> logits (B, V) after the last, or (B, T, V) with `every`. A view."""
        c, batch, (rows, length) = self.library, self.batch, tokens.shape
        batch.n_tokens = rows * length
        for i, token in enumerate(tokens.ravel().tolist()):
            sequence, t = divmod(i, length)
            batch.token[i], batch.pos[i] = token, position + t
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = every or t == length - 1
        if c.llama_decode(self.context, batch):
            raise InputError("bench llama: llama.cpp failed to compute; nothing measured")
        outputs = rows * (length if every else 1)
        found = np.ctypeslib.as_array(c.llama_get_logits(self.context), (outputs, self.vocabulary))
        return found.reshape(rows, length, -1) if every else found

    def forget(self, position: int) -> None:
        """Drop what was read from `position` on, in every sequence."""
        self.library.llama_memory_seq_rm(self.library.llama_get_memory(self.context), -1, position, -1)

    def decoder(self, tokens: np.ndarray) -> decode.Decode:
        """As `decode.decoder`: TOKENS tokens a call for the rows of `tokens`, after the same CONTEXT."""
        self.forget(0)
        self.read(np.stack([np.resize(row, decode.CONTEXT) for row in tokens]), 0)

        def run() -> None:
            for i in range(decode.TOKENS):
                self.read(tokens[:, i : i + 1], decode.CONTEXT + i)
            self.forget(decode.CONTEXT)

        return run

    def prefill(self, tokens: np.ndarray) -> decode.Decode:
        """Reads a text from its beginning, with the logits of the last token only."""

        def run() -> None:
            self.forget(0)
            self.read(tokens, 0)

        return run

    def close(self) -> None:
        """Free what llama.cpp holds."""
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise InputError("bench llama needs llama.cpp, which compiles for some minutes: "
                         "pip install 'symboliclight[llama]'") from error
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    return llama_cpp


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, user: None)


def _read_once(path: Path) -> None:
    llama = Llama(path, 1, False)
    llama.read(np.zeros((1, 64), np.int64), 0)
    llama.close()


def probe(read: Callable[[Path], None] = _read_once) -> None:
    """`read` a small file of each kind in another process. Raises `InputError` where llama.cpp ends that process."""
    model = build(preset("gpt2-tiny"))
    with tempfile.TemporaryDirectory() as folder, \
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        for kind in DRIFT:
            path = Path(folder) / f"{kind}.gguf"
            gpt2_gguf.write(model, path, kind)
            try:
                other.submit(read, path).result()
            except BrokenProcessPool as error:
                raise InputError(f"bench llama: llama.cpp crashed on a {kind} file; nothing measured. On a processor "
                                 f"with AMX, compile it again: {REBUILD}") from error


def check(model: Any, rivals: Mapping[str, Llama], tokens: np.ndarray) -> None:
    """What llama.cpp computes must be what the torch model does, up to the kind of its weights."""
    expected = model(torch.from_numpy(tokens))[0].numpy()
    for name, rival in rivals.items():
        rival.forget(0)
        found = rival.read(tokens, 0, every=True)
        error = float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
        if not error <= DRIFT[name.split(",")[0]]:
            raise InputError(f"bench llama: logits of {name} are off by {error:.2g} of their size; nothing measured")


def run(directory: Path, quick: bool = False) -> Path:
    """Measure and write results/bench-llama.json; `quick` shrinks the models to test the benchmark."""
    ours, theirs, prompt = (OURS_QUICK, "gpt2-mini", 128) if quick else (OURS, "gpt2-201m", 512)
    library, threads = _library(), torch.get_num_threads()
    probe()
    rows: list[dict[str, Any]] = []
    files: dict[str, int] = {}
    torch.manual_seed(0)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as temporary:
        models: dict[str, Any] = {name: build(preset(name)).eval() for name in ours}
        rival: Any = build(preset(theirs)).eval()
        tokens = np.random.default_rng(0).integers(0, rival.config.vocab_size, (1, 2048))
        for model in models.values():
            decode.check(model, {"float32": decode.engine_of(model, "float32")}, rival.config.vocab_size)
        for p in PRECISIONS:
            paths = {kind: Path(temporary) / f"{kind}.gguf" for kind in KINDS[CERTIFIED.get(p, p)]}
            for kind, path in paths.items():
                gpt2_gguf.write(rival, path, kind)
                files[kind] = path.stat().st_size
            engines = {f"{name} {p}": decode.engine_of(model, p) for name, model in models.items()}
            isa = next(iter(engines.values())).isa
            rows += _rows(engines, rival, paths, tokens, theirs, prompt)
            for path in paths.values():
                path.unlink()
    features = [f.split(" : ")[-1] for f in library.llama_print_system_info().decode().split(" = 1 | ") if f.strip()]
    return write("llama", rows, directory, threads=threads, quick=quick, isa=isa, context=decode.CONTEXT,
                 file_bytes=files, llama_cpp_python=library.__version__, features=features)


def _rows(engines: Mapping[str, Engine], model: Any, paths: Mapping[str, Path], tokens: np.ndarray,
          theirs: str, prompt: int) -> list[dict[str, Any]]:
    """One precision: a token at a time, 16 sequences, a prompt, and the bytes that a token reads."""
    text, texts, threads = tokens[:, :prompt], many(tokens, BATCH), torch.get_num_threads()
    rows: list[dict[str, Any]] = []

    def against(what: str, name: str, found: Rounds, tokens_a_run: int, target: float | None = None) -> None:
        best = min((n for n in found.seconds if n not in engines), key=found.median)
        rows.append(row(f"{what}, {name} against {theirs} {best}", "tokens/s", tokens_a_run / found.median(name),
                        tokens_a_run / found.median(best), found.faster(name, best), target))

    with _started(paths, threads, 1, 512) as rivals:
        check(model, rivals, tokens[:, :64])
        one = _turns({n: decode.decoder(e, tokens) for n, e in engines.items()},
                     {n: r.decoder(tokens) for n, r in rivals.items()})
        read = _turns({n: _prefill(e, text) for n, e in engines.items()},
                      {n: r.prefill(text) for n, r in rivals.items()})
    with _started(paths, threads, BATCH, 256) as rivals:
        batch = _turns({n: decode.decoder(e, texts) for n, e in engines.items()},
                       {n: r.decoder(texts) for n, r in rivals.items()})
    size = min(path.stat().st_size for path in paths.values())
    for name, engine in engines.items():
        against("decode", name, one, decode.TOKENS, asked.decode(engine))
        against(f"decode, batch {BATCH}", name, batch, BATCH * decode.TOKENS)
        against(f"prefill of {prompt} tokens", name, read, prompt, asked.prefill(engine))
        touched = sum(decode.bytes_per_token(engine, tokens).values())
        rows.append(row(f"bytes read a token, {name}, against the file of {theirs}", "MB", touched / 1e6, size / 1e6,
                        size / touched))
    return rows


def _prefill(engine: Engine, text: np.ndarray) -> decode.Decode:
    return lambda: engine.last(text)


@contextmanager
def _started(paths: Mapping[str, Path], threads: int, sequences: int, length: int) -> Iterator[dict[str, Llama]]:
    """Every file with every form of attention."""
    with ExitStack() as stack:
        found = {}
        for kind, path in paths.items():
            for how, flash in ATTENTION.items():
                found[f"{kind}{how}"] = Llama(path, threads, flash, sequences, length)
                stack.callback(found[f"{kind}{how}"].close)
        yield found


def _turns(ours: Mapping[str, decode.Decode], theirs: Mapping[str, decode.Decode]) -> Rounds:
    return turns({**ours, **theirs}, rounds=31, seconds=30, twice=True)
