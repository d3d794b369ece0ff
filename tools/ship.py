"""Make a trained run the model that comes with the package, and measure what its card says.

    python tools/ship.py --model runs/mini --data shards

exports the run at 8 bits into src/symboliclight/shipped/, evaluates the exported weights and those of the run on the
test split, and writes results/shipped.json.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from symboliclight import engine
from symboliclight.commands.models import token_progress
from symboliclight.core import checkpoint
from symboliclight.core.config import load_json, to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import write_result
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.shards import Shards
from symboliclight.show import card

ROOT = Path(__file__).resolve().parents[1]
PRECISION = "int8"
SEQ_LEN, TEST_TOKENS = 512, 16_384  # of a window; of a domain
LIMIT = 12_000_000  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--data", type=Path, required=True, help="its shards")
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "symboliclight" / "shipped")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "shipped.json")
    args = parser.parse_args()
    try:
        ship(args.model, args.data, args.package, args.results)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def ship(run: Path, data: Path, package: Path, results: Path) -> None:
    """Raises `InputError` if the run is not finished, does not fit the data, or is too large."""
    facts, shards = load_json(run / "run.json"), Shards.open(data)
    if "result" not in facts:
        raise InputError(f"{run} is not finished; run the same train command again")
    if facts["data_hash"] != shards.data_hash:
        raise InputError(f"{run} was trained on other data than {data}; give its own shards")
    engine.export(run, package, PRECISION)
    weights, tokenizer = package / checkpoint.MODEL, Tokenizer.load(package)
    if weights.stat().st_size > LIMIT:
        raise InputError(f"{weights} has {weights.stat().st_size:,} bytes, {LIMIT:,} are allowed; ship a smaller model")
    measured: dict[str, Any] = {}
    shipped = engine.load(package)
    for name, model in (("shipped", shipped), ("float32", engine.load(run, "float32"))):
        with token_progress(f"evaluating {name}", TEST_TOKENS * len(shards.domains("test"))) as advance:
            measured[name] = card.measure(model, tokenizer, shards, "test", SEQ_LEN, TEST_TOKENS, advance)
    with Console(stderr=True).status("writing samples"):
        samples = card.write_samples(shipped, tokenizer)
    train, result = facts["train"], facts["result"]
    write_result(results, {
        "card": 1, "parameters": facts["parameters"], "precision": PRECISION, "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "config": to_dict(shipped.config),
        "training": {
            "commit": facts["commit"], "tokens": result["tokens"], "batch_size": train["batch_size"],
            "seq_len": facts["data"]["seq_len"], "lr": train["lr"], "seed": facts["seed"],
            "optimizer": train.get("optimizer", "adamw"), "hours": result["seconds"] / 3600,
            "threads": facts["threads"], "device": where(facts),
            "data_hash": facts["data_hash"], "tokenizer_hash": facts["tokenizer_hash"],
        },
        "split": "test", "seq_len": SEQ_LEN, **measured,
        "sampling": {"temperature": card.HOW.temperature, "top_k": card.HOW.top_k, "seed": 0, "tokens": card.TOKENS},
        "samples": samples,
    })


def where(facts: dict[str, Any]) -> str:
    """The processor or the GPU that a run was trained on."""
    gpus = facts["machine"].get("accelerators", [])
    return str(gpus[0]) if gpus and facts["device"].startswith("cuda") else "cpu"


if __name__ == "__main__":
    sys.exit(main())
