"""Make a trained run the model that comes with the package, and measure what its card says.

    python tools/ship.py --model simple/runs/answers --data simple/pretrain --phases simple/runs/pretrain
        [--bench BENCH] [--beside "the model before=DIR" ...]

exports the run at 8 bits into src/symboliclight/shipped/, evaluates it, the float32 weights and 4 bits on the test
split, writes a story to every opening and an answer to every question of recipes/, looks for training text that it
knows by heart and asks the benchmarks in BENCH (blimp/, zhoblimp/, c3/) of it and of the models beside it. All of it
goes to results/shipped.json.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from symboliclight import engine
from symboliclight.commands.models import read_text, token_progress
from symboliclight.core import checkpoint
from symboliclight.core.config import load_json, to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import write_result
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import ends
from symboliclight.data.shards import Shards
from symboliclight.engine.pack import Precision
from symboliclight.generate.runner import load_model, load_runner
from symboliclight.measure import calibration, cloze, memorised, pairs, stories
from symboliclight.show import card

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
PRECISION: Precision = "int8"
SEQ_LEN, TEST_TOKENS = 512, 16_384  # of a window; of a domain
STORY, ANSWER = 300, 120  # tokens at most
PASSAGES = 50  # a domain
LIMIT = 32_000_000  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--data", type=Path, required=True, help="shards of the texts it is evaluated on")
    parser.add_argument("--phases", type=Path, nargs="*", default=[], help="runs whose weights it began with, in order")
    parser.add_argument("--bench", type=Path, help="folder with blimp/, zhoblimp/ and c3/")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=DIR", help="a model to ask the same")
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "symboliclight" / "shipped")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "shipped.json")
    args = parser.parse_args()
    try:
        ship(args)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def ship(args: argparse.Namespace) -> None:
    """Raises `InputError` if a run is not finished, does not fit the data, or is too large."""
    shards = Shards.open(args.data)
    runs = [finished(run) for run in [*args.phases, args.model]]
    if shards.data_hash not in {facts["data_hash"] for facts in runs}:
        raise InputError(f"{args.model} was trained on other data than {shards.path}; give its own shards")
    beside = dict(one.partition("=")[::2] for one in args.beside)
    engine.export(args.model, args.package, PRECISION)
    weights, tokenizer = args.package / checkpoint.MODEL, Tokenizer.load(args.package)
    if weights.stat().st_size > LIMIT:
        raise InputError(f"{weights} has {weights.stat().st_size:,} bytes, {LIMIT:,} are allowed; ship a smaller model")
    shipped = engine.load(args.package)
    write_result(args.results, {
        "card": 2, "parameters": runs[-1]["parameters"], "precision": PRECISION, "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "config": to_dict(shipped.config),
        "training": [training(facts) for facts in runs], "split": "test", "seq_len": SEQ_LEN,
        **quality(args.model, shipped, tokenizer, shards), **written(shipped, tokenizer, shards),
        "benchmarks": benchmarks(args.bench, {"shipped": (shipped, tokenizer)} | {
            name: load_runner(folder, engine.exported_precision(folder) or "float32")
            for name, folder in beside.items()}),
    })


def finished(run: Path) -> dict[str, Any]:
    """What run.json says of a run."""
    facts = load_json(run / "run.json")
    if "result" not in facts:
        raise InputError(f"{run} is not finished; run the same train command again")
    return facts


def training(facts: dict[str, Any]) -> dict[str, Any]:
    """How one phase was trained."""
    train, result = facts["train"], facts["result"]
    gpus = facts["machine"].get("accelerators", [])
    return {
        "commit": facts["commit"], "tokens": result["tokens"], "batch_size": train["batch_size"],
        "seq_len": facts["data"]["seq_len"], "loss": facts["data"].get("loss", "all"), "lr": train["lr"],
        "seed": facts["seed"], "optimizer": train.get("optimizer", "adamw"), "hours": result["seconds"] / 3600,
        "threads": facts["threads"],
        "device": str(gpus[0]) if gpus and facts["device"].startswith("cuda") else "cpu",
        "data_hash": facts["data_hash"], "tokenizer_hash": facts["tokenizer_hash"],
    }


def quality(run: Path, shipped: engine.Engine, tokenizer: Tokenizer, shards: Shards) -> dict[str, Any]:
    """Losses and silence of the shipped weights, of float32 and of 4 bits."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = load_model(run)
        windows = calibration.read_windows(tokenizer, None)
        with token_progress("calibrating 4 bits", windows.size) as advance:
            moments = calibration.moments(model.eval(), windows, advance)
        engine.export(run, Path(folder) / "int4", "int4", moments)
        for name, kind in (("shipped", shipped), ("float32", engine.load(run, "float32")),
                           ("int4", engine.load(Path(folder) / "int4"))):
            with token_progress(f"evaluating {name}", TEST_TOKENS * len(shards.domains("test"))) as advance:
                found[name] = card.measure(kind, tokenizer, shards, "test", SEQ_LEN, TEST_TOKENS, advance)
    return found


def written(shipped: engine.Engine, tokenizer: Tokenizer, shards: Shards) -> dict[str, Any]:
    """Stories, answers, and training text that comes back."""
    openings = stories.read_openings(RECIPES / "openings.txt")
    questions = stories.read_openings(RECIPES / "questions.txt")
    with token_progress("writing stories", len(openings), "stories") as advance:
        told = stories.measure(shipped, tokenizer, openings, card.HOW, STORY, 0, ends(tokenizer), advance)
    with token_progress("answering", len(questions), "questions") as advance:
        answers = card.answer(shipped, tokenizer, questions, ANSWER, advance)
    with token_progress("looking for training text", PASSAGES * len(shards.domains("train")), "passages") as advance:
        known = memorised.measure(shipped, tokenizer, shards, PASSAGES, 0, advance)
    how = {"temperature": card.HOW.temperature, "top_k": card.HOW.top_k, "seed": 0, "story": STORY, "answer": ANSWER}
    return {"sampling": how, "stories": told, "answers": answers, "memorised": known}


def benchmarks(folder: Path | None, models: dict[str, tuple[Any, Tokenizer]]) -> dict[str, Any]:
    """Benchmark -> model -> accuracy."""
    if folder is None:
        return {}
    return {name: {label: measure(folder, *model) for label, model in models.items()}
            for name, measure in (("blimp", minimal("blimp")), ("zhoblimp", minimal("zhoblimp")), ("c3", choices))}


def minimal(name: str) -> Callable[[Path, Any, Tokenizer], dict[str, Any]]:
    """Accuracy on all minimal pairs in a folder, by phenomenon too."""
    def measure(folder: Path, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        files = [str(file) for file in sorted((folder / name).rglob("*.jsonl"))]
        read = pairs.sample([pair for file in files for pair in pairs.parse(read_text(file), file)])
        with token_progress(name, len(read), "pairs") as advance:
            found = pairs.measure(model, tokenizer, read, advance)
        return {"all": found["all"], "mean_over_paradigms": found["mean_over_paradigms"],
                "phenomena": found["phenomena"]}
    return measure


def choices(folder: Path, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Accuracy on the test questions of C3."""
    read = [question for kind in "dm" for file in [str(folder / "c3" / f"c3-{kind}-test.json")]
            for question in cloze.parse(read_text(file), file)]
    with token_progress("c3", len(read), "questions") as advance:
        found = cloze.measure(model, tokenizer, cloze.sample(read), None, advance)
    return {Path(name).stem: figures for name, figures in found["files"].items()}


if __name__ == "__main__":
    sys.exit(main())
