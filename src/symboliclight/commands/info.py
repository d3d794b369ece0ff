"""`symboliclight info`: versions, machine, the form of each op in use, and what a model is made of."""

import argparse
from typing import Any

import symboliclight
from symboliclight.commands.models import add_model
from symboliclight.commands.output import print_json
from symboliclight.core.config import to_dict
from symboliclight.core.processor import precision_facts
from symboliclight.core.provenance import machine
from symboliclight.generate.runner import load_weights


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("info", help="show versions, the machine, kernels in use, and a model's parts")
    add_model(p, required=False)
    p.add_argument("--json", action="store_true", help="print JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    found: dict[str, Any] = {"symboliclight": symboliclight.__version__, **machine()}
    try:
        import torch

        from symboliclight.ops import forms
    except ImportError:
        found["ops"] = {"none": "PyTorch is not installed; pip install 'symboliclight[train]' to train or run models"}
    else:
        found |= precision_facts()
        found["threads"] = torch.get_num_threads()
        found["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["ops"] = {name: f"{form} ({why})" for name, (form, why) in forms().items()}
    if args.model is not None:
        model, tokenizer = load_weights(args.model)
        pieces = tokenizer and {"pieces": tokenizer.vocab_size, "hash": tokenizer.hash}
        found["model"] = describe(model) | {"tokenizer": pieces}
    if args.json:
        print_json(found)
    else:
        _print(found)


def describe(model: Any) -> dict[str, Any]:
    """Parameters by part, bytes of the state of one sequence, and the config."""
    import torch

    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts[_part(name)] = parts.get(_part(name), 0) + parameter.numel()
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.long)
        _, first = model.eval()(token)
        _, second = model(token, first)
    return {
        "parameters": sum(parts.values()), "parts": parts, "state_bytes": first.nbytes,
        "state_bytes_per_further_token": second.nbytes - first.nbytes, "config": to_dict(model.config),
    }


def _part(name: str) -> str:
    """The module that a parameter belongs to, the same for all layers: blocks.*.mixer, head.out, ..."""
    steps = name.split(".")
    number = next((i for i, step in enumerate(steps) if step.isdigit()), None)
    return ".".join([*steps[:number], "*", steps[number + 1]] if number else steps[:-1])


def _print(found: dict[str, Any], indent: str = "") -> None:
    """Aligned names and values; nested ones below."""
    width = max(len(name) for name in found)
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print(value, indent + "  ")
        else:
            number = isinstance(value, int) and not isinstance(value, bool)
            shown = f"{value:,}" if number else ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{indent}{name.ljust(width)}  {'none' if shown == '' else shown}")
