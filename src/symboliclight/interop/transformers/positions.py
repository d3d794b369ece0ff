"""Where tokens stand, as transformers tells it: a mask of absent columns, and position ids that start again.

Legend: B rows, T columns of one call, D width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from symboliclight.model.state import State

TELL_APART = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")  # arguments that repeat what position_ids say of documents
REPEAT = (*TELL_APART, "max_length_q", "max_length_k")


def present_columns(mask: Tensor, rows: int, columns: int) -> Tensor:
    """attention_mask (B, columns) as bool. Raises ValueError unless it has 0 or 1 for each column read so far."""
    if mask.dim() != 2:
        raise ValueError(f"attention_mask must be (rows, columns), got {mask.dim()} dimensions")
    if mask.shape != (rows, columns):
        raise ValueError(f"attention_mask must be ({rows}, {columns}), one entry for each column in the cache and in "
                         f"input_ids, got {tuple(mask.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must hold 0 (absent) and 1 (present) only, not values to be added to scores")
    return mask == 1


def left_padding(present: Tensor) -> Tensor:
    """Absent tokens on the left of each row, (B,), of (B, columns). Raises ValueError if a row has a gap."""
    count = present.long()
    left = (count.cumsum(1) == 0).sum(1)
    right = (count.flip(1).cumsum(1) == 0).sum(1)
    if bool((count.sum(1) < count.shape[1] - left - right).any()):
        raise ValueError("attention_mask has gaps between tokens; pad on the left: tokenizer.padding_side = 'left'")
    return left


def after_padding(state: State, read: int, left: Tensor) -> State:
    """`state` after `read` columns once it is known that each row has `left` (B,) absent ones in front.

    A row of which nothing but padding was read may turn out to have more of it: that left no trace. Raises ValueError
    where the mask says something else of columns than what they were read as.
    """
    position = read - left
    if bool((state.position == position).all()):
        return state
    if bool(((state.position != position) & ((state.position > 0) | (position > 0))).any()):
        raise ValueError("attention_mask does not fit the cache: it marks other columns as absent than when they were "
                         "read; pass the same mask with one more entry for each new column")
    return replace(state, position=position)


def document_starts(positions: Tensor, present: Tensor | None, state: State | None, read: int, shape: torch.Size
                    ) -> Tensor | None:
    """Where documents begin, (B, T) bool, by position_ids (B or 1, T); None where every row is one text.

    present: (B, T) or None where all are; state: what was read before, `read` columns, or None. Raises ValueError for
    ids that neither count on nor start again, and where they cannot be followed.
    """
    if positions.dim() != 2 or positions.shape[1] != shape[1] or len(positions) not in (1, shape[0]):
        raise ValueError(f"position_ids must be {tuple(shape)}, as input_ids are, got {tuple(positions.shape)}")
    positions = positions.expand(shape)
    if state is not None:
        here = torch.arange(shape[1], device=positions.device)
        known = state.position[:, None] + here
        present = known >= 0 if present is None else present
        fits = [((positions == wanted) | ~present).all(1) for wanted in (known, (read + here).expand(shape))]
        if read and not bool((fits[0] | fits[1]).all()):
            raise ValueError("position_ids do not go on from the cache; documents that start again are read without "
                             "past_key_values")
    jumps = positions[:, 1:] != positions[:, :-1] + 1
    if present is not None:
        jumps = jumps & present[:, 1:] & present[:, :-1]
    if not bool(jumps.any()):
        return None
    if bool((jumps & (positions[:, 1:] != positions[:, :1])).any()):
        raise ValueError("position_ids must count up by one, or start again where a document begins")
    if present is not None and not bool(present.all()):
        raise ValueError("position_ids start again in a row with padding; pack documents without attention_mask")
    return torch.cat([torch.ones_like(jumps[:, :1]), jumps], 1)


def check_starts(starts: Tensor | None, shape: torch.Size, others: dict[str, Any]) -> None:
    """Raise ValueError unless what else tells documents apart (`TELL_APART`) agrees with position_ids."""
    for name in [name for name in TELL_APART if others.get(name) is not None]:
        found = torch.as_tensor(others[name])
        if name == "seq_idx" and found.shape == shape:
            begins = torch.cat([torch.ones_like(found[:, :1]), found.diff(dim=1)], 1) != 0
        elif found.dim() == 1 and int(found[-1]) == shape.numel():
            begins = torch.zeros(shape, dtype=torch.bool, device=found.device)
            begins.view(-1)[found[:-1].long()] = True
        else:
            raise ValueError(f"{name} does not fit input_ids of shape {tuple(shape)}")
        alone = torch.zeros_like(begins)
        alone[:, 0] = True
        if not torch.equal(begins, alone if starts is None else starts):
            raise ValueError(f"{name} begins documents elsewhere than position_ids, which must be given and start "
                             "again with each document")


def read_documents(model: Any, tokens: Tensor, starts: Tensor) -> tuple[Tensor, State]:
    """What the head reads, (B, T, D), each document from a fresh state, and the state after the last one of each row.

    A document begins where `starts` (B, T) says. Those of similar length are read together, shorter ones padded.
    """
    flat, first = tokens.flatten(), starts.flatten().nonzero()[:, 0]
    lengths = torch.diff(first, append=first.new_tensor([tokens.numel()]))
    size = lengths.double().log2().ceil()
    features, columns, states, order = [], [], [], []
    for one in size.unique():
        chosen = (size == one).nonzero()[:, 0]
        width = int(lengths[chosen].max())
        padding = (width - lengths[chosen])[:, None]
        here = torch.arange(width, device=tokens.device)
        at = first[chosen, None] + here - padding  # (documents, width): the column in `flat`
        present = here >= padding
        c, _, state = model.features(flat[at.clamp(min=0)], model.initial_state(len(chosen), padding[:, 0]))
        features.append(c[present])
        columns.append(at[present])
        states.append(state)
        order.append(chosen)
    last = starts.sum(1).cumsum(0) - 1
    state = State.batch(states).rows(torch.cat(order).argsort()[last])
    return torch.cat(features)[torch.cat(columns).argsort()].view(*tokens.shape, -1), state
