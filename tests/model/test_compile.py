"""torch.compile sees the whole model."""

import pytest
import torch

from symboliclight import ModelConfig, build

CONFIG = ModelConfig(vocab_size=61, d_model=32, n_layers=2, n_heads=2, head_dim=16, d_ff=48, max_seq_len=64, window=6,
                     n_anchors=2, dropout=0.0)


@pytest.mark.parametrize("gradient", ["local", "bptt"])
def test_compiled_forward_and_backward_are_one_graph_and_equal_eager(gradient):
    torch.manual_seed(0)
    model = build(CONFIG)
    tokens = torch.randint(0, 61, (2, 24))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for run in (model, compiled):
        model.zero_grad()
        logits, state = run(tokens)
        logits.logsumexp(-1).mean().backward()
        found.append([logits.detach(), state.v, *(p.grad for p in model.parameters())])
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(graph, eager)
