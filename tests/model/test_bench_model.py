"""`bench model` measures nothing that is wrong."""

import dataclasses

import pytest
import torch

import symboliclight
from symboliclight.benchmarks import model as bench
from symboliclight.errors import InputError


def test_the_check_lets_right_forms_pass_and_a_wrong_one_not(small_config, monkeypatch):
    torch.manual_seed(0)
    model = symboliclight.build(dataclasses.replace(small_config, init_std=0.2)).eval()
    tokens = torch.randint(0, 520, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        bench.check(model, tokens)
        right = bench.dense_attention
        monkeypatch.setattr(bench, "dense_attention", lambda *a: right(*a[:-1], a[-1] // 8))
        with pytest.raises(InputError, match="differ by"):
            bench.check(model, tokens)
