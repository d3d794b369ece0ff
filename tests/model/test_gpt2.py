"""The GPT-2 baseline behind the seam: same maths as transformers, same contract as SymbolicLight."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import symboliclight
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.model.gpt2 import GPT2, GPT2State
from symboliclight.ops import linear_cross_entropy

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return symboliclight.build(preset("gpt2-tiny")).eval()


@pytest.fixture
def tokens():
    return torch.randint(4096, (2, 40), generator=torch.Generator().manual_seed(1))


def count(name):
    with torch.device("meta"):
        return sum(p.numel() for p in symboliclight.build(preset(name)).parameters())


@pytest.mark.parametrize("name", ["mini", "tiny"])
def test_each_study_size_matches_its_spiking_twin_within_two_percent(name):
    assert abs(count(f"gpt2-{name}") / count(name) - 1) < 0.02


@pytest.mark.parametrize(("name", "parameters"), [("gpt2-124m", 122_313_216), ("gpt2-201m", 200_833_024)])
def test_published_baselines_have_their_published_size(name, parameters):
    assert count(name) == parameters


def test_logits_are_those_of_transformers_with_the_same_weights(model, tokens):
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_positions=256, n_embd=192, n_layer=3, n_head=6,
                                        bos_token_id=None, eos_token_id=None)).eval()
    missing = theirs.load_state_dict(model.state_dict(), strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys
    theirs.tie_weights()
    torch.testing.assert_close(model(tokens)[0], theirs(tokens).logits, **CLOSE)


def test_it_starts_as_gpt2_does(model):
    weights = dict(model.named_parameters())
    for name, expected in {"wte.weight": 0.02, "wpe.weight": 0.02, "h.0.attn.c_attn.weight": 0.02,
                           "h.0.mlp.c_fc.weight": 0.02, "h.1.attn.c_proj.weight": 0.02 / math.sqrt(6),
                           "h.1.mlp.c_proj.weight": 0.02 / math.sqrt(6)}.items():
        assert weights[f"transformer.{name}"].std().item() == pytest.approx(expected, rel=0.03), name


def test_whole_equals_chunked_equals_one_by_one(model, tokens):
    whole, last = model(tokens)
    for sizes in ([17, 1, 22], [1] * 40):
        state, parts = None, []
        for chunk in tokens.split(sizes, 1):
            logits, state = model(chunk, state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
        assert state.position.tolist() == last.position.tolist() == [40, 40]


def test_left_padded_rows_equal_single_rows(model, tokens):
    short = tokens[1:, 29:]
    padded = torch.cat([torch.zeros(1, 29, dtype=torch.long), short], 1)
    batch = torch.cat([tokens[:1], padded])
    state = model.initial_state(2, torch.tensor([0, 29]))
    first, state = model(batch[:, :35], state)
    second, state = model(batch[:, 35:], state)
    logits = torch.cat([first, second], 1)
    assert state.position.tolist() == [40, 11]
    torch.testing.assert_close(logits[:1], model(tokens[:1])[0], **CLOSE)
    torch.testing.assert_close(logits[1:, 29:], model(short)[0], **CLOSE)


def test_the_future_does_not_change_the_past(model, tokens):
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 4096
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=0)
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_states_are_saved_copied_reordered_and_joined(model, tokens):
    _, long = model(tokens[:1, :20])
    _, short = model(tokens[1:, :9])
    kept = long.copy()
    joined = GPT2State.batch([long, short]).rows([1, 0, 1])
    joined = GPT2State.from_tensors(joined.tensors(), 3)
    new = tokens[:1, 30:33].expand(3, -1)
    logits, after = model(new, joined)
    assert after.position.tolist() == [12, 23, 12]
    expected = model(torch.cat([tokens[1:, :9], tokens[:1, 30:33]], 1))[0][:, 9:]
    torch.testing.assert_close(logits[[0, 2]], expected.expand(2, -1, -1), **CLOSE)
    torch.testing.assert_close(logits[1:2], model(new[:1], kept)[0], **CLOSE)
    assert kept.nbytes == 8 + 2 * 3 * 20 * 192 * 4


def test_reading_on_leaves_an_older_state_as_it_was(model, tokens):
    _, state = model(tokens[:, :8])
    once = model(tokens[:, 8:12], state)[0]
    again = model(tokens[:, 8:12], state)[0]
    assert torch.equal(once, again) and state.position.tolist() == [8, 8]


def test_more_tokens_than_positions_are_refused_with_the_limit(model):
    _, state = model(torch.zeros(1, 256, dtype=torch.long))
    for tokens, past in ((torch.zeros(1, 257, dtype=torch.long), None), (torch.zeros(1, 1, dtype=torch.long), state)):
        with pytest.raises(InputError, match="at most 256 tokens"):
            model(tokens, past)


def test_the_training_loss_reaches_every_parameter_and_keeps_no_cache(tokens):
    model = GPT2(preset("gpt2-tiny")).train()
    hidden, aux, state = model.features(tokens[:, :-1])
    loss, nll = linear_cross_entropy(*model.head.terms(hidden)[:2], tokens[:, 1:])
    loss.backward()
    assert aux == [] and state is None
    assert nll.item() == pytest.approx(math.log(4096), rel=0.05)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
