"""What the tests of training share: a tiny run, its log and checkpoints, random batches."""

import json
from dataclasses import replace

import numpy as np

from symboliclight.core.config import TrainConfig
from symboliclight.train import train

CONFIG = TrainConfig(tokens=20 * 64, batch_size=2, lr=3e-3, warmup_steps=2, precision="float32", break_even=0.125,
                     log_every=2, eval_every=8, eval_tokens=64, save_every=4, keep=2)


def go(run, directory, **options):
    return train(run, directory, tensorboard=False, device="cpu", **options)


def with_train(run, **changes):
    return replace(run, train=replace(run.train, **changes))


def lines(directory, event):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def checkpoints(directory):
    return sorted(p.name for p in directory.glob("step-*"))


def batch(config, seed, rows, length=16):
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))
    return ids[:, :-1], ids[:, 1:].copy()
