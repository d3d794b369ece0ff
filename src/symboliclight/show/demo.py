"""The demo: from the embedded corpus to a trained, measured and explained pair of models in a few minutes."""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from symboliclight.core import lock
from symboliclight.core.atomic import write_atomic
from symboliclight.core.config import DataConfig, RunConfig, TrainConfig, preset
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import commit, machine, write_result
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.tokenizer import train as train_tokenizer
from symboliclight.data.corpus import Corpus, CorpusOptions, build_corpus, demo_sources
from symboliclight.data.sample import balanced_sample
from symboliclight.data.shards import Shards, build_shards
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.measure.evaluate import evaluate
from symboliclight.measure.raster import raster, raster_svg
from symboliclight.model import load
from symboliclight.show import plots
from symboliclight.show.budget import FEWEST, Budget, agreed, schedule
from symboliclight.show.report import write_report
from symboliclight.train import train

PAIR = {"SymbolicLight tiny": "tiny", "GPT-2 tiny": "gpt2-tiny"}  # label -> preset
SENTENCES = {"English": "en_fiction", "Chinese": "zh_fiction"}  # language -> domain of its held-out sentence
PROMPTS = {"English": "The captain looked at the sea and", "Chinese": "却说曹操"}
HOW = Sampling(temperature=0.7, top_k=50)
SAMPLE_TOKENS = 100
BATCH = 16  # sequences a step
USED = 0.85  # of the minutes are planned: machines slow down
FINISH_SECONDS = 5.0  # for pictures and samples

Stage = Callable[[str], AbstractContextManager[Any]]  # announces a stage and shows that it runs


@dataclass(frozen=True)
class Demo:
    """Options of the demo. Each rate is the best of 1.5e-3, 3e-3, 6e-3 and 1.2e-2 for its model at 0.8M tokens."""

    tokens: int | None = None  # that each model reads; None: what fits into `minutes`
    minutes: float = 8.0  # for everything
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    seed: int = 42
    rates: tuple[float, float] = (6e-3, 3e-3)  # of the two models


def demo(out: Path, options: Demo, stage: Stage, started: float | None = None) -> dict[str, Any]:
    """Run or continue the demo in folder `out`; returns what is also written as out/result.json.

    `started`: when its minutes began, by time.perf_counter; None: now. Raises `InUse` if another process works on it.
    """
    with lock.held(out / lock.NAME, out):
        return _demo(out, options, stage, started)


def _demo(out: Path, options: Demo, stage: Stage, started: float | None) -> dict[str, Any]:
    started = time.perf_counter() if started is None else started
    corpus, shards = prepare(out, stage)
    budget = agree(out, options, shards, started, stage)
    tokenizer, runs, models = shards.tokenizer(), [], {}
    length = preset("tiny").max_seq_len
    held_out = schedule(budget.tokens // (BATCH * length), BATCH * length).evaluated
    for (label, name), lr in zip(PAIR.items(), options.rates, strict=True):
        directory = out / name
        result = train(run_config(name, shards, options, lr, budget.tokens), directory, progress=True)
        if result.interrupted:
            raise KeyboardInterrupt
        model, _ = load(directory)
        with stage(f"evaluating {label} on held-out text"):
            figures = evaluate(model, tokenizer, shards, "validation", held_out, preset(name).max_seq_len)
        models[label] = model
        runs.append({"label": label, "preset": name, "parameters": figures["parameters"], "lr": lr,
                     "tokens": result.tokens, "tokens_per_second": result.tokens_per_second, "seconds": result.seconds,
                     "eval": figures, "metrics": read_metrics(directory)})
    with stage("drawing and sampling"):
        spiking = models["SymbolicLight tiny"]
        pictures = rasters(spiking, tokenizer, corpus)
        samples = [s for label, model in models.items() for s in write_samples(label, model, tokenizer, options.seed)]
    result_json = {
        "title": "SymbolicLight demo: a spiking language model beside GPT-2",
        "lead": f"Two models of the same size, trained on the same {runs[0]['tokens']:,} tokens of English, Chinese, "
                "mathematics and code, in the same order, then measured on text that neither has read. "
                + budget.reason(),
        "budget": asdict(budget), "seconds": round(time.perf_counter() - started, 1),
        "seed": options.seed, "data_hash": shards.data_hash, "runs": runs, "samples": samples,
    }
    write_result(out / "result.json", result_json)
    drawn = {"losses": plots.plot_losses({r["label"]: r["metrics"] for r in runs}).decode(),
             "sparsity": plots.plot_sparsity(runs[0]["eval"]["sparsity"]).decode(),
             **{f"raster-{p['language'].lower()}": p["svg"] for p in pictures}}
    for name, svg in drawn.items():
        write_atomic(out / f"{name}.svg", svg.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1).encode())
    write_report(out / "report.html", {
        **result_json, "commit": commit(), "machine": machine(), "rasters": pictures, "loss_svg": drawn["losses"],
        "sparsity_svg": drawn["sparsity"]})
    return result_json


def agree(out: Path, options: Demo, shards: Shards, started: float, stage: Stage) -> Budget:
    """The token budget of both models: the one in `out`, or a new one."""
    runs = {name: run_config(name, shards, options, lr) for name, lr in zip(PAIR.values(), options.rates, strict=True)}
    deadline = started + USED * 60 * options.minutes - FINISH_SECONDS
    with stage("measuring how fast this machine trains both models"):
        return agreed(out, options.tokens, options.minutes, deadline, runs, shards)


def prepare(out: Path, stage: Stage) -> tuple[Corpus, Shards]:
    """Corpus, tokenizer and shards of the demo, made once."""
    vocab_size = preset("tiny").vocab_size
    with stage("cleaning and splitting the embedded corpus"):
        corpus = _existing(Corpus, out / "corpus") or build_corpus(
            demo_sources(), out / "corpus", CorpusOptions(validation=0.03, test=0.01), replace=True)
    with stage(f"training a tokenizer of {vocab_size} pieces"):
        model = out / "tokenizer.model"
        tokenizer = _existing(Tokenizer.load, model) or train_tokenizer(
            balanced_sample(corpus, 4_000_000).texts(), vocab_size, model).tokenizer
    with stage("turning text into tokens"):
        shards = _existing(Shards.open, out / "shards")
        if shards is None or shards.tokenizer_hash != tokenizer.hash:
            shards = build_shards(corpus, tokenizer, out / "shards", replace=True)
    return corpus, shards


def _existing(read: Callable[[Path], Any], path: Path) -> Any:
    """What an earlier, perhaps interrupted demo left whole, or None."""
    try:
        return read(path)
    except InputError:
        return None


def run_config(name: str, shards: Shards, options: Demo, lr: float, tokens: int = FEWEST) -> RunConfig:
    """The training run of one of the two models; warm-up, log and validations follow its budget."""
    model = replace(preset(name), vocab_size=shards.vocab_size)
    steps = tokens // (BATCH * model.max_seq_len)
    plan = schedule(steps, BATCH * model.max_seq_len)
    every = math.ceil(steps / plan.validations)
    recipe = TrainConfig(tokens=tokens, batch_size=BATCH, lr=lr, min_lr=lr / 20, warmup_steps=min(40, steps // 8),
                         precision=options.precision, seed=options.seed, log_every=math.ceil(steps / 200),
                         eval_every=every, eval_tokens=plan.validated, save_every=min(every, 50), keep=1)
    return RunConfig(model, DataConfig(str(shards.path), {}, model.max_seq_len), recipe)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that learning curves need."""
    lines = (json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    keys = {"train": "loss", "validation": "nats_per_token"}
    return [{"event": m["event"], "tokens": m["trained_tokens"], "nats": m[keys[m["event"]]]}
            for m in lines if m["event"] in keys]


def rasters(model: Any, tokenizer: Tokenizer, corpus: Corpus) -> list[dict[str, str]]:
    """Spike rasters of one held-out sentence in each language."""
    found = []
    for language, domain in SENTENCES.items():
        text = sentence(next(corpus.documents(domain, "validation")), tokenizer)
        caption = f"{language}, from a held-out document: “{text}”. 48 evenly chosen units a site."
        found.append({"language": language, "caption": caption, "svg": raster_svg(raster(model, tokenizer, text))})
    return found


def sentence(document: str, tokenizer: Tokenizer, most: int = 40) -> str:
    """The start of a document up to the last end of a sentence, or of a word, within `most` tokens."""
    text = tokenizer.decode(tokenizer.encode(" ".join(document.split()))[:most]).rstrip("\ufffd")
    ends = [i + 1 for i, c in enumerate(text) if c in "。！？.!?"]
    return text[: ends[-1]] if ends else text


def write_samples(label: str, model: Any, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """Continuations of the two prompts."""
    prompts = [tokenizer.encode(p, bos=True) for p in PROMPTS.values()]
    done = generate(model, tokenizer, prompts, SAMPLE_TOKENS, HOW, seed=seed)
    return [{"label": f"{label}, {language}", "prompt": prompt, "text": c.text}
            for (language, prompt), c in zip(PROMPTS.items(), done, strict=True)]
