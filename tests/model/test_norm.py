"""`norm="none"`: the residual stream without statistics, whose every sum a neuromorphic graph can hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from symboliclight import build, preset
from symboliclight.core.config import ModelConfig
from symboliclight.model.encoder import Shift

DEEP = ModelConfig(vocab_size=64, d_model=48, n_layers=10, n_heads=3, head_dim=16, d_ff=96, dropout=0.0, paths="decay",
                   prior="none", norm="none", v_clamp=1000.0)


def test_only_the_table_of_tokens_is_normalised():
    model = build(DEEP)
    assert [name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)] == ["encoder.norm"]
    assert sum(isinstance(m, Shift) for m in model.modules()) == 2 * DEEP.n_layers


def test_branches_start_smaller_by_the_root_of_their_number():
    torch.manual_seed(0)
    free = build(DEEP).blocks[3]
    torch.manual_seed(0)
    normed = build(replace(DEEP, norm="layer")).blocks[3]
    for part in ("mixer.out", "ffn.down"):
        torch.testing.assert_close(free.get_submodule(part).weight * 20**0.5, normed.get_submodule(part).weight)
    assert torch.equal(free.ffn.up.weight, normed.ffn.up.weight)


def test_ten_layers_train_without_norms():
    torch.manual_seed(0)
    model = build(DEEP)
    tokens = torch.arange(64).repeat(2)[None].expand(4, -1)  # each token says the next one
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        logits, _ = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(4.16, abs=0.2)  # ln 64: nothing known
    assert losses[-1] < 1.0, losses
    assert any(float(m.bias.detach().abs().max()) > 1e-3 for m in model.modules() if isinstance(m, Shift))


def test_mini_neuro_has_nothing_that_a_graph_cannot_hold():
    c = preset("mini-neuro")
    assert (c.paths, c.norm, c.prior, c.d_model) == ("decay", "none", "none", preset("mini").d_model)
