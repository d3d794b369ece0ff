"""What reaches the matrices of a model when it reads text: second moments, by which 4-bit weights are rounded."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.corpus import demo_sources
from symboliclight.data.readers import ReadOptions, find_files, read_documents
from symboliclight.engine.layout import Place, places

TOKENS = 32_768  # read in all
WINDOW, ROWS = 256, 8  # tokens that a memory lasts, and windows read at once


def calibrated(config: ModelConfig) -> list[Place]:
    """The matrices that "int4" stores in 4 bits, without `tcam` and `down` of controls in which no spikes feed them."""
    return [p for p in places(config) if not p.spikes and not p.sensitive and p.site not in ("tcam", "down")]


def read_windows(tokenizer: Tokenizer, source: str | Path | None = None, tokens: int = TOKENS) -> np.ndarray:
    """(n, 256) tokens of `source`, a file or a folder of text, as many of each file; None: of the embedded demo corpus.

    Documents follow each other. Raises `InputError` if nothing is there or it is shorter than one window.
    """
    sources = chain.from_iterable(demo_sources().values()) if source is None else [source]
    files = [file for one in sources for file in find_files(one)]
    share = max(1, tokens // len(files))
    ids = [np.fromiter(islice(_tokens(file, tokenizer), share), np.int64) for file in files]
    together = np.concatenate(ids)
    if len(together) < WINDOW:
        raise InputError(f"{source} has {len(together)} tokens; calibrating needs {WINDOW} at least")
    return together[: len(together) // WINDOW * WINDOW].reshape(-1, WINDOW)


def _tokens(file: Path, tokenizer: Tokenizer) -> Iterator[int]:
    for document in read_documents(file, ReadOptions()):
        if document is not None:
            yield from tokenizer.encode(document, bos=True)


def moments(model: Any, windows: np.ndarray, on_tokens: Callable[[int], None] = lambda count: None
            ) -> dict[str, np.ndarray]:
    """Name of each matrix of `calibrated` -> mean of x xᵀ (ins, ins) over its inputs x; "tokens" -> (V,) counts.

    windows: (n, T) tokens, each row read without a past. The torch model reads them as it does
    without gradients. All are float64 but the counts.
    """
    names = [place.name for place in calibrated(model.config) if place.site != "head"]
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        sums[name] = sums.get(name, 0) + (rows.T @ rows).double()

    hooks = [model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(partial(_before, add, name))
             for name in names]
    try:
        with torch.no_grad():
            for first in range(0, len(windows), ROWS):
                c, _, _ = model.features(torch.from_numpy(windows[first : first + ROWS]))
                add("head.out.weight", c)
                on_tokens(c.shape[0] * c.shape[1])
    finally:
        for hook in hooks:
            hook.remove()
    counts = np.bincount(windows.reshape(-1), minlength=model.config.vocab_size)
    return {name: (x / windows.size).numpy() for name, x in sums.items()} | {"tokens": counts}


def _before(add: Callable[[str, Tensor], None], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    add(name, inputs[0])
