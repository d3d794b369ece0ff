"""The single-step model as an ONNX file: the state goes in and comes out as plain tensors.

    inputs    token (batch, 1) int64; every tensor of `State.tensors()` under its name
    outputs   logits (batch, V) float32; the new state as `next.NAME`; site spikes (batch, units) as `spikes.SITE`

A sequence starts from zeros; a row with p absent tokens on its left starts with position -p. The graph is made of the
specification loops and torch forms of the ops at T = 1, in float32, with ONNX's standard operators alone.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symboliclight.core.config import to_dict
from symboliclight.core.errors import InputError
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.sites import spike_sites
from symboliclight.model.state import State
from symboliclight.ops import torch_forms
from symboliclight.ops.blend import blend_forward, blend_torch
from symboliclight.ops.conv import conv_forward, conv_forward_torch
from symboliclight.ops.decay import decay_forward, decay_scan_loop
from symboliclight.ops.lif import lif_forward
from symboliclight.ops.rope import rope_forward, rope_torch
from symboliclight.ops.spike import spike_forward, spike_forward_torch

SINGLE_FILE = 3 << 29  # bytes of weights up to which they lie inside the file; protobuf ends at 2 GiB


def export_onnx(model: nn.Module, path: str | Path) -> int:
    """Write `model` to `path`, replacing what is there; returns the bytes written.

    Weights beyond 1.5 GiB lie beside it in `path`.data. Raises `InputError` if the exporter is not installed, for a
    model whose state grows or whose depth depends on the token, and if the file cannot be written.
    """
    path = Path(path)
    if not isinstance(model, SymbolicLight):
        raise InputError("only the symboliclight family has a state of fixed size; use optimum to export GPT-2 to ONNX")
    if model.config.exit_entropy is not None:
        raise InputError("an ONNX graph has one depth and cannot exit early; set exit_entropy to null in config.json")
    program = _program(model)
    program.model.metadata_props["symboliclight.core.config"] = json.dumps(to_dict(model.config))
    external = sum(p.nbytes for p in model.parameters()) > SINGLE_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            program.save(str(Path(folder) / path.name), external_data=external)
            written = sorted(Path(folder).iterdir(), key=lambda file: -len(file.name))  # the weights, then the graph
            size = sum(file.stat().st_size for file in written)
            for file in written:
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return size


class Step(nn.Module):
    """One token of every row: (token (B, 1), state tensors by name) -> logits (B, V), new state, spikes by site."""

    def __init__(self, model: SymbolicLight) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        spikes: dict[str, Tensor] = {}
        hooks = [module.register_forward_hook(_keep(spikes, name)) for name, module in spike_sites(self.model).items()]
        try:
            logits, new = self.model(token, State.from_tensors(state, self.model.config.n_layers))
        finally:
            for hook in hooks:
                hook.remove()
        return logits[:, -1], new.tensors(), spikes


def _keep(spikes: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        spikes[name] = (output[0] if isinstance(output, tuple) else output)[:, -1]
    return hook


def _program(model: SymbolicLight) -> Any:
    """The model as `torch.onnx.ONNXProgram`, with a free batch size."""
    try:
        import onnxscript  # noqa: F401, what torch.onnx needs
    except ImportError as error:
        raise InputError("ONNX export needs onnxscript: pip install 'symboliclight[onnx]'") from error
    step = Step(model.float().eval())
    state = model.initial_state(2).tensors()
    batch = torch.export.Dim.DYNAMIC  # a named one would be held to the batch sizes that pick the same eager kernels
    shapes = {"token": {0: batch}, "state": {name: {0: batch} for name in state}}
    with _quiet(), torch_forms(), torch.no_grad():
        graph = torch.export.export(step, (torch.zeros(2, 1, dtype=torch.long), state), dynamic_shapes=shapes)
        graph = graph.run_decompositions(_decompositions())
        outputs = ["logits", *(f"next.{name}" for name in state), *(f"spikes.{name}" for name in spike_sites(model))]
        program: Any = torch.onnx.export(graph, input_names=["token", *state], output_names=outputs, verbose=False)
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.shape[0] = "batch"
    return program


def _decompositions() -> Any:
    """How the graph spells our ops, and what onnxruntime lacks, in pure functions."""
    table: Any = torch.export.default_decompositions()
    for op, form in ((lif_forward, _lif), (decay_forward, decay_scan_loop), (rope_forward, rope_torch),
                     (conv_forward, conv_forward_torch), (blend_forward, blend_torch),
                     (spike_forward, spike_forward_torch)):
        table[op._opoverload] = form
    table[torch.ops.aten.where.self] = _where
    return table


def _lif(x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float,
         gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    """`lif_forward` without writing to what it made."""
    r, membranes = r0, []
    for x_t in x.unbind(1):
        membranes.append((leak * r + x_t).clamp(-clamp, clamp))
        r = membranes[-1] * (membranes[-1] < threshold)
    v = torch.stack(membranes, 1)
    return (v >= threshold).to(x.dtype), v, r


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """onnxruntime cannot choose between truth values."""
    return (condition & yes) | (~condition & no) if yes.dtype == torch.bool else NotImplemented


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the exporter's remarks on its own workings out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
