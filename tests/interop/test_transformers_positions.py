"""Padding in pieces, documents packed into a row, and arguments that a model might swallow."""

import dataclasses

import pytest
import torch

import symboliclight
from symboliclight import engine
from symboliclight.core import checkpoint
from symboliclight.generate.sampling import padded_state

transformers = pytest.importorskip("transformers")
from test_transformers import VARIANTS  # noqa: E402

from symboliclight.interop.transformers import (  # noqa: E402
    SymbolicLightCache,
    SymbolicLightConfig,
    SymbolicLightForCausalLM,
)

PADDING = torch.tensor([9, 0, 14])
TOKENS = torch.randint(4, 500, (3, 20), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(20) >= PADDING[:, None]).long()
TEXTS = ["the sun rose over the old city", "in", "春天的风吹过江南"]


def rough(config, **changes):
    """A model whose random weights are large enough that every wrong state shows."""
    torch.manual_seed(2)
    config = SymbolicLightConfig(**dataclasses.asdict(dataclasses.replace(config, init_std=0.3, **changes)))
    return SymbolicLightForCausalLM(config).eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def alone(model, row, padding):
    with torch.no_grad():
        return model(TOKENS[row : row + 1, padding:]).logits[0]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
@pytest.mark.parametrize("step", [1, 4, 7])
def test_padding_longer_than_a_piece_is_padding_still(changes, step, small_config):
    model, cache, found = rough(small_config, **changes), SymbolicLightCache(), []
    with torch.no_grad():
        for end in range(step, 20 + step, step):
            part = TOKENS[:, end - step : end]
            found.append(model(part, attention_mask=MASK[:, :end], past_key_values=cache).logits)
    for row, padding in enumerate(PADDING.tolist()):
        close(torch.cat(found, 1)[row, padding:], alone(model, row, padding))


@pytest.mark.parametrize("size", [1, 4, 5])
def test_generate_with_a_prompt_in_pieces_writes_what_it_writes_at_once(size, model, tokenizer):
    batch = tokenizer(["the light fell on the water of the river; nobody", *TEXTS], return_tensors="pt", padding=True)
    whole = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert int((batch.attention_mask == 0).sum(1).max()) > size
    assert torch.equal(model.generate(**batch, max_new_tokens=12, do_sample=False, prefill_chunk_size=size), whole)


@pytest.mark.parametrize("kind", ["V1", "conv", "gpt2", "runtime"])
@pytest.mark.parametrize("step", [1, 4])
def test_padding_of_the_seam_may_be_longer_than_a_piece(kind, step, small_config, small_tokenizer, tmp_path):
    changes = {"conv": {"conv": 3, "decay": "input"}, "gpt2": {"family": "gpt2", "d_ff": 128}}.get(kind, {})
    config = dataclasses.replace(small_config, init_std=0.3, **changes)
    torch.manual_seed(2)
    ours = model = symboliclight.build(config).eval()
    if kind == "runtime":
        checkpoint.save(tmp_path / "m", config, ours.state_dict(), small_tokenizer)
        model = engine.load(tmp_path / "m", threads=1)
    state, found = padded_state(model, PADDING.numpy()), []
    with torch.no_grad():
        for part in TOKENS.split(step, 1):
            logits, state = model(part.numpy() if kind == "runtime" else part, state)
            found.append(torch.as_tensor(logits))
        for row, padding in enumerate(PADDING.tolist()):
            close(torch.cat(found, 1)[row, padding:], ours(TOKENS[row : row + 1, padding:])[0][0])


@pytest.mark.parametrize(("mask", "message"), [
    ([1, 1, 0, 1], "gaps"), ([0, 1, 1, 1], "does not fit the cache"), ([1], r"must be \(1, 4\)"),
    ([1, 1, 1, 2], "0 .* and 1"), ([0, 0, 0, 1], "does not fit the cache"),
])
def test_a_mask_that_says_something_else_of_the_past_is_refused(mask, message, model):
    with torch.no_grad():
        cache = model(TOKENS[:1, :3]).past_key_values
        with pytest.raises(ValueError, match=message) as caught:
            model(TOKENS[:1, 3:4], attention_mask=torch.tensor([mask]), past_key_values=cache)
    assert "\n" not in str(caught.value) and cache.get_seq_length() == 3


def flattened(lengths, tokens=TOKENS[0], **options):
    """`lengths` documents of some tokens, as transformers' collator packs them; and each alone."""
    documents = [piece.tolist() for piece in tokens[: sum(lengths)].split(lengths)]
    collator = transformers.DataCollatorWithFlattening(return_tensors="pt", **options)
    return collator([{"input_ids": d, "labels": d} for d in documents]), documents


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
def test_documents_packed_into_a_row_do_not_see_each_other(changes, small_config):
    model = rough(small_config, **changes)
    batch, documents = flattened([7, 1, 3, 2, 7])
    with torch.no_grad():
        found = model(**batch, use_cache=True)
        separate = [model(torch.tensor([d]), labels=torch.tensor([d])) for d in documents]
        close(found.logits, torch.cat([one.logits for one in separate], 1))
        assert (found.logits[0, 7:] - model(TOKENS[:1]).logits[0, 7:]).abs().max() > 0.1
        more = model(TOKENS[:1, :4], past_key_values=found.past_key_values).logits
        last = torch.tensor([documents[-1]])
        close(more, model(torch.cat([last, TOKENS[:1, :4]], 1)).logits[:, 7:])  # the last one goes on
    losses = [float(one.loss) * (len(d) - 1) for one, d in zip(separate, documents, strict=True) if len(d) > 1]
    assert float(found.loss) == pytest.approx(sum(losses) / (20 - 5), rel=1e-4)


def test_gradients_of_packed_documents_are_those_of_each(small_config):
    model, (batch, documents) = rough(small_config), flattened([7, 3, 10])
    gradients = []
    for packed in (True, False):
        model.zero_grad()
        if packed:
            model.train()(**batch).loss.backward()
        else:
            for d in documents:
                ids = torch.tensor([d])
                (model(ids, labels=ids).loss * (len(d) - 1) / 17).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, found in gradients[0].items():
        torch.testing.assert_close(found, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_rows_may_be_packed_each_in_its_own_way(small_config):
    model = rough(small_config)
    positions = torch.stack([torch.arange(20), torch.cat([torch.arange(12), torch.arange(8)]),
                             torch.cat([torch.arange(1), torch.arange(19)])])
    with torch.no_grad():
        found = model(TOKENS, position_ids=positions).logits
        close(found[0], model(TOKENS[:1]).logits[0])
        close(found[1], torch.cat([model(part).logits[0] for part in TOKENS[1:2].split([12, 8], 1)]))
        close(found[2], torch.cat([model(part).logits[0] for part in TOKENS[2:].split([1, 19], 1)]))


def test_what_repeats_the_positions_must_agree_with_them(small_config):
    model = rough(small_config)
    batch, _ = flattened([7, 3, 10], return_seq_idx=True, return_flash_attn_kwargs=True)
    plain, _ = flattened([7, 3, 10])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**plain).logits)
        for name in ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"):
            with pytest.raises(ValueError, match=f"{name} begins documents elsewhere than position_ids"):
                model(batch["input_ids"], **{name: batch[name]})
            with pytest.raises(ValueError, match=name):
                model(batch["input_ids"][:, :5], **{name: batch[name]})
        one = torch.zeros_like(batch["seq_idx"])
        assert torch.equal(model(TOKENS[:1], seq_idx=one).logits, model(TOKENS[:1]).logits)


@pytest.mark.parametrize("start", [0, 2, 500])
def test_positions_that_count_on_change_nothing(start, model):
    positions = torch.arange(start, start + 20)[None]
    with torch.no_grad():
        assert torch.equal(model(TOKENS, position_ids=positions).logits, model(TOKENS).logits)


def test_trainer_keeps_packed_documents_apart(folder, small_config, tmp_path):
    pytest.importorskip("accelerate")
    model = rough(small_config)
    batch, documents = flattened([7, 3, 10])
    options = transformers.TrainingArguments(tmp_path, per_device_eval_batch_size=3, report_to=[], use_cpu=True,
                                             disable_tqdm=True)
    trainer = transformers.Trainer(model, options, data_collator=transformers.DataCollatorWithFlattening())
    loss = trainer.evaluate([{"input_ids": d} for d in documents])["eval_loss"]
    with torch.no_grad():
        assert loss == pytest.approx(float(model(**batch).loss), rel=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"position_ids": torch.tensor([[0, 1, 5, 6]])}, "count up by one"),
    ({"position_ids": torch.tensor([[0, 1, 0, 1]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}, "with padding"),
    ({"position_ids": torch.zeros(3, 1, 4)}, "position_ids must be"),
    ({"position_ids": torch.arange(3)[None]}, "position_ids must be"),
    ({"seq_idx": torch.zeros(1, 3)}, "seq_idx"), ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, "cu_seq_lens_q"),
    ({"cu_seq_lens_k": torch.tensor([0, 2, 5])}, "cu_seq_lens_k"), ({"num_beams": 2}, "num_beams"),
    ({"token_type_ids": torch.zeros(1, 4)}, "token_type_ids"), ({"output_hidden_states": True}, "output_hidden_states"),
    ({"output_attentions": True}, "output_attentions"), ({"num_logits_to_keep": 1}, "num_logits_to_keep"),
    ({"attention_mask": torch.ones(1, 5)}, r"must be \(1, 4\)"), ({"attention_mask": torch.ones(2, 4)}, r"\(1, 4\)"),
])
def test_an_argument_that_would_be_ignored_is_refused_by_name(arguments, message, model):
    with pytest.raises(ValueError, match=message) as caught:
        model(TOKENS[:1, :4], **arguments)
    assert "\n" not in str(caught.value)


def test_documents_cannot_start_again_behind_a_cache(model):
    with torch.no_grad():
        cache = model(TOKENS[:1, :3]).past_key_values
        for positions in ([[0]], [[7]]):
            with pytest.raises(ValueError, match="do not go on from the cache"):
                model(TOKENS[:1, 3:4], position_ids=torch.tensor(positions), past_key_values=cache)
        with pytest.raises(ValueError, match="holds 1 rows, input_ids 3"):
            model(TOKENS[:, 3:4], past_key_values=cache)


def test_generate_reads_new_tokens_behind_a_cache_with_a_mask_and_says_so_without(model):
    with torch.no_grad():
        cache = model(TOKENS[:1, :10]).past_key_values
    options = {"max_new_tokens": 6, "do_sample": False}
    whole = model.generate(TOKENS[:1, :14], past_key_values=cache.copy(), **options)
    found = model.generate(TOKENS[:1, 10:14], past_key_values=cache.copy(), attention_mask=torch.ones(1, 14), **options)
    assert torch.equal(found[:, 4:], whole[:, 14:])
    with pytest.raises(ValueError, match=r"generate\(\) wants the whole text"):
        model.generate(TOKENS[:1, 10:14], past_key_values=cache.copy(), **options)


def test_what_asks_for_nothing_is_taken(model):
    with torch.no_grad():
        asked = {"output_attentions": False, "output_hidden_states": None, "inputs_embeds": None}
        assert torch.equal(model(TOKENS, **asked).logits, model(TOKENS).logits)


@pytest.mark.parametrize("how", ["argument", "config"])
def test_return_dict_false_gives_a_tuple(how, model, monkeypatch):
    with torch.no_grad():
        expected = model(TOKENS, labels=TOKENS)
        if how == "config":
            monkeypatch.setattr(model.config, "return_dict", False)
        loss, logits, cache = model(TOKENS, labels=TOKENS, **({} if how == "config" else {"return_dict": False}))
        assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
        assert isinstance(cache, SymbolicLightCache)
        assert torch.equal(model(TOKENS, return_dict=True).logits, logits)


def test_labels_may_come_shifted(model):
    shifted = torch.cat([TOKENS[:, 1:], TOKENS.new_full((3, 1), -100)], 1)
    with torch.no_grad():
        assert torch.equal(model(TOKENS, shift_labels=shifted).loss, model(TOKENS, labels=TOKENS).loss)
