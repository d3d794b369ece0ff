"""Gated window attention: what a query sees, by hand; every form against the loop and finite differences."""

import pytest
import torch
from forms import NATIVE, Made, agree, both_dtypes, close, every_form, normal, scattered, three_lengths
from torch.nn.attention.flex_attention import create_mask

from symboliclight.ops import native, torch_forms, window_attention, window_attention_loop
from symboliclight.ops.flex import block_mask, flex_window_attention


def inputs(T, R=0, A=4, position=None, dtype=torch.float32, B=2, H=2, K=16, open_=0.7):
    """q, k, v, gate, anchor keys, values and gate, position; the calls after R keys, anchors seen long ago."""
    S = R + T
    gate = torch.rand(B, S, generator=torch.Generator().manual_seed(3)) < open_
    position = [R] * B if position is None else position
    return [
        normal(B, T, H, K, dtype=dtype),
        normal(B, S, H, K, seed=1, dtype=dtype), normal(B, S, H, K, seed=2, dtype=dtype), gate,
        normal(B, A, H, K, seed=4, dtype=dtype), normal(B, A, H, K, seed=5, dtype=dtype),
        torch.arange(B * A).view(B, A) % 3 > 0, torch.tensor(position),
    ]


def visible(form, T, W, A, gate, position=0, R=0):
    """Which value each query sees: equal scores, so the output over one-hot values is 1 / count where seen."""
    S = R + T
    k = torch.zeros(1, S, 1, S + A, device=form.device)
    values = torch.eye(S + A, device=form.device)[None, :, None]
    gate = torch.tensor([gate], device=form.device) > 0
    with form.active():
        out = window_attention(
            k[:, :T], k, values[:, :S], gate, k[:, :1].expand(-1, A, -1, -1), values[:, S:],
            torch.ones(1, A, dtype=torch.bool, device=form.device), torch.tensor([position], device=form.device), W)
    seen = (out[0, :, 0] > 0).int().tolist()
    weights = out[0, :, 0].sum(-1)
    assert all(abs(w - 1) < 1e-6 or w == 0 for w in weights.tolist())
    return seen


@every_form
def test_a_query_sees_itself_and_the_window_before_it(form):
    assert visible(form, 4, 2, 0, [1, 1, 1, 1]) == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


@every_form
def test_a_closed_gate_hides_the_key_and_silences_the_query(form):
    assert visible(form, 4, 2, 0, [0, 1, 0, 1]) == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


@every_form
def test_an_anchor_counts_once_it_has_left_the_window(form):
    """W = 1, A = 2: position 2 reaches anchor 0, position 3 anchors 0 and 1; columns 4 and 5 are the anchors."""
    assert visible(form, 4, 1, 2, [1, 1, 1, 1]) == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1]]


@every_form
def test_no_window_leaves_the_query_itself(form):
    assert visible(form, 3, 0, 0, [1, 1, 1]) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@every_form
def test_keys_of_the_state_come_before_the_first_query(form):
    assert visible(form, 2, 2, 0, [1, 0, 1, 1], R=2, position=2) == [[1, 0, 1, 0], [0, 0, 1, 1]]


@every_form
def test_left_padding_moves_the_anchors(form):
    """Two absent tokens: position 0 is the third query, and anchor 0 leaves its window of 1 at the fifth."""
    assert visible(form, 5, 1, 1, [0, 0, 1, 1, 1], position=-2)[2:] == [
        [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]


@every_form
@both_dtypes
@three_lengths
def test_outputs_and_all_gradients_are_those_of_the_loop(form, dtype, T):
    agree(form, window_attention, window_attention_loop, inputs(T, dtype=dtype), 60)


CASES = {
    "ring of one call": {"T": 1, "R": 7, "W": 7},
    "part of a ring": {"T": 20, "R": 3, "W": 7},
    "full ring": {"T": 20, "R": 7, "W": 7, "position": [500, 7]},
    "no window": {"T": 9, "W": 0},
    "no window, ring empty, later": {"T": 9, "W": 0, "position": [3, 90]},
    "no anchors": {"T": 40, "R": 5, "W": 11, "A": 0},
    "anchors inside and outside": {"T": 30, "W": 12, "A": 9},
    "left padding": {"T": 30, "W": 5, "position": [-11, -29]},
    "left padding, then a ring": {"T": 12, "R": 5, "W": 5, "position": [-7, 3]},
    "window beyond the text": {"T": 33, "W": 1000},
    "many windows": {"T": 400, "W": 33},
    "window of a block and one": {"T": 300, "R": 100, "W": 129},
    "wide heads": {"T": 19, "W": 6, "K": 64, "H": 3},
    "all gates shut": {"T": 12, "W": 6, "open_": 0.0},
    "all gates open": {"T": 150, "W": 6, "open_": 1.0},
}


@every_form
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", [torch.clone, scattered], ids=["contiguous", "scattered"])
def test_windows_rings_anchors_and_padding(form, case, layout):
    case = dict(case)
    window = case.pop("W")
    agree(form, window_attention, window_attention_loop, [layout(t) for t in inputs(**case)], window)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flex_attention_gives_the_outputs_of_the_loop(case):
    """Forward and eager: torch has no FlexAttention backward on the CPU. On a GPU the form "cuda" covers both."""
    case = dict(case)
    window = case.pop("W")
    tensors = inputs(**case)
    close(flex_window_attention(*tensors, window), window_attention_loop(*tensors, window), 3e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flex_attention_reads_every_block_that_is_seen_and_few_others(case):
    case = dict(case)
    window = case.pop("W")
    q, _, _, gate, _, _, anchor_gate, position = inputs(**case)
    T, S = q.shape[1], anchor_gate.shape[1] + gate.shape[1]
    mask = block_mask(T, gate, anchor_gate, position, window)
    pairs = create_mask(mask.mask_mod, len(q), 1, T, S, "cpu")
    read = mask.to_dense().bool().repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :T, :S]
    assert not (pairs & ~read).any()
    assert mask.kv_num_blocks.max() <= window // 128 + 4


def in_chunks(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, window):
    outputs, start = [], 0
    for part in q.split([1, 7, 1, q.shape[1] - 9], 1):
        end = start + part.shape[1]
        seen = slice(max(start - window, 0), end)
        outputs.append(window_attention(
            part, k[:, seen], v[:, seen], gate[:, seen], anchor_k, anchor_v, anchor_gate, position + start, window))
        start = end
    return torch.cat(outputs, 1)


@every_form
@pytest.mark.parametrize("window", [0, 5, 20])
def test_chunks_equal_the_whole_in_outputs_and_gradients(form, window):
    agree(form, in_chunks, window_attention, inputs(60), window)


@every_form
def test_what_is_not_seen_has_no_effect_and_no_gradient(form):
    q, k, v, gate, anchor_k, anchor_v, anchor_gate, position = (t.to(form.device) for t in inputs(50))
    hidden = ~gate[..., None, None]
    leaves = [t.requires_grad_() for t in (k, v)]
    rest = gate, anchor_k, anchor_v, anchor_gate, position, 9
    with form.active():
        out = window_attention(q, k, v, *rest)
        out.sum().backward()
        changed = window_attention(q, k + 1e4 * hidden, v + 1e4 * hidden, *rest)
    close(changed, out.detach().cpu(), 1e-6)
    assert out[~gate].eq(0).all()
    for leaf in leaves:
        assert leaf.grad[~gate].eq(0).all()


def test_gradients_are_those_of_finite_differences():
    q, k, v, gate, anchor_k, anchor_v, anchor_gate, position = inputs(7, R=2, B=1, H=1, K=2, A=2, dtype=torch.float64)

    def attend(q, k, v, anchor_k, anchor_v):
        return window_attention(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, 3)

    leaves = [t.requires_grad_() for t in (q, k, v, anchor_k, anchor_v)]
    assert torch.autograd.gradcheck(attend, leaves)


def test_work_and_memory_are_linear_in_length():
    def made(T):
        tensors = [t.requires_grad_(t.is_floating_point()) for t in inputs(T, B=1)]
        with torch_forms(), Made() as count:
            window_attention(*tensors, 64).sum().backward()
        return count

    short, long = made(1024), made(4096)
    assert long.largest <= 4.1 * short.largest
    assert long.total <= 4.4 * short.total


@pytest.mark.skipif(not NATIVE, reason="no native build here")
def test_registration_is_sound():
    tensors = [t.requires_grad_(t.is_floating_point()) for t in inputs(5, R=3)]
    torch.library.opcheck(native.window_attention, (*tensors, 3))
