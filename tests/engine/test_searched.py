"""The switches of the search (docs/results/v1-plus.md) in the runtime: the torch model again, the same bits any way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_certified import same
from test_exact import (
    BASE,
    ISAS,
    check_logits,
    check_padding,
    check_single_tokens,
    close,
    engine_of,
    random_model,
    tensors_of,
    tokens_of,
)
from test_quality import check_trace

import symboliclight
from symboliclight import engine
from symboliclight.core import checkpoint
from symboliclight.core.config import CODES, ModelConfig, save_json
from symboliclight.core.errors import InputError
from symboliclight.engine import State
from symboliclight.engine.files import map_tensors
from symboliclight.engine.layout import checkpoint_shapes
from symboliclight.engine.pack import CERTIFIED, PRECISIONS, kind_of
from symboliclight.engine.weights import read

ALL = {"residual": "pre", "spike_fed": True, "stream_threshold": 1.2, "learn_neuron": "all", "decay": "input",
       "conv": 3, "tie_embeddings": True}
OTHER = ALL | {"norm": "none", "decay": "channel", "conv": 5, "prior": "none", "residual": "post", "gate": False}
COMPOSED = {"all": ALL, "others": OTHER, "odd sizes": ALL | {"d_model": 42, "head_dim": 14, "d_ff": 61}}
SWITCHES = {
    "spike-fed": {"spike_fed": True}, "spike-fed, attention": {"spike_fed": True, "paths": "attention"},
    "spike-fed, decay": {"spike_fed": True, "paths": "decay"}, "spike-fed, gelu": {"spike_fed": True, "ffn": "gelu"},
    "spike-fed, dense blocks": {"spike_fed": True, "block_spikes": False},
    "spike-fed, dense encoder": {"spike_fed": True, "spike_source": "dense"}, "stream": {"stream_threshold": 1.3},
    "thresholds": {"learn_neuron": "all"}, "thresholds, spike-fed": {"learn_neuron": "all", "spike_fed": True},
    "no norm": {"norm": "none"}, "pre-norm": {"residual": "pre"}, "pre, no norm": {"residual": "pre", "norm": "none"},
    "tied": {"tie_embeddings": True}, "tied, static": {"tie_embeddings": True, "prior": "static"},
    "channel decay": {"decay": "channel"}, "input decay": {"decay": "input"},
    "input decay, dense": {"decay": "input", "spike_source": "dense", "block_spikes": False},
    "conv": {"conv": 3}, "conv, decay": {"conv": 2, "paths": "decay"},
    "conv, attention": {"conv": 4, "paths": "attention"},
    "exit": {"exit_entropy": 3.2, "conv": 3, "residual": "pre"},
    **{code: {"ffn_code": code, "stream_code": code, "ffn_threshold": 0.8} for code in CODES},
    **{f"{code}, spike-fed": {"ffn_code": code, "stream_code": code, "spike_fed": True} for code in CODES},
    "graded encoder": {"encoder_code": "graded"}, "shifted encoder": {"encoder_code": "shifted", "ffn_code": "squared"},
    "neuro": {"norm": "none", "paths": "decay", "prior": "none", "v_clamp": 1000.0, "spike_fed": True}, **COMPOSED}
each = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
composed = pytest.mark.parametrize("switches", COMPOSED.values(), ids=COMPOSED)
SEED = 3  # no sum of the models below lies so near its threshold that torch's float32 rounds it to the other side


def model_of(switches):
    return random_model(SEED, **switches)


@pytest.mark.parametrize("isa", ISAS)
@each
def test_every_switch_gives_the_logits_of_the_torch_model(switches, isa):
    check_logits(model_of(switches), isa)


@each
def test_the_spikes_of_every_site_are_those_of_the_torch_model(switches):
    check_trace(model_of(switches | {"exit_entropy": None}))


@each
def test_single_tokens_of_one_sequence_at_8_bits_give_the_same_bits(switches):
    check_single_tokens(model_of(switches), "int8", 2)


@each
def test_chunks_rows_threads_and_single_tokens_give_the_same_bits(switches):
    model, tokens = model_of(switches | {"exit_entropy": None}), tokens_of((3, 21))
    ours = engine_of(model)
    whole, end = ours(tokens)
    for chunks in ([1] * 21, [2, 1, 13, 5]):
        state, parts = None, []
        for chunk in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
            logits, state = ours(chunk, state)
            parts.append(logits)
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
        for name, array in end.arrays().items():
            np.testing.assert_array_equal(state.arrays()[name], array, err_msg=name)
    np.testing.assert_array_equal(ours(tokens[1:2])[0][0], whole[1])
    np.testing.assert_array_equal(engine_of(model, threads=3)(tokens)[0], whole)
    np.testing.assert_array_equal(ours.last(tokens)[0], whole[:, -1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@composed
def test_compositions_run_at_every_precision(switches, isa, precision):
    model, tokens = model_of(switches), tokens_of((2, 20))
    ours = engine_of(model, precision, isa=isa)
    whole, state = ours(tokens)
    logits, half = ours(tokens[:, :8])
    again, half = ours(tokens[:, 8:], half)
    np.testing.assert_array_equal(np.concatenate([logits, again], 1), whole)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(half.arrays()[name], array, err_msg=name)
    with torch.no_grad():
        if CERTIFIED.get(precision, precision) == "bfloat16":  # those of the torch model with rounded matrices
            matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
            for p in matrices:
                p.copy_(p.bfloat16().float())
        expected = model(torch.from_numpy(tokens))[0].numpy()
    if precision in ("int8", "int4"):  # spikes differ: the same model, not the same numbers
        assert np.corrcoef(whole.ravel(), expected.ravel())[0, 1] > (0.9 if precision == "int8" else 0.6)
    else:
        close(whole, expected)


@each
def test_left_padding_leaves_no_trace(switches):
    check_padding(model_of(switches | {"exit_entropy": None}), tokens_of((3, 14)), np.array([0, 5, 13]))


@pytest.mark.parametrize("exit_entropy", [None, 100.0])
@pytest.mark.parametrize("paths", ["both", "decay", "attention"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_tails_of_convolutions_are_those_of_torch(paths, length, exit_entropy):
    """With an exit after the first layer, too: tokens that never reached a layer are zeros in its tails."""
    model = model_of({"conv": 4, "paths": paths})
    early = engine_of(random_model(SEED, conv=4, paths=paths, exit_entropy=exit_entropy))
    tokens = torch.from_numpy(tokens_of((2, 6 + length)))
    with torch.no_grad():
        _, past = model(tokens[:, :6])
        model.config = early.config
        _, past = model(tokens[:, 6:], past)
    _, state = engine_of(model_of({"conv": 4, "paths": paths}))(tokens[:, :6].numpy())
    _, state = early(tokens[:, 6:].numpy(), state)
    names = {"both": "ukv", "decay": "u", "attention": "kv"}[paths]
    for i, layer in enumerate(past.layers):
        expected = torch.stack([getattr(layer, f"{name}_tail") for name in names], 1)
        close(state.tails[:, i], expected)
        assert (exit_entropy is not None and i > 0 and length > 2) != bool(state.tails[:, i].any())


@composed
def test_states_are_saved_forked_batched_and_taken_apart(switches, tmp_path):
    ours, tokens = engine_of(model_of(switches)), tokens_of((1, 30))
    whole, _ = ours(tokens)
    _, state = ours(tokens[:, :17])
    state.save(tmp_path / "state")
    restored, fork = State.load(tmp_path / "state", ours.config), state.copy()
    for one in (restored, fork, state):
        np.testing.assert_array_equal(ours(tokens[:, 17:], one)[0], whole[:, 17:])
    states = [ours(tokens[:, :n])[1] for n in (1, 2, 17)]
    both = State.batch(states).rows([2, 0])
    logits, _ = ours(tokens[[0, 0], 17:18], both)
    np.testing.assert_array_equal(logits[0, 0], whole[0, 17])
    np.testing.assert_array_equal(logits[1], ours(tokens[:, 17:18], states[0])[0][0])


def test_states_of_other_convolutions_are_refused_and_those_of_before_them_read(tmp_path):
    from safetensors.numpy import save_file

    plain, conv = engine_of(model_of({})), engine_of(model_of({"conv": 3}))
    _, state = plain(tokens_of((2, 9)))
    arrays = state.arrays()
    del arrays["tails"]
    save_file(arrays, tmp_path / "old")
    more = tokens_of((2, 3))
    old = State.load(tmp_path / "old", plain.config)
    with pytest.raises(InputError, match="not the state"):
        State.load(tmp_path / "old", conv.config)
    with pytest.raises(InputError, match="tails does not fit"):
        conv(more, state)
    np.testing.assert_array_equal(plain(more, old)[0], plain(more, state)[0])
    _, state = conv(more)
    state.tails[0, 1, 2, 0, 0] = np.nan
    state.save(tmp_path / "damaged")
    with pytest.raises(InputError, match="tails is not finite"):
        State.load(tmp_path / "damaged", conv.config)


@pytest.mark.parametrize("precision", CERTIFIED)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("switches", [SWITCHES["spike-fed"], SWITCHES["thresholds"], SWITCHES["pre-norm"],
                                      *[SWITCHES[code] for code in CODES[1:]], *COMPOSED.values()], ids=str)
def test_certified_gives_the_bits_of_weights_in_full(switches, isa, precision):
    model, tokens = model_of(switches), tokens_of((1, 20))
    ours = same(model, tokens, precision, isa=isa)
    found = ours.last(tokens, top=4)[0]
    kept = np.isfinite(found)
    np.testing.assert_array_equal(found[kept], engine_of(model, CERTIFIED[precision], isa=isa).last(tokens)[0][kept])
    assert 4 <= kept.sum() < found.size
    assert 0 < ours.stats()["active"]["head"][0] < 1
    sketches = {m.site for m in ours.weights.matrices if m.site.endswith("sketch")}
    assert ("up.sketch" in sketches) == (not ours.config.spike_fed)  # what spikes feed is gathered in full


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", CODES)
def test_gathered_values_are_the_product_with_all_of_them(code, isa, precision):
    """Active rows times their values, integers at 8 bits, beside the same weights read in full.

    One layer: what a last bit moves over a threshold, or to the next integer, would grow in others.
    """
    model = model_of({"ffn_code": code, "d_model": 42, "n_heads": 3, "head_dim": 14, "d_ff": 61, "n_layers": 1})
    gathered, full = (engine_of(model, precision, isa=isa, sparse=sparse) for sparse in (True, False))
    tokens = tokens_of((3, 20))
    close(gathered(tokens)[0], full(tokens)[0], atol=1e-4)


def test_bytes_are_those_of_active_inputs():
    model, tokens = model_of(ALL), tokens_of((2, 40))
    ours, dense = (engine_of(model, "int8", sparse=sparse) for sparse in (True, False))
    _, spikes, _ = ours.trace(tokens)
    dense(tokens)
    found, c = ours.stats(), ours.config
    seen = [spikes["encoder"], *(spikes[f"blocks.{i}"] for i in range(c.n_layers - 1))]
    for site in ("tcam", "q", "k", "v", "decay_gate"):
        assert found["active"][site] == pytest.approx([s.mean() for s in seen])
    assert found["active"]["up"] == pytest.approx([spikes[f"mixer.{i}"].mean() for i in range(c.n_layers)])
    for site, shape in {"q": (48, 48), "up": (90, 48), "decay_gate": (3, 48)}.items():
        sizes = np.array(found["active"][site]) * (shape[0] * shape[1] + 4 * shape[0])  # int8, and a scale an output
        assert found["bytes"][site] == pytest.approx(sizes.sum())
        assert found["bytes"][site] < 0.5 * dense.stats()["bytes"][site]


@pytest.fixture(scope="module", params=COMPOSED.values(), ids=COMPOSED)
def folder(request, small_tokenizer, tmp_path_factory):
    """A checkpoint with many switches on."""
    config = replace(BASE, vocab_size=small_tokenizer.vocab_size, **request.param)
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("search") / "model"
    checkpoint.save(place, config, symboliclight.build(config).state_dict(), small_tokenizer)
    return place


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_exported_folder_gives_the_bits_of_converting_at_load(folder, tmp_path, precision):
    engine.export(folder, tmp_path / "out", precision)
    tokens = np.arange(20)[None]
    exported, converted = engine.load(tmp_path / "out"), engine.load(folder, precision)
    assert (exported.precision, engine.exported_precision(tmp_path / "out")) == (precision, precision)
    np.testing.assert_array_equal(exported(tokens)[0], converted(tokens)[0])
    heads = {name.partition(".weight.")[2] for name in map_tensors(tmp_path / "out" / "model.safetensors")[0]
             if name.startswith("head.out.weight.") and ".sketch" not in name and ".residual" not in name}
    once = precision in ("float32", *CERTIFIED)  # packed, the matrix lies beside the rows of the embedding
    kind = kind_of(precision, False, False)
    assert heads == (set() if once else {kind} if precision == "bfloat16" else {kind, f"{kind}.scale"})


def test_names_and_shapes_are_those_of_the_torch_model():
    for switches in SWITCHES.values():
        model = model_of(switches)
        assert {name: x.shape for name, x in tensors_of(model).items()} == checkpoint_shapes(model.config)


@pytest.mark.parametrize("change", [
    {"conv": 3}, {"conv": 10**12}, {"decay": "channel"}, {"decay": "input"}, {"tie_embeddings": True},
    {"learn_neuron": "all"}, {"norm": "none"}], ids=str)
def test_a_config_with_switches_that_the_weights_lack_is_refused(small_checkpoint, change):
    config, _ = checkpoint.load(small_checkpoint)
    with pytest.raises(InputError, match="model") as caught:
        read(small_checkpoint / "model.safetensors", replace(config, **change), None, True)
    assert "\n" not in str(caught.value)


def test_thresholds_of_a_token_s_own_are_refused_by_name(tmp_path):
    save_json(tmp_path / "config.json", model=replace(ModelConfig(), ffn_zscore=1.3))
    with pytest.raises(InputError, match=r"config.json: the runtime has no thresholds .*ffn_zscore 1.3"):
        engine.load(tmp_path)
