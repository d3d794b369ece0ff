"""Without a GPU or without Triton the choice of forms says so, and nothing is silent."""

import sys

import pytest
import torch
from forms import normal

from symboliclight import ops
from symboliclight.ops import cuda, cuda_forms, torch_forms

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "symboliclight.ops.triton_kernels", None)
    monkeypatch.delattr(ops, "triton_kernels", raising=False)
    cuda._triton.cache_clear()
    yield
    cuda._triton.cache_clear()


@without_a_gpu
def test_no_device_is_named():
    assert cuda_forms()["lif_scan"] == ("none", "no CUDA device")


def test_missing_triton_is_told_once_and_named_as_the_reason(no_triton, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for _ in range(2):
        form, reason = cuda_forms()["decay_scan"]
    assert form == "torch"
    assert reason.startswith("no Triton: ")
    told = [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert [message.count("pip install triton") for message in told] == [1]


def test_torch_forms_hold_on_a_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with torch_forms():
        assert cuda_forms()["window_attention"] == ("torch", "asked for by torch_forms()")


def test_flex_attention_is_left_alone_on_the_cpu():
    assert not cuda.flexes(normal(1, 512, 2, 64))
