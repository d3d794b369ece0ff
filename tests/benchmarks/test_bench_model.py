"""`bench model` measures nothing that is wrong."""

import dataclasses

import pytest
import torch

import symboliclight
from symboliclight.benchmarks import model as bench
from symboliclight.benchmarks import train
from symboliclight.benchmarks.parts import in_precision
from symboliclight.core.errors import InputError


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


def test_products_are_in_the_precision_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(train, "step", lambda *inputs: inputs[3].precision)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with in_precision(precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert train.our_step("tiny", 1, 8, precision)() == precision
        assert train.PLANS[precision]
