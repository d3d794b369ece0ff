"""`symboliclight raster`: who spikes when, over the tokens of a sentence."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from symboliclight.commands.models import label_of
from symboliclight.commands.output import print_json, print_table
from symboliclight.commands.streams import utf8_text
from symboliclight.core.atomic import write_atomic
from symboliclight.core.errors import InputError
from symboliclight.generate.runner import load_model

SENTENCES = ("The old captain looked at the sea and said nothing for a long time.", "春天来了，江边的柳树又绿了。")
MOST = 400  # tokens of a text that still make a picture
NO_MODEL = ("give --model DIR, a trained model: `symboliclight demo` trains one in a few minutes, "
            "then --model demo/tiny; `symboliclight import` takes the published ones")


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("raster", help="draw the spikes of every layer over the tokens of a sentence")
    a = p.add_argument
    a("texts", nargs="*", metavar="TEXT", help="one file holds all texts (default: an English and a Chinese sentence)")
    a("--model", metavar="DIR", help="a checkpoint, or the folder of a run")
    a("--out", type=Path, metavar="FILE", default=Path("raster.html"),
      help=".html: interactive, with every unit; .png; .svg; .npz: arrays (default: raster.html)")
    a("--sites", metavar="NAME,...", help="of .png and .svg: encoder, ffn, blocks, or single ones such as "
                                          "ffn.3 (default: encoder,blocks)")
    a("--units", type=int, default=48, metavar="N", help="of .svg: units drawn a site, evenly chosen (default: 48)")
    a("--json", action="store_true", help="print firing rates by text and site as JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.out.suffix not in FORMATS:
        raise InputError(f"--out must end in {', '.join(FORMATS)}, got {args.out}")
    if args.units < 1:
        raise InputError(f"--units must be positive, got {args.units}")
    if args.model is None:
        raise InputError(NO_MODEL)
    texts = list(dict.fromkeys(map(utf8_text, args.texts or SENTENCES)))
    if not all(texts):
        raise InputError("an empty text has no spikes to draw; give at least a character")
    try:
        model, tokenizer = load_model(args.model)
    except InputError as error:
        if Path(args.model).exists():
            raise
        raise InputError(f"{error}; {NO_MODEL}") from error
    from symboliclight.measure.raster import raster  # needs torch, which load_model has asked for

    for text in texts:
        if len(tokenizer.encode(text)) > MOST:
            raise InputError(f"a raster shows at most {MOST} tokens, {text[:20]!r}... has more; give a shorter text")
    found = {text: raster(model, tokenizer, text) for text in texts}
    note = _save(args, found)
    rates = {text: one.rates() for text, one in found.items()}
    if args.json:
        print_json({"out": str(args.out), "rates": rates})
        return
    head = [t if len(t) <= 24 else t[:23] + "…" for t in texts]
    print_table(("active", *head), [(site, *(f"{rates[t][site]:.2%}" for t in texts)) for site in rates[texts[0]]])
    print(f"{args.out}: {', '.join(str(len(one.labels)) for one in found.values())} tokens{note}")


def _save(args: argparse.Namespace, found: dict[str, Any]) -> str:
    """Write the file; returns what the reader should know about it."""
    body, note = FORMATS[args.out.suffix](args, found)
    try:
        write_atomic(args.out, body)
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}; choose another --out") from error
    return note


def _sites(args: argparse.Namespace) -> list[str] | None:
    return None if args.sites is None else [s for s in args.sites.split(",") if s]


def _html(args: argparse.Namespace, found: dict[str, Any]) -> tuple[bytes, str]:
    from symboliclight.show.rasters import page

    return page(found, label_of(args.model)).encode(), ""


def _png(args: argparse.Namespace, found: dict[str, Any]) -> tuple[bytes, str]:
    from symboliclight.show.rasters import picture

    body, missing = picture(found, _sites(args))
    return body, "" if not missing else (f"; no font here has {missing} of their labels, which stand as numbers: "
                                         "install a Chinese font (Noto Sans CJK), or write .svg or .html")


def _svg(args: argparse.Namespace, found: dict[str, Any]) -> tuple[bytes, str]:
    from symboliclight.show.rasters import vector

    return vector(found, _sites(args), args.units).encode(), ""


def _npz(args: argparse.Namespace, found: dict[str, Any]) -> tuple[bytes, str]:
    from symboliclight.show.rasters import arrays

    return arrays(found), ""


FORMATS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], tuple[bytes, str]]] = {
    ".html": _html, ".png": _png, ".svg": _svg, ".npz": _npz}
