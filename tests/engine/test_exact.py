"""The runtime against the torch model: every switch, every instruction set, any chunking, any batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight import _engine
from symboliclight.core.config import ModelConfig
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import PRECISIONS
from symboliclight.engine.weights import from_tensors
from symboliclight.model.sites import spike_sites

ISAS = _engine.isas()
BASE = ModelConfig(vocab_size=83, d_model=48, n_layers=3, n_heads=3, head_dim=16, d_ff=90, max_seq_len=64, window=7,
                   n_anchors=2, dropout=0.0)
SWITCHES = {
    "v1": {}, "decay": {"paths": "decay"}, "attention": {"paths": "attention"}, "static": {"prior": "static"},
    "none": {"prior": "none"}, "learned prior": {"learn_prior_weight": True}, "no gate": {"gate": False},
    "gelu": {"ffn": "gelu"}, "threshold": {"spike_source": "threshold"}, "topk": {"spike_source": "topk"},
    "dense": {"spike_source": "dense", "block_spikes": False}, "neuron": {"learn_neuron": True},
    "encoder threshold": {"encoder_threshold": 2.3}, "no window": {"window": 0}, "no anchors": {"n_anchors": 0},
    "exit": {"exit_entropy": 3.2}, "odd sizes": {"d_model": 42, "n_heads": 3, "head_dim": 14, "d_ff": 61},
}


def tensors_of(model):
    return {name: x.detach().float().numpy() for name, x in model.state_dict().items()}


def engine_of(model, precision="float32", **options):
    weights = from_tensors(model.config, tensors_of(model), precision, options.pop("sparse", True))
    return Engine(model.config, weights, options.pop("threads", 2), **options)


def random_model(seed=0, **switches):
    torch.manual_seed(seed)
    model = symboliclight.build(replace(BASE, **switches)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.15 if p.ndim > 1 else 0.2))
            p += "norm.weight" in name or ("neuron" in name and not name.endswith("log"))
    return model


def tokens_of(shape, vocab=83, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, shape)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_gives_the_logits_of_the_torch_model(switches, isa):
    check_logits(random_model(**switches), isa)


def check_logits(model, isa):
    """Those of the torch model, of a whole text, of what follows it, and on the dense path."""
    tokens = tokens_of((2, 30))
    with torch.no_grad():
        expected, state = model(torch.from_numpy(tokens))
        more, _ = model(torch.from_numpy(tokens[:, :5]), state)
    engine = engine_of(model, isa=isa)
    logits, state = engine(tokens)
    close(logits, expected)
    close(engine(tokens[:, :5], state)[0], more)
    close(engine_of(model, isa=isa, sparse=False)(tokens)[0], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_path_has_the_weights_of_the_sparse_one(precision):
    model, tokens = random_model(), tokens_of((2, 30))
    sparse, dense = (engine_of(model, precision, sparse=x) for x in (True, False))
    close(sparse(tokens)[0], dense(tokens)[0])
    assert sum(dense.stats()["bytes"].values()) > sum(sparse.stats()["bytes"].values())


def test_spikes_are_those_of_the_torch_model():
    model = random_model()
    tokens, active = tokens_of((2, 40)), []
    for module in spike_sites(model).values():
        module.register_forward_hook(
            lambda m, i, out: active.append(int((out[0] if type(out) is tuple else out).sum())))
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    engine = engine_of(model)
    engine(tokens)
    _, tcam, down, *_ = engine._native.counts()
    encoder, rest = active[0], active[1:]
    assert down == rest[0::2]
    assert tcam == [encoder, *rest[1:-1:2]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_chunks_threads_and_batches_give_the_same_bits(precision):
    model, tokens = random_model(), tokens_of((3, 41))
    engine = engine_of(model, precision)
    whole, _ = engine(tokens)
    for chunks in ([20] + [1] * 21, [13, 15, 13], [40, 1]):
        state, parts = None, []
        for chunk in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
            logits, state = engine(chunk, state)
            parts.append(logits)
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    for row in range(3):
        np.testing.assert_array_equal(engine(tokens[row : row + 1])[0][0], whole[row])
    for threads in (1, 3):
        np.testing.assert_array_equal(engine_of(model, precision, threads=threads)(tokens)[0], whole)
    np.testing.assert_array_equal(engine.last(tokens)[0], whole[:, -1])


def token_by_token(engine, tokens):
    """Logits and spikes of `engine.trace`, read one token at a time."""
    state, parts = None, []
    for t in range(tokens.shape[1]):
        *part, state = engine.trace(tokens[:, t : t + 1], state)
        parts.append(part)
    logits, spikes = zip(*parts, strict=True)
    return np.concatenate(logits, 1), {site: np.concatenate([s[site] for s in spikes], 1) for site in spikes[0]}


def check_single_tokens(model, precision, threads):
    """Token by token one sequence gives the bits and spikes of its whole text; those of one thread if tokens exit."""
    engine, tokens = engine_of(model, precision, threads=threads), tokens_of((1, 24))
    if model.config.exit_entropy is None:
        whole, expected, _ = engine.trace(tokens)
    else:
        whole, expected = token_by_token(engine_of(model, precision, threads=1), tokens)
    logits, spikes = token_by_token(engine, tokens)
    np.testing.assert_array_equal(logits, whole)
    for site, spiked in spikes.items():
        np.testing.assert_array_equal(spiked, expected[site], err_msg=site)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_single_tokens_of_one_sequence_give_the_same_bits(precision, threads):
    check_single_tokens(random_model(), precision, threads)


@pytest.mark.parametrize("precision", ["certified", "certified-bfloat16", "int4"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_single_tokens_give_the_same_bits_with_every_switch(switches, precision):
    check_single_tokens(random_model(**switches), precision, 2)


def check_padding(model, tokens, padding):
    """Rows (B, T) with `padding` absent tokens on their left are, bit by bit, the rows without; close to torch's."""
    ours = engine_of(model)
    logits, state = ours(tokens, ours.initial_state(len(tokens), padding))
    for row, pad in enumerate(padding):
        alone, other = ours(tokens[row : row + 1, pad:])
        np.testing.assert_array_equal(logits[row, pad:], alone[0])
        for name, array in other.arrays().items():
            np.testing.assert_array_equal(state.arrays()[name][row], array[0], err_msg=name)
    with torch.no_grad():
        expected, _ = model(torch.from_numpy(tokens), model.initial_state(len(tokens), torch.from_numpy(padding)))
    for row, pad in enumerate(padding):
        close(logits[row, pad:], expected[row, pad:])


def test_left_padding_leaves_no_trace():
    check_padding(random_model(), tokens_of((3, 20)), np.array([0, 5, 19]))


def test_long_calls_are_read_in_blocks_of_rows():
    model = random_model()
    tokens = tokens_of((1, 700))
    with torch.no_grad():
        expected, _ = model(torch.from_numpy(tokens))
    close(engine_of(model)(tokens)[0], expected, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_is_the_torch_model_with_rounded_weights(isa):
    model = random_model()
    tokens = tokens_of((1, 30))
    engine = engine_of(model, "bfloat16", isa=isa)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(p.bfloat16().float())
        expected, _ = model(torch.from_numpy(tokens))
    close(engine(tokens)[0], expected)



@pytest.mark.parametrize("switches", [{}, {"residual": "pre", "conv": 3}, {"spike_fed": True}], ids=str)
def test_the_stream_is_what_the_head_of_the_torch_model_reads(switches):
    model = random_model(**switches)
    one, two = engine_of(model), engine_of(model, threads=1)
    tokens = tokens_of((2, 300))
    with torch.no_grad():
        expected = model.features(torch.from_numpy(tokens))[0].numpy()
    whole, _ = one.stream(tokens)
    close(whole, expected, 1e-4)
    state, parts = None, []
    for part in np.split(tokens, [1, 2, 40], axis=1):  # single tokens of two sequences, and pieces
        rows, state = two.stream(part, state)
        parts.append(rows)
    assert np.array_equal(np.concatenate(parts, 1), whole)
    row, _ = one.stream(tokens[:1, :1])
    assert np.array_equal(row[0, 0], whole[0, 0])
