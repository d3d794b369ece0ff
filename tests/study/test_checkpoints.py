"""The checkpoints of the study, where `make study-checkpoints` has put them: whole, and those of their runs."""

import json
from pathlib import Path

import pytest
import torch

from symboliclight import load
from symboliclight.core.config import ModelConfig, from_dict

CHECKPOINTS = sorted((Path(__file__).resolve().parents[2] / "results" / "study").glob("*/checkpoints/*"))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_is_that_of_its_result(folder):
    (path,) = folder.parents[1].glob(f"{folder.name}-*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    model, tokenizer = load(folder)
    assert model.config == from_dict(ModelConfig, result["config"]["model"])
    assert tokenizer.hash == result["tokenizer_hash"]
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    ids = torch.tensor([tokenizer.encode("The sea was calm, and the ship lay at anchor in the bay.", bos=True)])
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:])
    assert nats < result["test"]["mean"]["token_weighted"]["nats_per_token"] + 2  # trained: a fresh model has 9


@pytest.mark.skipif(not CHECKPOINTS, reason="make study-checkpoints")
def test_the_models_of_the_main_comparison_and_the_winner_of_the_search_are_there():
    assert {"v1", "dense-twin", "plain", "gpt2", "plus"} == {path.name.split("-s")[0] for path in CHECKPOINTS}
