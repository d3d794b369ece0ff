"""`symboliclight neuro run`: an exported folder, event by event, and its spikes beside the torch model's."""

import argparse
import hashlib
import lzma
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symboliclight.commands.models import read_text, token_progress
from symboliclight.commands.output import print_json, print_table
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import write_result
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.corpus import demo_sources

EMBEDDED = {"English": "en_fiction", "Chinese": "zh_fiction"}  # of the demo corpus
COUNTS = ("events", "graded", "accumulates", "multiply_accumulates", "weight_reads", "state_reads", "host_reads")


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("run", help="run an exported NIR folder event by event, counting what each step costs")
    p.add_argument("folder", metavar="DIR", help="what `symboliclight export --format nir` wrote")
    add_texts(p)
    p.add_argument("--dtype", choices=("float64", "float32"), default="float64",
                   help="arithmetic of sums and membranes (default: float64, in which their order does not matter)")
    p.add_argument("--against", metavar="MODEL", help="the checkpoint it was exported from: also count spikes that "
                                                      "differ from the torch model's, in float64 and in float32")
    p.add_argument("--json", action="store_true", help="print JSON, with every step's counts")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the JSON, without the single steps, to FILE")
    p.set_defaults(run=_run)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Add --text and --max-tokens."""
    parser.add_argument("--text", metavar="FILE", action="append", default=[],
                        help="a UTF-8 text file; may be given again (default: English and Chinese fiction of the demo "
                             "corpus)")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N",
                        help="tokens of each text at most (default: 512)")


def texts_of(args: argparse.Namespace, folder: str) -> dict[str, list[int]]:
    """Name -> token ids of the texts asked for, under the tokenizer in `folder`."""
    if args.max_tokens < 1:
        raise InputError(f"--max-tokens must be positive, got {args.max_tokens}")
    tokenizer = Tokenizer.load(folder)
    texts = {path: read_text(path) for path in args.text} or {name: _embedded(domain)
                                                             for name, domain in EMBEDDED.items()}
    return {name: tokenizer.encode(text, bos=True)[: args.max_tokens] for name, text in texts.items()}


def _embedded(domain: str) -> str:
    (path,) = demo_sources()[domain]
    with lzma.open(path, "rt", encoding="utf-8") as text:
        return text.read(40_000)


def _run(args: argparse.Namespace) -> None:
    from symboliclight.interop.nir.executor import Executor

    executor, texts = Executor.load(args.folder, args.dtype), texts_of(args, args.folder)
    model = _model(args.against, executor.export.about.get("weights"))
    rows, steps = [], {}
    with token_progress("reading", sum(map(len, texts.values()))) as advance:
        for name, tokens in texts.items():
            run = executor.run(tokens, advance)
            rows.append({"text": name} | summary(run))
            steps[name] = [{"token": token, **asdict(work)} for token, work in zip(tokens, run.work, strict=True)]
            if model is not None:
                from symboliclight.interop.nir.compare import differences

                rows[-1]["differ"] = differences(run, model, tokens)
    about = executor.export.about
    result = {"dtype": args.dtype, "model": about["model"], "weights": about.get("weights"), "texts": rows}
    if args.out is not None:
        write_result(args.out, result)
    if args.json:
        print_json(result | {"steps": steps})
    else:
        _print(rows)


def _model(directory: str | None, weights: str | None) -> Any:
    """The torch model of a checkpoint. Raises `InputError` if the folder is not an export of its weights."""
    if directory is None:
        return None
    from symboliclight.generate.runner import load_weights
    from symboliclight.interop.nir.files import digest

    if digest(directory) != weights:
        raise InputError(f"{directory} is not the checkpoint that was exported; name the one that was, or export again")
    return load_weights(directory)[0]


def summary(run: Any) -> dict[str, Any]:
    """Totals of a run, its spikes by site and what they are worth: decisions, spikes, rates, smallest margins."""
    digest = hashlib.sha256(b"".join(run.spikes[site].tobytes() for site in sorted(run.spikes))).hexdigest()
    encoder = run.spikes["encoder"].size
    return {
        "tokens": len(run.work), "decisions": sum(s.size for s in run.spikes.values()), "spikes_sha256": digest,
        **{name: sum(getattr(work, name) for work in run.work) for name in COUNTS},
        "rates": {site: float(s.mean()) for site, s in run.spikes.items()},
        "clamp_active_share": sum(work.clamped for work in run.work) / encoder,
        "margin": run.margin, "margins": {site: float(found.min()) for site, found in run.margins.items()},
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(["text", "tokens", "events/token", "accumulates", "multiply-accumulates", "weights read", "states read",
                 "nearest to a threshold"],
                [[r["text"], r["tokens"], *(f"{r[n] / r['tokens']:,.0f}" for n in
                  ("events", "accumulates", "multiply_accumulates", "weight_reads", "state_reads")),
                  f"{r['margin']:.1e}"] for r in rows])
    for r in rows:
        for name, found in r.get("differ", {}).items():
            where = found.get("first")
            first = "" if where is None else (f", first at token {where['token']}, {where['site']} unit "
                                              f"{where['unit']}, {where['margin']:.1e} from its threshold")
            print(f"{r['text']}: {found['spikes']:,} of {r['decisions']:,} spike decisions differ from the torch model "
                  f"in {name}{first}")
