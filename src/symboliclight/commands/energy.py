"""`symboliclight energy`: operations, bytes and joules of a token, beside the dense twin and GPT-2."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.commands.models import add_precision, label_of, read_text, token_progress
from symboliclight.commands.output import print_json, print_table
from symboliclight.core.checkpoint import locate
from symboliclight.core.config import ModelConfig, preset
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.corpus import SPLITS
from symboliclight.data.shards import Shards
from symboliclight.generate.runner import load_model, load_runner
from symboliclight.measure.energy import account, counters, tables
from symboliclight.measure.energy.account import Subject
from symboliclight.measure.energy.constants import ARITHMETIC, arithmetic
from symboliclight.measure.energy.parts import expand_rates

DENSE = "dense: needs no weights"


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("energy", help="operations, bytes and energy of a token beside the dense twin and GPT-2")
    a = p.add_argument
    a("--model", metavar="DIR", action="append", default=[],
      help="a checkpoint, or the folder of a run, measured on --data or --text; may be given again")
    a("--preset", metavar="NAME", action="append", default=[],
      help="a shape without weights; spiking ones take --rates, or the rates of the first --model; may be given again")
    a("--rates", metavar="SITE=R,...", help="firing rates in [0, 1] of presets: encoder=0.1,ffn=0.035,blocks=0.18")
    a("--data", metavar="DIR", help="token shards, made with the model's tokenizer")
    a("--text", metavar="FILE", help="a UTF-8 text file, instead of --data")
    a("--split", choices=SPLITS, default="test", help="of the shards (default: test)")
    a("--max-tokens", type=int, default=4096, metavar="N", help="tokens of each domain at most (default: 4096)")
    a("--context", type=int, default=512, metavar="N",
      help="tokens of a sequence, over which figures are means; shorter if a model reads less (default: 512)")
    a("--batch", type=int, default=1, metavar="N", help="sequences that share one reading of the weights (default: 1)")
    a("--constants", action="append", default=[], metavar="NAME",
      help=f"energy constants; may be given again (default: all of {', '.join(ARITHMETIC)})")
    a("--measure", action="store_true", help="also measure joules of decoding each --model, where RAPL or NVML counts")
    a("--seconds", type=float, default=5.0, metavar="S", help="of one measurement (default: 5)")
    a("--repeats", type=int, default=5, metavar="N", help="measurements of each model, at least 2 (default: 5)")
    add_precision(p)
    a("--json", action="store_true", help="print JSON, with the parts of every model")
    a("--out", type=Path, metavar="FILE", help="write the JSON to FILE and its charts beside it as .svg")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    _check(args)
    sets = args.constants or list(ARITHMETIC)
    for name in sets:
        arithmetic(name)
    measured = [_measured(args, directory) for directory in args.model]
    subjects = [x for s in (*measured, *_presets(args, measured)) for x in _with_twin(s)]
    spiking = [s for s in subjects if account.mean_rate(s) is not None]
    result: dict[str, Any] = {
        "trained": {label_of(d): _training(d) for d in args.model}, "text": _text(args), "batch": args.batch,
        "constants": account.constants(),
        "models": [account.describe(s, sets, args.batch) for s in subjects],
        "break_even": [account.spiking_against_twin(s, sets, args.batch) for s in spiking],
    }
    if args.measure:
        result["measured"] = _measure(args)
    if args.out is not None:
        _save(args.out, result)
    if args.json:
        print_json(result)
    else:
        _print(result)


def _check(args: argparse.Namespace) -> None:
    if not args.model and not args.preset:
        raise InputError("give --model DIR or --preset NAME")
    if args.model and (args.data is None) == (args.text is None):
        raise InputError("--model is measured on text: give either --data SHARDS or --text FILE")
    if args.measure and not args.model:
        raise InputError("--measure runs a model: give --model DIR")
    for name, least in (("max_tokens", 1), ("context", 1), ("batch", 1), ("repeats", 2)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    if not args.seconds > 0:
        raise InputError(f"--seconds must be positive, got {args.seconds}")


def _measured(args: argparse.Namespace, directory: str) -> Subject:
    """The model of a folder, as counted while it reads."""
    model, tokenizer = load_model(directory)
    import torch

    from symboliclight.measure.operations import OperationMeter

    batches = list(_windows(args, tokenizer, min(args.context, model.config.max_seq_len)))
    with torch.inference_mode(), OperationMeter(model) as meter, \
            token_progress("counting", sum(b.size for b in batches)) as advance:
        for tokens in batches:
            model(torch.from_numpy(tokens))
            advance(tokens.size)
    return account.from_report(label_of(directory), model.config, meter.report(), batches[0].shape[1])


def _windows(args: argparse.Namespace, tokenizer: Tokenizer, length: int) -> Iterator[np.ndarray]:
    """Whole windows (B, T) of tokens, all of the same T: `length`, or that of a shorter text."""
    if args.text is not None:
        ids = np.array(tokenizer.encode(read_text(args.text), bos=True), np.int64)
        if len(ids) < 2:
            raise InputError(f"{args.text} is empty; give a text with at least a character")
        length = min(length, len(ids))
        yield from ids[: len(ids) // length * length].reshape(-1, 1, length)
        return
    from symboliclight.data.batches import eval_windows

    shards = Shards.open(args.data)
    shards.require(tokenizer)
    found = [tokens for name in shards.domains(args.split)
             for tokens, _ in eval_windows(shards, args.split, name, length, args.max_tokens, 2)]
    length = max((tokens.shape[1] for tokens in found), default=0)
    if not length:
        raise InputError(f"{args.data} has no tokens in split {args.split!r}; choose another --split")
    yield from (tokens for tokens in found if tokens.shape[1] == length)  # a short domain has shorter windows


def _presets(args: argparse.Namespace, measured: list[Subject]) -> Iterator[Subject]:
    stated = _rates(args.rates) if args.rates else None
    source = next((s for s in measured if account.mean_rate(s) is not None), None)
    for name in args.preset:
        config = preset(name)
        context = min(args.context, config.max_seq_len)
        if account.dense_twin(config) is None:
            yield account.subject(name, config, {}, context, DENSE)
        elif stated is not None:
            yield account.subject(name, config, expand_rates(config, stated), context, "rates as stated")
        elif source is not None:
            rates = expand_rates(config, _kinds(source))
            yield account.subject(name, config, rates, context, f"rates of {source.label}, means by kind of site")
        else:
            raise InputError(f"{name} spikes and has no weights here: give --model DIR or --rates encoder=R,...")


def _rates(text: str) -> dict[str, float]:
    try:
        return {name: float(rate) for name, rate in (item.split("=") for item in text.split(","))}
    except ValueError as error:
        raise InputError(f"--rates must read like encoder=0.1,ffn=0.035,blocks=0.18, got {text!r}") from error


def _kinds(s: Subject) -> dict[str, float]:
    """Mean firing rate of each kind of site."""
    kinds: dict[str, list[float]] = {}
    for site, rate in s.rates.items():
        kinds.setdefault(site.split(".")[0], []).append(rate)
    return {kind: sum(rates) / len(rates) for kind, rates in kinds.items()}


def _with_twin(s: Subject) -> list[Subject]:
    twin: ModelConfig | None = account.dense_twin(s.config)
    return [s] if twin is None else [s, account.subject(f"dense twin of {s.label}", twin, {}, s.context, DENSE)]


def _training(directory: str) -> dict[str, Any]:
    """Seed and tokens of the run that a model comes from; empty if it does not lie in the folder of its run."""
    run = locate(directory).parent / "run.json"
    train = json.loads(run.read_text(encoding="utf-8")).get("train", {}) if run.is_file() else {}
    return {name: train[name] for name in ("seed", "tokens") if name in train}


def _text(args: argparse.Namespace) -> dict[str, Any]:
    """What the models were measured on."""
    if args.data is None:
        return {}
    return {"data_hash": Shards.open(args.data).data_hash, "split": args.split, "max_tokens": args.max_tokens}


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Joules a token of decoding, or why none can be read."""
    found, reasons = counters.available()
    runs: dict[str, Any] = {}
    for directory in args.model if found else []:
        model, tokenizer = load_runner(directory, args.precision)
        with token_progress(f"measuring {label_of(directory)}", args.repeats) as advance:
            runs[label_of(directory)] = counters.measure(
                found, _decoder(model, tokenizer), args.seconds, args.repeats, on_repeat=lambda: advance(1)
            ) | {"precision": getattr(model, "precision", "torch float32")}
    return {"runs": runs, "missing": reasons}


def _decoder(model: Any, tokenizer: Tokenizer) -> Any:
    """Decodes one sequence token by token, greedily, beginning again at 256."""
    from symboliclight.generate.sampling import next_logits

    state, token, done = None, tokenizer.bos_id, 0

    def work() -> int:
        nonlocal state, token, done
        logits, state = next_logits(model, np.array([[token]]), state)
        token, done = int(logits[0].argmax()), done + 1
        if done % 256 == 0:
            state, token = None, tokenizer.bos_id
        return 1

    return work


def _save(path: Path, result: Mapping[str, Any]) -> None:
    from symboliclight.core.atomic import write_atomic
    from symboliclight.core.provenance import write_result
    from symboliclight.show.plots import plot_energy

    try:
        write_result(path, dict(result))
        write_atomic(path.with_suffix(".svg"), plot_energy(result))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _print(result: dict[str, Any]) -> None:
    for name, table in tables.TABLES.items():
        if name == "break-even" and not result["break_even"]:
            continue
        print_table(*table(result))
        print()
    print(f"Constants: {result['constants']['source']}. Op-only figures hold no memory; the others hold both. "
          f"Not counted: {'; '.join(result['constants']['not_counted'])}.")
    measured = result.get("measured", {"runs": {}, "missing": []})
    for label, run in measured["runs"].items():
        j = run["joules_per_token"]
        print(f"measured: {label} ({run['precision']}) {j['mean'] * 1e3:.4g} ± {j['sd'] * 1e3:.2g} mJ a token over "
              f"{run['repeats']} repetitions, idle power taken off, {run['tokens_per_second']:.4g} tokens/s")
    for why in measured["missing"]:
        print(why)
