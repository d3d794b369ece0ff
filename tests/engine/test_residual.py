"""Frequent tokens: rows of the head that keep, under int4, what 4 bits leave of them."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_exact import engine_of, random_model, tokens_of
from test_precision import unpacked

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import format_of, pack, residual, residual_shapes
from symboliclight.engine.weights import _assemble, exported_tensors, frequent


@pytest.mark.parametrize("shape", [(64, 32), (97, 61)], ids=str)
def test_little_is_left_of_rows_that_keep_the_rest(shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rows = np.array([0, 17, 18, shape[0] - 1])
    data, scale = pack(weight, "int4.levels")
    parts = residual(weight, data, scale, rows)
    assert {part: (x.dtype, x.shape) for part, x in parts.items()} == residual_shapes(len(rows), shape[1])
    rough = unpacked(data, scale, "int4.levels", *shape)[rows]
    fine = rough + unpacked(parts["data"], parts["scale"], "int4.levels", *rough.shape)
    assert np.square(fine - weight[rows]).mean() < 0.02 * np.square(rough - weight[rows]).mean()
    np.testing.assert_array_equal(parts["tokens"], rows)


def test_frequent_tokens_are_those_of_the_text_then_those_with_the_longest_embeddings():
    embedding = np.ones((40, 4), np.float32)
    embedding[7] = embedding[30] = 2
    embedding[9] = -3
    np.testing.assert_array_equal(frequent(embedding), [0, 1, 7, 9, 30])
    counts = np.zeros(40)
    counts[[39, 20, 2]] = 5, 1, 3
    np.testing.assert_array_equal(frequent(embedding, counts), [2, 7, 9, 20, 39])
    np.testing.assert_array_equal(frequent(np.ones((3, 4), np.float32)), [0])


def head_of(model, kind, counts):
    """The int4 runtime of a model with another head: "residual" is as exported, "4 bits" without one, "8 bits" int8."""
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    packed = exported_tensors(model.config, tensors, "int4", moments={"tokens": counts})
    weights = _assemble(model.config, packed, "int4", True)
    if kind != "residual":
        weights = replace(weights, matrices=[m for m in weights.matrices if m.site != "head.residual"], tokens=None)
    if kind == "8 bits":
        at = next(i for i, m in enumerate(weights.matrices) if m.site == "head")
        source = "encoder.embedding.weight" if model.config.tie_embeddings else "head.out.weight"
        data, scale = pack(tensors[source], "int8")
        weights.matrices[at] = replace(weights.matrices[at], format=format_of("int8"), data=data, scale=scale)
    return Engine(model.config, weights, 2)


@pytest.mark.parametrize("switches", [{}, {"prior": "none"}, {"prior": "static", "tie_embeddings": True}], ids=str)
def test_logits_of_frequent_tokens_come_near_those_of_8_bits(switches):
    model, tokens = random_model(**switches), tokens_of((2, 9))
    counts = np.zeros(model.config.vocab_size)
    counts[[5, 16, 82]] = 1
    fine, rough, wanted = (head_of(model, kind, counts) for kind in ("residual", "4 bits", "8 bits"))
    chosen = fine.weights.tokens
    assert {5, 16, 82} < set(chosen)
    logits, without, expected = (x(tokens)[0] for x in (fine, rough, wanted))
    others = np.setdiff1d(np.arange(model.config.vocab_size), chosen)
    np.testing.assert_array_equal(logits[..., others], without[..., others])
    lost = [np.square(x - expected)[..., chosen].mean() for x in (logits, without)]
    assert lost[0] < 0.1 * lost[1]
    np.testing.assert_array_equal(fine.last(tokens)[0], logits[:, -1])


def test_what_it_reads_is_counted():
    model = random_model()
    found = engine_of(model, "int4")
    found(tokens_of((1, 5)))
    rows = len(found.weights.tokens)
    ours = [m for m in found.weights.matrices if m.site == "head.residual"]
    assert rows == model.config.vocab_size // 8 and [m.outs for m in ours] == [rows]
    stats = found.stats()
    assert stats["bytes"]["head.residual"] == ours[0].data.nbytes + ours[0].scale.nbytes
    assert sum(stats["whole"].values()) > sum(stats["bytes"].values())  # spikes alone make the difference


@pytest.mark.parametrize("change", [lambda t: t[::-1], lambda t: t - t[0] - 1, lambda t: t + 10**6,
                                    lambda t: np.full_like(t, t[0]), lambda t: t - 2**62], ids=range(5))
def test_tokens_that_no_export_wrote_are_refused_in_one_line(change, small_checkpoint, tmp_path):
    engine.export(small_checkpoint, tmp_path / "out", "int4")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "head.out.weight.residual.tokens"
    save_file(tensors | {name: np.ascontiguousarray(change(tensors[name]))}, file)
    with pytest.raises(InputError, match="do not rise within the vocabulary") as caught:
        engine.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_folder_of_an_earlier_version_is_to_be_exported_again(small_checkpoint, tmp_path):
    engine.export(small_checkpoint, tmp_path / "out", "int4")
    file = tmp_path / "out" / "model.safetensors"
    save_file({name: x for name, x in load_file(file).items() if ".residual." not in name}, file)
    with pytest.raises(InputError, match="export again"):
        engine.load(tmp_path / "out")


def test_the_binding_refuses_tokens_and_matrices_that_do_not_fit():
    found = engine_of(random_model(), "int4")
    native, tokens = found._native, found.weights.tokens
    for wrong in (tokens[::-1], tokens - 1 - tokens[0], tokens + 83):
        with pytest.raises(ValueError, match="rise within the vocabulary"):
            native.tokens(np.ascontiguousarray(wrong))
    native.tokens(tokens[:-1].copy())
    m = next(m for m in found.weights.matrices if m.site == "head.residual")
    with pytest.raises(ValueError, match="wrong shape"):
        native.matrix(m.site, 0, m.format, False, m.outs, m.ins, m.data, m.scale)
