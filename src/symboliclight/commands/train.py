"""`symboliclight train`: token shards -> checkpoints."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symboliclight.commands.fields import parse
from symboliclight.commands.output import print_json, print_table
from symboliclight.core.config import PRESETS, RunConfig, TrainConfig, from_dict, load_run, preset, to_dict
from symboliclight.core.errors import InputError
from symboliclight.data import Shards

if TYPE_CHECKING:
    from symboliclight.train import Result

_ABOUT = """
Train a model on token shards. A run is interrupted with Ctrl-C (or SIGTERM, or kill -9) and goes on from its last
checkpoint when the same command, or only `train --out DIR`, is given again. OUT holds run.json, metrics.jsonl,
tensorboard/, step-*/ checkpoints, and links `last` and `best` (lowest validation loss); each is a model folder.
The vocabulary is that of the data unless --config or --set model.vocab_size says otherwise. A loss that explodes takes
the run back to the last checkpoint with half the rate; the data goes on past the bad batches.
"""
_D = TrainConfig()
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "DIR"}
_SHORT: dict[str, tuple[str, type, str]] = {  # option -> field, type, help
    "init": ("train.init", Path, "begin with the weights of this model folder or run, made with the same tokenizer"),
    "tokens": ("train.tokens", int, f"training budget, tokens (default: {_D.tokens:,})"),
    "batch-size": ("train.batch_size", int, f"sequences a micro-batch (default: {_D.batch_size})"),
    "accumulate": ("train.accumulate", int, f"micro-batches an optimiser step (default: {_D.accumulate})"),
    "seq-len": ("data.seq_len", int, "tokens a sequence (default: 512, or model.max_seq_len if that is less)"),
    "lr": ("train.lr", float, f"peak learning rate (default: {_D.lr})"),
    "warmup-steps": ("train.warmup_steps", int,
                     f"steps of linear warm-up (default: {_D.warmup_steps}, at most a tenth of the run)"),
    "precision": ("train.precision", str, "of products: bfloat16, float32, or auto, which is bfloat16 where the "
                  "processor multiplies it and what a resumed run began in (default: auto)"),
    "eval-every": ("train.eval_every", int, f"steps between validations, 0: never (default: {_D.eval_every})"),
    "save-every": ("train.save_every", int, f"steps between checkpoints (default: {_D.save_every})"),
    "seed": ("train.seed", int, f"of weights, data order and dropout (default: {_D.seed})"),
}


def add(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser("train", help="train a model on token shards, or resume a run", description=_ABOUT)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--data", metavar="DIR", help="token shards, written by `symboliclight corpus shards`")
    parser.add_argument("--preset", metavar="NAME", help=f"model: {', '.join(PRESETS)} (default: tiny)")
    parser.add_argument("--config", metavar="FILE",
                        help="JSON with sections model, data, train; a run.json of another run will do")
    for option, (_, kind, text) in _SHORT.items():
        parser.add_argument(f"--{option}", type=_count if kind is int else kind, help=text,
                            metavar=_METAVARS[kind])
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="fields",
                        help="any field of the configuration, e.g. model.ffn=gelu, train.clip=0.5, "
                             'data.weights={"zh":2,"en":1}; may be repeated, and wins over all else')
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="go on with the run that --out holds; --no-resume refuses instead (default: --resume)")
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="auto (CUDA if there is one), cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 1 if a signal stopped the run."""
    config = configure(args)
    from symboliclight.train import train
    from symboliclight.train.distributed import first_process

    result = train(config, args.out, resume=args.resume, device=args.device, progress=True)
    if first_process():
        print_json(asdict(result)) if args.json else _show(result)
    return 1 if result.interrupted else 0


def configure(args: argparse.Namespace) -> RunConfig:
    """The run that the options describe; they change --config, else the run that --out holds, else the defaults."""
    stored = Path(args.out) / "run.json"
    source = args.config or (stored if stored.exists() and not args.preset else None)
    base = to_dict(load_run(source) if source else RunConfig(model=preset("tiny")))
    if args.preset:
        base["model"] = to_dict(preset(args.preset))
    if args.data:
        base["data"]["directory"] = args.data
    if not base["data"]["directory"]:
        raise InputError("--data is missing: name a folder of token shards, written by `symboliclight corpus shards`")
    if args.preset or not source:
        base["model"]["vocab_size"] = Shards.of_run(base["data"]["directory"], stored).vocab_size
    fields = _fields(args)
    for name, value in fields.items():
        _put(base, name, value)
    config = from_dict(RunConfig, base, "options")
    return config if source else _fit(config, fields)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Field -> value from the short options and, stronger, from --set."""
    short = {field: str(value) if kind is Path else value for option, (field, kind, _) in _SHORT.items()
             if (value := getattr(args, option.replace("-", "_"))) is not None}
    return short | parse(args.fields)


def _put(base: dict[str, Any], name: str, value: Any) -> None:
    """Set the field `section.name`; its type and range are checked when the configuration is built."""
    section, _, field = name.partition(".")
    if section not in base or field not in base[section]:
        known = [f"{s}.{f}" for s, values in base.items() for f in values if f == (field or section)]
        hint = f"; did you mean {known[0]}?" if known else "; `run.json` of any run lists all of them"
        raise InputError(f"--set {name}: there is no such field{hint}")
    base[section][field] = value


def _fit(config: RunConfig, fields: dict[str, Any]) -> RunConfig:
    """Defaults that depend on other fields: a sequence fits the model, a warm-up the run."""
    data, train = config.data, config.train
    if "data.seq_len" not in fields:
        data = replace(data, seq_len=min(data.seq_len, config.model.max_seq_len))
    if "train.warmup_steps" not in fields:
        steps = train.tokens // (train.batch_size * train.accumulate * data.seq_len)
        train = replace(train, warmup_steps=min(train.warmup_steps, steps // 10))
    return replace(config, data=data, train=train)


def _count(text: str) -> int:
    """A whole number; 3e9 is one as well."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


_count.__name__ = "whole number"  # what argparse calls the type in its error message


def _show(result: "Result") -> None:
    print(f"{result.steps:,} of {result.total_steps:,} steps, {result.tokens:,} tokens, "
          f"{result.tokens_per_second:,.0f} tokens/s, {result.rollbacks} rollbacks")
    if result.validation:
        named = {**result.validation["domains"], "all": result.validation}
        print_table(["validation", "nats/token", "bits/byte", "tokens"],
                    [[name, f"{d['nats_per_token']:.4f}", f"{d['bits_per_byte']:.4f}", d["tokens"]]
                     for name, d in named.items()])
    if result.interrupted:
        print(f"stopped and saved; resume with: symboliclight train --out {result.directory}")
    else:
        print(f"saved in {result.directory} (last and best)")
