"""Figures from hand-made sums, and evaluation of real shards against plain recomputation."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import symboliclight
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.data import eval_windows
from symboliclight.measure.evaluate import LANGUAGES, Languages, Tally, evaluate, evaluate_text, figures

ZH, EN, OTHER = range(3)


def hand_made():
    """Two domains: 4 tokens with 1 nat each and 2 bytes a token; 1 token with 3 nats and 2 bytes."""
    first, second = Tally(), Tally()
    first.add_loss(np.ones((1, 4)), np.full((1, 4), 2), np.array([[ZH, ZH, EN, OTHER]]))
    second.add_loss(np.full((1, 1), 3.0), np.full((1, 1), 2), np.array([[EN]]))
    first.add_spikes("encoder", np.array([[0, 5, 1, 0]]), 10, np.array([[ZH, ZH, EN, EN]]), 4)
    second.add_spikes("encoder", np.array([[4]]), 10, np.array([[EN]]), 4)
    return {"a": first, "b": second}


def test_loss_figures_are_quotients_of_the_sums():
    out = figures(hand_made(), {})
    assert out["domains"]["a"] == {"tokens": 4, "bytes": 8, "nats_per_token": 1.0, "perplexity": math.e,
                                   "bits_per_byte": pytest.approx(0.5 / math.log(2)), "bytes_per_token": 2.0}
    assert out["languages"]["zh"]["tokens"] == 2 and out["languages"]["other"]["tokens"] == 1
    assert out["languages"]["en"]["nats_per_token"] == 2.0


def test_both_means_over_domains_are_what_they_say():
    mean = figures(hand_made(), {})["mean"]
    assert mean["token_weighted"]["nats_per_token"] == pytest.approx(7 / 5)
    assert mean["token_weighted"]["perplexity"] == pytest.approx(math.exp(7 / 5))
    assert mean["token_weighted"]["bits_per_byte"] == pytest.approx(7 / 10 / math.log(2))
    assert mean["unweighted"]["perplexity"] == pytest.approx((math.e + math.e**3) / 2)
    assert mean["unweighted"]["bits_per_byte"] == pytest.approx((0.5 + 1.5) / 2 / math.log(2))


def test_sparsity_is_split_by_site_domain_language_and_position():
    s = figures(hand_made(), {0: "encoder", 1: "blocks.0"})["sparsity"]
    assert s["sites"] == {"encoder": pytest.approx(1 - 10 / 50)}
    assert s["counts"] == {"encoder": {"active": 10, "total": 50}}
    assert s["domains"]["a"]["encoder"] == pytest.approx(1 - 6 / 40)
    assert s["languages"] == {"zh": {"encoder": pytest.approx(0.75)}, "en": {"encoder": pytest.approx(1 - 5 / 30)}}
    assert [(b["from"], b["to"]) for b in s["positions"]] == [(0, 1), (1, 2), (2, 4)]
    assert [b["sites"]["encoder"] for b in s["positions"]] == pytest.approx([0.8, 0.5, 0.95])
    assert s["gate_open"] == {"0": 3 / 5}


def test_a_model_without_spikes_has_loss_figures_only():
    tally = Tally()
    tally.add_loss(np.ones((1, 1)), np.zeros((1, 1), int), np.array([[OTHER]]))
    out = figures({"a": tally}, {})
    assert out["domains"]["a"]["bits_per_byte"] is None and out["mean"]["unweighted"]["bits_per_byte"] is None
    assert out["sparsity"]["sites"] == {} and out["sparsity"]["positions"] == []


def test_languages_go_by_the_characters_of_a_token_byte_pieces_included(small_tokenizer):
    languages = Languages(small_tokenizer)
    for text, expected in (("the river", "en"), ("春天", "zh"), ("铼", "zh"), ("12 ;\n", "other"), ("🙂", "other")):
        ids = np.array([small_tokenizer.encode(text)])
        found = {LANGUAGES[i] for i, piece in zip(languages(ids)[0], ids[0], strict=True)
                 if small_tokenizer.decode([int(piece)]).strip()}
        assert found == {expected}, text
    assert languages(np.array([[small_tokenizer.bos_id, small_tokenizer.eos_id]])).tolist() == [[OTHER, OTHER]]


class Uniform(torch.nn.Module):
    """Every token equally likely."""

    def __init__(self, config):
        super().__init__()
        self.config, self.weight = config, torch.nn.Parameter(torch.zeros(1))

    def features(self, tokens, state=None):
        return torch.zeros(*tokens.shape, 1), [], None

    def head(self, c):
        return torch.zeros(*c.shape[:-1], self.config.vocab_size)


def test_a_uniform_model_costs_log_v_everywhere(small_config, small_tokenizer, small_shards):
    out = evaluate(Uniform(small_config), small_tokenizer, small_shards, max_tokens=500, seq_len=50)
    v = small_config.vocab_size
    for name, domain in out["domains"].items():
        windows = list(eval_windows(small_shards, "validation", name, 50, 500))
        size = sum(int(small_tokenizer.piece_bytes[t].sum()) for _, t in windows)
        tokens = sum(t.size for _, t in windows)
        assert domain["perplexity"] == pytest.approx(v, rel=1e-5)
        assert (domain["tokens"], domain["bytes"]) == (tokens, size)
        assert domain["bits_per_byte"] == pytest.approx(math.log2(v) * tokens / size, rel=1e-5)


@torch.no_grad()
def test_figures_of_a_real_model_agree_with_a_plain_recomputation(small_model, small_tokenizer, small_shards):
    out = evaluate(small_model, small_tokenizer, small_shards, max_tokens=300, seq_len=30)
    active = total = 0
    for name in ("chinese", "english"):
        nats = count = 0
        for tokens, targets in eval_windows(small_shards, "validation", name, 30, 300):
            logits, _ = small_model(torch.from_numpy(tokens))
            logp = logits.log_softmax(-1).gather(-1, torch.from_numpy(targets)[..., None])
            nats, count = nats - float(logp.double().sum()), count + targets.size
            spikes, _, _ = small_model.encoder(torch.from_numpy(tokens), torch.zeros(len(tokens), 32), None)
            active, total = active + int(spikes.sum()), total + spikes.numel()
        assert out["domains"][name]["nats_per_token"] == pytest.approx(nats / count, rel=1e-6)
    assert out["sparsity"]["counts"]["encoder"] == {"active": active, "total": total}
    assert list(out["sparsity"]["sites"]) == ["encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"]
    for key in ("tokens", "bytes"):
        assert sum(d[key] for d in out["languages"].values()) == sum(d[key] for d in out["domains"].values())
    assert all(out["languages"][name]["tokens"] > 50 for name in ("zh", "en"))


def test_evaluation_is_deterministic_plain_json_with_its_provenance(small_model, small_tokenizer, small_shards):
    seen = []
    out = evaluate(small_model, small_tokenizer, small_shards, max_tokens=200, seq_len=20, on_tokens=seen.append)
    assert evaluate(small_model, small_tokenizer, small_shards, max_tokens=200, seq_len=20) == out
    assert json.loads(json.dumps(out)) == out
    assert sum(seen) == out["mean"]["token_weighted"]["tokens"]
    assert out["data_hash"] == small_shards.data_hash and out["tokenizer_hash"] == small_tokenizer.hash
    assert (out["split"], out["seq_len"], out["max_tokens"]) == ("validation", 20, 200)
    assert out["config"]["d_model"] == 32 and out["parameters"] == sum(p.numel() for p in small_model.parameters())


def test_gpt2_is_evaluated_on_the_same_windows(small_config, small_tokenizer, small_shards):
    gpt2 = symboliclight.build(ModelConfig(**{**vars(small_config), "family": "gpt2", "d_ff": 128})).eval()
    out = evaluate(gpt2, small_tokenizer, small_shards, max_tokens=200)
    assert out["sparsity"]["sites"] == {} and out["seq_len"] == 64
    assert 0.3 < out["mean"]["token_weighted"]["nats_per_token"] / math.log(small_config.vocab_size) < 1.3


def test_a_text_is_predicted_once_token_by_token(small_config, small_tokenizer):
    text = "春天的风 and the river\n" * 9
    out = evaluate_text(Uniform(small_config), small_tokenizer, text, seq_len=32)
    assert out["domains"]["text"]["tokens"] == len(small_tokenizer.encode(text))
    assert out["domains"]["text"]["bytes"] == len(text.encode())


@torch.no_grad()
def test_windows_of_a_text_start_without_a_state(small_model, small_tokenizer):
    text = "the old city, " * 12
    ids = torch.tensor([small_tokenizer.encode(text, bos=True)])
    nats = 0.0
    for s in range(0, ids.shape[1] - 1, 20):
        part = ids[:, s : s + 21]
        nats -= float(small_model(part[:, :-1])[0].log_softmax(-1).gather(-1, part[:, 1:, None]).double().sum())
    out = evaluate_text(small_model, small_tokenizer, text, seq_len=20)
    assert out["domains"]["text"]["nats_per_token"] == pytest.approx(nats / (ids.shape[1] - 1), rel=1e-6)


def test_what_does_not_fit_together_is_refused(small_model, small_config, small_tokenizer, small_shards):
    with pytest.raises(InputError, match="is empty"):
        evaluate_text(small_model, small_tokenizer, "")
    small = symboliclight.build(replace(small_config, vocab_size=100))
    with pytest.raises(InputError, match="has 520 pieces, the model only 100"):
        evaluate(small, small_tokenizer, small_shards)
    from symboliclight.core.tokenizer import train

    other = train(["another text entirely " * 50], 300).tokenizer
    with pytest.raises(InputError, match="made with another tokenizer"):
        evaluate(small_model, other, small_shards)
