"""SymbolicLight inside transformers: the same logits, `generate`, caches, training, and folders that load anywhere."""

import contextlib
import dataclasses
import warnings

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight.core import processor
from symboliclight.core.errors import Slow
from symboliclight.generate.sampling import Sampling, generate

transformers = pytest.importorskip("transformers")
from transformers import AutoModelForCausalLM  # noqa: E402

from symboliclight.interop.transformers import (  # noqa: E402
    SymbolicLightCache,
    SymbolicLightConfig,
    SymbolicLightForCausalLM,
)

VARIANTS = [
    {}, {"prior": "static", "learn_prior_weight": True}, {"learn_neuron": True, "lif_gradient": "bptt"},
    {"ffn_code": "squared", "ffn_threshold": 0.5, "stream_code": "ternary", "encoder_code": "graded"},
    {"paths": "decay", "ffn": "gelu"}, {"paths": "attention", "spike_source": "topk", "prior": "none"},
    {"spike_source": "threshold", "encoder_threshold": 1.3, "block_spikes": False, "gate": False, "leak": 0.5},
    {"residual": "pre", "spike_fed": True, "stream_threshold": 1.2, "learn_neuron": "all", "decay": "input", "conv": 3,
     "tie_embeddings": True},
]


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(["the sun rose over", "春天的风", "in"], return_tensors="pt", padding=True)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
def test_logits_of_a_saved_and_loaded_model_are_ours_exactly(changes, small_config, tmp_path):
    config = dataclasses.replace(small_config, **changes)
    ours = symboliclight.build(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped = SymbolicLightForCausalLM(SymbolicLightConfig(**dataclasses.asdict(config)))
    wrapped.load_state_dict(ours.state_dict())
    wrapped.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, SymbolicLightForCausalLM) and not loaded.training
    assert loaded.config.core() == config
    tokens = torch.randint(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, ours(tokens)[0])
        last = ours(tokens)[0][:, -3:]  # fewer rows in the head's product may round otherwise
        torch.testing.assert_close(loaded(tokens, logits_to_keep=3).logits, last, rtol=0, atol=1e-6 * last.abs().max())


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_that_the_processor_emulates_is_warned_of_once(how, small_config, monkeypatch):
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda device="cpu": False)
    monkeypatch.setattr(processor, "bfloat16_speed", lambda: 1 / 70)
    processor.warn_if_emulated.cache_clear()
    model = SymbolicLightForCausalLM(SymbolicLightConfig(**dataclasses.asdict(small_config))).eval()
    tokens = torch.zeros(1, 3, dtype=torch.long)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(tokens)
        assert not told
        model = model.to(torch.bfloat16) if how == "weights" else model
        for _ in range(2):
            with contextlib.nullcontext() if how == "weights" else torch.autocast("cpu", torch.bfloat16):
                model(tokens)
    assert [w.category for w in told] == [Slow] and "70 times as long" in str(told[0].message)
    processor.warn_if_emulated.cache_clear()


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
def test_a_fresh_model_starts_as_ours_does(changes, small_config):
    torch.manual_seed(0)  # spreads of few numbers are compared: of 64 some seeds are 30% apart
    config = dataclasses.replace(small_config, init_std=0.05, **changes)
    ours = symboliclight.build(config)
    wrapped = AutoModelForCausalLM.from_config(SymbolicLightConfig(**dataclasses.asdict(config)))
    expected = ours.requires_grad_(False).state_dict() | dict(ours.named_buffers())
    found = wrapped.requires_grad_(False).state_dict() | dict(wrapped.named_buffers())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if value.numel() > 1 and value.std() > 0:
            assert found[name].std() == pytest.approx(float(value.std()), rel=0.3), name
        else:
            assert torch.equal(found[name], value), name


def test_one_folder_serves_both_worlds(folder, small_model, small_tokenizer):
    ours, tokenizer = symboliclight.load(folder)
    assert tokenizer.hash == small_tokenizer.hash
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in small_model.state_dict().items())


def test_a_wrapped_model_works_where_ours_does(model, small_tokenizer, small_model):
    ids, greedy = small_tokenizer.encode("the old", bos=True), Sampling(temperature=0)
    assert (generate(model, small_tokenizer, [ids], 8, greedy)[0].ids
            == generate(small_model, small_tokenizer, [ids], 8, greedy)[0].ids)


def test_greedy_text_is_that_of_our_own_sampling(model, tokenizer, small_model, small_tokenizer):
    ids = small_tokenizer.encode("the sun rose", bos=True)
    ours = generate(small_model, small_tokenizer, [ids], 20, Sampling(temperature=0))[0].ids
    found = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids):].tolist()
    assert found[:len(ours)] == list(ours)


def test_rows_of_a_left_padded_batch_are_continued_as_if_alone(model, prompts):
    together = model.generate(**prompts, max_new_tokens=20, do_sample=False)
    assert prompts.attention_mask[:, 0].tolist().count(0) == 2
    for ids, mask, row in zip(prompts.input_ids, prompts.attention_mask, together, strict=True):
        alone = model.generate(ids[mask.bool()][None], max_new_tokens=20, do_sample=False)[0]
        assert torch.equal(alone, row[len(row) - len(alone):])


@pytest.mark.parametrize("how", [
    {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
    {"do_sample": True, "top_k": 20, "num_return_sequences": 2}, {"do_sample": True, "top_p": 0.9, "num_beams": 2},
], ids=["beam", "beams", "sampling", "beam sampling"])
def test_the_state_continues_as_reading_everything_again_would(how, model, prompts):
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        found.append(model.generate(**prompts, max_new_tokens=24, use_cache=use_cache, **how))
    assert torch.equal(*found)


def test_sampling_depends_on_the_seed(model, prompts):
    def sample(seed):
        transformers.set_seed(seed)
        return model.generate(**prompts, max_new_tokens=16, do_sample=True, top_k=0)

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_a_prompt_is_read_once_and_continued_many_times(model, tokenizer):
    prompt = tokenizer("the light fell on the water", return_tensors="pt").input_ids
    with torch.no_grad():
        cache = model(prompt).past_key_values
    assert cache.get_seq_length() == prompt.shape[1] and cache.batch_size == 1
    read = []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    try:
        for more in (" of the river", "，春天"):
            tail = tokenizer(more, return_tensors="pt", add_special_tokens=False).input_ids
            whole = torch.cat([prompt, tail], 1)
            read.clear()
            found = model.generate(whole, past_key_values=cache.copy(), max_new_tokens=6, do_sample=False)
            assert read[0] == tail.shape[1]
            assert torch.equal(found, model.generate(whole, max_new_tokens=6, do_sample=False))
            assert cache.get_seq_length() == prompt.shape[1]
    finally:
        handle.remove()
    forks = cache.copy()
    forks.batch_repeat_interleave(3)
    assert forks.batch_size == 3 and cache.batch_size == 1
    many = model.generate(whole.expand(3, -1), past_key_values=forks, max_new_tokens=6, do_sample=False)
    assert torch.equal(many, found.expand(3, -1))


def test_the_cache_has_the_size_of_the_state_at_any_length(model):
    cache, sizes = SymbolicLightCache(), set()
    tokens = torch.randint(0, 500, (1, 90))
    with torch.no_grad():
        logits = torch.cat([model(part, past_key_values=cache).logits for part in tokens.split(30, 1)], 1)
        sizes.add(cache.state.nbytes)
        model(tokens, past_key_values=cache)
        assert torch.allclose(logits, model(tokens).logits, atol=1e-4)
    assert sizes | {cache.state.nbytes} == {model.initial_state(1).nbytes} and cache.get_seq_length() == 180
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    cache.reset()
    assert not cache.is_initialized and cache.get_seq_length() == 0


def test_padding_leaves_no_trace(model):
    tokens = torch.randint(0, 500, (1, 20))
    pad = torch.zeros(1, 7, dtype=torch.long)
    left, ones = torch.cat([pad, tokens], 1), torch.ones_like(tokens)
    with torch.no_grad():
        alone = model(tokens).logits
        assert torch.allclose(model(left, attention_mask=torch.cat([pad, ones], 1)).logits[:, 7:], alone, atol=1e-5)
        right = model(torch.cat([tokens, pad], 1), attention_mask=torch.cat([ones, pad], 1))
        assert torch.allclose(right.logits[:, :20], alone, atol=1e-5)
        with pytest.raises(ValueError, match="gaps"):  # the padding is in the state: nothing can follow it
            model(tokens, attention_mask=torch.cat([ones, pad, ones], 1), past_key_values=right.past_key_values)


IDS = torch.zeros(1, 2, dtype=torch.long)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"inputs_embeds": torch.zeros(1, 2, 32)}, "not inputs_embeds"),
    ({"input_ids": IDS, "past_key_values": transformers.DynamicCache()}, "DynamicCache"),
    ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 2, 2)}, "rows, columns"),
])
def test_what_it_cannot_read_is_refused(inputs, message, model):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_decoding_that_takes_steps_back_is_refused(model, prompts):
    with pytest.raises(ValueError, match="stateful"):
        model.generate(prompts.input_ids[:1], assistant_model=model, max_new_tokens=4)


def test_the_vocabulary_is_fixed(model):
    assert model.resize_token_embeddings(model.config.vocab_size) is model.get_input_embeddings()
    with pytest.raises(ValueError, match="fixed at 520 tokens"):
        model.resize_token_embeddings(521)


def test_recomputing_gives_the_same_gradients(small_config):
    config = SymbolicLightConfig(**dataclasses.asdict(dataclasses.replace(small_config, dropout=0.2)))
    model = SymbolicLightForCausalLM(config).train()
    tokens = torch.randint(0, 520, (2, 24))
    calls, gradients = [], []
    for block in model.blocks:
        block.ffn.up.register_forward_hook(lambda *_: calls.append(1))
    for recompute in (False, True):
        if recompute:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        calls.clear()
        loss = model(tokens, labels=tokens).loss
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert len(calls) == config.n_layers * (1 + recompute)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) > 20


def test_the_loss_is_the_mean_over_the_labels(model):
    tokens = torch.randint(0, 500, (2, 12))
    labels = tokens.clone()
    labels[:, :5] = -100
    with torch.no_grad():
        out = model(tokens, labels=labels)
    log_p = out.logits[:, 4:-1].log_softmax(-1).gather(-1, tokens[:, 5:, None])
    assert float(out.loss) == pytest.approx(-float(log_p.mean()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_trainer_fine_tunes_it_and_the_result_is_our_checkpoint(folder, tokenizer, tmp_path):
    pytest.importorskip("accelerate")
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = ["the sun rose over the old city.", "春天的风吹过江南的小镇。", "def add(a, b):\n\treturn a + b\n"] * 4
    rows = [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]]
    options = transformers.TrainingArguments(
        tmp_path / "run", max_steps=12, per_device_train_batch_size=6, learning_rate=5e-3, logging_steps=1, seed=1,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(model, options, train_dataset=rows, data_collator=collator,
                                   processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    assert trainer.evaluate(rows)["eval_loss"] < losses[0]
    trainer.save_model(tmp_path / "tuned")
    ours, ours_tokenizer = symboliclight.load(tmp_path / "tuned")
    ids = torch.tensor([ours_tokenizer.encode(texts[0], bos=True)])
    with torch.no_grad():
        assert torch.equal(ours(ids)[0], model.eval()(ids).logits)


def test_pipeline_writes_text(model, tokenizer, small_model, small_tokenizer):
    write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = write("the sun\n", max_new_tokens=12, do_sample=False)[0]["generated_text"]
    ids = small_tokenizer.encode("the sun\n", bos=True)
    ours = generate(small_model, small_tokenizer, [ids], 12, Sampling(temperature=0))[0].text
    assert found.startswith("the sun\n" + ours[:8])


def test_bfloat16_runs(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.generate(**prompts, max_new_tokens=4).shape == (3, prompts.input_ids.shape[1] + 4)
