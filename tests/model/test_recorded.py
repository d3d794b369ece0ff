"""Single tokens through a recorded CUDA graph are those of the model; most of these tests need a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from symboliclight.commands import cli
from symboliclight.core.config import preset
from symboliclight.model import build
from symboliclight.model.graph import Recorded, recorded
from symboliclight.model.step import last_logits

MODELS = {"v1": {}, "fed": {"residual": "pre", "spike_fed": True, "conv": 3, "decay": "input"},
          "decay": {"paths": "decay"}, "attention": {"paths": "attention"}, "topk": {"spike_source": "topk"},
          "static": {"prior": "static"}, "plus": {"norm": "none", "conv": 3, "learn_neuron": "all"}}


def model_of(name, device="cuda"):
    torch.manual_seed(0)
    shape = replace(preset("mini"), vocab_size=512, n_layers=3, window=24, n_anchors=2, **MODELS[name])
    return build(shape).to(device).eval()


def read(run, tokens, state, at):
    """Logits of each token from `at` on, one by one."""
    found = []
    for t in range(at, tokens.shape[1]):
        logits, state = run(tokens[:, t : t + 1], state)
        found.append(logits.copy())
    return np.stack(found), state


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [1, 5, 40])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_recorded_tokens_are_those_of_the_model(name, prompt):
    """From within the first window and from beyond it, until the anchors have left it."""
    model = model_of(name)
    tokens = np.random.default_rng(0).integers(0, 512, (3, prompt + 40))
    run = Recorded(model)
    _, state = last_logits(model, tokens[:, :prompt], None)
    expected, end = read(lambda t, s: last_logits(model, t, s), tokens, state, prompt)
    found, last = read(run.last, tokens, run.last(tokens[:, :prompt])[1], prompt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for key, x in end.tensors().items():
        torch.testing.assert_close(last.tensors()[key], x, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_fewer_rows_other_states_and_padding():
    """A row may end, another state of as many rows may follow, and padded rows are read before anything is replayed."""
    model, run = model_of("v1"), Recorded(model_of("v1"))
    tokens = np.random.default_rng(0).integers(0, 512, (3, 30))
    padding = np.array([0, 4, 6])
    one, two = run.initial_state(3, padding), model.initial_state(3, torch.from_numpy(padding))
    _, one = run.last(tokens[:, :5], one)
    _, two = last_logits(model, tokens[:, :5], two)
    for t in range(5, 12):  # the third row is still in its padding at first
        a, one = run.last(tokens[:, t : t + 1], one)
        b, two = last_logits(model, tokens[:, t : t + 1], two)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    one, two, tokens = one.rows([2, 0]), two.rows([2, 0]), tokens[[2, 0]]
    fork = two.copy()
    for state in (two, fork):  # the second pass starts again from the same place
        mine = one.copy() if state is two else one
        for t in range(12, 20):
            a, mine = run.last(tokens[:, t : t + 1], mine)
            b, state = last_logits(model, tokens[:, t : t + 1], state)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_nothing_is_recorded_on_a_cpu():
    model = model_of("v1", "cpu")
    assert recorded(model) is model


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_its_benchmark_says_that_it_needs_a_gpu(capsys, tmp_path):
    assert cli.main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "needs a CUDA device" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
