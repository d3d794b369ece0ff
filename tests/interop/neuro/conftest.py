"""A small model that has read real text for a few seconds, and that text."""

import lzma
from dataclasses import replace

import pytest

import symboliclight
from symboliclight.data.corpus import demo_sources

VARIANTS = {"v1": {}, "decay-only": {"paths": "decay", "prior": "none", "norm": "none", "v_clamp": 1000.0}}


@pytest.fixture(scope="session")
def texts(small_tokenizer):
    """520 tokens of English and of Chinese fiction."""
    found = {}
    for name in ("en_fiction", "zh_fiction"):
        (path,) = demo_sources()[name]
        with lzma.open(path, "rt", encoding="utf-8") as text:
            found[name] = small_tokenizer.encode(text.read(6000), bos=True)
    return {name: tokens[:520] for name, tokens in found.items()}


@pytest.fixture(scope="session")
def trained(small_config, texts):
    """Variant -> a model after 60 steps on those texts, in which every site spikes."""
    return {name: _train(replace(small_config, **change), texts) for name, change in VARIANTS.items()}


def _train(config, texts):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = symboliclight.build(config)
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.up.weight.mul_(8)  # at D = 32 the hidden units would start silent
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = torch.tensor([tokens[at : at + 65] for tokens in texts.values() for at in range(0, 455, 65)])
    for _ in range(60):
        logits, _ = model(rows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def exports(trained):
    """Variant -> its export in memory."""
    return {name: exported(model) for name, model in trained.items()}


def exported(model):
    from symboliclight.interop.nir import build

    return build.build(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
